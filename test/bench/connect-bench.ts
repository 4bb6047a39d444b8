/** How long connect() takes: untouched, redirected, and by others' means. */
import { connect } from '../../deploy/stage/sock.ts';
import type { BenchNode, WayName } from './bench-node.ts';
import { attachedPrograms, difference, enableStatistics } from './program-statistics.ts';
import { median, order, ratio, type Ratio } from './statistics.ts';

export interface ConnectFigures {
  /** Median of connect(), nanoseconds. */
  readonly p50: Readonly<Record<WayName, number>>;
  /** To `direct`, over the bridge to `node_direct`, and with options to `redirected`. */
  readonly ratios: Readonly<Record<WayName, Ratio>>;
}

/** What the listener at each way's end says: the destination that it was asked for, or the errno where there is none. */
const ANSWERS: Partial<Record<WayName, RegExp>> = {
  direct: /^proxy (?!10\.)/, // the server has no original destination
  untouched: /^proxy (?!10\.)/,
  untouched_host: /^proxy (?!10\.)/,
  redirected: /^proxy 10\.88\.0\.1:8080 /,
  redirected_options: /^proxy 10\.88\.0\.1:8080 /,
  iptables_redirect: /^proxy 10\.88\.0\.1:8080 /,
  node_direct: /^proxy (?!10\.)/,
  node_redirected: /^proxy 10\.77\.0\.\d+:8080 /,
};

/** Makes sure of what is measured: each way leads where it should, and none of our programs runs in the direct one. */
export async function checkWays(node: BenchNode): Promise<void> {
  using _statistics = enableStatistics();
  await node.prepare(node.ways.redirected);
  using programs = attachedPrograms(node.bpffsRoot);
  for (const [name, expected] of Object.entries(ANSWERS) as [WayName, RegExp][]) {
    const way = node.ways[name];
    await node.prepare(way);
    const before = programs.runTimes();
    const result = await connect(way.place, way.address, 8080);
    const ran = difference(before, programs.runTimes());
    if (!result.ok) throw new Error(`${name}: ${result.step} failed with ${result.errno}`);
    if (!expected.test(result.reply))
      throw new Error(`${name}: the answer "${result.reply}" is not ${expected}`);
    if (way.attached !== ran.size > 0) {
      throw new Error(
        `${name}: our programs should ${way.attached ? '' : 'not '}be attached, and these ran: ${[...ran.keys()].join(', ') || 'none'}`,
      );
    }
  }
}

/** Each round measures every way once, in an order of its own. */
export async function benchConnect(node: BenchNode, rounds: number, count: number): Promise<ConnectFigures> {
  const names = Object.keys(node.ways) as WayName[];
  const of = <T>(value: (name: WayName) => T): Record<WayName, T> =>
    Object.fromEntries(names.map((name) => [name, value(name)])) as Record<WayName, T>;
  const measured = of((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    for (const name of order.shuffled(names)) {
      const way = node.ways[name];
      await node.prepare(way);
      measured[name].push(await node.connect(way, count));
    }
  }
  return {
    p50: of((name) => median(measured[name])),
    ratios: of((name) => ratio(measured[name], measured[baseOf(name)])),
  };
}

function baseOf(name: WayName): WayName {
  if (name === 'redirected_options') return 'redirected';
  return name.startsWith('node_') ? 'node_direct' : 'direct';
}

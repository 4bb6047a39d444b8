/**
 * `npm run bench`: what cgroute costs on this machine, beside its goals. Exits
 * with 0 when all was measured, whether or not the goals are met.
 */
import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { parseArgs } from 'node:util';
import { messageOf } from '../../native/error.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { makeBenchNode } from './bench-node.ts';
import { benchConnect, checkWays } from './connect-bench.ts';
import { benchHost } from './host-bench.ts';
import { benchIdentity } from './identity-bench.ts';
import { benchKube } from './kube-bench.ts';
import { kubeResult } from './kube-section.ts';
import { benchLatency } from './latency-bench.ts';
import { hostResult, identityResult, stormResult, upgradeResult } from './life-sections.ts';
import { benchMemory } from './memory-bench.ts';
import { benchEmpty, benchPeerName, benchPrograms } from './program-bench.ts';
import { scaleResult, sidecarResult, turnoverResult } from './pod-sections.ts';
import { isMet, sectionText, verdictText } from './report.ts';
import { benchScale } from './scale-bench.ts';
import { connectResult, latencyResult, memoryResult, programResult, type Result } from './sections.ts';
import { benchSidecar } from './sidecar-bench.ts';
import { benchStorm } from './storm-bench.ts';
import { order } from './statistics.ts';
import { benchTurnover } from './turnover-bench.ts';
import { benchUpgrade } from './upgrade-bench.ts';

const SECTIONS = [
  'connect',
  'program',
  'latency',
  'memory',
  'mkdir',
  'storm',
  'host',
  'upgrade',
  'sidecar',
  'scale',
  'turnover',
  'kube',
] as const;
type SectionName = (typeof SECTIONS)[number];
/** They take a real API server. */
const KUBE_SECTIONS: ReadonlySet<SectionName> = new Set(['turnover', 'kube']);

const USAGE = `usage: npm run bench -- [--rounds N] [--quick] [--only SECTION,...] [--json FILE]
  --rounds N   rounds in which each way of connecting is measured once (default 100, with --quick 15)
  --quick      less of everything: some minutes, noisier figures
  --only       some of the sections: ${SECTIONS.join(', ')}
  --json FILE  the figures as JSON too`;

interface Options {
  readonly rounds: number;
  readonly quick: boolean;
  readonly only: readonly SectionName[];
  readonly json: string | undefined;
}

class UsageError extends Error {}

function parseOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      rounds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      json: { type: 'string' },
    },
  });
  const rounds = Number(values.rounds ?? (values.quick ? 15 : 100));
  if (!Number.isInteger(rounds) || rounds < 1)
    throw new UsageError(`--rounds must be a whole number from 1, not "${values.rounds}"`);
  const only =
    values.only === undefined
      ? SECTIONS
      : values.only.split(',').map((name) => {
          const known = SECTIONS.find((section) => section === name);
          if (known === undefined)
            throw new UsageError(`--only must name sections (${SECTIONS.join(', ')}), not "${name}"`);
          return known;
        });
  return { rounds, quick: values.quick, only, json: values.json };
}

async function connectSection({ rounds, quick }: Options): Promise<Result> {
  const count = quick ? 300 : 500;
  await using node = await makeBenchNode();
  await checkWays(node);
  const figures = await benchConnect(node, rounds, count);
  const priority = node.hasPriority
    ? 'clients and listeners with real-time priority, not pinned to a CPU'
    : 'without real-time priority, which this machine refuses: noisy';
  return connectResult(figures, [
    `${rounds} rounds of ${count} connections, in another order each round; ${priority}`,
  ]);
}

async function programSection({ quick }: Options): Promise<Result> {
  const [rounds, count] = quick ? [3, 1000] : [9, 2000];
  await using node = await makeBenchNode();
  await checkWays(node);
  const empty = await benchEmpty(node, rounds, count);
  const ways = await benchPrograms(node, ['redirected', 'untouched', 'untouched_host'], rounds, count);
  return programResult({ empty, ways, peerName: await benchPeerName(node, quick ? 100 : 300) });
}

async function sidecarSection({ rounds, quick }: Options): Promise<Result> {
  const count = quick ? 200 : 300;
  return sidecarResult(await benchSidecar(rounds, count), rounds, count);
}

const MEASURE: Readonly<Record<SectionName, (options: Options) => Promise<Result>>> = {
  connect: connectSection,
  program: programSection,
  latency: async ({ quick }) => latencyResult(await benchLatency(quick ? 50 : 200)),
  mkdir: async ({ quick }) => identityResult(await benchIdentity(quick ? 3 : 9, 200)),
  storm: async ({ quick }) => stormResult(await benchStorm(quick ? 5 : 30, quick ? 400 : 600)),
  host: async ({ quick }) => hostResult(await benchHost(quick ? 3 : 9)),
  upgrade: async ({ quick }) => upgradeResult(await benchUpgrade(quick ? 3 : 9)),
  sidecar: sidecarSection,
  scale: async ({ quick }) => scaleResult(await benchScale(quick)),
  turnover: async ({ quick }) => turnoverResult(await benchTurnover(quick)),
  memory: async ({ quick }) => memoryResult(await benchMemory(quick)),
  kube: async ({ quick }) => kubeResult(await benchKube(quick)),
};

async function main(options: Options): Promise<void> {
  const started = performance.now();
  const machine = {
    kernel: release(),
    cpus: cpus().length,
    cpu: cpus()[0]?.model ?? 'unknown',
    node: process.version,
  };
  console.log(`cgroute on Linux ${machine.kernel}, ${machine.cpus} x ${machine.cpu}, SEED=${order.seed}\n`);
  const results: Result[] = [];
  for (const name of options.only) {
    if (KUBE_SECTIONS.has(name) && KUBE_MISSING !== false) {
      console.log(`the section ${name} is SKIPPED: ${KUBE_MISSING}\n`);
      continue;
    }
    const result = await MEASURE[name](options);
    results.push(result);
    console.log(sectionText(result.section));
  }
  const goals = results.flatMap(({ section }) =>
    section.rows.flatMap(({ goal }) => (goal === undefined ? [] : [goal])),
  );
  const seconds = Math.round((performance.now() - started) / 1000);
  console.log(`${verdictText(goals)} (${seconds} s)`);
  if (options.json === undefined) return;
  const figures = {
    // Where two sections say `rss_mb`, it is the first one's, with a file as the source; the other's is in `kube_rss_mb` too.
    ...(Object.assign({}, ...results.toReversed().map(({ json }) => json)) as Record<string, unknown>),
    goals: goals.map((goal) => ({
      name: goal.name,
      value: Number(goal.value.toFixed(3)),
      at_most: goal.atMost,
      met: isMet(goal),
    })),
    machine,
    rounds: options.rounds,
    quick: options.quick,
    seconds,
  };
  writeFileSync(options.json, `${JSON.stringify(figures, null, 2)}\n`);
}

try {
  await main(parseOptions(process.argv.slice(2)));
} catch (error) {
  const isUsage =
    error instanceof UsageError ||
    (error as NodeJS.ErrnoException).code?.startsWith('ERR_PARSE_ARGS') === true;
  console.error(
    isUsage ? `bench: ${messageOf(error)}\n${USAGE}` : `bench: the measuring failed: ${messageOf(error)}`,
  );
  if (!isUsage && error instanceof Error && error.stack !== undefined) console.error(error.stack);
  process.exitCode = isUsage ? 2 : 1;
}
// A whole run was seen to go on without doing anything when all had been printed.
process.exit();

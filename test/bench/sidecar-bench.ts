/**
 * How long a connection takes to and from three pods side by side: one without a
 * sidecar, one whose sidecar is bypassed by its label, and one that goes through it.
 * The agent is the one that is shipped; nothing but the label tells the two apart.
 */
import type { NetworkHost } from '../../deploy/stage/netns.ts';
import { startNode, type TestNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { installSidecarRules, ownRules, startSidecar } from '../../deploy/stage/sidecar.ts';
import { connect, listen, type Place, SOCK } from '../../deploy/stage/sock.ts';
import { hasPriority, PRIORITY } from './kube-pods.ts';
import { median, order, ratio, type Ratio } from './statistics.ts';
import { BYPASS, SIDECAR_STATUS } from '../harness/label-names.ts';

const PORT = 8081;
const STATUS = { [SIDECAR_STATUS]: '{}' };
const BYPASSED = { [BYPASS]: 'enabled' };
/** What a sidecar passes to its application comes from there. */
const SIDECAR_SOURCE = '127.0.0.6';

/** `control` is a second pod like `plain`, to see the noise. */
export const SIDECAR_WAYS = ['plain', 'control', 'bypassed', 'sidecar'] as const;
export type SidecarWay = (typeof SIDECAR_WAYS)[number];
export const DIRECTIONS = ['outbound', 'inbound'] as const;
export type Direction = (typeof DIRECTIONS)[number];
/** Until connect() returns, or until the first line of the one at the far end is there. */
export const MOMENTS = ['connected', 'answered'] as const;
export type Moment = (typeof MOMENTS)[number];

export interface WayFigures {
  /** Median, nanoseconds. */
  readonly p50: number;
  readonly toPlain: Ratio;
  readonly toSidecar: Ratio;
}

export type DirectionFigures = Readonly<Record<Moment, Readonly<Record<SidecarWay, WayFigures>>>>;

export interface SidecarBenchFigures {
  readonly directions: Readonly<Record<Direction, DirectionFigures>>;
  readonly isAhead: boolean;
}

interface Scene {
  readonly node: TestNode;
  readonly pods: Readonly<Record<SidecarWay, NodePod>>;
  readonly server: NetworkHost;
  readonly isAhead: boolean;
}

const record = <K extends string, V>(keys: readonly K[], value: (key: K) => V): Record<K, V> =>
  Object.fromEntries(keys.map((key) => [key, value(key)])) as Record<K, V>;

async function serve(node: TestNode, place: Place, isAhead: boolean): Promise<void> {
  const { running } = await listen(node.sandbox, place, 'serve', '0.0.0.0', [PORT], '--quiet');
  if (isAhead) await must({ cmd: 'chrt', args: ['-f', '-p', PRIORITY, String(running.pid)] });
}

async function addPod(node: TestNode, way: SidecarWay, isAhead: boolean): Promise<NodePod> {
  const hasSidecar = way === 'bypassed' || way === 'sidecar';
  const pod = await node.addPod({
    name: way,
    ...(hasSidecar && { annotations: STATUS }),
    ...(way === 'bypassed' && { labels: BYPASSED }),
  });
  await serve(node, pod.place, isAhead);
  if (!hasSidecar) return pod;
  await installSidecarRules(pod.host.netns);
  const { running } = await startSidecar(node.sandbox, pod.host, pod.place);
  if (isAhead) await must({ cmd: 'chrt', args: ['-a', '-f', '-p', PRIORITY, String(running.pid)] });
  return pod;
}

async function makeScene(node: TestNode): Promise<Scene> {
  const isAhead = await hasPriority();
  const server = await node.network.addHost('far');
  await serve(node, { netns: server.netns, cgroup: node.sandbox.hostCgroup }, isAhead);
  const pods = {} as Record<SidecarWay, NodePod>;
  for (const way of SIDECAR_WAYS) pods[way] = await addPod(node, way, isAhead);
  await node.apply();
  await eventually('the bypass stands', async () => (await ownRules(pods.bypassed.host.netns)).length > 0);
  return { node, pods, server, isAhead };
}

/** From where to where. */
function journey(
  { node, pods, server }: Scene,
  direction: Direction,
  way: SidecarWay,
): { readonly place: Place; readonly to: string } {
  const pod = pods[way];
  if (direction === 'outbound') return { place: pod.place, to: server.ip4 };
  return { place: { netns: server.netns, cgroup: node.sandbox.hostCgroup }, to: pod.host.ip4 };
}

/** Makes sure of what is measured: only the way of that name leads through the sidecar, in both directions. */
async function check(scene: Scene): Promise<void> {
  for (const direction of DIRECTIONS) {
    for (const way of SIDECAR_WAYS) {
      const { place, to } = journey(scene, direction, way);
      const result = await connect(place, to, PORT);
      if (!result.ok) throw new Error(`${direction}, ${way}: ${result.step} failed with ${result.errno}`);
      const [, , seen = ''] = result.reply.split(' ');
      const isSidecar =
        direction === 'inbound' ? seen.startsWith(`${SIDECAR_SOURCE}:`) : seen !== result.local;
      if (isSidecar !== (way === 'sidecar')) {
        throw new Error(
          `${direction}, ${way}: the connection ${result.local} was seen as ${seen}, so the sidecar was ${isSidecar ? '' : 'not '}in its path`,
        );
      }
    }
  }
}

async function measure(
  scene: Scene,
  direction: Direction,
  way: SidecarWay,
  moment: Moment,
  count: number,
): Promise<number> {
  const { place, to } = journey(scene, direction, way);
  const args = ['bench', ...(moment === 'answered' ? ['--answer'] : []), String(count), to, String(PORT)];
  const text = await must({
    ...place,
    ...(scene.isAhead ? { cmd: 'chrt', args: ['-f', PRIORITY, SOCK, ...args] } : { cmd: SOCK, args }),
  });
  const { p50, errors } = JSON.parse(text) as { p50: number; errors: number };
  if (errors > 0) throw new Error(`${direction}, ${way}: ${errors} of ${count} connections failed`);
  return p50;
}

/** Each round measures every way once, in an order of its own. */
export async function benchSidecar(rounds: number, count: number): Promise<SidecarBenchFigures> {
  await using node = await startNode('bench-sidecar', { demo: {}, proxy: false });
  const scene = await makeScene(node);
  await check(scene);
  const measured = record(DIRECTIONS, () => record(MOMENTS, () => record(SIDECAR_WAYS, (): number[] => [])));
  const all = DIRECTIONS.flatMap((direction) =>
    MOMENTS.flatMap((moment) => SIDECAR_WAYS.map((way) => ({ direction, moment, way }))),
  );
  for (let round = 0; round < rounds; round++) {
    for (const { direction, moment, way } of order.shuffled(all)) {
      measured[direction][moment][way].push(await measure(scene, direction, way, moment, count));
    }
  }
  await check(scene);
  return {
    isAhead: scene.isAhead,
    directions: record(DIRECTIONS, (direction) =>
      record(MOMENTS, (moment) => {
        const values = measured[direction][moment];
        return record(SIDECAR_WAYS, (way) => ({
          p50: median(values[way]),
          toPlain: ratio(values[way], values.plain),
          toSidecar: ratio(values[way], values.sidecar),
        }));
      }),
    ),
  };
}

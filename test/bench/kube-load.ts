/** What one node's agent asks of the API server, and what it is sent, by how many pods other nodes have. */
import { setTimeout as delay } from 'node:timers/promises';
import { eventually } from '../../deploy/stage/process.ts';
import { type BenchPod, each, type KubeBenchCluster, type KubeNodeBench, numbers } from './kube-pods.ts';
import { BYPASS } from '../harness/label-names.ts';

export const ELSEWHERE = 5000;
const PODS = 20;
const CONTAINERS = 2;
/** Pods of other nodes that change while the agent watches. */
const CHANGED = 200;
/** Without traffic for so long, nothing more is to come. */
const QUIET_MS = 1000;

export interface Load {
  readonly requests: number;
  /** From the API server, TLS and all. */
  readonly bytes: number;
  /** By verb and resource: `list pods`. */
  readonly byKind: Readonly<Record<string, number>>;
}

export interface LoadFigures {
  readonly alone: Load;
  readonly withOthers: Load;
}

async function untilQuiet(node: KubeNodeBench): Promise<void> {
  for (let bytes = -1; bytes !== node.relay.bytes; ) {
    bytes = node.relay.bytes;
    await delay(QUIET_MS);
  }
}

const kindOf = ({ verb, uri }: { readonly verb: string; readonly uri: string }): string =>
  `${verb} ${/\/(namespaces|pods|pods\/[^/?]+\/status|events)(?:\?|$)/.exec(uri)?.[1]?.replace(/\/.*\//, '/') ?? uri}`;

/** The same life each time: a start, a label on each pod, a broken connection, and what happens on other nodes. */
async function live(
  bench: KubeBenchCluster,
  name: string,
  changeOthers: () => Promise<unknown>,
): Promise<Load> {
  const { cluster } = bench;
  const node = await bench.addNode(name);
  const namespace = `on-${name}`;
  await bench.addNamespace(namespace);
  const pods: BenchPod[] = await each(numbers(PODS), (i) => node.runPod(namespace, `web-${i}`, CONTAINERS));
  await using agent = await node.start();
  await untilQuiet(node);
  await each(pods, (pod) =>
    cluster.api.patch(`/api/v1/namespaces/${namespace}/pods/${pod.name}`, 'merge-patch+json', {
      metadata: { labels: { [BYPASS]: 'enabled' } },
    }),
  );
  await untilQuiet(node);
  node.relay.cut();
  await eventually(
    'both watches are back',
    () => agent.log().filter(({ msg }) => msg === 'the API server is followed again').length === 2,
  );
  await changeOthers();
  await untilQuiet(node);
  const requests = node.requests();
  const byKind: Record<string, number> = {};
  for (const request of requests) byKind[kindOf(request)] = (byKind[kindOf(request)] ?? 0) + 1;
  return { requests: requests.length, bytes: node.relay.bytes, byKind };
}

/** Two nodes in turn, of names equally long: the second has 5,000 pods beside it. */
export async function benchLoad(bench: KubeBenchCluster): Promise<LoadFigures> {
  const alone = await live(bench, 'node-alone', async () => {});
  await bench.fillElsewhere(ELSEWHERE);
  const withOthers = await live(bench, 'node-among', () => bench.changeElsewhere(CHANGED));
  return { alone, withOthers };
}

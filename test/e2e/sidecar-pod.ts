/** Pods with a real proxy as their sidecar, under Istio's rules, and who handles their connections. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { cgroute } from '../../deploy/stage/agent.ts';
import type { Haproxy } from '../../deploy/stage/haproxy.ts';
import { type NodePod, type PodOptions, SERVER_PORT } from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { type Backend, installSidecarRules, ownRules, startSidecar } from '../../deploy/stage/sidecar.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import type { TestNode } from '../harness/node.ts';
import { SIDECAR_STATUS } from '../harness/label-names.ts';

export interface SidecarPod extends NodePod {
  readonly sidecar: Haproxy;
}

const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');

/** A command that becomes the agent. */
export const wrapped =
  (cmd: string, ...before: readonly string[]) =>
  (args: readonly string[]) => ({ cmd, args: [...before, PROGRAM, ...args] });

/** The application of a pod, and its sidecar with its rules. */
export async function run(node: TestNode, pod: NodePod, backend: Backend = 'nft'): Promise<SidecarPod> {
  await installSidecarRules(pod.host.netns, backend);
  const sidecar = await startSidecar(node.sandbox, pod.host, pod.place);
  await listen(node.sandbox, pod.place, 'serve', '*', [SERVER_PORT], '--dual', '--quiet');
  return Object.assign(Object.create(pod) as NodePod, { sidecar });
}

export async function addSidecarPod(
  node: TestNode,
  options: PodOptions,
  backend?: Backend,
): Promise<SidecarPod> {
  return run(node, await node.addPod({ ...options, annotations: { [SIDECAR_STATUS]: '{}' } }), backend);
}

const ipOf = (address: string): string => address.replace(/:\d+$/, '').replace(/^\[::ffff:(.*)\]$/, '$1');

/** Who handled a connection on its way, from what each of them saw: nobody is asked twice. */
export async function handlers(
  node: TestNode,
  from: NodePod,
  to: { readonly ip: string; readonly sidecar?: Haproxy },
): Promise<string[]> {
  const result = await connect(from.place, to.ip, SERVER_PORT);
  if (!result.ok) return [result.errno];
  const [, , seen = ''] = result.reply.split(' ');
  const port = (address: string): string => address.slice(address.lastIndexOf(':') + 1);
  const who = (peer: string): string[] => {
    if (ipOf(peer) === from.host.ip4)
      return port(peer) === port(result.local) ? [] : ['sidecar of the client'];
    return ipOf(peer) === node.proxyPod.host.ip4 ? ["the node's proxy"] : [`somebody at ${peer}`];
  };
  if (ipOf(seen) !== '127.0.0.6') return who(seen);
  const line = await eventually('the sidecar of the server has logged it', () =>
    to.sidecar?.connections().at(-1),
  );
  return [...who(line.client), 'sidecar of the server'];
}

export const out = (node: TestNode, pod: NodePod): Promise<string[]> =>
  handlers(node, pod, { ip: node.server.ip4 });
export const toPod = (node: TestNode, from: NodePod, pod: SidecarPod): Promise<string[]> =>
  handlers(node, from, { ip: pod.host.ip4, sidecar: pod.sidecar });

/** Waits until a pod's rules are of one kind, or none. */
export const rulesAre = (pod: NodePod, kind: 'bypass' | 'short-circuit' | 'none'): Promise<unknown> =>
  eventually(`the rules of ${pod.name} are: ${kind}`, async () => {
    const rules = await ownRules(pod.host.netns);
    return kind === 'none'
      ? rules.length === 0
      : rules.length === 4 && rules.every((rule) => rule.includes(`cgroute:${kind}`));
  });

export const label = async (
  node: TestNode,
  pod: NodePod,
  labels: Readonly<Record<string, string>>,
): Promise<void> => {
  node.manifest.change(pod.uid, { labels });
  await node.apply();
};

export const fastSweep = (node: TestNode): readonly string[] => {
  const file = node.sandbox.file('config.yaml');
  writeFileSync(file, 'sweepSeconds: 1\n');
  return ['--config', file];
};

export const metric = async (node: TestNode, name: string): Promise<number> =>
  (await node.metrics()).get(name) ?? NaN;
export const drift = (node: TestNode): Promise<number> => metric(node, 'cgroute_drift_repaired_total');

export const notes = async (node: TestNode, pod: NodePod): Promise<string> => {
  const { code, stdout, stderr } = await cgroute(node.sandbox, [
    'explain',
    `${pod.namespace}/${pod.name}`,
    '-o',
    'json',
  ]);
  assert.equal(code, 0, stderr);
  return (JSON.parse(stdout) as { notes: string[] }).notes.join('\n');
};

export const source = async (node: TestNode) =>
  (await node.status()).sources.find(({ name }) => name === 'sidecars');

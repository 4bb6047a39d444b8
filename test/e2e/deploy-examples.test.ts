/** What deploy/examples says is what works: the configurations there, with the agent and real connections. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { startNode } from '../harness/node.ts';
import { eventually, waitListening } from '../../deploy/stage/process.ts';
import { connect } from '../../deploy/stage/sock.ts';

interface Document {
  readonly kind: string;
  readonly metadata: { readonly namespace?: string };
  readonly data?: Readonly<Record<string, string>>;
  readonly spec?: {
    readonly template: {
      readonly metadata: { readonly labels: Readonly<Record<string, string>> };
      readonly spec: { readonly containers: readonly { readonly args: readonly string[] }[] };
    };
  };
}

const documents = parseAllDocuments(
  readFileSync(resolve(import.meta.dirname, '../../deploy/examples/haproxy.yaml'), 'utf8'),
).map((document) => document.toJS() as Document);
const kind = (name: string): Document =>
  documents.find((document) => document.kind === name) ?? assert.fail(`there is no ${name}`);

test("HAProxy of deploy/examples takes a pod's connections, passes them on, and is healthy", async () => {
  await using node = await startNode('example-haproxy', { proxy: false, agent: false });
  const { spec, metadata } = kind('DaemonSet');
  const labels = spec?.template.metadata.labels ?? {};
  const [selector] = Object.entries(labels).map((pair) => pair.join('='));
  writeFileSync(
    node.sandbox.file('config.yaml'),
    `proxy:\n  selector: ${selector}\n  namespaces: [${metadata.namespace}]\n`,
  );
  await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
  const proxy = await node.addPod({ name: 'node-proxy', namespace: metadata.namespace ?? '', labels });
  const pod = await node.addPod({ name: 'web' });

  const file = node.sandbox.file('haproxy.cfg');
  writeFileSync(file, kind('ConfigMap').data?.['haproxy.cfg'] ?? '');
  const [cmd = '', ...args] =
    spec?.template.spec.containers[0]?.args.map((arg) => (arg === '/etc/haproxy/haproxy.cfg' ? file : arg)) ??
    [];
  const running = node.sandbox.spawn({ ...proxy.place, cmd, args });
  await waitListening(running, [15001, 15006, 8404]);
  await node.apply();
  await node.until('it is the proxy', (status) => status.proxy.ready);

  const to = `${node.server.ip4}:8080`;
  const result = await connect(pod.place, node.server.ip4, 8080);
  assert.ok(result.ok, JSON.stringify(result));
  assert.equal(result.peer, to);
  const [, , seen = ''] = result.reply.split(' ');
  assert.match(
    seen.replace('[::ffff:', '').replace(']', ''),
    new RegExp(`^${proxy.host.ip4}:`),
    'the server sees the proxy',
  );

  // Whoever comes by itself is not sent round in circles.
  await connect(node.hostPlace, proxy.host.ip4, 15001);
  await eventually('it is rejected', () =>
    running.stdout.some((line) => line.endsWith(`-> ${proxy.host.ip4}:15001 PR`)),
  );

  const health = await node.sandbox.spawn({
    ...node.hostPlace,
    cmd: 'busybox',
    args: ['wget', '-q', '-O-', `http://${proxy.host.ip4}:8404/healthz`],
  }).exit;
  assert.equal(health.code, 0);
  assert.match(running.stdout.join('\n'), new RegExp(`-> ${to} --`));
});

/** Enrolment is live: what a change of the manifest does to pods that run. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, renameSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { replaceFile } from '../../deploy/stage/manifest.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { SOCK, listen } from '../../deploy/stage/sock.ts';
import { BYPASS, MODE, SIDECAR_STATUS } from '../harness/label-names.ts';

const SIDECAR = { [SIDECAR_STATUS]: '{}' };

describe('a change of the manifest', () => {
  let node: TestNode;
  let pod: NodePod;
  let other: NodePod;

  before(async () => {
    node = await startNode('changes');
    pod = await node.addPod({ name: 'pod' });
    other = await node.addPod({ name: 'other', style: 'systemd' });
    await listen(node.sandbox, { netns: pod.host.netns }, 'serve', '*', [80], '--dual');
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());
  afterEach(async () => {
    node.manifest.namespace('demo', ENROLLED);
    node.manifest.pod(pod.object);
    await node.apply();
  });

  const inbound = (): Promise<string> => node.travel(node.hostPlace, { to: { ip: pod.host.ip4, port: 80 } });
  async function labels(pairs: Readonly<Record<string, string>>): Promise<void> {
    node.manifest.change(pod.uid, { labels: pairs });
    await node.apply();
  }

  test('takes a namespace out and puts it in again, for pods that run', async () => {
    assert.equal(await node.travel(pod.place), 'redirected');
    node.manifest.namespace('demo');
    await node.apply();
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(other.place), await inbound()],
      ['direct', 'direct', 'direct'],
    );
    assert.equal((await node.podStatus(pod)).reason, 'not-enrolled');
    node.manifest.namespace('demo', { [MODE]: 'kmesh' });
    await node.apply();
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(other.place), await inbound()],
      ['redirected', 'redirected', 'inbound'],
    );
  });

  test("lets the pod's label beat the namespace's, both ways, and only for that pod", async () => {
    await labels({ [MODE]: 'none' });
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(other.place)],
      ['direct', 'redirected'],
    );
    node.manifest.namespace('demo');
    await labels({ [MODE]: 'ambient' });
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(other.place)],
      ['redirected', 'direct'],
    );
    await labels({});
    assert.equal(await node.travel(pod.place), 'direct');
  });

  test('bypasses both directions or one, and restores them', async () => {
    const seen: string[] = [];
    for (const value of ['enabled', 'outbound', 'inbound', undefined]) {
      await labels(value === undefined ? {} : { [BYPASS]: value });
      seen.push(
        `${value ?? 'no label'}: ${await node.travel(pod.place)} ${await inbound()} ${(await node.podStatus(pod)).reason}`,
      );
    }
    assert.deepEqual(seen, [
      'enabled: direct direct bypass',
      'outbound: direct inbound bypass-outbound',
      'inbound: redirected direct bypass-inbound',
      'no label: redirected inbound namespace-label',
    ]);
  });

  test('keeps the connection that is open when the verdict flips', async () => {
    const held = node.sandbox.spawn({
      ...pod.place,
      cmd: SOCK,
      args: ['connect', '--hold', node.server.ip4, '8080'],
    });
    await held.line();
    node.manifest.namespace('demo');
    await node.apply();
    assert.equal(await node.travel(pod.place), 'direct');
    assert.equal(held.stdout.length, 1);
    held.end();
    assert.deepEqual(await held.exit, { code: 0, signal: null });
  });

  test('written twice in a row ends with the second: two flips before one reconcile', async () => {
    for (let round = 0; round < 3; round++) {
      node.manifest.namespace('demo');
      node.manifest.write();
      node.manifest.namespace('demo', ENROLLED);
      await node.apply();
      assert.equal(await node.travel(pod.place), 'redirected');
      node.manifest.change(pod.uid, { labels: { [BYPASS]: 'enabled' } });
      node.manifest.write();
      node.manifest.change(pod.uid, { labels: { [MODE]: 'none' } });
      await node.apply();
      assert.equal((await node.podStatus(pod)).reason, 'pod-opt-out');
      node.manifest.change(pod.uid, { labels: {} });
      await node.apply();
    }
  });

  test('may be of both: a label and an annotation changed in one event', async () => {
    node.manifest.change(pod.uid, { labels: { [MODE]: 'ambient' }, annotations: SIDECAR });
    await node.apply();
    assert.equal((await node.podStatus(pod)).reason, 'sidecar');
    assert.equal(await node.travel(pod.place), 'direct');
    node.manifest.change(pod.uid, { labels: { [MODE]: 'kmesh' }, annotations: undefined });
    await node.apply();
    assert.equal((await node.podStatus(pod)).reason, 'pod-label');
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('may bring a namespace after its pods, and take it before them', async () => {
    const early = await node.addPod({ name: 'early', namespace: 'late' });
    await node.apply();
    assert.equal(await node.travel(early.place), 'direct');
    node.manifest.namespace('late', ENROLLED);
    await node.apply();
    assert.equal(await node.travel(early.place), 'redirected');
    node.manifest.removeNamespace('late');
    await node.apply();
    assert.equal(await node.travel(early.place), 'direct');
  });

  test('that does not parse is reported with file and line, and what stood before goes on', async () => {
    const good = node.manifest.text();
    const at = good.split('\n').length;
    replaceFile(node.manifest.path, `${good}---\nkind: Pod\nmetadata: {name: broken, uid: 17}\n`);
    const report = await eventually('it is reported', () =>
      node.agent
        .log()
        .find(({ level, msg }) => level === 'error' && /what stood before goes on/.test(String(msg))),
    );
    assert.match(
      String(report.msg),
      new RegExp(`pods\\.yaml:${at + 2}: .*metadata\\.uid: expected a text.*got the number 17`),
    );
    const status = await node.until(
      'status says so',
      ({ sources }) => sources.find(({ name }) => name === 'manifest')?.state === 'degraded',
    );
    assert.match(
      status.sources[0]?.detail ?? '',
      new RegExp(`pods\\.yaml:${at + 2}: .*what stood before goes on`),
    );
    assert.equal(status.pods.find(({ uid }) => uid === pod.uid)?.reason, 'namespace-label');
    assert.deepEqual([await node.travel(pod.place), await inbound()], ['redirected', 'inbound']);

    node.manifest.namespace('demo');
    await node.apply();
    assert.equal((await node.status()).sources.find(({ name }) => name === 'manifest')?.state, 'ok');
    assert.equal(await node.travel(pod.place), 'direct');
  });

  test('that is no YAML at all is reported with file and line', async () => {
    replaceFile(node.manifest.path, 'kind: Namespace\nmetadata: {name: demo\n');
    await eventually('it is reported', () =>
      node.agent.log().find(({ msg }) => /pods\.yaml:\d: this is not YAML/.test(String(msg))),
    );
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('may be written in place, and the file may be gone for a moment', async () => {
    node.manifest.namespace('demo');
    writeFileSync(node.manifest.path, node.manifest.text());
    await node.until(
      'the pod is out',
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.verdict === 'out',
    );
    unlinkSync(node.manifest.path);
    assert.equal(await node.travel(pod.place), 'direct');
    node.manifest.namespace('demo', ENROLLED);
    node.manifest.write();
    await node.until(
      'the pod is in',
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.verdict === 'in',
    );
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('of a file that is gone for long leaves everything as it was, and status says so', async () => {
    renameSync(node.manifest.path, `${node.manifest.path}.away`);
    const { sources, pods } = await node.until(
      'status says so',
      (now) => now.sources.find(({ name }) => name === 'manifest')?.state === 'degraded',
    );
    assert.match(sources[0]?.detail ?? '', /ENOENT.*what stood before goes on/);
    assert.equal(pods.find(({ uid }) => uid === pod.uid)?.verdict, 'in');
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('does nothing to processes of the host', async () => {
    assert.equal(await node.travel(node.hostPlace), 'direct');
  });
});

test('a manifest in a ConfigMap is followed when the kubelet swaps its link', async () => {
  await using node = await startNode('configmap', { agent: false });
  const pod = await node.addPod({ name: 'pod' });
  const volume = node.sandbox.file('volume');
  let versions = 0;
  // As the kubelet's AtomicWriter does it: a new directory, then the link `..data` is replaced by rename.
  const publish = (): void => {
    const name = `..version_${++versions}`;
    mkdirSync(join(volume, name), { recursive: true });
    writeFileSync(join(volume, name, 'pods.yaml'), node.manifest.text());
    symlinkSync(name, join(volume, '..data_tmp'));
    renameSync(join(volume, '..data_tmp'), join(volume, '..data'));
  };
  publish();
  symlinkSync('..data/pods.yaml', join(volume, 'pods.yaml'));
  await node.startAgent({ manifest: join(volume, 'pods.yaml') });
  assert.equal(await node.travel(pod.place), 'redirected');
  for (const [labels, verdict, travel] of [
    [{}, 'out', 'direct'],
    [ENROLLED, 'in', 'redirected'],
  ] as const) {
    node.manifest.namespace('demo', labels);
    publish();
    await node.until(
      `the pod is ${verdict}`,
      ({ pods }) => pods.find(({ uid }) => uid === pod.uid)?.verdict === verdict,
    );
    assert.equal(await node.travel(pod.place), travel);
  }
  assert.match(readFileSync(join(volume, 'pods.yaml'), 'utf8'), /ambient/);
});

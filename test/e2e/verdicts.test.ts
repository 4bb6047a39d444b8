/** Every row of the rules as a real connection, and as `status` tells of it. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod, PodOptions } from '../../deploy/stage/node.ts';
import type { NodeStatus } from '../../deploy/stage/node-status.ts';
import { listen } from '../../deploy/stage/sock.ts';
import {
  BYPASS,
  GATEWAY,
  KMESH_REDIRECTION,
  MODE,
  REDIRECTION,
  SIDECAR_STATUS,
} from '../harness/label-names.ts';
import { type Expected, REASONS, expected } from '../harness/verdict-oracle.ts';

const SIDECAR = { [SIDECAR_STATUS]: '{"containers":["istio-proxy"]}' };

/** Namespaces by name; a pod may also be in one that the manifest does not have. */
const NAMESPACES: ReadonlyMap<string, Readonly<Record<string, string>>> = new Map([
  ['demo', ENROLLED],
  ['plain', {}],
  ['none', { [MODE]: 'none' }],
  ['kmesh', { [MODE]: 'kmesh' }],
  ['kube-system', ENROLLED],
]);

const PODS: readonly PodOptions[] = [
  { name: 'host-network', hostNetwork: true, labels: { [MODE]: 'ambient' } },
  { name: 'succeeded', phase: 'Succeeded' },
  { name: 'failed', phase: 'Failed' },
  { name: 'terminating', terminating: true },
  { name: 'excluded', namespace: 'kube-system', labels: { [MODE]: 'ambient' } },
  { name: 'waypoint', labels: { [GATEWAY]: 'istio.io-mesh-controller' } },
  { name: 'other-gateway', labels: { [GATEWAY]: 'example.com-controller' } },
  { name: 'kata', runtimeClass: 'kata-qemu', labels: { [MODE]: 'ambient' } },
  { name: 'nvidia', runtimeClass: 'nvidia' },
  { name: 'other-mesh', annotations: { [KMESH_REDIRECTION]: 'enabled' } },
  { name: 'annotated', annotations: { [REDIRECTION]: 'enabled' } },
  { name: 'annotated-out', annotations: { [REDIRECTION]: 'disabled' }, labels: { [MODE]: 'ambient' } },
  { name: 'labelled', namespace: 'plain', labels: { [MODE]: 'Ambient' } },
  { name: 'labelled-kmesh', namespace: 'plain', labels: { [MODE]: 'Kmesh' } },
  { name: 'opted-out', labels: { [MODE]: 'None' } },
  { name: 'in-namespace' },
  { name: 'unknown-mode', labels: { [MODE]: 'ambiant' } },
  { name: 'plain', namespace: 'plain' },
  { name: 'opted-out-namespace', namespace: 'none' },
  { name: 'no-namespace', namespace: 'nowhere' },
  { name: 'sidecar', annotations: SIDECAR },
  { name: 'sidecar-kmesh', namespace: 'kmesh', annotations: SIDECAR },
  { name: 'bypassed', labels: { [BYPASS]: 'enabled' } },
  { name: 'bypassed-outbound', labels: { [BYPASS]: 'outbound' } },
  { name: 'bypassed-inbound', labels: { [BYPASS]: 'inbound' } },
  { name: 'bypassed-outside', namespace: 'plain', labels: { [BYPASS]: 'enabled' } },
];

interface Row {
  readonly pod: PodOptions;
  readonly should: Expected;
}

const ROWS: readonly Row[] = PODS.map((pod) => {
  const namespace = pod.namespace ?? 'demo';
  return { pod, should: expected({ ...pod, namespace }, NAMESPACES.get(namespace)) };
});

describe('each rule', () => {
  let node: TestNode;
  const pods = new Map<Row, NodePod>();

  before(async () => {
    node = await startNode('verdicts');
    for (const [name, labels] of NAMESPACES) node.manifest.namespace(name, labels);
    for (const row of ROWS) {
      const host = row.pod.hostNetwork === true ? node.network.gateway : undefined;
      const pod = await node.addPod({ ...row.pod, ...(host && { host }) });
      await listen(node.sandbox, { netns: pod.host.netns }, 'serve', '*', [80], '--dual');
      pods.set(row, pod);
    }
    await node.apply();
    // The rules that short-circuit a sidecar are made when its pod shows its network.
    for (const [{ should }, { uid, place }] of pods) {
      if (should.reason !== 'sidecar-short-circuited') continue;
      node.sandbox.spawn({ ...place, cmd: 'sleep', args: ['1000'] });
      await node.until('its sidecar is out of the path', ({ pods: all }) =>
        all.some((pod) => pod.uid === uid && pod.reason === should.reason && pod.cgroups.length === 2),
      );
    }
  });
  after(() => node?.[Symbol.asyncDispose]());

  test('has a pod here that it decides about', () => {
    const decided = new Set([...ROWS.map(({ should }) => should.reason), 'proxy']);
    assert.deepEqual([...decided].toSorted(), REASONS.toSorted());
  });

  for (const row of ROWS) {
    const { should } = row;
    test(`${row.pod.name}: ${should.verdict}, ${should.reason}`, async () => {
      const pod = pods.get(row);
      assert.ok(pod);
      assert.equal(await node.travel(pod.place), should.outbound, 'from the pod');
      assert.equal(
        await node.travel(node.hostPlace, { to: { ip: pod.host.ip4, port: 80 } }),
        should.inbound,
        'from the host',
      );
      const { verdict, reason, ips, cgroups, connections } = await node.podStatus(pod);
      assert.deepEqual(
        { verdict, reason, ips },
        {
          verdict: should.verdict,
          reason: should.reason,
          ips: row.pod.hostNetwork === true ? [] : [pod.host.ip4],
        },
      );
      const container = { id: String(pod.cgroup.id), path: pod.cgroup.path };
      assert.deepEqual(
        cgroups.find(({ path }) => path === container.path),
        container,
      );
      assert.equal(cgroups.length, 2, "the pod's own cgroup and its container's");
      const counted = Object.entries(connections).filter(([, count]) => count > 0);
      assert.deepEqual(Object.fromEntries(counted), {
        [should.counter]: 1,
        ...(should.inbound === 'inbound' ? { inboundRedirected: 1 } : {}),
      });
    });
  }

  test('the proxy itself is out, and its own connections pass', async () => {
    assert.equal(await node.travel(node.proxyPod.place), 'direct');
    const { verdict, reason } = await node.podStatus(node.proxyPod);
    assert.deepEqual({ verdict, reason }, { verdict: 'out', reason: 'proxy' });
  });

  test('a mode that nobody knows is reported once', async () => {
    node.manifest.namespace('another'); // another round for all
    await node.apply();
    const reports = node.agent.log().filter((line) => line['code'] === 'unknown-mode');
    assert.equal(reports.length, 1);
    assert.match(String(reports[0]?.msg), /demo\/unknown-mode has istio\.io\/dataplane-mode="ambiant"/);
  });

  test('status has the shape that scripts rely on', async () => {
    const status = await node.status();
    checkShape(status);
    assert.equal(status.node, 'node-a');
    assert.deepEqual(
      { running: status.agent.running, ready: status.agent.ready, pid: status.agent.pid },
      { running: true, ready: true, pid: node.agent.running.pid },
    );
    assert.deepEqual(
      { address: status.proxy.address, pod: status.proxy.pod, ready: status.proxy.ready },
      { address: node.proxyPod.host.ip4, pod: 'mesh/ztunnel', ready: true },
    );
    assert.deepEqual(
      status.sources.map(({ state }) => state),
      status.sources.map(() => 'ok'),
      JSON.stringify(status.sources),
    );
    assert.deepEqual(
      status.pods.map(({ uid }) => uid).toSorted(),
      [node.proxyPod, ...pods.values()].map(({ uid }) => uid).toSorted(),
    );
  });

  test('status as a table and as YAML says the same', async () => {
    const [table, yaml] = [
      await cgroute(node.sandbox, ['status']),
      await cgroute(node.sandbox, ['status', '-o', 'yaml']),
    ];
    assert.equal(table.code, 0);
    for (const row of ROWS) {
      const cells = table.stdout
        .split('\n')
        .map((line) => line.split(/ {2,}/))
        .find((line) => line[1] === row.pod.name);
      assert.deepEqual(cells?.slice(2, 4), [row.should.verdict, row.should.reason]);
    }
    assert.match(yaml.stdout, /^node: node-a$/m);
    assert.match(yaml.stdout, /^ {4}reason: pod-opt-out$/m);
  });
});

test('status is of that shape too where nothing of cgroute is', async () => {
  await using node = await startNode('nothing', { agent: false, proxy: false });
  const status = await node.status();
  checkShape(status);
  assert.equal(status.agent.running, false);
  assert.equal(status.proxy.ready, false);
  assert.deepEqual(status.pods, []);
});

const BRANCHES = [
  'bypassed',
  'errorDenied',
  'excluded',
  'foreignUntouched',
  'handoffLost',
  'hostUntouched',
  'inboundExempt',
  'inboundRedirected',
  'local',
  'loopDenied',
  'nestedDenied',
  'nestedUntouched',
  'noProxyAllowed',
  'noProxyDenied',
  'otherNetworkDenied',
  'otherNetworkUntouched',
  'out',
  'proxy',
  'redirected',
  'unknownAllowed',
  'unknownDenied',
].toSorted();

/** Section 8: what there is at least. */
function checkShape(status: NodeStatus): void {
  const typed = (value: unknown, ...types: readonly string[]): void =>
    assert.ok(
      types.includes(value === null ? 'null' : typeof value),
      `${JSON.stringify(value)} is no ${types.join(' or ')}`,
    );
  const cgroups = (list: NodeStatus['unknown']): void =>
    list.forEach(({ id, path }) => {
      assert.match(id, /^\d+$/);
      typed(path, 'string', 'null');
    });
  typed(status.node, 'string', 'null');
  typed(status.agent.running, 'boolean');
  typed(status.agent.pid, 'number', 'null');
  typed(status.agent.version, 'string', 'null');
  typed(status.proxy.address, 'string', 'null');
  typed(status.proxy.pod, 'string', 'null');
  typed(status.proxy.ready, 'boolean');
  for (const source of status.sources) {
    assert.ok(['ok', 'degraded', 'failed', 'off'].includes(source.state), source.state);
    typed(source.name, 'string');
    typed(source.detail, 'string');
  }
  for (const pod of status.pods) {
    for (const text of [pod.namespace, pod.name, pod.uid, pod.reason]) typed(text, 'string');
    assert.ok(['in', 'out', 'bypass'].includes(pod.verdict), pod.verdict);
    pod.ips.forEach((ip) => typed(ip, 'string'));
    cgroups(pod.cgroups);
    assert.deepEqual(Object.keys(pod.connections).toSorted(), BRANCHES);
    for (const count of Object.values(pod.connections)) typed(count, 'number');
  }
  cgroups(status.unknown);
  assert.deepEqual(Object.keys(status.host).toSorted(), BRANCHES);
}

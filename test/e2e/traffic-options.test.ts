/** Traffic annotations on running pods, through the agent. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { MODE, SIDECAR_STATUS, TRAFFIC } from '../harness/label-names.ts';

describe('traffic annotations', () => {
  let node: TestNode;
  let pod: NodePod;
  before(async () => {
    node = await startNode('traffic');
    pod = await node.addPod({ name: 'pod' });
    await listen(node.sandbox, pod.place, 'serve', '*', [8080], '--dual', '--quiet');
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());

  async function annotate(annotations: Readonly<Record<string, string>>): Promise<void> {
    node.manifest.change(pod.uid, {
      annotations: Object.fromEntries(
        Object.entries(annotations).map(([name, value]) => [TRAFFIC + name, value]),
      ),
    });
    await node.apply();
  }
  const fromHost = () => node.travel(node.hostPlace, { to: { ip: pod.host.ip4, port: 8080 } });
  const notes = async (): Promise<string> => {
    const { code, stdout, stderr } = await cgroute(node.sandbox, ['explain', 'demo/pod', '-o', 'json']);
    assert.equal(code, 0, stderr);
    return (JSON.parse(stdout) as { notes: string[] }).notes.join('\n');
  };

  test('take effect on a pod that runs, and stop doing so', async () => {
    assert.equal(await node.travel(pod.place), 'redirected');
    await annotate({ excludeOutboundPorts: '8080' });
    assert.equal(await node.travel(pod.place), 'direct');
    await annotate({ excludeOutboundPorts: '8081' });
    assert.equal(await node.travel(pod.place), 'redirected');
    await annotate({ excludeOutboundIPRanges: `${node.server.ip4}/32` });
    assert.equal(await node.travel(pod.place), 'direct');
    await annotate({});
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.deepEqual([await node.entries('pod_port_map'), await node.entries('pod_range_map')], [[], []]);
    const { connections } = await node.podStatus(pod);
    assert.deepEqual([connections['excluded'], connections['redirected']], [2, 3]);
  });

  test('of the inbound side hold for host processes', async () => {
    assert.equal(await fromHost(), 'inbound');
    await annotate({ excludeInboundPorts: '8080' });
    assert.deepEqual([await fromHost(), await node.travel(pod.place)], ['direct', 'redirected']);
    await annotate({ includeInboundPorts: '8080' });
    assert.equal(await fromHost(), 'inbound');
    await annotate({});
  });

  test('hold in a container that is made, in its first instruction', async () => {
    await annotate({ excludeOutboundPorts: '8080' });
    pod.startContainer();
    assert.equal(await node.travel(pod.place), 'direct');
    await annotate({});
  });

  test('that cannot be read in part are told once, with their words, and the rest counts', async () => {
    await annotate({ excludeOutboundPorts: '8080,http', includeOutboundIPRanges: '10.0.0.0/99' });
    assert.equal(await node.travel(pod.place), 'direct');
    const text = `pod demo/pod: ${TRAFFIC}excludeOutboundPorts has "http", expected each to be a port from 1 to 65535 or "*"; the rest of the list counts; ${TRAFFIC}includeOutboundIPRanges has "10.0.0.0/99", expected each to be an address, a range such as 10.0.0.0/8 or fd00::/8, or "*"; the annotation counts as absent`;
    assert.match(await notes(), /outbound ports but 8080/);
    assert.ok((await notes()).includes(text));
    await annotate({
      excludeOutboundPorts: '8080,http',
      includeOutboundIPRanges: '10.0.0.0/99',
      excludeInboundPorts: '9',
    });
    assert.equal(node.agent.log().filter(({ msg }) => msg === text).length, 1);
    await annotate({});
  });

  test('outlive the agent, and are taken over', async () => {
    await annotate({ excludeOutboundPorts: '8080' });
    await node.agent.kill9();
    assert.equal(await node.travel(pod.place), 'direct');
    node.manifest.change(pod.uid, { annotations: {} });
    node.manifest.write();
    await node.startAgent();
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.deepEqual(await node.entries('pod_port_map'), []);
  });

  test('go with their pod', async () => {
    const first = await node.addPod({
      name: 'first',
      annotations: { [`${TRAFFIC}excludeOutboundPorts`]: '8080,8081' },
    });
    await node.apply();
    assert.equal(await node.travel(first.place), 'direct');
    assert.equal((await node.entries('pod_port_map')).length, 2);
    removeCgroup(dirname(first.cgroup.absolute));
    node.manifest.remove(first.uid);
    await node.apply();
    await eventually('its lists are gone', async () => (await node.entries('pod_port_map')).length === 0);
    const next = await node.addPod({ name: 'next' });
    await node.apply();
    assert.equal(await node.travel(next.place), 'redirected');
  });

  test("a sidecar's own connections are left alone where the sidecar is short-circuited", async () => {
    node.manifest.namespace('both', { [MODE]: 'kmesh' });
    const both = await node.addPod({
      name: 'both',
      namespace: 'both',
      annotations: { [SIDECAR_STATUS]: '{}' },
    });
    await node.apply();
    assert.equal(await node.travel(both.place), 'redirected');
    const own = await connect(both.place, node.server.ip4, 8080, '--uid', '1337');
    assert.ok(own.ok && own.reply.endsWith(own.local.replace(/.*:/, ':')), JSON.stringify(own));
  });
});

test('a pod whose annotations find no room in the maps is redirected all the same, and takes no room of others', async () => {
  await using node = await startNode('traffic-full', { agent: false });
  const config = node.sandbox.file('config.yaml');
  writeFileSync(config, 'maxTrafficEntries: 1024\nsweepSeconds: 1\n');
  await node.startAgent({ args: ['--config', config] });
  const ports = (count: number) => ({
    [`${TRAFFIC}excludeOutboundPorts`]: Array.from({ length: count }, (_, at) => 8080 + at).join(),
  });
  const hog = await node.addPod({ name: 'hog', annotations: ports(2000) });
  const pod = await node.addPod({ name: 'pod', annotations: ports(1) });
  await node.apply();
  assert.deepEqual([await node.travel(hog.place), await node.travel(pod.place)], ['redirected', 'direct']);
  const { stdout } = await cgroute(node.sandbox, ['explain', 'demo/hog']);
  assert.match(stdout, /its entries in the maps could not be written/);
  node.manifest.change(hog.uid, { annotations: ports(3) });
  await node.apply();
  assert.equal(await node.travel(hog.place), 'direct');
});

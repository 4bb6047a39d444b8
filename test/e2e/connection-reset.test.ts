/** `existingConnections: reset`: a flip of the verdict ends the connections that it concerns, and no others. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test } from 'node:test';
import { ENROLLED, type NodePod, type TestNode, startNode } from '../harness/node.ts';
import { eventually, type Running } from '../harness/process.ts';
import { type Connected, type Place, SOCK, listen } from '../harness/sock.ts';

const EXCLUDED = { 'traffic.sidecar.istio.io/excludeOutboundPorts': '8081' };
const BYPASS = 'kmesh.net/bypass';

describe('with existingConnections: reset', () => {
  let node: TestNode;
  let pod: NodePod;
  /** In the same network namespace, and never in the mesh. */
  let neighbour: NodePod;
  let config: string;

  before(async () => {
    node = await startNode('reset', { demo: {}, agent: false });
    config = node.sandbox.file('config.yaml');
    writeFileSync(config, 'existingConnections: reset\n');
    await node.startAgent({ args: ['--config', config] });
    pod = await node.addPod({ name: 'pod', annotations: EXCLUDED });
    neighbour = await node.addPod({ name: 'neighbour', host: pod.host, ips: [], labels: { 'istio.io/dataplane-mode': 'none' } });
    await listen(node.sandbox, pod.place, 'serve', '*', [9090], '--dual');
    await listen(node.sandbox, { netns: node.server.netns }, 'serve', '*', [8081], '--dual');
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());

  async function hold(place: Place, address: string, port: number, ...options: readonly string[]): Promise<Running> {
    const running = node.sandbox.spawn({ ...place, cmd: SOCK, args: ['connect', '--hold', ...options, address, String(port)] });
    const connected = await running.json<Connected>();
    assert.ok(connected.ok, `${address} ${port} ${options.join(" ")}: ${JSON.stringify(connected)}`);
    return running;
  }
  async function isAlive(running: Running): Promise<boolean> {
    running.end();
    return (await running.json<{ alive: boolean }>()).alive;
  }
  /** One connection of each kind. */
  async function holdAll(): Promise<Readonly<Record<string, Running>>> {
    const inner = node.sandbox.cgroup(`${pod.cgroup.path.replace(/^\//, '')}/nested`);
    return {
      own: await hold(pod.place, node.server.ip4, 8080),
      ownMapped: await hold(pod.place, node.server.ip4, 8080, '--mapped'),
      nested: await hold({ ...pod.place, cgroup: inner }, node.server.ip4, 8080),
      excluded: await hold(pod.place, node.server.ip4, 8081),
      loopback: await hold(pod.place, '127.0.0.1', 9090),
      itself: await hold(pod.place, pod.host.ip4, 9090),
      accepted: await hold({ netns: node.server.netns }, pod.host.ip4, 9090),
      fromHost: await hold(node.hostPlace, pod.host.ip4, 9090),
      neighbour: await hold(neighbour.place, node.server.ip4, 8080),
    };
  }
  /** Those that end with a flip; the others are alive when the agent says that it is through. */
  async function endedBy(flip: () => Promise<unknown>): Promise<string[]> {
    const held = await holdAll();
    const said = resets().length;
    await flip();
    await eventually('the agent says that it is through', () => resets().length > said);
    const ended: string[] = [];
    for (const [name, running] of Object.entries(held)) if (!(await isAlive(running))) ended.push(name);
    return ended;
  }
  const resets = (): number[] => node.agent.log().filter(({ msg }) => /connections that it had open were reset/.test(msg ?? '')).map(({ closed }) => Number(closed));
  async function label(labels: Readonly<Record<string, string>>): Promise<void> {
    node.manifest.namespace('demo', labels);
    await node.apply();
  }
  async function labelPod(labels: Readonly<Record<string, string>>): Promise<void> {
    node.manifest.change(pod.uid, { labels });
    await node.apply();
  }
  const FLIPPED = ['own', 'ownMapped', 'nested'];

  test('a pod that joins loses the connections that it opened outside the mesh, and no others', async () => {
    const ip6 = await hold(pod.place, node.server.ip6, 8080);
    assert.deepEqual(await endedBy(() => label(ENROLLED)), FLIPPED);
    assert.equal(await isAlive(ip6), false);
    assert.equal(resets().at(-1), 4);
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('a pod that leaves loses those to the proxy, and no others', async () => {
    assert.deepEqual(await endedBy(() => label({})), FLIPPED);
    assert.equal(await node.travel(pod.place), 'direct');
  });

  test('the bypass of outbound connections is a flip, and that of inbound ones is none of theirs', async () => {
    await label(ENROLLED);
    await eventually('that is through', () => resets().length === 3);
    assert.deepEqual(await endedBy(() => labelPod({ [BYPASS]: 'outbound' })), FLIPPED);
    assert.deepEqual(await endedBy(() => labelPod({})), FLIPPED);
    const [held, said] = [await hold(pod.place, node.server.ip4, 8080), resets().length];
    await labelPod({ [BYPASS]: 'inbound' });
    await labelPod({});
    await delay(300);
    assert.deepEqual([resets().length, await isAlive(held)], [said, true]);
  });

  test('a pod that comes with a verdict has nothing to lose, also when another agent starts', async () => {
    const said = resets().length;
    const held = await hold(pod.place, node.server.ip4, 8080);
    await node.addPod({ name: 'newcomer' });
    await node.apply();
    await delay(300);
    assert.equal(resets().length, said);
    await node.agent.stop();
    await node.startAgent({ args: ['--config', config] });
    await delay(300);
    assert.deepEqual([resets(), await isAlive(held)], [[], true]);
  });

  test('what was changed while no agent ran is caught up with at the next start', async () => {
    const held = await holdAll();
    await node.agent.kill9();
    node.manifest.namespace('demo');
    node.manifest.write();
    await node.startAgent({ args: ['--config', config] });
    await eventually('the agent says that it is through', () => resets().length > 0);
    const ended: string[] = [];
    for (const [name, running] of Object.entries(held)) if (!(await isAlive(running))) ended.push(name);
    assert.deepEqual(ended, FLIPPED);
  });

  test('two flips in a row: what was opened between them is reset by the second', async () => {
    const said = resets().length;
    node.manifest.namespace('demo', ENROLLED);
    node.manifest.write();
    await eventually('it is in the mesh', async () => (await node.travel(pod.place)) === 'redirected');
    const between = await hold(pod.place, node.server.ip4, 8080);
    await label({});
    await eventually('the agent says that it is through', () => resets().length > said);
    assert.equal(await isAlive(between), false, 'it went to the proxy');
    assert.equal(await node.travel(pod.place), 'direct');
  });

  /** The agent with some capabilities alone, as a container has them. */
  const startWith = (bounding: string) => node.startAgent({
    args: ['--config', config],
    start: (args) => ({ cmd: 'setpriv', args: [`--inh-caps=${bounding}`, `--bounding-set=${bounding}`, process.execPath, 'dist/cgroute.mjs', ...args] }),
  });

  test('CAP_SYS_ADMIN is all that it takes beyond what the agent needs anyway', async () => {
    await node.agent.stop();
    await startWith('-all,+bpf,+net_admin,+perfmon,+sys_ptrace,+sys_admin');
    const held = await hold(pod.place, node.server.ip4, 8080);
    await label(ENROLLED);
    await eventually('the agent says that it has reset one', () => resets().includes(1));
    assert.equal(await isAlive(held), false);
    await label({});
  });

  test('without CAP_SYS_ADMIN the agent says so, redirects, and leaves open connections alone', async () => {
    await node.agent.stop();
    const agent = await startWith('-sys_admin');
    const messages = (): string => agent.log().map(({ msg }) => msg).join('\n');
    assert.match(messages(), /existingConnections is reset, and the agent lacks CAP_SYS_ADMIN/);
    const held = await hold(pod.place, node.server.ip4, 8080);
    await label(ENROLLED);
    await eventually('it says that it cannot', () => /connections that pod demo\/pod had open could not be reset, and go on as they were: setns\(\) .* EPERM/.test(messages()));
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal(await isAlive(held), true);
  });
});

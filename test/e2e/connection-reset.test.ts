/** `existingConnections: reset`: a flip of the verdict ends the connections that it concerns, and no others. */
import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { after, before, describe, test } from 'node:test';
import { ENROLLED, type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must, type Running } from '../../deploy/stage/process.ts';
import { type Connected, type Place, SOCK, listen, sock } from '../../deploy/stage/sock.ts';
import { BYPASS, MODE, TRAFFIC } from '../harness/label-names.ts';

const EXCLUDED = {
  [`${TRAFFIC}excludeOutboundPorts`]: '8081',
  [`${TRAFFIC}excludeInboundPorts`]: '9091',
};
const HAS_MPTCP = existsSync('/proc/sys/net/mptcp');
/** Which of {@link holdAll} a flip of each direction ends. */
const OUTBOUND = ['own', 'ownMapped', ...(HAS_MPTCP ? ['ownMptcp'] : []), 'nested'];
const INBOUND = ['fromHost', 'fromHostMapped', ...(HAS_MPTCP ? ['fromHostMptcp'] : []), 'fromDaemon'];

describe('with existingConnections: reset', () => {
  let node: TestNode;
  let pod: NodePod;
  /** In the same network namespace, and never in the mesh. */
  let neighbour: NodePod;
  /** Elsewhere, and never in the mesh. */
  let other: NodePod;
  /** In the host's network. */
  let daemon: NodePod;
  /** A process of no pod, in a network namespace of its own: it is left alone. */
  let box: Place;
  let config: string;

  before(async () => {
    node = await startNode('reset', { demo: {}, agent: false });
    config = node.sandbox.file('config.yaml');
    writeFileSync(config, 'existingConnections: reset\n');
    await node.startAgent({ args: ['--config', config] });
    const host = await node.network.addHost('pod');
    pod = await node.addPod({ name: 'pod', host, ips: [host.ip4, host.ip6], annotations: EXCLUDED });
    neighbour = await node.addPod({
      name: 'neighbour',
      host: pod.host,
      ips: [],
      labels: { [MODE]: 'none' },
    });
    other = await node.addPod({ name: 'other', labels: { [MODE]: 'none' } });
    // It flips, too, and nothing of it runs.
    await node.addPod({ name: 'idle' });
    daemon = await node.addPod({ name: 'daemon', host: node.network.gateway, ips: [], hostNetwork: true });
    box = {
      cgroup: node.sandbox.cgroup(`${node.sandbox.hostCgroup.path.slice(1)}/box`),
      netns: (await node.network.addHost('box')).netns,
    };
    await listen(node.sandbox, pod.place, 'serve', '*', [9090, 9091, 15020], '--dual');
    await listen(node.sandbox, other.place, 'serve', '*', [9090], '--dual');
    await listen(node.sandbox, { netns: node.server.netns }, 'serve', '*', [8081], '--dual');
    await listen(node.sandbox, node.hostPlace, 'serve', '*', [8081], '--dual');
    await node.apply();
  });
  after(() => node?.[Symbol.asyncDispose]());

  async function hold(
    place: Place,
    address: string,
    port: number,
    ...options: readonly string[]
  ): Promise<Running> {
    const running = node.sandbox.spawn({
      ...place,
      cmd: SOCK,
      args: ['connect', '--hold', ...options, address, String(port)],
    });
    const connected = await running.json<Connected>();
    assert.ok(connected.ok, `${address} ${port} ${options.join(' ')}: ${JSON.stringify(connected)}`);
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
      ...(HAS_MPTCP ? { ownMptcp: await hold(pod.place, node.server.ip4, 8080, '--mptcp') } : {}),
      nested: await hold({ ...pod.place, cgroup: inner }, node.server.ip4, 8080),
      excluded: await hold(pod.place, node.server.ip4, 8081),
      loopback: await hold(pod.place, '127.0.0.1', 9090),
      itself: await hold(pod.place, pod.host.ip4, 9090),
      fromPod: await hold(other.place, pod.host.ip4, 9090),
      toHost: await hold(pod.place, node.network.gateway.ip4, 8081),
      fromHost: await hold(node.hostPlace, pod.host.ip4, 9090),
      fromHostMapped: await hold(node.hostPlace, pod.host.ip4, 9090, '--mapped'),
      ...(HAS_MPTCP ? { fromHostMptcp: await hold(node.hostPlace, pod.host.ip4, 9090, '--mptcp') } : {}),
      fromBox: await hold(box, pod.host.ip4, 9090),
      fromHostExcluded: await hold(node.hostPlace, pod.host.ip4, 9091),
      fromHostToProxyPort: await hold(node.hostPlace, pod.host.ip4, 15020),
      fromHostElsewhere: await hold(node.hostPlace, other.host.ip4, 9090),
      fromKubelet: await hold(node.hostPlace, pod.host.ip4, 9090, '--comm', 'kubelet'),
      fromDaemon: await hold(daemon.place, pod.host.ip4, 9090),
      neighbour: await hold(neighbour.place, node.server.ip4, 8080),
    };
  }
  /** Those that end with a flip; the others are alive when the agent says that it is through. */
  async function endedBy(
    flip: () => Promise<unknown>,
    says: readonly (() => number[])[] = [resets, inboundResets],
  ): Promise<string[]> {
    const held = await holdAll();
    const said = says.map((each) => each().length);
    await flip();
    await eventually('the agent says that it is through', () =>
      says.every((each, at) => each().length > (said[at] ?? 0)),
    );
    const ended: string[] = [];
    for (const [name, running] of Object.entries(held)) if (!(await isAlive(running))) ended.push(name);
    return ended;
  }
  const inboundResets = (): number[] =>
    node.agent
      .log()
      .filter(({ msg }) => /connections that processes of the host had open to it were reset/.test(msg ?? ''))
      .map(({ closed }) => Number(closed));
  const resets = (): number[] =>
    node.agent
      .log()
      .filter(
        ({ msg, podUid }) => podUid === pod.uid && /connections that it had open were reset/.test(msg ?? ''),
      )
      .map(({ closed }) => Number(closed));
  async function label(labels: Readonly<Record<string, string>>): Promise<void> {
    node.manifest.namespace('demo', labels);
    await node.apply();
  }
  async function labelPod(labels: Readonly<Record<string, string>>): Promise<void> {
    node.manifest.change(pod.uid, { labels });
    await node.apply();
  }

  test('a pod that joins loses the connections outside the mesh that it opened or the host opened to it, and no others', async () => {
    const ip6 = [
      await hold(pod.place, node.server.ip6, 8080),
      await hold(node.hostPlace, pod.host.ip6, 9090),
    ];
    assert.deepEqual(await endedBy(() => label(ENROLLED)), [...OUTBOUND, ...INBOUND]);
    for (const each of ip6) assert.equal(await isAlive(each), false);
    assert.deepEqual([resets().at(-1), inboundResets().at(-1)], [OUTBOUND.length + 1, INBOUND.length + 1]);
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('a pod that leaves loses those to the proxy, and no others', async () => {
    assert.deepEqual(await endedBy(() => label({})), [...OUTBOUND, ...INBOUND]);
    assert.equal(await node.travel(pod.place), 'direct');
    assert.equal(await node.travel(node.hostPlace, { to: { ip: pod.host.ip4, port: 9090 } }), 'direct');
  });

  test('the bypass of one direction is a flip of that direction alone', async () => {
    await label(ENROLLED);
    await eventually('that is through', () => resets().length === 3);
    assert.deepEqual(await endedBy(() => labelPod({ [BYPASS]: 'outbound' }), [resets]), OUTBOUND);
    assert.deepEqual(await endedBy(() => labelPod({}), [resets]), OUTBOUND);
    assert.deepEqual(await endedBy(() => labelPod({ [BYPASS]: 'inbound' }), [inboundResets]), INBOUND);
    assert.deepEqual(await endedBy(() => labelPod({}), [inboundResets]), INBOUND);
  });

  test('what is reset is counted, and nothing has failed', async () => {
    const metrics = await node.metrics();
    const sum = (of: readonly number[]): number => of.reduce((all, count) => all + count, 0);
    for (const [series, count] of [
      ['cgroute_connections_reset_total{direction="outbound"}', sum(resets())],
      ['cgroute_connections_reset_total{direction="inbound"}', sum(inboundResets())],
      ['cgroute_connection_reset_failures_total{errno="EPERM"}', 0],
    ] as const) {
      assert.equal(metrics.get(series), count, series);
    }
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
    assert.deepEqual([resets(), inboundResets(), await isAlive(held)], [[], [], true]);
  });

  test('what was changed while no agent ran is caught up with at the next start', async () => {
    const held = await holdAll();
    await node.agent.kill9();
    node.manifest.namespace('demo');
    node.manifest.write();
    await node.startAgent({ args: ['--config', config] });
    await eventually(
      'the agent says that it is through',
      () => resets().length > 0 && inboundResets().length > 0,
    );
    const ended: string[] = [];
    for (const [name, running] of Object.entries(held)) if (!(await isAlive(running))) ended.push(name);
    assert.deepEqual(ended, [...OUTBOUND, ...INBOUND]);
  });

  test('a connect() that is under way ends, too', async () => {
    await eventually('the pod is out', async () => (await node.travel(pod.place)) === 'direct');
    // Nobody has that address, so the SYN waits for an answer to ARP for three seconds.
    const connecting = sock<Connected>(pod.place, 'connect', `${node.network.gateway.ip4}99`, 8080);
    await eventually('its SYN is on its way', async () =>
      (await must({ cmd: 'ss', args: ['-Htn', 'state', 'syn-sent'], netns: pod.place.netns })).includes(
        ':8080',
      ),
    );
    const said = resets().length;
    await label(ENROLLED);
    const ended = await connecting;
    assert.deepEqual({ ...ended, ns: 0 }, { ok: false, step: 'connect', errno: 'ECONNABORTED', ns: 0 });
    await eventually('the agent says so', () => resets().length > said);
    assert.equal(resets().at(-1), 1);
    await label({});
    await eventually('the pod is out again', () => resets().length > said + 1);
  });

  test("a pod whose processes are all below its container's cgroup loses its connections, too", async () => {
    const host = await node.network.addHost('systemd');
    const inner = await node.addPod({ name: 'systemd', host });
    await node.apply();
    const cgroup = node.sandbox.cgroup(`${inner.cgroup.path.replace(/^\//, '')}/init.scope`);
    const held = await hold({ netns: host.netns, cgroup }, node.server.ip4, 8080);
    node.manifest.change(inner.uid, { labels: ENROLLED });
    await node.apply();
    await eventually('the agent says so', () =>
      node.agent
        .log()
        .some(
          ({ msg, podUid }) =>
            podUid === inner.uid && /connections that it had open were reset/.test(msg ?? ''),
        ),
    );
    assert.equal(await isAlive(held), false);
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
  const startWith = (bounding: string) =>
    node.startAgent({
      args: ['--config', config],
      ...(node.sandbox.procRoot === undefined ? {} : { procRoot: node.sandbox.procRoot }),
      start: (args) => ({
        cmd: 'setpriv',
        args: [
          `--inh-caps=${bounding}`,
          `--bounding-set=${bounding}`,
          process.execPath,
          'dist/cgroute.mjs',
          ...args,
        ],
      }),
    });

  test('CAP_SYS_ADMIN is all that it takes beyond what the agent needs anyway', async () => {
    await node.agent.stop();
    await startWith('-all,+bpf,+net_admin,+perfmon,+sys_ptrace,+sys_admin');
    const [held, inbound] = [
      await hold(pod.place, node.server.ip4, 8080),
      await hold(node.hostPlace, pod.host.ip4, 9090),
    ];
    const kubelet = await hold(node.hostPlace, pod.host.ip4, 9090, '--comm', 'kubelet');
    await label(ENROLLED);
    await eventually(
      'the agent says that it has reset one of each',
      () => resets().includes(1) && inboundResets().includes(1),
    );
    assert.deepEqual(
      [await isAlive(held), await isAlive(inbound), await isAlive(kubelet)],
      [false, false, true],
    );
    await label({});
  });

  test('without CAP_SYS_ADMIN the agent says so, redirects, and leaves open connections alone', async () => {
    await node.agent.stop();
    const agent = await startWith('-sys_admin');
    const messages = (): string =>
      agent
        .log()
        .map(({ msg }) => msg)
        .join('\n');
    assert.match(messages(), /existingConnections is reset, and the agent lacks CAP_SYS_ADMIN/);
    const [held, inbound] = [
      await hold(pod.place, node.server.ip4, 8080),
      await hold(node.hostPlace, pod.host.ip4, 9090),
    ];
    await label(ENROLLED);
    await eventually('it says that it cannot', () =>
      /connections that pod demo\/pod had open could not be reset, and go on as they were: setns\(\) .* EPERM/.test(
        messages(),
      ),
    );
    assert.equal(await node.travel(pod.place), 'redirected');
    const metrics = await node.metrics();
    assert.ok((metrics.get('cgroute_connection_reset_failures_total{errno="EPERM"}') ?? NaN) >= 1);
    assert.equal(metrics.get('cgroute_connections_reset_total{direction="outbound"}'), 0);
    assert.deepEqual([await isAlive(held), await isAlive(inbound)], [true, true]);
  });
});

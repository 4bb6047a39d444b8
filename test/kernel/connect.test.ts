/** Every branch of the connect programs, as the client, the proxy and the server see it. */
import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { after, afterEach, test } from 'node:test';
import { infoFlag } from '../../native/layout/layouts.ts';
import { must, run } from '../../deploy/stage/process.ts';
import { connect, type Connected, listen, type Place, SOCK, sock } from '../../deploy/stage/sock.ts';
import { assertDirect, assertFailed, assertRedirected, makeMesh, type Pod, PORT } from './mesh.ts';
import { at } from '../harness/travel.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const mesh = await makeMesh('connect');
const { plane, app, proxy, server } = mesh;
const out = await mesh.addPod('out', { inMesh: false });
const bypassed = await mesh.addPod('bypassed', { flags: infoFlag.ambient | infoFlag.bypassOutbound });
plane.captureInbound(app.ip4, app.slot);
plane.captureInbound(app.ip6, app.slot);
const appServing = await listen(
  mesh.sandbox,
  app,
  'serve',
  '*',
  [PORT, 15001, 15006, 15008, 15020, 15021, 15090],
  '--dual',
);
const outServing = await listen(mesh.sandbox, out, 'serve', '*', [PORT], '--dual');

after(() => mesh[Symbol.asyncDispose]());
afterEach(() => plane.nothingLeft());

interface Family {
  readonly name: string;
  /** Options of `sock connect`. */
  readonly options: readonly string[];
  /** A host's address in this family. */
  readonly of: (host: { readonly ip4: string; readonly ip6: string }) => string;
  /** How getpeername() spells an address and port. */
  readonly spell: (address: string, port: number) => string;
  readonly loopback: string;
  readonly unspecified: string;
}

const FAMILIES: readonly Family[] = [
  {
    name: 'IPv4',
    options: [],
    of: ({ ip4 }) => ip4,
    spell: at,
    loopback: '127.0.0.1',
    unspecified: '0.0.0.0',
  },
  { name: 'IPv6', options: [], of: ({ ip6 }) => ip6, spell: at, loopback: '::1', unspecified: '::' },
  {
    name: 'v4-mapped IPv6',
    options: ['--mapped'],
    of: ({ ip4 }) => ip4,
    spell: (address, port) => at(`::ffff:${address}`, port),
    loopback: '127.0.0.1',
    unspecified: '0.0.0.0',
  },
];

for (const { name, options, of, spell, loopback, unspecified } of FAMILIES) {
  const dial = (place: Place, address: string, port = PORT): Promise<[Connected, Record<string, number>]> =>
    mesh.counted(() => connect(place, address, port, ...options));

  test(`IPv4, IPv6, v4-mapped: ${name}: an enrolled pod's connection goes to the proxy, which learns where it was meant to go`, async () => {
    const [result, counts] = await dial(app, of(server));
    await assertRedirected(mesh, result, spell(of(server), PORT));
    assert.deepEqual(counts, { 'app redirected': 1 });
  });

  test(`${name}: a destination that nobody has is redirected all the same`, async () => {
    const nowhere = of({ ip4: '192.0.2.9', ip6: '2001:db8::9' });
    const [result, counts] = await dial(app, nowhere, 9);
    await assertRedirected(mesh, result, spell(nowhere, 9));
    assert.deepEqual(counts, { 'app redirected': 1 });
  });

  test(`${name}: other ports of the proxy's address are destinations like any`, async () => {
    const [result, counts] = await dial(app, of(proxy), 80);
    await assertRedirected(mesh, result, spell(of(proxy), 80));
    assert.deepEqual(counts, { 'app redirected': 1 });
  });

  test(`${name}: pods that are out or bypassed reach the server themselves`, async () => {
    for (const [pod, branch] of [
      [out, 'out'],
      [bypassed, 'bypassed'],
    ] as const) {
      const [result, counts] = await dial(pod, of(server));
      await assertDirect(mesh, result, spell(of(server), PORT));
      assert.deepEqual(counts, { [`${pod.name} ${branch}`]: 1 });
    }
  });

  test(`${name}: the proxy reaches servers and enrolled pods itself`, async () => {
    const [result, counts] = await dial(proxy, of(server));
    await assertDirect(mesh, result, spell(of(server), PORT));
    assert.deepEqual(counts, { 'proxy proxy': 1 });
    const [inward, inwardCounts] = await dial(proxy, of(app));
    await assertDirect({ serving: appServing }, inward, spell(of(app), PORT));
    assert.deepEqual(inwardCounts, { 'proxy proxy': 1 });
  });

  test(`${name}: a host process reaches an enrolled pod through the proxy's inbound port`, async () => {
    const [result, counts] = await dial(mesh.hostProcess(), of(app));
    await assertRedirected(mesh, result, spell(of(app), PORT), 15006);
    assert.deepEqual(counts, { 'app inboundRedirected': 1 });
  });

  test(`${name}: a host process reaches servers and pods outside the mesh itself`, async () => {
    const [result, counts] = await dial(mesh.hostProcess(), of(server));
    await assertDirect(mesh, result, spell(of(server), PORT));
    assert.deepEqual(counts, { 'none hostUntouched': 1 });
    const [inward, inwardCounts] = await dial(mesh.hostProcess(), of(out));
    await assertDirect({ serving: outServing }, inward, spell(of(out), PORT));
    assert.deepEqual(inwardCounts, { 'none hostUntouched': 1 });
  });

  test(`${name}: a pod outside the mesh reaches an enrolled pod itself, an enrolled one through the outbound port`, async () => {
    const [direct, counts] = await dial(out, of(app));
    await assertDirect({ serving: appServing }, direct, spell(of(app), PORT));
    assert.deepEqual(counts, { 'out out': 1 });
    const other = await mesh.addPod(`other-${FAMILIES.findIndex((family) => family.name === name)}`);
    const [redirected, otherCounts] = await dial(other, of(app));
    await assertRedirected(mesh, redirected, spell(of(app), PORT));
    assert.deepEqual(otherCounts, { [`${other.name} redirected`]: 1 });
  });

  test(`${name}: a host process reaches the proxy's own ports of an enrolled pod itself`, async () => {
    for (const port of [15001, 15006, 15008, 15020, 15021, 15090]) {
      const [result, counts] = await dial(mesh.hostProcess(), of(app), port);
      await assertDirect({ serving: appServing }, result, spell(of(app), port));
      assert.deepEqual(counts, { 'app inboundExempt': 1 }, `port ${port}`);
    }
  });

  test(`${name}: self and loopback: the pod's own address, loopback and the unspecified address are left alone`, async () => {
    for (const address of [loopback, unspecified, of(app)]) {
      const [result, counts] = await dial(app, address);
      assert.ok(result.ok, `${address}: ${JSON.stringify(result)}`);
      assert.match(result.reply, /^server /, address);
      assert.deepEqual(counts, { 'app local': 1 }, address);
    }
  });

  test(`${name}: without a proxy an enrolled pod is refused, unless the policy allows it`, async () => {
    plane.setProxy(undefined);
    try {
      const [byDefault, counts] = await dial(app, of(server));
      assertFailed(byDefault, FOR_NOW);
      assert.deepEqual(counts, { 'app noProxyDenied': 1 });
      plane.policies({ unknownPods: 'allow', whenProxyDown: 'deny' });
      const [denied, deniedCounts] = await dial(app, of(server));
      assertFailed(denied, FOR_NOW);
      assert.deepEqual(deniedCounts, { 'app noProxyDenied': 1 });
      const [fromHost, hostCounts] = await dial(mesh.hostProcess(), of(app));
      assertFailed(fromHost, FOR_NOW);
      assert.deepEqual(hostCounts, { 'app noProxyDenied': 1 });
      plane.policies({ unknownPods: 'deny', whenProxyDown: 'allow' });
      const [allowed, allowedCounts] = await dial(app, of(server));
      await assertDirect(mesh, allowed, spell(of(server), PORT));
      assert.deepEqual(allowedCounts, { 'app noProxyAllowed': 1 });
    } finally {
      plane.policies(undefined);
      plane.setProxy(proxy);
    }
  });

  test(`${name}: a proxy that loops to itself is refused: nobody who is redirected, and not the proxy, dials its own ports`, async () => {
    for (const pod of [app, proxy]) {
      for (const port of [15001, 15006]) {
        const [result, counts] = await dial(pod, of(proxy), port);
        assertFailed(result, 'EPERM');
        assert.deepEqual(counts, { [`${pod.name} loopDenied`]: 1 });
      }
    }
  });

  test(`${name}: what could not be handed over is denied, and only that`, async () => {
    const fresh = mesh.sandbox.cgroup('kubepods/podfresh/c');
    const place = { cgroup: fresh, netns: app.netns };
    plane.enrol(fresh, { slot: app.slot, flags: infoFlag.ambient | infoFlag.noHandoff });
    const [denied, counts] = await dial(place, of(server));
    assertFailed(denied, FOR_NOW);
    assert.deepEqual(counts, { 'app errorDenied': 1 });
    plane.enrol(fresh, {
      slot: app.slot,
      flags: infoFlag.ambient | infoFlag.noHandoff | infoFlag.bypassOutbound,
    });
    const [bypassed] = await dial(place, of(server));
    await assertDirect(mesh, bypassed, spell(of(server), PORT));
  });

  test(`${name}: a pod that nobody knows yet is denied, or allowed by policy`, async () => {
    const marked = mesh.sandbox.cgroup('kubepods/podmarked/c');
    plane.enrol(marked, { slot: 0, inMesh: false, flags: infoFlag.unknownPod });
    const bare = mesh.sandbox.cgroup('kubepods/podbare/c');
    for (const cgroup of [marked, bare]) {
      const place = { cgroup, netns: app.netns };
      const [byDefault, defaultCounts] = await dial(place, of(server));
      assertFailed(byDefault, FOR_NOW);
      assert.deepEqual(defaultCounts, { 'none unknownDenied': 1 });
      plane.policies({ unknownPods: 'allow', whenProxyDown: 'deny' });
      const [allowed, counts] = await dial(place, of(server));
      await assertDirect(mesh, allowed, spell(of(server), PORT));
      assert.deepEqual(counts, { 'none unknownAllowed': 1 });
      plane.policies({ unknownPods: 'deny', whenProxyDown: 'allow' });
      const [denied, deniedCounts] = await dial(place, of(server));
      plane.policies(undefined);
      assertFailed(denied, FOR_NOW);
      assert.deepEqual(deniedCounts, { 'none unknownDenied': 1 });
    }
  });

  test(`${name}: a connected UDP socket is untouched`, async () => {
    const udp = await listen(mesh.sandbox, { netns: server.netns }, 'serve', of(server), [5300], '--udp');
    const [result, counts] = await mesh.counted(() => sock<Connected>(app, 'udp', of(server), 5300));
    assert.ok(result.ok, JSON.stringify(result));
    assert.match(result.reply, /^server /);
    assert.equal(result.peer, at(of(server), 5300));
    assert.deepEqual(counts, {});
    await udp.running.stop();
  });
}

for (const comm of ['kubelet', 'kubelite', 'k3s-server', 'k3s']) {
  test(`probes of a host process called ${comm} reach the enrolled pod itself`, async () => {
    const cmd = mesh.sandbox.file(comm);
    copyFileSync(SOCK, cmd);
    const [{ stdout }, counts] = await mesh.counted(() =>
      run({ ...mesh.hostProcess(), cmd, args: ['connect', app.ip4, String(PORT)] }),
    );
    await assertDirect({ serving: appServing }, JSON.parse(stdout) as Connected, at(app.ip4, PORT));
    assert.deepEqual(counts, { 'app inboundExempt': 1 });
  });
}

for (const comm of ['kubelets', 'mykubelet', 'k3sx', 'k']) {
  test(`a host process called ${comm} is no kubelet`, async () => {
    const [result, counts] = await mesh.counted(() =>
      connect(mesh.hostProcess(), app.ip4, PORT, '--comm', comm),
    );
    await assertRedirected(mesh, result, at(app.ip4, PORT), 15006);
    assert.deepEqual(counts, { 'app inboundRedirected': 1 });
  });
}

test('a pod cannot call itself kubelet', async () => {
  const [result, counts] = await mesh.counted(() => connect(app, server.ip4, PORT, '--comm', 'kubelet'));
  await assertRedirected(mesh, result, at(server.ip4, PORT));
  assert.deepEqual(counts, { 'app redirected': 1 });
});

test('a flag counts only with its bit among the detected ones', async () => {
  const undetected: Pod = await mesh.addPod('undetected', {
    flags: infoFlag.ambient | infoFlag.bypassOutbound | infoFlag.proxy | infoFlag.unknownPod,
    detectedFlags: infoFlag.ambient,
  });
  const [result, counts] = await mesh.counted(() => connect(undetected, server.ip4, PORT));
  await assertRedirected(mesh, result, at(server.ip4, PORT));
  assert.deepEqual(counts, { 'undetected redirected': 1 });
});

test('an IPv6 address that ends in an IPv4 one, such as ::127.0.0.9, is neither that nor loopback', async () => {
  const compatible = ['::127.0.0.9', `::${app.ip4}`] as const;
  const own = `ip -6 -o addr show to ${server.ip6} | awk '{ print $2 }'`;
  await must({
    netns: server.netns,
    cmd: 'sh',
    args: ['-ec', `for a in ${compatible.join(' ')}; do ip -6 addr add $a/128 dev $(${own}) nodad; done`],
  });
  for (const address of compatible) {
    for (const { netns } of [app, mesh.hostProcess()])
      await must({ netns, cmd: 'ip', args: ['-6', 'route', 'add', `${address}/128`, 'via', server.ip6] });
    const [result, counts] = await mesh.counted(() => connect(app, address, PORT));
    assertFailed(result, 'EPERM');
    assert.deepEqual(counts, { 'app errorDenied': 1 });
    const [fromHost, hostCounts] = await mesh.counted(() => connect(mesh.hostProcess(), address, PORT));
    assert.ok(fromHost.ok && fromHost.reply.startsWith('server '), JSON.stringify(fromHost));
    assert.deepEqual(hostCounts, { 'none hostUntouched': 1 });
  }
});

test('0.0.0.1, which looks like ::1, does not pass the mesh by', async () => {
  await must({ netns: server.netns, cmd: 'ip', args: ['address', 'add', '0.0.0.1/32', 'dev', 'lo'] });
  await must({ netns: app.netns, cmd: 'ip', args: ['route', 'add', '0.0.0.1/32', 'via', server.ip4] });
  const [result, counts] = await mesh.counted(() => connect(app, '0.0.0.1', PORT));
  await assertRedirected(mesh, result, at('0.0.0.1', PORT));
  assert.deepEqual(counts, { 'app redirected': 1 });
});

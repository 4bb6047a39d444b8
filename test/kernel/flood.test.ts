/**
 * Pods that fill the map of original destinations, each from network namespaces of
 * its own, in which it is root without any privilege in the pod, and with the
 * proxy's address there: every connection of another pod is told all the same.
 */
import assert from 'node:assert/strict';
import { after, afterEach, describe, test } from 'node:test';
import { freePart } from '../../native/layout/layouts.ts';
import type { Running } from '../../deploy/stage/process.ts';
import { connect, listen, SOCK, type Place } from '../../deploy/stage/sock.ts';
import { at } from '../harness/travel.ts';
import { makeMesh, type Pod, PORT, seen } from './mesh.ts';

/** More than one pod may have, and two such pods would be more than the map once held. */
const FLOOD = 5000;
/** Connections of a third pod. */
const TOLD = 50;

describe('a flood', async () => {
  const mesh = await makeMesh('flood', { proxyOptions: ['--quiet'] });
  const { plane, app, proxy, server } = mesh;
  const hostile = [await mesh.addPod('hostile'), await mesh.addPod('hostile-too')];
  const { maxEntries } = plane.plane.maps.originals.info;
  after(() => mesh[Symbol.asyncDispose]());
  afterEach(async () => {
    plane.setProxyNetwork(undefined);
    plane.plane.expireOriginals(0);
    await plane.nothingLeft();
    for (const { slot } of [app, ...hostile])
      assert.deepEqual(plane.share(slot), { connections: 0, originals: 0 });
    assert.equal(plane.plane.maps.originalCount.get(0), 0n);
  });

  /** In the pod's cgroup, and nobody there: makes a user and a network namespace, where it is root, and runs this. */
  const nested = (pod: Place, script: string): Running =>
    mesh.sandbox.spawn({
      ...pod,
      cmd: 'setpriv',
      args: [
        ...['--reuid=1000', '--regid=1000', '--clear-groups', '--'],
        ...['unshare', '--user', '--map-root-user', '--net', '--'],
        ...['sh', '-ec', `ip link set lo up\n${script}`],
      ],
    });

  async function answer<T>(running: Running): Promise<T> {
    return running.json<T>().catch((cause: unknown) => {
      throw new Error(running.stderr.join('\n'), { cause });
    });
  }

  /** Both pods at the same time, and then the third one; what is in the map of each of the two. */
  async function flood(run: (pod: Pod) => Promise<unknown>): Promise<number[]> {
    await Promise.all(hostile.map(run));
    const originals = hostile.map(({ slot }) => plane.share(slot).originals);
    const args = ['many', String(TOLD), '198.18.0.1', '1000'];
    const third = mesh.sandbox.spawn({ ...app, cmd: SOCK, args });
    const { ok, wrong, failed } = await answer<{ ok: number; wrong: number; failed: number }>(third);
    assert.deepEqual({ told: ok, wrong, failed }, { told: TOLD, wrong: 0, failed: 0 });
    third.end();
    await third.exit;
    return originals;
  }

  for (const [family, address, from, destination] of [
    ['IPv4', `${proxy.ip4}/32`, (slot: number) => `10.99.${slot}.1`, server.ip4],
    ['IPv6', `${proxy.ip6}/128`, (slot: number) => `fd99::${slot}`, server.ip6],
  ] as const) {
    test(`sockets in repair mode, ${family}: nothing of theirs is filed`, async () => {
      const [originals, counts] = await mesh.counted(() =>
        flood(async (pod) => {
          const [, bits] = address.split('/');
          const nodad = family === 'IPv6' ? 'nodad' : '';
          const running = nested(
            pod,
            `ip address add ${address} dev lo ${nodad}
             ip address add ${from(pod.slot)}/${bits} dev lo ${nodad}
             exec ${SOCK} repair ${FLOOD} ${from(pod.slot)} ${destination} ${PORT}`,
          );
          assert.deepEqual(await answer(running), { established: FLOOD });
          await running.exit;
        }),
      );
      assert.deepEqual(originals, [0, 0]);
      assert.deepEqual(counts, {
        'app redirected': TOLD,
        'hostile redirected': FLOOD,
        'hostile handoffLost': FLOOD,
        'hostile-too redirected': FLOOD,
        'hostile-too handoffLost': FLOOD,
      });
    });
  }

  /** Handshakes with a listener of the pod's own. */
  const withListener = (network: (from: string) => string) => async (pod: Pod) => {
    const running = nested(
      pod,
      `${network(`10.99.${pod.slot}.1`)}
       $inside ${SOCK} serve --quiet ${proxy.ip4} 15001 &
       read go
       ${SOCK} bench ${FLOOD} ${server.ip4} ${PORT}
       kill $! $peer`,
    );
    assert.deepEqual(await answer(running), { listening: `${proxy.ip4}:15001` });
    running.write('\n');
    const { count, errors } = await answer<{ count: number; errors: number }>(running);
    assert.deepEqual({ count, errors }, { count: FLOOD, errors: 0 });
    running.end();
    await running.exit;
  };

  const oneAddress = () => `ip address add ${proxy.ip4}/32 dev lo`;
  const twoAddresses = (from: string) =>
    `${oneAddress()}
     ip address add ${from}/32 dev lo
     ip route replace local ${proxy.ip4} dev lo table local src ${from}`;
  const byWire = (from: string) =>
    `unshare --net sleep 1000 & peer=$!
     while [ "$(readlink /proc/$peer/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do :; done
     inside="nsenter --target $peer --net"
     ip link add wire type veth peer name wire netns $peer
     ip address add ${from}/24 dev wire; ip link set wire up
     $inside ip address add ${from}00/24 dev wire; $inside ip link set wire up
     $inside ip link set lo up; $inside ip address add ${proxy.ip4}/32 dev lo
     ip route add ${proxy.ip4} via ${from}00`;

  for (const [way, network, isLocal] of [
    ["the proxy's address alone", oneAddress, true],
    ['two addresses', twoAddresses, true],
    ['a wire to another namespace', byWire, false],
  ] as const) {
    test(`a listener of the pod's own, with ${way}: a pod has its share at most, and nobody else's`, async () => {
      for (const share of await flood(withListener(network))) {
        assert.ok(share > 1000, `${share} are many`);
        assert.ok(
          share <= maxEntries / freePart.originals,
          `${share} are no more than a part of what is free`,
        );
      }
    });

    test(`a listener of the pod's own, with ${way}, where the proxy is known to be elsewhere: what stays in the namespace is not filed`, async () => {
      plane.setProxyNetwork(proxy.netns);
      for (const share of await flood(withListener(network))) assert.equal(share > 0, !isLocal, `${share}`);
    });
  }

  test('where the proxy is in the network namespace of its client, it is told; one with its address elsewhere is not', async () => {
    const inside = { cgroup: proxy.cgroup, netns: app.netns };
    const listener = await listen(mesh.sandbox, inside, 'proxy', '*', [15001], '--dual');
    for (const own of [app, { ip4: '127.0.0.1', ip6: '::1' }]) {
      plane.setProxy(own);
      for (const address of [server.ip4, server.ip6]) {
        for (const [netns, told] of [
          [app.netns, at(address, PORT)],
          [undefined, at(address, PORT)],
          [proxy.netns, undefined],
        ] as const) {
          plane.setProxyNetwork(netns);
          const result = await connect(app, address, PORT);
          assert.ok(result.ok, JSON.stringify(result));
          assert.equal((await seen(listener, result.local)).orig, told);
        }
      }
    }
    plane.setProxy(proxy);
    await listener.running.stop();
  });
});

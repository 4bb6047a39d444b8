/** MPTCP at either end: a proxy that listens with it, as Go's net.Listen() does by default, is told by whichever protocol its client speaks. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, afterEach, describe, test } from 'node:test';
import { infoFlag } from '../../native/layout/layouts.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { connect, listen, type Connected } from '../../deploy/stage/sock.ts';
import { at, plain } from '../harness/travel.ts';
import { assertRedirected, freeze, hold, makeMesh, type Pod, PORT, type Proxied, seen } from './mesh.ts';

const hasMptcp = existsSync('/proc/sys/net/mptcp');

/** Connections whose socket is the protocol's own; those below that are TCP's, and not listed. */
async function mptcpSockets(netns: string): Promise<string> {
  return (await must({ cmd: 'ss', args: ['-MHin', 'state', 'established'], netns })).trim();
}

describe('MPTCP', { skip: !hasMptcp && 'this kernel is built without MPTCP' }, async () => {
  const mesh = await makeMesh('mptcp');
  const { plane, app, proxy, server } = mesh;
  after(() => mesh[Symbol.asyncDispose]());
  afterEach(() => plane.nothingLeft());

  async function addProxy(name: string): Promise<Pod> {
    const pod = await mesh.addPod(name, { inMesh: false, flags: infoFlag.proxy });
    plane.plane.attachProxy({ path: pod.podCgroup.absolute, id: pod.podCgroup.id });
    return pod;
  }
  const listenIn = (pod: Pod, address: string, ...options: readonly string[]) =>
    listen(mesh.sandbox, pod, 'proxy', address, [15001], '--mptcp', '--level', 'both', '--again', ...options);

  const dual = await addProxy('dual');
  const single = await addProxy('single');
  const onDual = await listenIn(dual, '*', '--dual');
  const on4 = await listenIn(single, '0.0.0.0');
  const on6 = await listenIn(single, '::');
  const FAMILIES = [
    { family: 'IPv4', address: server.ip4, options: [], asked: at(server.ip4, PORT), listener: on4 },
    {
      family: 'v4-mapped IPv6',
      address: server.ip4,
      options: ['--mapped'],
      asked: at(`::ffff:${server.ip4}`, PORT),
      listener: on4,
    },
    { family: 'IPv6', address: server.ip6, options: [], asked: at(server.ip6, PORT), listener: on6 },
  ] as const;

  for (const { family, address, options, asked, listener } of FAMILIES) {
    for (const [protocol, speak] of [
      ['TCP', []],
      ['MPTCP', ['--mptcp']],
    ] as const) {
      for (const [listens, where, listening] of [
        ['of one family', single, listener],
        ['dual-stack', dual, onDual],
      ] as const) {
        test(`a proxy whose listener is ${listens} learns the original destination of a client that speaks ${protocol}, ${family}`, async () => {
          plane.setProxy(where);
          const held = await hold(mesh.sandbox, app, address, PORT, ...options, ...speak);
          const { result } = held;
          assert.equal(
            (await mptcpSockets(where.netns)) !== '',
            protocol === 'MPTCP',
            'what it has accepted',
          );
          await assertRedirected({ proxying: listening, proxy: where }, result, asked);
          assert.equal(plane.leftovers().originals, 0, 'it is in the accepted socket alone');
          await held.end();
          const again = await eventually('the proxy has asked again', () =>
            (listening.accepted() as Proxied[]).find(
              (line) => result.ok && plain(line.peer) === plain(result.local) && line.again !== undefined,
            ),
          );
          assert.equal(again.again, plain(asked));
        });
      }
    }

    test(`a client that speaks MPTCP, ${family}, to a proxy that speaks TCP shows the peer that it asked for`, async () => {
      plane.setProxy(proxy);
      await assertRedirected(mesh, await connect(app, address, PORT, '--mptcp', ...options), asked);
    });
  }

  test('a client that has sent data and gone before the proxy accepts it is told apart all the same', async () => {
    plane.setProxy(dual);
    await freeze(dual.cgroup, true);
    const results: Connected[] = [];
    try {
      for (const { address, options } of FAMILIES)
        results.push(await connect(app, address, PORT, '--mptcp', ...options, '--say', '--no-read'));
    } finally {
      await freeze(dual.cgroup, false);
    }
    for (const [i, result] of results.entries()) {
      assert.ok(result.ok, JSON.stringify(result));
      assert.equal((await seen(onDual, result.local)).orig, plain(FAMILIES[i]?.asked ?? ''));
    }
  });

  /** Middleboxes take options out of packets; 30 is MPTCP's, RFC 8684. */
  for (const [when, packets, kind, state] of [
    ['when its handshake ends', ['!', '--syn'], 'TCP', /^$/],
    ['while it waits to be accepted', ['--tcp-flags', 'PSH', 'PSH'], 'MPTCP', /fallback/],
  ] as const) {
    test(`a connection that falls back to TCP ${when}, so that the proxy accepts a socket of ${kind}, is told apart`, async () => {
      const falling = await addProxy(`falling-${kind.toLowerCase()}`);
      const listener = await listenIn(falling, '*', '--dual');
      for (const cmd of ['iptables', 'ip6tables']) {
        const rule = ['-t', 'mangle', '-A', 'INPUT', '-p', 'tcp', ...packets];
        await must({
          cmd,
          args: [...rule, '-j', 'TCPOPTSTRIP', '--strip-options', '30'],
          netns: falling.netns,
        });
      }
      plane.setProxy(falling);
      for (const { address, options, asked } of FAMILIES) {
        await freeze(falling.cgroup, true);
        const way = ['--mptcp', '--say', '--no-read', ...options];
        const { result, end } = await hold(mesh.sandbox, app, address, PORT, ...way);
        assert.ok(result.ok && result.peer === asked, JSON.stringify(result));
        await eventually('it has fallen back', async () => state.test(await mptcpSockets(falling.netns)));
        await freeze(falling.cgroup, false);
        assert.equal((await seen(listener, result.local)).orig, plain(asked));
        await end();
        await eventually('it is over', async () => (await mptcpSockets(falling.netns)) === '');
      }
    });
  }

  test("a connection that nobody redirected gets the kernel's own answer", async () => {
    const result = await connect(mesh.hostProcess(), dual.ip4, 15001, '--mptcp');
    assert.ok(result.ok, JSON.stringify(result));
    assert.equal((await seen(onDual, result.local)).error, 'EOPNOTSUPP');
  });
});

/** Sockets of a network namespace, seen and reset from outside it. */
import assert from 'node:assert/strict';
import { openSync, closeSync, readlinkSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { addressText } from '../../mapper/objects/address.ts';
import { openTcpSockets, type TcpSocket, type TcpSockets } from '../../native/netlink/sock-destroy.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { makeNetwork, type NetworkHost } from '../../deploy/stage/netns.ts';
import { must, type Running } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { type Connected, listen, SOCK } from '../../deploy/stage/sock.ts';

const WAYS = [
  { name: 'IPv4', family: 4, options: [], to: ({ ip4 }: NetworkHost) => ip4 },
  { name: 'IPv6', family: 6, options: [], to: ({ ip6 }: NetworkHost) => ip6 },
  { name: 'v4-mapped IPv6', family: 6, options: ['--mapped'], to: ({ ip4 }: NetworkHost) => ip4 },
] as const;

/** A program that has 2,000 connections to itself. */
const MANY = `
  const { connect, createServer } = require('node:net');
  let accepted = 0;
  createServer((socket) => {
    socket.on('error', () => {});
    if (++accepted === 2000) console.log('up');
  }).listen(9999, '127.0.0.1', 4096, () => {
    for (let i = 0; i < 2000; i++) connect(9999, '127.0.0.1').on('error', () => {});
  });
`;

describe('the TCP sockets of a pod', () => {
  let sandbox: Sandbox;
  let server: NetworkHost;
  let client: NetworkHost;
  let one: Cgroup;
  let two: Cgroup;
  let sockets: TcpSockets;
  const ownNamespace = readlinkSync('/proc/thread-self/ns/net');

  before(async () => {
    sandbox = await makeSandbox('sockdiag');
    const network = await makeNetwork(sandbox);
    server = await network.addHost('server');
    client = await network.addHost('client');
    one = sandbox.cgroup('/one/inner');
    two = sandbox.cgroup('/two');
    await listen(sandbox, { netns: server.netns }, 'serve', '*', [8080], '--dual');
    await listen(sandbox, { netns: client.netns, cgroup: two }, 'serve', '*', [9090], '--dual');
    const netns = openSync(`/run/netns/${client.netns}`, 'r');
    sockets = openTcpSockets(netns);
    closeSync(netns);
  });
  after(async () => {
    sockets?.[Symbol.dispose]();
    await sandbox?.[Symbol.asyncDispose]();
  });

  async function hold(
    cgroup: Cgroup,
    address: string,
    ...options: readonly string[]
  ): Promise<Running & { readonly local: string }> {
    const running = sandbox.spawn({
      netns: client.netns,
      cgroup,
      cmd: SOCK,
      args: ['connect', '--hold', ...options, address, '8080'],
    });
    const connected = await running.json<Connected>();
    assert.ok(connected.ok);
    return Object.assign(running, { local: connected.local });
  }
  async function isAlive(running: Running): Promise<boolean> {
    running.end();
    return (await running.json<{ alive: boolean }>()).alive;
  }
  const portOf = ({ local }: { readonly local: string }): number =>
    Number(local.slice(local.lastIndexOf(':') + 1));
  const found = (local: { readonly local: string }): TcpSocket => {
    const tcp = sockets.list(['established']).find(({ localPort }) => localPort === portOf(local));
    assert.ok(tcp, 'the socket is listed');
    return tcp;
  };

  test('are asked for without a stay in its namespace', () => {
    assert.equal(readlinkSync('/proc/thread-self/ns/net'), ownNamespace);
    const ports = sockets.list(['listen']).map(({ localPort }) => localPort);
    assert.deepEqual([...new Set(ports)], [9090], "the namespace's own, and no others");
  });

  for (const { name, family, options, to } of WAYS) {
    test(`${name}: are told with their ends and their cgroup, and one of them is reset`, async () => {
      const [mine, theirs] = [
        await hold(one, to(server), ...options),
        await hold(two, to(server), ...options),
      ];
      const tcp = found(mine);
      assert.deepEqual(
        {
          family: tcp.family,
          state: tcp.state,
          remote: addressText(tcp.remote),
          remotePort: tcp.remotePort,
          cgroupId: tcp.cgroupId,
          uid: tcp.uid,
        },
        { family, state: 'established', remote: to(server), remotePort: 8080, cgroupId: one.id, uid: 0 },
      );
      assert.ok(tcp.inode > 0);
      const other = found(theirs);
      assert.equal(other.cgroupId, two.id);
      assert.notEqual(other.cookie, tcp.cookie);
      assert.equal(sockets.destroy(tcp), true);
      assert.equal(sockets.destroy(tcp), false, 'it is gone already');
      assert.deepEqual([await isAlive(mine), await isAlive(theirs)], [false, true]);
    });
  }

  test('with a cookie of another socket at the same place are left alone', async () => {
    const held = await hold(one, server.ip4);
    const tcp = found(held);
    const id = Uint8Array.from(tcp.id);
    id[40] = (id[40] ?? 0) ^ 1;
    assert.equal(sockets.destroy({ ...tcp, id }), false);
    assert.equal(await isAlive(held), true);
  });

  test('are listed without CAP_NET_ADMIN, and not reset: the error names the call and what it takes', async () => {
    const held = await hold(one, server.ip4);
    const script = `
      import { openSync } from 'node:fs';
      import { openTcpSockets } from ${JSON.stringify(resolve(import.meta.dirname, '../../native/netlink/sock-destroy.ts'))};
      const sockets = openTcpSockets(openSync('/run/netns/${client.netns}', 'r'));
      const tcp = sockets.list(['established']).find(({ localPort }) => localPort === ${portOf(held)});
      try { console.log(sockets.destroy(tcp)); } catch ({ code, errno, message }) { console.log(JSON.stringify({ code, errno, message })); }
    `;
    const said = await must({
      cmd: 'setpriv',
      args: [
        '--inh-caps=-net_admin',
        '--bounding-set=-net_admin',
        process.execPath,
        '--input-type=module',
        '-e',
        script,
      ],
    });
    assert.deepEqual(JSON.parse(said), {
      code: 'ESOCKDIAG',
      errno: 'EPERM',
      message:
        "SOCK_DESTROY of NETLINK_SOCK_DIAG failed with EPERM: it takes CAP_NET_ADMIN in the namespace's user namespace",
    });
    assert.equal(await isAlive(held), true);
  });

  test('are listed to the last one where there are thousands', async (context) => {
    const running = sandbox.spawn({
      netns: client.netns,
      cgroup: one,
      cmd: process.execPath,
      args: ['-e', MANY],
    });
    await running.line(/up/);
    const began = performance.now();
    const all = sockets
      .list(['established'])
      .filter(({ remotePort, cgroupId }) => remotePort === 9999 && cgroupId === one.id);
    const listed = performance.now();
    assert.equal(new Set(all.map(({ cookie }) => cookie)).size, 2000);
    assert.equal(all.filter((tcp) => sockets.destroy(tcp)).length, 2000);
    context.diagnostic(
      `2,000 listed in ${Math.round(listed - began)} ms, and reset in ${Math.round(performance.now() - listed)} ms`,
    );
    assert.equal(
      sockets.list(['established']).filter(({ cgroupId }) => cgroupId === one.id).length,
      0,
      'the accepted ends got a reset',
    );
  });
});

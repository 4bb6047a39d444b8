/** Where a network namespace listens, as the kernel itself shows it, without entering it. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { inSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { addressBytes } from '../../mapper/objects/address.ts';
import { isListenedOn, listenersOf } from '../../watcher/listeners.ts';

test('listeners of each kind are found among connections, those with MPTCP too, and of no other namespace', async () => {
  const made = await inSandbox('listeners', async (sandbox: Sandbox) => {
    const network = await makeNetwork(sandbox);
    return { sandbox, hosts: [await network.addHost('one'), await network.addHost('other')] as const };
  });
  await using sandbox = made.sandbox;
  const [one, other] = made.hosts;
  const place = { netns: one.netns };
  const { running } = await listen(sandbox, place, 'serve', one.ip4, [1001]);
  await listen(sandbox, place, 'serve', '*', [1002], '--dual');
  await listen(sandbox, place, 'serve', one.ip6, [1003], '-6');
  const hasMptcp = existsSync('/proc/sys/net/mptcp');
  if (hasMptcp) {
    await listen(sandbox, place, 'serve', one.ip4, [1004], '--mptcp');
    await listen(sandbox, place, 'serve', '*', [1005], '--dual', '--mptcp');
  }
  await listen(sandbox, { netns: other.netns }, 'serve', '*', [1006], '--dual');
  const client = sandbox.spawn({
    netns: other.netns,
    cmd: 'sleep',
    args: ['1000'],
  });
  for (let n = 0; n < 20; n++) assert.ok((await connect({ netns: other.netns }, one.ip4, 1001)).ok);

  const heard = (pid: number, ip: string): number[] => {
    const listeners = listenersOf(pid, '/proc') ?? assert.fail('nothing is told');
    const bytes = addressBytes(ip)?.subarray(ip.includes(':') ? 0 : 12) ?? assert.fail(ip);
    return [1001, 1002, 1003, 1004, 1005, 1006].filter((port) => isListenedOn(listeners, bytes, port));
  };
  assert.deepEqual(heard(running.pid, one.ip4), [1001, 1002, ...(hasMptcp ? [1004, 1005] : [])]);
  assert.deepEqual(heard(running.pid, one.ip6), [1002, 1003, ...(hasMptcp ? [1005] : [])]);
  assert.deepEqual(heard(client.pid, other.ip4), [1006]);
});

/** The harness's HAProxy is a real proxy, and finds the original destination by itself. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startHaproxy } from '../../deploy/stage/haproxy.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { must } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';

test('HAProxy forwards a redirected connection to its original destination', async () => {
  await using sandbox = await makeSandbox('haproxy');
  const network = await makeNetwork(sandbox);
  const [pod, server] = [await network.addHost('pod'), await network.addHost('server')];
  await listen(sandbox, { netns: server.netns }, 'serve', '0.0.0.0', [80, 81]);
  const haproxy = await startHaproxy(sandbox, { netns: pod.netns });
  // The proxy runs as another user than the client, whose connections alone are redirected.
  const rule = '-t nat -A OUTPUT -p tcp --dport 80:82 -m owner --uid-owner 1000 -j REDIRECT --to-ports 15001';
  await must({ cmd: 'iptables', args: rule.split(' '), netns: pod.netns });

  const result = await connect({ netns: pod.netns }, server.ip4, 80, '--uid', '1000');
  assert.ok(result.ok, JSON.stringify(result));
  assert.match(result.reply, new RegExp(`^server ${server.ip4}:80 ${pod.ip4}:`));
  const seen = await haproxy.connection(`${server.ip4}:80`);
  assert.deepEqual(seen, { client: result.local, destination: `${server.ip4}:80`, port: 15001, state: '--' });

  const second = await connect({ netns: pod.netns }, server.ip4, 81, '--uid', '1000');
  assert.ok(second.ok);
  await haproxy.connection(`${server.ip4}:81`);
  await connect({ netns: pod.netns }, server.ip4, 82, '--uid', '1000');
  const failed = await haproxy.connection(`${server.ip4}:82`);
  assert.equal(failed.state, 'SC');
  assert.equal(haproxy.connections().length, 3);
  await haproxy.stop();
});

test('HAProxy refuses a connection without an original destination instead of calling itself', async () => {
  await using sandbox = await makeSandbox('haproxy');
  const pod = await (await makeNetwork(sandbox)).addHost('pod');
  const haproxy = await startHaproxy(sandbox, { netns: pod.netns });
  const result = await connect({ netns: pod.netns }, pod.ip4, 15006);
  assert.ok(!result.ok);
  const seen = await haproxy.connection(`${pod.ip4}:15006`);
  assert.equal(seen.state, 'PR');
  assert.equal(haproxy.connections().length, 1);
});

/** The harness's proxy in pods' namespaces: what it answers over ZDS, its life, and its faults on demand. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { InpodProxy } from '../../deploy/stage/inpod-proxy.ts';
import type { NetworkHost } from '../../deploy/stage/netns.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { SOCK, connect, listen } from '../../deploy/stage/sock.ts';
import { captureByIptables, makeInpodStage } from '../harness/inpod-stage.ts';
import { serveZds } from '../harness/zds-serve.ts';

/** Whether somebody takes connections on the pod's 15006. */
async function isServed(pod: NetworkHost): Promise<boolean> {
  const result = await connect({ netns: pod.netns }, pod.ip4, 15006);
  return !(!result.ok && result.errno === 'ECONNREFUSED');
}

const names = (proxy: InpodProxy): string[] => proxy.events().map(({ event }) => event);

test('each message has one acknowledgement, in order; the snapshot makes it ready', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const [pod, other] = [await stage.network.addHost('pod'), await stage.network.addHost('other')];
  const proxy = stage.proxy();
  await stage.zds.said('hello');
  await proxy.order('nack no room\there');
  await stage.zds.send(stage.add(pod));
  await stage.zds.send(stage.add(other));
  await stage.zds.send('del nobody');
  await stage.zds.send('snapshot');
  await stage.zds.said('ack', 1, 4);
  const [refused = '', ...rest] = stage.zds.acks();
  assert.equal(refused.split('\n')[0], 'no room\there');
  assert.ok(refused.includes('\n'), 'it has a stack');
  assert.deepEqual(rest, ['', '', '']);
  const { account, namespace, netns } = await proxy.said('listening', 'other');
  const inode = await must({ cmd: 'stat', args: ['-Lc', '%i', `/run/netns/${other.netns}`] });
  assert.deepEqual([account, namespace, netns], ['sa-other', 'default', Number(inode)]);
  await eventually('it is ready', () => names(proxy).at(-1) === 'ready');
  assert.deepEqual([await isServed(pod), await isServed(other)], [false, true]);
});

test('a late acknowledgement holds up those after it, and a held one comes when it may', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const [pod, other] = [await stage.network.addHost('pod'), await stage.network.addHost('other')];
  const proxy = stage.proxy();
  await stage.zds.said('hello');
  await proxy.order('late 500');
  await stage.zds.send(stage.add(pod));
  await proxy.said('listening', 'pod');
  await proxy.order('late 0');
  await proxy.order('nack the second');
  await stage.zds.send(stage.add(other));
  await stage.zds.said('ack', 1, 2);
  assert.deepEqual(
    stage.zds.acks().map((error) => error.split('\n')[0]),
    ['', 'the second'],
  );
  await proxy.order('hang');
  await stage.zds.send('del pod');
  await proxy.said('drained', 'pod');
  // What is said after an acknowledgement would come behind it.
  await proxy.order('rubbish');
  await stage.zds.said('rubbish');
  assert.equal(stage.zds.acks().length, 2);
  await proxy.order('resume');
  await stage.zds.said('ack', 1, 3);
  await proxy.order('late 3600000');
  await stage.zds.send('del nobody');
  await stage.zds.send('del nobody');
  await stage.zds.send(stage.add(pod));
  await proxy.said('listening', 'pod', 2);
  await proxy.order('rubbish');
  await stage.zds.said('rubbish', 1, 2);
  assert.equal(stage.zds.acks().length, 3);
});

test('a new stream confirms what was there, and what it does not name is dropped with the snapshot', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const pods = [];
  for (const name of ['one', 'two', 'three', 'four']) pods.push(await stage.network.addHost(name));
  const [one, two, three, four] = pods as [NetworkHost, NetworkHost, NetworkHost, NetworkHost];
  const proxy = stage.proxy();
  await stage.zds.said('hello');
  for (const pod of pods) await stage.zds.send(stage.add(pod));
  await stage.zds.send('snapshot');
  await stage.zds.said('ack', 1, 5);
  // The agent goes, and comes back as another one at the same path.
  await stage.zds.running.stop();
  await eventually('it knows', () => names(proxy).includes('disconnected'));
  assert.deepEqual(await Promise.all(pods.map(isServed)), [true, true, true, true]);
  await using zds = await serveZds(stage.sandbox, stage.zds.socket);
  await zds.said('hello');
  await zds.send(stage.add(one));
  await zds.send('keep two');
  // Under the same uid in another namespace, as a sandbox that was made anew.
  await zds.send(stage.add(four).replace(`add four`, 'add three'));
  await zds.said('ack', 1, 3);
  assert.ok(await isServed(four));
  await zds.send('snapshot');
  await zds.said('ack', 1, 4);
  assert.deepEqual(zds.acks(), ['', '', '', '']);
  await proxy.said('drained', 'four');
  await proxy.said('drained', 'three');
  assert.deepEqual(await Promise.all([one, two, three].map(isServed)), [true, true, false]);
  assert.equal(names(proxy).filter((name) => name === 'listening').length, 5, 'one and two were left alone');
  await eventually('it is ready again', () => names(proxy).filter((name) => name === 'ready').length === 2);
  assert.equal((await proxy.totals()).workloads, 3);
});

test('two proxies share the listeners, and either goes on without the other', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const pod = await stage.network.addHost('pod');
  const older = stage.proxy({ name: 'older' });
  await stage.zds.said('hello', 1);
  const newer = stage.proxy({ name: 'newer' });
  await stage.zds.said('hello', 2);
  assert.equal(await stage.zds.send(stage.add(pod)), 2);
  await older.said('listening', 'pod');
  await newer.said('listening', 'pod');
  for (const proxy of [older, newer])
    await eventually('it has its share of connections', async () => {
      await connect({ netns: pod.netns }, pod.ip4, 15006);
      return proxy.connections().length > 0;
    });
  await newer.crash();
  assert.equal((await newer.running.exit).signal, 'SIGABRT');
  await stage.zds.said('closed', 2);
  const before = older.connections().length;
  for (let i = 0; i < 20; i++) assert.ok(await isServed(pod));
  await eventually('it has said so', () => older.connections().length === before + 20);
  await using third = stage.proxy({ name: 'third' });
  await stage.zds.said('hello', 3);
  await stage.zds.send(stage.add(pod));
  await third.said('listening', 'pod');
  await older.stop();
  assert.ok(await isServed(pod));
});

test('Del ends open connections, and until then the proxy keeps the namespace', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const [pod, server] = [await stage.network.addHost('pod'), await stage.network.addHost('server')];
  await captureByIptables(pod);
  await listen(stage.sandbox, { netns: server.netns }, 'serve', server.ip4, [80]);
  const proxy = stage.proxy();
  await stage.zds.said('hello');
  await stage.zds.send(stage.add(pod));
  await proxy.said('listening', 'pod');
  const open = stage.sandbox.spawn({
    cmd: SOCK,
    args: ['connect', '--hold', server.ip4, '80'],
    netns: pod.netns,
  });
  assert.equal((await open.json<{ ok: boolean }>()).ok, true);
  assert.equal((await proxy.totals()).open, 1);
  await stage.zds.send('del pod');
  await proxy.said('drained', 'pod');
  assert.deepEqual([(await proxy.totals()).open, await isServed(pod)], [0, false]);

  await stage.zds.send(stage.add(pod));
  await proxy.said('listening', 'pod', 2);
  open.end();
  await open.exit;
  // Nobody else is in it, and its name is gone.
  await must({ cmd: 'ip', args: ['netns', 'delete', pod.netns] });
  const result = await connect({ netns: server.netns }, pod.ip4, 15008, '--no-read');
  assert.ok(result.ok, 'it still answers');
  await stage.zds.send('del pod');
  await proxy.said('drained', 'pod', 2);
  await eventually('the namespace is gone', async () => {
    const devices = await must({ cmd: 'ip', args: ['link'], netns: stage.network.gateway.netns });
    return (devices.match(/veth\d+/g) ?? []).length === 2;
  });
});

test('where the application holds the port the proxy refuses, and tries again by itself', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const pod = await stage.network.addHost('pod');
  const application = await listen(stage.sandbox, { netns: pod.netns }, 'serve', '*', [15006], '--dual');
  const proxy = stage.proxy();
  await stage.zds.said('hello');
  await stage.zds.send(stage.add(pod));
  await stage.zds.send('snapshot');
  await stage.zds.said('ack', 1, 2);
  assert.match(stage.zds.acks()[0] ?? '', /^AddrInUse.*15006[^\n]*\n/);
  assert.ok(!names(proxy).includes('ready'), 'one pod is pending');
  const outbound = await connect({ netns: pod.netns }, pod.ip4, 15001);
  assert.ok(!outbound.ok && outbound.errno === 'ECONNREFUSED', 'all listeners or none');
  await application.running.stop();
  await proxy.said('listening', 'pod');
  await eventually('it is ready', () => names(proxy).includes('ready'));
  assert.equal(stage.zds.acks().length, 2);
});

test('listeners go and come back when asked, drain lets connections end, orders are checked', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const [pod, other] = [await stage.network.addHost('pod'), await stage.network.addHost('other')];
  const server = await stage.network.addHost('server');
  await captureByIptables(pod);
  await listen(stage.sandbox, { netns: server.netns }, 'serve', server.ip4, [80]);
  const proxy = stage.proxy();
  await stage.zds.said('hello');
  for (const each of [pod, other]) await stage.zds.send(stage.add(each));
  await proxy.said('listening', 'other');
  await proxy.order('stop-listening pod');
  assert.deepEqual([await isServed(pod), await isServed(other)], [false, true]);
  await proxy.order('stop-listening');
  assert.deepEqual([await isServed(pod), await isServed(other)], [false, false]);
  await proxy.order('listen');
  assert.deepEqual([await isServed(pod), await isServed(other)], [true, true]);
  await assert.rejects(proxy.order('listen nobody'), /does not understand: listen nobody/);
  await assert.rejects(proxy.order('dance'), /does not understand/);

  const args = ['connect', '--hold', server.ip4, '80'];
  const open = stage.sandbox.spawn({ cmd: SOCK, args, netns: pod.netns });
  assert.equal((await open.json<{ ok: boolean }>()).ok, true);
  await proxy.order('drain 3600000');
  assert.equal(await isServed(pod), false);
  assert.equal((await proxy.totals()).open, 1);
  open.end();
  assert.deepEqual(await proxy.running.exit, { code: 0, signal: null });
});

test('rubbish is sent when asked, and what comes of it leaves the pods served', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const pod = await stage.network.addHost('pod');
  const proxy = stage.proxy();
  await stage.zds.said('hello');
  await stage.zds.send(stage.add(pod));
  await proxy.said('listening', 'pod');
  await proxy.order('rubbish');
  await stage.zds.said('rubbish');
  await proxy.order('hang-up');
  await stage.zds.said('closed', 1);
  await stage.zds.said('hello', 2);
  assert.ok(await isServed(pod));
});

const ADD_BARE = 'add-bare pod default pod sa-pod';

test('an Add without its one descriptor, and what is no message, is refused and ends the stream', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const pod = await stage.network.addHost('pod');
  const proxy = stage.proxy();
  const faults = [
    [ADD_BARE, /one descriptor/],
    [stage.add(pod).replace('add', 'add-twice'), /one descriptor/],
    ['raw 0aff', /decoded/],
    [`raw ${'00'.repeat(1100)}`, /decoded/],
  ] as const;
  let client = 0;
  for (const [order, error] of faults) {
    await stage.zds.said('hello', ++client);
    await stage.zds.send(order);
    await stage.zds.said('closed', client);
    assert.match(stage.zds.acks(client).join(), error);
  }
  await stage.zds.said('hello', ++client);
  assert.equal((await proxy.totals()).workloads, 0);
});

for (const [what, orders] of [
  ['a second SnapshotSent', ['snapshot', 'snapshot']],
  ['a Keep after SnapshotSent', ['snapshot', 'keep pod']],
  ["an Add without the workload's names", ['add-bare pod']],
] as const) {
  test(`${what} ends the process`, async () => {
    await using stage = await makeInpodStage('inpod-zds');
    const proxy = stage.proxy();
    await stage.zds.said('hello');
    for (const order of orders) await stage.zds.send(order);
    assert.equal((await proxy.running.exit).code, 1);
    assert.ok(names(proxy).includes('fatal'));
  });
}

test('DNS is answered on the loopback addresses, over UDP and TCP', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const pod = await stage.network.addHost('pod');
  const proxy = stage.proxy({ dns: '192.0.2.53' });
  await stage.zds.said('hello');
  await stage.zds.send(stage.add(pod));
  await proxy.said('listening', 'pod');
  for (const [host, protocol] of [['127.0.0.1', 'udp'] as const, ['::1', 'tcp'] as const]) {
    const script = `const [host, protocol] = process.argv.slice(1);
      const question = Buffer.from('abcd01000001000000000000' + '03777777' + '046d657368' + '00' + '00010001', 'hex');
      const show = (answer) => { console.log(answer.toString('hex')); process.exit(); };
      if (protocol === 'udp') {
        const socket = require('node:dgram').createSocket(host.includes(':') ? 'udp6' : 'udp4');
        socket.on('message', show).send(question, 15053, host);
      } else {
        const socket = require('node:net').connect(15053, host);
        socket.on('data', (part) => show(part.subarray(2)));
        socket.write(Buffer.concat([Buffer.from([0, question.length]), question]));
      }`;
    const answer = await must({
      cmd: process.execPath,
      args: ['-e', script, host, protocol],
      netns: pod.netns,
    });
    assert.ok(answer.startsWith('abcd818000010001'), answer);
    assert.ok(answer.endsWith('0004c0000235'), answer);
    await eventually('the question is said', () =>
      proxy
        .events()
        .some((event) => event.event === 'dns' && event.protocol === protocol && event.name === 'www.mesh.'),
    );
  }
});

test('a file of the mesh is read again on SIGHUP, and totals come on SIGUSR1', async () => {
  await using stage = await makeInpodStage('inpod-zds');
  const pod = await stage.network.addHost('pod');
  await captureByIptables(pod);
  const meshFile = stage.sandbox.file('mesh');
  const proxy = stage.proxy({ meshFile });
  await stage.zds.said('hello');
  await stage.zds.send(stage.add(pod));
  await proxy.said('listening', 'pod');
  await connect({ netns: pod.netns }, stage.node.ip4, 80);
  await writeFile(meshFile, `${stage.node.ip4}\n${stage.node.ip6}\n`);
  proxy.running.kill('SIGHUP');
  await eventually('it has read the file', () => names(proxy).includes('mesh'));
  await connect({ netns: pod.netns }, stage.node.ip4, 80);
  proxy.running.kill('SIGUSR1');
  const totals = await eventually('its totals', () =>
    proxy.events().find((event) => event.event === 'totals'),
  );
  assert.deepEqual([totals.did.passthrough, totals.did.tunnel, totals.failed], [1, 1, 2]);
});

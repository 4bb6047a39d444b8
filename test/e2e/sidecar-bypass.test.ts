/** Bypass of a pod with a sidecar: a label takes directions around it, and its rules stand through all that happens. */
import assert from 'node:assert/strict';
import { dirname } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { cgroute } from '../../deploy/stage/agent.ts';
import { killBelow, removeCgroup } from '../../deploy/stage/cgroup.ts';
import { SERVER_PORT } from '../../deploy/stage/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { natRules, ownRules } from '../../deploy/stage/sidecar.ts';
import { SOCK, connect, listen } from '../../deploy/stage/sock.ts';
import { startNode } from '../harness/node.ts';
import {
  wrapped,
  run,
  addSidecarPod,
  out,
  toPod,
  rulesAre,
  label,
  fastSweep,
  metric,
  drift,
  notes,
  source,
} from './sidecar-pod.ts';
import { BYPASS } from '../harness/label-names.ts';

describe('bypass of a pod with a sidecar', () => {
  for (const backend of ['nft', 'legacy'] as const) {
    test(`takes the directions of the label around the sidecar, whose rules are in the backend ${backend}`, async () => {
      await using node = await startNode(`bypass-${backend}`, { demo: {} });
      const pod = await addSidecarPod(node, { name: 'pod' }, backend);
      const client = await node.addPod({ name: 'client' });
      await node.apply();
      const ways = async () => [await out(node, pod), await toPod(node, client, pod)];
      const [around, through] = [
        [[], []],
        [['sidecar of the client'], ['sidecar of the server']],
      ];
      assert.deepEqual(await ways(), through);
      // HAProxy asks for the original destination on IPv4 alone, so IPv6 has a sidecar that answers by itself.
      await listen(node.sandbox, pod.place, 'proxy', '::', [15001, 15006], '-6');
      node.manifest.change(pod.uid, { ips: [pod.host.ip4, pod.host.ip6] });
      const ways6 = async () =>
        Promise.all(
          [
            { from: pod, to: node.server.ip6 },
            { from: client, to: pod.host.ip6 },
          ].map(async ({ from, to }) => {
            const result = await connect(from.place, to, SERVER_PORT);
            return result.ok ? result.reply.split(' ')[0] : result.errno;
          }),
        );
      assert.deepEqual(await ways6(), ['proxy', 'proxy']);
      const held = node.sandbox.spawn({
        ...pod.place,
        cmd: SOCK,
        args: ['connect', '--hold', node.server.ip4, String(SERVER_PORT)],
      });
      await held.line();
      await label(node, pod, { [BYPASS]: 'enabled' });
      await rulesAre(pod, 'bypass');
      assert.deepEqual([await ways(), await ways6()], [around, ['server', 'server']]);
      const [first = ''] = await natRules(pod.host.netns, 'OUTPUT', `iptables-${backend}`);
      assert.match(first, new RegExp(`^-m bpf --object-pinned ${node.sandbox.bpffs}/bypass .*-j RETURN$`));
      await label(node, pod, { [BYPASS]: 'outbound' });
      assert.deepEqual(
        [await ways(), await ways6()],
        [
          [[], ['sidecar of the server']],
          ['server', 'proxy'],
        ],
      );
      await label(node, pod, { [BYPASS]: 'inbound' });
      assert.deepEqual(await ways(), [['sidecar of the client'], []]);
      await label(node, pod, {});
      assert.deepEqual(await ways(), through);
      await rulesAre(pod, 'none');
      held.end();
      assert.deepEqual((await held.exit).code, 0, 'a connection of before has gone on through all of this');
      const { verdict, reason } = await node.podStatus(pod);
      assert.deepEqual([verdict, reason], ['out', 'not-enrolled']);
    });
  }

  test('goes with its agent down and changes while it is, is put back, and is taken along by cleanup', async () => {
    await using node = await startNode('reconciled', { demo: {}, agent: false });
    const pod = await addSidecarPod(node, { name: 'pod', labels: { [BYPASS]: 'enabled' } });
    const other = await addSidecarPod(node, { name: 'other' });
    const gone = await addSidecarPod(node, { name: 'gone', labels: { [BYPASS]: 'enabled' } });
    const args = fastSweep(node);
    await node.startAgent({ args });
    await rulesAre(pod, 'bypass');
    await rulesAre(gone, 'bypass');
    assert.equal((await node.entries('bypass_filter_map')).length, 2);
    await node.agent.kill9();
    assert.deepEqual([await out(node, pod), await out(node, other)], [[], ['sidecar of the client']]);

    removeCgroup(dirname(gone.cgroup.absolute));
    node.manifest.remove(gone.uid);
    node.manifest.change(pod.uid, { labels: {} });
    node.manifest.change(other.uid, { labels: { [BYPASS]: 'enabled' } });
    node.manifest.write();
    await node.startAgent({ args });
    await rulesAre(pod, 'none');
    await rulesAre(other, 'bypass');
    assert.deepEqual(
      [(await node.entries('bypass_filter_map')).length, (await node.entries('bypass_filter6_map')).length],
      [1, 0],
      'the manifest has no IPv6 addresses',
    );
    assert.deepEqual([await out(node, pod), await out(node, other)], [['sidecar of the client'], []]);

    const iptables = (...what: readonly string[]) =>
      must({ cmd: 'iptables-nft', args: ['-t', 'nat', ...what], netns: other.host.netns });
    const foreign = [
      '-p',
      'tcp',
      '--dport',
      '9',
      '-m',
      'comment',
      '--comment',
      'not of cgroute',
      '-j',
      'RETURN',
    ];
    const before = await drift(node);
    await iptables('-D', 'OUTPUT', '1');
    await iptables('-I', 'PREROUTING', '1', ...foreign);
    await eventually('they are first again', async () => {
      const firsts = await Promise.all(
        ['OUTPUT', 'PREROUTING'].map(async (chain) => (await natRules(other.host.netns, chain))[0] ?? ''),
      );
      return firsts.every((rule) => rule.includes('cgroute:bypass'));
    });
    await eventually('it is counted', async () => (await drift(node)) > before);
    assert.match((await natRules(other.host.netns, 'PREROUTING'))[1] ?? '', /not of cgroute/);
    assert.deepEqual(await out(node, other), []);

    await node.agent.stop();
    assert.deepEqual(await out(node, other), [], 'it goes on without an agent');
    const { code, stdout, stderr } = await cgroute(node.sandbox, ['cleanup']);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /removed 4 rules/);
    assert.deepEqual(
      [
        await ownRules(pod.host.netns),
        (await ownRules(other.host.netns)).filter((rule) => !/PREROUTING cgroute$/.test(rule)),
      ],
      [[], []],
    );
    assert.match((await natRules(other.host.netns, 'PREROUTING'))[0] ?? '', /not of cgroute/);
    assert.deepEqual(await out(node, other), ['sidecar of the client']);
    assert.equal((await cgroute(node.sandbox, ['cleanup'])).code, 0, 'twice is fine');
  });

  test('comes back in a new namespace of the same pod, and ends with --on-exit detach', async () => {
    await using node = await startNode('replaced', { demo: {}, agent: { args: ['--on-exit', 'detach'] } });
    const pod = await addSidecarPod(node, { name: 'pod', labels: { [BYPASS]: 'enabled' } });
    await node.apply();
    await rulesAre(pod, 'bypass');
    killBelow(pod.cgroup.absolute);
    await must({ cmd: 'ip', args: ['netns', 'delete', pod.host.netns] });
    const host = await node.network.addHost('again', { ip4: pod.host.ip4, ip6: pod.host.ip6 });
    const cgroup = pod.startContainer();
    const again = await run(node, { ...pod, host, place: { cgroup, netns: host.netns } });
    await rulesAre(again, 'bypass');
    assert.deepEqual(await out(node, again), []);
    await node.agent.stop();
    assert.deepEqual(await ownRules(host.netns), []);
    assert.deepEqual(await out(node, again), ['sidecar of the client']);
  });

  test('waits for a lock and for missing tools, and says so, once', async () => {
    await using node = await startNode('failing', { demo: {}, agent: false });
    const pod = await addSidecarPod(node, { name: 'pod', labels: { [BYPASS]: 'enabled' } }, 'legacy');
    const lock = node.sandbox.file('xtables.lock');
    const holder = node.sandbox.spawn({
      cmd: 'flock',
      args: ['--close', lock, 'sh', '-c', 'echo held; exec sleep 60'],
    });
    await holder.line(/held/);
    const agent = await node.startAgent({ env: { XTABLES_LOCKFILE: lock } });
    const locked = /iptables-legacy failed with exit code 4: another program has held its lock for 5 s/;
    await eventually('it is said', () => agent.log().some(({ msg = '' }) => locked.test(msg)));
    assert.match(await notes(node, pod), locked);
    assert.equal((await source(node))?.state, 'degraded');
    assert.deepEqual(
      [
        await metric(node, 'cgroute_sidecar_pods{state="failing"}'),
        await metric(node, 'cgroute_sidecar_failures_total'),
      ],
      [1, 1],
    );
    assert.deepEqual(await out(node, pod), ['sidecar of the client']);
    await holder.stop('SIGKILL');
    await rulesAre(pod, 'bypass');
    assert.deepEqual(await out(node, pod), []);
    assert.equal((await source(node))?.state, 'ok');
    await agent.stop();

    await cgroute(node.sandbox, ['cleanup']);
    const without = await node.startAgent({
      start: wrapped('unshare', '-m', 'sh', '-c', 'mount -t tmpfs none /usr/sbin && exec "$@"', 'sh'),
    });
    const missing = /iptables-nft is not installed|iptables-nft-save is not installed/;
    await eventually('it is said', () => without.log().some(({ msg = '' }) => missing.test(msg)));
    await delay(1500);
    assert.equal(
      without
        .log()
        .filter(({ msg = '', level }) => level === 'warn' && missing.test(msg) && msg.startsWith('the rules'))
        .length,
      1,
    );
    await must({ cmd: 'nsenter', args: ['-m', '-t', String(without.running.pid), 'umount', '/usr/sbin'] });
    await eventually('it is tried again', async () => (await out(node, pod)).length === 0);
  });
});

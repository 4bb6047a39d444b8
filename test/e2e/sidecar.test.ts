/** Pods with a real proxy as their sidecar, under Istio's rules, and the agent beside it. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { cgroute } from '../../deploy/stage/agent.ts';
import { killBelow, removeCgroup } from '../../deploy/stage/cgroup.ts';
import type { Haproxy } from '../../deploy/stage/haproxy.ts';
import { type NodePod, type PodOptions, type TestNode, startNode } from '../harness/node.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import {
  type Backend,
  SIDECAR_USER,
  installSidecarRules,
  natRules,
  ownRules,
  startSidecar,
} from '../../deploy/stage/sidecar.ts';
import { SOCK, connect, listen } from '../../deploy/stage/sock.ts';

const PORT = 8080;
const STATUS = 'sidecar.istio.io/status';
const BYPASS = 'kmesh.net/bypass';
const MODE = 'istio.io/dataplane-mode';
const DOCUMENT = resolve(import.meta.dirname, '../../docs/data-planes.md');

interface SidecarPod extends NodePod {
  readonly sidecar: Haproxy;
}

const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');

/** A command that becomes the agent. */
const wrapped =
  (cmd: string, ...before: readonly string[]) =>
  (args: readonly string[]) => ({ cmd, args: [...before, PROGRAM, ...args] });

/** The application of a pod, and its sidecar with its rules. */
async function run(node: TestNode, pod: NodePod, backend: Backend = 'nft'): Promise<SidecarPod> {
  await installSidecarRules(pod.host.netns, backend);
  const sidecar = await startSidecar(node.sandbox, pod.host, pod.place);
  await listen(node.sandbox, pod.place, 'serve', '*', [PORT], '--dual', '--quiet');
  return Object.assign(Object.create(pod) as NodePod, { sidecar });
}

async function addSidecarPod(node: TestNode, options: PodOptions, backend?: Backend): Promise<SidecarPod> {
  return run(node, await node.addPod({ ...options, annotations: { [STATUS]: '{}' } }), backend);
}

const ipOf = (address: string): string => address.replace(/:\d+$/, '').replace(/^\[::ffff:(.*)\]$/, '$1');

/** Who handled a connection on its way, from what each of them saw: nobody is asked twice. */
async function handlers(
  node: TestNode,
  from: NodePod,
  to: { readonly ip: string; readonly sidecar?: Haproxy },
): Promise<string[]> {
  const result = await connect(from.place, to.ip, PORT);
  if (!result.ok) return [result.errno];
  const [, , seen = ''] = result.reply.split(' ');
  const port = (address: string): string => address.slice(address.lastIndexOf(':') + 1);
  const who = (peer: string): string[] => {
    if (ipOf(peer) === from.host.ip4)
      return port(peer) === port(result.local) ? [] : ['sidecar of the client'];
    return ipOf(peer) === node.proxyPod.host.ip4 ? ["the node's proxy"] : [`somebody at ${peer}`];
  };
  if (ipOf(seen) !== '127.0.0.6') return who(seen);
  const line = await eventually('the sidecar of the server has logged it', () =>
    to.sidecar?.connections().at(-1),
  );
  return [...who(line.client), 'sidecar of the server'];
}

const out = (node: TestNode, pod: NodePod): Promise<string[]> => handlers(node, pod, { ip: node.server.ip4 });
const toPod = (node: TestNode, from: NodePod, pod: SidecarPod): Promise<string[]> =>
  handlers(node, from, { ip: pod.host.ip4, sidecar: pod.sidecar });

/** Waits until a pod's rules are of one kind, or none. */
const rulesAre = (pod: NodePod, kind: 'bypass' | 'short-circuit' | 'none'): Promise<unknown> =>
  eventually(`the rules of ${pod.name} are: ${kind}`, async () => {
    const rules = await ownRules(pod.host.netns);
    return kind === 'none'
      ? rules.length === 0
      : rules.length === 4 && rules.every((rule) => rule.includes(`cgroute:${kind}`));
  });

const label = async (
  node: TestNode,
  pod: NodePod,
  labels: Readonly<Record<string, string>>,
): Promise<void> => {
  node.manifest.change(pod.uid, { labels });
  await node.apply();
};

const fastSweep = (node: TestNode): readonly string[] => {
  const file = node.sandbox.file('config.yaml');
  writeFileSync(file, 'sweepSeconds: 1\n');
  return ['--config', file];
};

const metric = async (node: TestNode, name: string): Promise<number> => {
  const { http = '' } = (await node.agent.logged('serving')) as { http?: string };
  const text = await (await fetch(`http://${http}/metrics`)).text();
  return Number(
    text
      .split('\n')
      .find((line) => line.startsWith(`${name} `))
      ?.slice(name.length),
  );
};
const drift = (node: TestNode): Promise<number> => metric(node, 'cgroute_drift_repaired_total');

const notes = async (node: TestNode, pod: NodePod): Promise<string> => {
  const { code, stdout, stderr } = await cgroute(node.sandbox, [
    'explain',
    `${pod.namespace}/${pod.name}`,
    '-o',
    'json',
  ]);
  assert.equal(code, 0, stderr);
  return (JSON.parse(stdout) as { notes: string[] }).notes.join('\n');
};

const source = async (node: TestNode) =>
  (await node.status()).sources.find(({ name }) => name === 'sidecars');

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
            const result = await connect(from.place, to, PORT);
            return result.ok ? result.reply.split(' ')[0] : result.errno;
          }),
        );
      assert.deepEqual(await ways6(), ['proxy', 'proxy']);
      const held = node.sandbox.spawn({
        ...pod.place,
        cmd: SOCK,
        args: ['connect', '--hold', node.server.ip4, String(PORT)],
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

describe('two data planes on one pod', () => {
  test('a namespace in mode kmesh takes the sidecar out of the path, for pods old and new, and gives it back', async () => {
    await using node = await startNode('kmesh', { demo: {} });
    const old = await addSidecarPod(node, { name: 'old' });
    await node.apply();
    assert.deepEqual(await out(node, old), ['sidecar of the client']);
    node.manifest.namespace('demo', { [MODE]: 'kmesh' });
    await node.apply();
    await rulesAre(old, 'short-circuit');
    await node.until('it is redirected', ({ pods }) =>
      pods.some(({ uid, reason }) => uid === old.uid && reason === 'sidecar-short-circuited'),
    );
    assert.deepEqual(await out(node, old), ["the node's proxy"]);
    const young = await addSidecarPod(node, { name: 'young' });
    await node.apply();
    await rulesAre(young, 'short-circuit');
    await eventually('it is redirected', async () => (await out(node, young))[0] === "the node's proxy");
    const own = await connect(young.place, node.server.ip4, PORT, '--uid', SIDECAR_USER);
    assert.ok(
      own.ok && own.reply.endsWith(own.local.replace(/.*:/, ':')),
      'what the sidecar itself opens is left alone',
    );
    assert.deepEqual(await toPod(node, young, old), ["the node's proxy"]);

    await label(node, young, { [BYPASS]: 'enabled' });
    assert.deepEqual(await out(node, young), [], 'a bypass counts beside it');
    await label(node, young, {});

    node.manifest.namespace('demo');
    await node.apply();
    for (const pod of [old, young]) {
      await rulesAre(pod, 'none');
      assert.deepEqual(await out(node, pod), ['sidecar of the client']);
    }
    assert.deepEqual(await toPod(node, young, old), ['sidecar of the client', 'sidecar of the server']);
  });

  test('rules that can be made for one family alone are taken back, and those that cannot be removed are told', async () => {
    await using node = await startNode('halfway', { demo: { [MODE]: 'kmesh' }, agent: false });
    const directory = node.sandbox.file('bin');
    const [trouble, calls] = [node.sandbox.file('trouble'), node.sandbox.file('calls')];
    mkdirSync(directory);
    for (const tool of ['iptables-nft', 'ip6tables-nft']) {
      writeFileSync(
        `${directory}/${tool}`,
        `#!/bin/sh\necho ${tool} >> '${calls}'\ngrep -qs '^${tool}$' '${trouble}' && { echo 'some trouble' >&2; exit 4; }\nexec /usr/sbin/${tool} "$@"\n`,
        { mode: 0o755 },
      );
    }
    writeFileSync(trouble, 'ip6tables-nft\n');
    const pod = await addSidecarPod(node, { name: 'pod' });
    const options = { env: { PATH: `${directory}:${process.env['PATH'] ?? ''}` } };
    await node.startAgent(options);
    const failed = /cannot be short-circuited: ip6tables-nft failed with exit code 4: some trouble/;
    await eventually('it is said', async () => failed.test(await notes(node, pod)));
    assert.deepEqual([await out(node, pod), await ownRules(pod.host.netns)], [['sidecar of the client'], []]);
    const called = (tool: string): number =>
      readFileSync(calls, 'utf8')
        .split('\n')
        .filter((line) => line === tool).length;
    const [other, tries] = [called('iptables-nft'), called('ip6tables-nft')];
    await eventually('it is tried again', () => called('ip6tables-nft') > tries);
    assert.equal(called('iptables-nft'), other, 'the other family is not touched for that');
    rmSync(trouble);
    await rulesAre(pod, 'short-circuit');
    await eventually('it is redirected', async () => (await out(node, pod))[0] === "the node's proxy");

    writeFileSync(trouble, 'iptables-nft\nip6tables-nft\n');
    node.manifest.namespace('demo');
    await node.apply();
    const left = /could not be removed, and no data plane has its connections: iptables-nft failed/;
    await eventually('it is said', async () => left.test(await notes(node, pod)));
    await node.agent.kill9();
    await node.startAgent(options);
    await eventually('it is said by the next agent, too', async () => left.test(await notes(node, pod)));
    assert.equal(await metric(node, 'cgroute_sidecar_pods{state="failing"}'), 1);
    rmSync(trouble);
    await rulesAre(pod, 'none');
    assert.deepEqual(await out(node, pod), ['sidecar of the client']);
    await eventually('nothing is said any more', async () => (await notes(node, pod)) === '');
  });

  test('without CAP_SYS_ADMIN sidecars stay in the path, which is said', async () => {
    await using node = await startNode('capability', { demo: { [MODE]: 'kmesh' }, agent: false });
    const pod = await addSidecarPod(node, { name: 'pod' });
    const bypassed = await addSidecarPod(node, {
      name: 'bypassed',
      namespace: 'plain',
      labels: { [BYPASS]: 'enabled' },
    });
    node.manifest.namespace('plain');
    await node.startAgent({
      start: wrapped('setpriv', '--bounding-set', '-sys_admin', '--inh-caps', '-sys_admin'),
    });
    assert.deepEqual(
      [await out(node, pod), await out(node, bypassed)],
      [['sidecar of the client'], ['sidecar of the client']],
    );
    const { verdict, reason } = await node.podStatus(pod);
    assert.deepEqual([verdict, reason], ['out', 'sidecar']);
    for (const each of [pod, bypassed])
      assert.match(
        await notes(node, each),
        /cannot be (?:short-circuited|bypassed): the agent lacks CAP_SYS_ADMIN/,
      );
    assert.equal((await source(node))?.state, 'off');
  });

  test("sidecars: false later on leaves a short-circuited pod with the node's proxy, and gives a bypassed one back to its sidecar", async () => {
    await using node = await startNode('switched-off', { demo: { [MODE]: 'kmesh' } });
    node.manifest.namespace('plain');
    const pod = await addSidecarPod(node, { name: 'pod' });
    const bypassed = await addSidecarPod(node, {
      name: 'bypassed',
      namespace: 'plain',
      labels: { [BYPASS]: 'enabled' },
    });
    await node.apply();
    await rulesAre(pod, 'short-circuit');
    await rulesAre(bypassed, 'bypass');
    await eventually('it is redirected', async () => (await out(node, pod))[0] === "the node's proxy");
    await node.agent.stop();
    const file = node.sandbox.file('config.yaml');
    writeFileSync(file, 'sidecars: false\n');
    await node.startAgent({ args: ['--config', file] });
    assert.deepEqual(
      [await out(node, pod), await out(node, bypassed)],
      [["the node's proxy"], ['sidecar of the client']],
    );
    assert.match(await notes(node, pod), /is kept out of its path by rules that an earlier agent left/);
    assert.match(await notes(node, bypassed), /cannot be bypassed: the agent runs with sidecars: false/);
    await node.agent.stop();
    await node.startAgent();
    await label(node, pod, { [MODE]: 'none' });
    await rulesAre(pod, 'none');
    assert.deepEqual(await out(node, pod), ['sidecar of the client']);
  });

  test('docs/data-planes.md says who handles what, in all twelve cases', async () => {
    await using node = await startNode('planes', { demo: {} });
    node.manifest.namespace('mesh-kmesh', { [MODE]: 'kmesh' });
    const clients = {
      plain: await node.addPod({ name: 'client-plain' }),
      'with a sidecar': await addSidecarPod(node, { name: 'client-sidecar' }),
      enrolled: await node.addPod({ name: 'client-enrolled', labels: { [MODE]: 'ambient' } }),
    };
    const both = await addSidecarPod(node, { name: 'both', namespace: 'mesh-kmesh' });
    const servers: Record<string, NodePod & { readonly sidecar?: Haproxy }> = {
      plain: await node.addPod({ name: 'server-plain' }),
      'with a sidecar': await addSidecarPod(node, { name: 'server-sidecar' }),
      enrolled: await node.addPod({ name: 'server-enrolled', labels: { [MODE]: 'ambient' } }),
      'enrolled, with a sidecar': both,
    };
    for (const name of ['plain', 'enrolled'])
      await listen(node.sandbox, servers[name]!.place, 'serve', '*', [PORT], '--dual', '--quiet');
    await node.apply();
    await rulesAre(both, 'short-circuit');
    const rows: string[] = [];
    for (const [client, from] of Object.entries(clients)) {
      for (const [server, to] of Object.entries(servers)) {
        const by = await handlers(node, from, {
          ip: to.host.ip4,
          ...(to.sidecar && { sidecar: to.sidecar }),
        });
        rows.push(`| ${client} | ${server} | ${by.join(', then the ') || 'nobody'} |`);
      }
    }
    assert.equal(rows.length, 12);
    const text = readFileSync(DOCUMENT, 'utf8');
    const [head = '', tail = ''] = text.split(/(?<=\|---\|---\|---\|\n)(?:\|.*\n)*/);
    const now = `${head}${rows.map((row) => row.replace('| sidecar', '| the sidecar')).join('\n')}\n${tail}`;
    if (process.env['CGROUTE_WRITE_DOCS'] === '1') writeFileSync(DOCUMENT, now);
    else assert.equal(text, now, 'CGROUTE_WRITE_DOCS=1 writes it anew');
  });
});

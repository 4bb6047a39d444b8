/** Two data planes on one pod: a sidecar under Istio's rules, and the node's proxy beside it. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, test } from 'node:test';
import type { Haproxy } from '../../deploy/stage/haproxy.ts';
import { type NodePod, SERVER_PORT } from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { SIDECAR_USER, ownRules } from '../../deploy/stage/sidecar.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { startNode } from '../harness/node.ts';
import {
  wrapped,
  addSidecarPod,
  handlers,
  out,
  toPod,
  rulesAre,
  label,
  metric,
  notes,
  source,
} from './sidecar-pod.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';

const DOCUMENT = resolve(import.meta.dirname, '../../docs/data-planes.md');

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
    const own = await connect(young.place, node.server.ip4, SERVER_PORT, '--uid', SIDECAR_USER);
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
      await listen(node.sandbox, servers[name]!.place, 'serve', '*', [SERVER_PORT], '--dual', '--quiet');
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

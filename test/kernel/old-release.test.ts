/** From release 0.1, whose maps had another layout: what this version knows of it, and that the chart's few capabilities are enough to take over. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync } from 'node:fs';
import { relative, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { mapsOfObjects } from '../../deploy/build/former-layouts.ts';
import { type Agent, startAgent } from '../../deploy/stage/agent.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, run, type Running } from '../../deploy/stage/process.ts';
import { type Connected, listen, SOCK } from '../../deploy/stage/sock.ts';
import { PROBE_SOCKET } from '../../mapper/cli/command-line.ts';
import { formerLayouts } from '../../native/layout/former-layouts.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { type Confined, confine, PROJECT } from '../harness/confined.ts';
import { CAPABILITIES } from '../harness/daemon-set.ts';
import { allBy, dial } from '../harness/dialler.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import { OLD_MISSING, type OldRelease, oldRelease } from '../harness/old-release.ts';
import { plain } from '../harness/travel.ts';

const root = resolve(import.meta.dirname, '../..');

describe('release 0.1', { skip: OLD_MISSING }, () => {
  let old: OldRelease;
  let node: TestNode;
  let pod: NodePod;
  let own: NodePod;

  before(async () => {
    old = await oldRelease();
    node = await startNode('old-release', { proxy: false, agent: false });
    await listen(node.sandbox, node.proxyPod.place, 'proxy', '*', [15001, 15006], '--dual', '--again');
    pod = await node.addPod({ name: 'pod' });
    own = await node.addPod({
      name: 'cgroute',
      namespace: 'mesh',
      hostNetwork: true,
      ips: [],
      running: false,
    });
    node.manifest.write();
  });
  after(() => node?.[Symbol.asyncDispose]());

  const container = (): Confined =>
    confine(node.sandbox, own.startContainer().path.slice(1), {
      capabilities: CAPABILITIES,
      mounts: {
        '/etc/cgroute': { source: node.sandbox.directory },
        '/run/cgroute': { source: mkdtempSync(node.sandbox.file('run-')), writable: true },
      },
    });
  const start = (inside: Confined, program: string, ...args: readonly string[]): Agent =>
    startAgent(node.sandbox, {
      manifest: '/etc/cgroute/pods.yaml',
      cgroupRoot: inside.cgroupRoot,
      bpffsRoot: '/sys/fs/bpf/cgroute',
      args,
      start: (all) => inside.program([`${PROJECT}/${relative(root, program)}`, ...all]),
    });

  test('had the layouts that this version says it had', () => {
    assert.deepEqual(formerLayouts['v1'], mapsOfObjects(old.objects));
  });

  test("is followed by this version with the chart's capabilities alone, and no connection notices", async () => {
    const before = start(container(), old.program);
    await before.ready();
    const held: Running = node.sandbox.spawn({
      ...pod.place,
      cmd: SOCK,
      args: ['connect', '--hold', node.server.ip4, '8080'],
    });
    const { local } = await held.json<Connected & { local: string }>();
    const dialling = dial(node.sandbox, pod.place, node.server, 300, 101);
    const inside = container();
    const after = start(
      inside,
      resolve(root, 'dist/cgroute'),
      '--wait-for-lock',
      '--probe-socket',
      PROBE_SOCKET,
    );
    await eventually('it has loaded all', async () => {
      const { stdout } = await run(inside.exec([`${PROJECT}/dist/cgroute`, 'probe', 'ready']));
      return stdout.startsWith('ok: another agent runs');
    });
    const waiting = await node.status();
    assert.deepEqual(
      [waiting.agent.running, waiting.pods.length],
      [true, 3],
      'the old one, as this version reads it',
    );
    await before.stop();
    await after.ready();
    const totals = await dialling.end();
    assert.deepEqual(totals, allBy('proxy', totals.total));
    assert.match(
      after.log().find(({ msg }) => msg?.startsWith('version') === true)?.msg ?? '',
      new RegExp(
        `^version v1 of the pins has been replaced by ${PIN_VERSION}, with [1-9]\\d* open connections$`,
      ),
    );
    assert.deepEqual(readdirSync(`${node.sandbox.bpffs}/cgroute`), [PIN_VERSION]);
    held.end();
    const last = await held.json<{ alive: boolean; peer: string }>();
    assert.deepEqual([last.alive, last.peer], [true, `${node.server.ip4}:8080`], plain(local));
    await after.stop();
  });
});

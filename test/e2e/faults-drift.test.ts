/** What others do to the programs and maps: noticed by the next sweep, put right, counted, and logged once. */
import assert from 'node:assert/strict';
import { globSync, readdirSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { openPinnedMaps, type PinnedMaps } from '../../native/data-plane/maps.ts';
import { infoFlag, setting } from '../../native/layout/layouts.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must, run } from '../../deploy/stage/process.ts';
import { connect } from '../../deploy/stage/sock.ts';
import { MODE } from '../harness/label-names.ts';

const PROGRAMS = 'programs had been detached by somebody else, and are attached again';
const ENTRIES = 'entries of the maps had been altered by somebody else, and are as they should be again';
const SWEEP_MS = 1000;
/** Does nothing: test/harness/empty.bpf.c. */
const EXCLUSIVE = resolve(import.meta.dirname, '../../dist/test/empty.bpf.o');

describe('drift:', () => {
  let node: TestNode;
  let pod: NodePod;
  let outside: NodePod;
  let maps: PinnedMaps;

  before(async () => {
    node = await startNode('drift', { agent: false });
    writeFileSync(node.sandbox.file('config.yaml'), `sweepSeconds: ${SWEEP_MS / 1000}\n`);
    pod = await node.addPod({ name: 'pod' });
    outside = await node.addPod({ name: 'outside', labels: { [MODE]: 'none' } });
    await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
    const opened = openPinnedMaps(`${node.sandbox.bpffs}/cgroute`);
    assert.ok(opened);
    maps = opened;
    // Who runs on shows the pod's network, which else is known only now and then.
    node.sandbox.spawn({ ...pod.place, cmd: 'sleep', args: ['100000'] });
    await eventually('its network is known', () => maps.cgroups.get(pod.cgroup.id)?.netns !== 0n);
  });
  after(async () => {
    maps?.[Symbol.dispose]();
    await node?.[Symbol.asyncDispose]();
  });

  const directory = (kind: 'links' | 'maps'): string =>
    globSync(`${node.sandbox.bpffs}/cgroute/*/${kind}`)[0] ?? '';
  const pinned = (kind: 'links' | 'maps'): string[] => readdirSync(directory(kind)).toSorted();
  const reports = (message: string): readonly Readonly<Record<string, unknown>>[] =>
    node.agent.log().filter(({ msg }) => msg === message);

  const repaired = async (): Promise<number> =>
    (await node.metrics()).get('cgroute_drift_repaired_total') ?? NaN;

  /**
   * Does something behind the agent's back; `isRight` is so again after a sweep,
   * which counted so many repairs and told of them in one line, and the sweeps
   * after it in none.
   */
  async function drifts(
    message: string,
    count: number,
    act: () => unknown,
    isRight: () => unknown,
  ): Promise<Readonly<Record<string, unknown>>> {
    const [before, told] = [await repaired(), reports(message).length];
    // The agent stands still meanwhile, so that no sweep comes in the middle, however long it takes.
    node.agent.running.kill('SIGSTOP');
    try {
      await act();
      assert.ok(!(await isRight()), 'it made a difference');
    } finally {
      node.agent.running.kill('SIGCONT');
    }
    await eventually('all is as it should be again', isRight);
    const report = await eventually('it is logged', () => reports(message)[told]);
    await delay(2 * SWEEP_MS + 300);
    assert.equal(reports(message).length, told + 1, 'it is logged once');
    assert.equal((await repaired()) - before, count, 'and counted');
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(outside.place)],
      ['redirected', 'direct'],
    );
    return report;
  }

  /** As before, while nobody has put anything right. */
  const goesOn = async (): Promise<void> =>
    assert.deepEqual(
      [await node.travel(pod.place), await node.travel(outside.place)],
      ['redirected', 'direct'],
    );

  const attached = async (place: string): Promise<readonly string[]> =>
    (
      JSON.parse(
        (await must({ cmd: 'bpftool', args: ['-j', 'cgroup', 'show', place] })) || '[]',
      ) as readonly { readonly name: string }[]
    )
      .map(({ name }) => name)
      .toSorted();

  test('a program detached by someone else is attached again', async () => {
    const tree = `${node.sandbox.cgroupRoot}/kubepods`;
    const before = [await attached(tree), await attached(node.sandbox.cgroupRoot)];
    const links = pinned('links').filter((name) =>
      /^(?:pod_connect4|pod_connect6|root_connect4|sock_release|getpeername4)@/.test(name),
    );
    const report = await drifts(
      PROGRAMS,
      links.length,
      async () => {
        for (const name of links)
          await must({ cmd: 'bpftool', args: ['link', 'detach', 'pinned', `${directory('links')}/${name}`] });
      },
      async () =>
        JSON.stringify([await attached(tree), await attached(node.sandbox.cgroupRoot)]) ===
        JSON.stringify(before),
    );
    assert.deepEqual((report['links'] as string[]).toSorted(), links);
  });

  test("a link's pin removed by someone else is there again, with its program", async () => {
    const before = pinned('links');
    assert.ok(before.length >= 10, before.join(' '));
    const report = await drifts(
      PROGRAMS,
      before.length,
      () => {
        for (const name of before) unlinkSync(`${directory('links')}/${name}`);
        return goesOn();
      },
      () => pinned('links').length === before.length,
    );
    assert.deepEqual(pinned('links'), before);
    assert.deepEqual((report['links'] as string[]).toSorted(), before, 'each is told of');
  });

  test("a map's pin removed by someone else is there again, and it is the same map", async () => {
    const idOf = async (name: string): Promise<number> =>
      (
        JSON.parse(
          await must({
            cmd: 'bpftool',
            args: ['-j', 'map', 'show', 'pinned', `${directory('maps')}/${name}`],
          }),
        ) as { readonly id: number }
      ).id;
    const before = pinned('maps');
    const ids = await Promise.all(before.map(idOf));
    await drifts(
      PROGRAMS,
      before.length,
      () => {
        for (const name of before) unlinkSync(`${directory('maps')}/${name}`);
      },
      () => pinned('maps').length === before.length,
    );
    assert.deepEqual(await Promise.all(pinned('maps').map(idOf)), ids);
    // So that the next agent finds all that this one knew.
    await node.agent.kill9();
    await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
    assert.equal(await node.travel(pod.place), 'redirected');
  });

  test('all pins removed by someone else, with their directories, are there again', async () => {
    const root = `${node.sandbox.bpffs}/cgroute`;
    const [links, all] = [pinned('links'), pinned('links').length + pinned('maps').length];
    await drifts(
      PROGRAMS,
      all,
      () => {
        rmSync(root, { recursive: true });
        return goesOn();
      },
      () =>
        directory('maps') !== '' &&
        directory('links') !== '' &&
        pinned('links').length + pinned('maps').length === all,
    );
    assert.deepEqual(pinned('links'), links);
    const { agent } = await node.status();
    assert.deepEqual([agent.running, agent.ready], [true, true], 'the new directory is locked, too');
  });

  test("a map's pin replaced by someone else is there again, and what was put there is kept", async () => {
    const pin = `${directory('maps')}/settings`;
    // In the middle of the repair nothing is there.
    const id = async (): Promise<number | undefined> => {
      const { code, stdout } = await run({ cmd: 'bpftool', args: ['-j', 'map', 'show', 'pinned', pin] });
      return code === 0 ? (JSON.parse(stdout) as { readonly id: number }).id : undefined;
    };
    const before = await id();
    assert.ok(before !== undefined);
    await drifts(
      PROGRAMS,
      1,
      async () => {
        unlinkSync(pin);
        await must({
          cmd: 'bpftool',
          args: [
            'map',
            'create',
            pin,
            'type',
            'hash',
            'key',
            '4',
            'value',
            '16',
            'entries',
            '8',
            'name',
            'settings',
          ],
        });
      },
      async () => (await id()) === before,
    );
    assert.deepEqual(readdirSync(`${node.sandbox.bpffs}/cgroute/aside`), ['settings_1']);
  });

  test('a list of the branches with pods that someone else has altered is as it was', async () => {
    const before = maps.podTrees.get(0);
    assert.ok(before !== undefined && before.count > 0);
    await drifts(
      ENTRIES,
      1,
      () => maps.podTrees.set(0, { count: 0, id: [] }),
      () => (maps.podTrees.get(0)?.count ?? 0) > 0,
    );
    assert.deepEqual(maps.podTrees.get(0), before);
  });

  test('entries that someone else has filled a map with make room for those that are missing', async () => {
    const info = maps.cgroups.get(pod.cgroup.id);
    assert.ok(info);
    const was = maps.cgroups.keys().length;
    for (const id of maps.cgroups.keys()) maps.cgroups.delete(id);
    for (let id = 1n; id <= maps.cgroups.info.maxEntries; id++)
      maps.cgroups.set(id, { ...info, id, isInMesh: 0 });
    await eventually('they are gone', () => maps.cgroups.keys().length === was);
    await goesOn();
  });

  test('an entry deleted by someone else is written again', async () => {
    const [info] = maps.cgroups.entries().filter(([id]) => id === pod.cgroup.id);
    const [address] = maps.podAddresses.keys();
    const podKey = maps.pods.keys().find(({ text }) => text === pod.uid);
    assert.ok(info && address && podKey);
    const sizes = (): number[] =>
      [maps.cgroups, maps.podAddresses, maps.pods, maps.settings, maps.handoffs].map(
        (map) => map.keys().length,
      );
    const before = sizes();
    await drifts(
      ENTRIES,
      5,
      () => {
        maps.cgroups.delete(pod.cgroup.id);
        maps.podAddresses.delete(address);
        maps.pods.delete(podKey);
        maps.settings.delete(setting.proxyIp4);
        for (const id of maps.handoffs.keys().slice(0, 1)) maps.handoffs.delete(id);
      },
      () => sizes().join() === before.join(),
    );
    assert.deepEqual(maps.cgroups.get(pod.cgroup.id), info[1]);
  });

  test('an entry altered by someone else is as it was', async () => {
    const [info, other, proxy] = [
      maps.cgroups.get(pod.cgroup.id),
      maps.cgroups.get(outside.cgroup.id),
      maps.settings.get(setting.proxyIp4),
    ];
    assert.ok(info && other && proxy);
    const server = Uint8Array.from(proxy.bytes);
    server.set(node.server.ip4.split('.').map(Number), 12);
    await drifts(
      ENTRIES,
      3,
      async () => {
        maps.cgroups.set(pod.cgroup.id, { ...info, isInMesh: 0 });
        maps.cgroups.set(outside.cgroup.id, { ...other, flags: infoFlag.proxy });
        assert.equal(await node.travel(pod.place), 'direct', 'what is in the maps counts');
        maps.settings.set(setting.proxyIp4, { bytes: server });
      },
      () =>
        JSON.stringify([maps.cgroups.get(pod.cgroup.id), maps.cgroups.get(outside.cgroup.id)], plain) ===
          JSON.stringify([info, other], plain) &&
        Buffer.compare(maps.settings.get(setting.proxyIp4)?.bytes ?? Buffer.alloc(0), proxy.bytes) === 0,
    );
  });

  test('an entry added by someone else is removed', async () => {
    const info = maps.cgroups.get(outside.cgroup.id);
    const [, address] = maps.podAddresses.entries()[0] ?? [];
    assert.ok(info && address);
    const server = Uint8Array.from([
      ...Array.from({ length: 12 }, () => 0),
      ...node.server.ip4.split('.').map(Number),
    ]);
    const stranger = node.sandbox.hostCgroup.id;
    const through = async (netns = node.hostPlace.netns): Promise<void> => {
      const result = await connect({ ...node.hostPlace, netns }, node.server.ip4, 8080);
      assert.ok(result.ok && result.reply.includes(node.proxyPod.host.ip4), JSON.stringify(result));
    };
    // The server as a pod that is dialled through the proxy.
    await drifts(
      ENTRIES,
      1,
      async () => {
        maps.podAddresses.set({ word: server }, address);
        await through();
      },
      () => maps.podAddresses.get({ word: server }) === undefined,
    );
    // Processes of the host as a pod in the mesh, where they are not in the host's network. By the second sweep, as the kernel adds entries here, too.
    await drifts(
      ENTRIES,
      1,
      async () => {
        maps.cgroups.set(stranger, { ...info, id: stranger, isInMesh: 1, netns: 0n });
        await through(pod.place.netns);
      },
      () => maps.cgroups.get(stranger) === undefined,
    );
  });
});

test('drift: where one thing cannot be put right, everything else is', async () => {
  await using node = await startNode('drift-more', { agent: false });
  writeFileSync(node.sandbox.file('config.yaml'), `sweepSeconds: ${SWEEP_MS / 1000}\n`);
  const pod = await node.addPod({ name: 'pod' });
  await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
  // Lets nobody attach anything below.
  const foreign = `${node.sandbox.bpffs}/foreign`;
  await must({ cmd: 'bpftool', args: ['prog', 'load', EXCLUSIVE, foreign] });
  await must({
    cmd: 'bpftool',
    args: [
      'cgroup',
      'attach',
      node.sandbox.cgroup('docker/node').absolute,
      'cgroup_inet4_connect',
      'pinned',
      foreign,
    ],
  });
  node.sandbox.cgroup('docker/node/kubepods');
  await eventually('it fails', () =>
    node.agent
      .log()
      .some(({ msg }) => /^the periodic check failed: bpf_link_create of pod_connect4/.test(String(msg))),
  );
  const links = globSync(`${node.sandbox.bpffs}/cgroute/*/links`)[0] ?? '';
  for (const name of readdirSync(links).filter((link) => /_connect/.test(link)))
    await must({ cmd: 'bpftool', args: ['link', 'detach', 'pinned', `${links}/${name}`] });
  await eventually('it is put right and told', () => node.agent.log().some(({ msg }) => msg === PROGRAMS));
  assert.equal(await node.travel(pod.place), 'redirected');
});

function plain(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? String(value) : value;
}

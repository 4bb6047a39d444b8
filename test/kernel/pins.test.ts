/** Pins that are missing, broken, foreign or of another version: told apart, and no connection pays for it. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, unlinkSync } from 'node:fs';
import { test } from 'node:test';
import { CgrouteError } from '../../native/error.ts';
import { removePins } from '../../native/data-plane/pin-removal.ts';
import { cgroupInfo } from '../../native/layout/layouts.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { heldMaps, settlePin, type WantedMap } from '../../native/pins/pinned-map.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { connect } from '../../deploy/stage/sock.ts';
import { allBy, dial } from '../harness/dialler.ts';
import { attachAll, notesOf, openTestPlane, type TestPlane } from './data-plane.ts';
import { loadRival } from './rival.ts';
import { assertRedirected, hold, makeMesh, PORT, seen, type Mesh, type Proxied } from './mesh.ts';
import { at } from '../harness/travel.ts';

const bpftool = (...args: readonly string[]): Promise<string> =>
  must({ cmd: 'bpftool', args: ['-j', ...args] });
const idOf = async (kind: 'map' | 'link', pin: string): Promise<number> =>
  (JSON.parse(await bpftool(kind, 'show', 'pinned', pin)) as { id: number }).id;
const aside = ({ plane }: Mesh): string[] =>
  existsSync(`${plane.bpffsRoot}/aside`) ? readdirSync(`${plane.bpffsRoot}/aside`) : [];
const makeMap = (pin: string, value = 4): Promise<string> =>
  bpftool(
    'map',
    'create',
    pin,
    'type',
    'hash',
    'key',
    '4',
    'value',
    String(value),
    'entries',
    '16',
    'name',
    'settings',
  );

/** Dials again and again meanwhile; each connection must go through the proxy. */
async function whileDialling<T>({ sandbox, app, server }: Mesh, run: () => Promise<T>): Promise<T> {
  const loops = [server.ip4, server.ip6].map((ip) => dial(sandbox, app, { ip, port: PORT }, 0, 21));
  const result = await run();
  for (const loop of loops) {
    const totals = await loop.end();
    assert.deepEqual(totals, allBy('proxy', totals.total));
    assert.ok(totals.total > 20, JSON.stringify(totals));
  }
  return result;
}

/** As a new agent starts on what an earlier one has left. */
async function startAgain(
  mesh: Mesh,
): Promise<TestPlane & { readonly done: string | undefined; readonly warnings: readonly string[] }> {
  const warnings: string[] = [];
  const next = openTestPlane(mesh.sandbox, { warn: (sentence) => void warnings.push(sentence) });
  attachAll(next, mesh.podTree, mesh.proxy.podCgroup);
  const done = await next.plane.completeHandover();
  return { ...next, done, warnings };
}

const maps = ({ plane }: Mesh): string => `${plane.bpffsRoot}/${PIN_VERSION}/maps`;
const links = ({ plane }: Mesh): string => `${plane.bpffsRoot}/${PIN_VERSION}/links`;

test('the map behind a missing pin is found in the programs that use it, with all that is in it', async () => {
  await using mesh = await makeMesh('missing');
  assert.ok(mesh.plane.plane.attachIdentity());
  mesh.plane[Symbol.dispose]();
  // But those that no attached program uses.
  const names = readdirSync(maps(mesh)).filter(
    (name) => !['seen_branch_map', 'agent_map', 'bypass_filter_map', 'bypass_filter6_map'].includes(name),
  );
  const ids = await Promise.all(names.map((name) => idOf('map', `${maps(mesh)}/${name}`)));
  await whileDialling(mesh, async () => {
    for (const name of names) unlinkSync(`${maps(mesh)}/${name}`);
    using next = await startAgain(mesh);
    assert.equal(
      next.plane.notes.filter((note) =>
        /was missing; the map that the attached programs use is pinned there again/.test(note),
      ).length,
      names.length,
      next.plane.notes.join('\n'),
    );
  });
  assert.deepEqual(await Promise.all(names.map((name) => idOf('map', `${maps(mesh)}/${name}`))), ids);
  await assertRedirected(mesh, await connect(mesh.app, mesh.server.ip4, PORT), at(mesh.server.ip4, PORT));
});

test('something else in the place of a map is kept aside, and the map is found', async () => {
  await using mesh = await makeMesh('foreign');
  mesh.plane[Symbol.dispose]();
  const [settings, infos, counters, handled] = [
    'settings',
    'cgroup_info_map',
    'pod_counters_map',
    'handled_map',
  ].map((name) => `${maps(mesh)}/${name}`) as [string, string, string, string];
  const ids = await Promise.all([settings, infos, counters, handled].map((pin) => idOf('map', pin)));
  for (const pin of [settings, infos, counters, handled]) unlinkSync(pin);
  await makeMap(settings, 16); // of the same name and sizes, without types
  await makeMap(infos);
  const [link = ''] = readdirSync(links(mesh)).filter((name) => name.startsWith('sock_release'));
  await bpftool('link', 'pin', 'id', String(await idOf('link', `${links(mesh)}/${link}`)), counters);
  mkdirSync(handled);
  const foreign = await idOf('map', settings);
  await whileDialling(mesh, async () => {
    using next = await startAgain(mesh);
    for (const [pin, what] of [
      [settings, 'a map with other fields, or flags, than expected'],
      [
        infos,
        `a map of type 1, expected 1, with keys of 4 and values of 4 bytes, expected 8 and ${cgroupInfo.size}`,
      ],
      [counters, 'a link and no map'],
      [handled, 'no BPF object'],
    ] as const) {
      assert.ok(
        next.plane.notes.some((note) =>
          note.startsWith(`${pin} was ${what}; it is kept as ${mesh.plane.bpffsRoot}/aside/`),
        ),
        next.plane.notes.join('\n'),
      );
    }
  });
  assert.deepEqual(
    await Promise.all([settings, infos, counters, handled].map((pin) => idOf('map', pin))),
    ids,
  );
  assert.deepEqual(aside(mesh).toSorted(), [
    'cgroup_info_map_1',
    'handled_map_1',
    'pod_counters_map_1',
    'settings_1',
  ]);
  assert.equal(await idOf('map', `${mesh.plane.bpffsRoot}/aside/settings_1`), foreign, 'and is what it was');
  removePins(mesh.plane.bpffsRoot);
  assert.deepEqual(
    [readdirSync(mesh.plane.bpffsRoot), aside(mesh).length],
    [['aside'], 4],
    'cleanup leaves it, too',
  );
});

test('a map in the place of the one that the programs use is kept aside even if it is alike', async () => {
  await using mesh = await makeMesh('alike');
  mesh.plane[Symbol.dispose]();
  const pin = `${maps(mesh)}/settings`;
  const id = await idOf('map', pin);
  {
    using other = openTestPlane(mesh.sandbox, { bpffsRoot: `${mesh.sandbox.bpffs}/other` });
    unlinkSync(pin);
    await bpftool(
      'map',
      'pin',
      'id',
      String(await idOf('map', `${other.bpffsRoot}/${PIN_VERSION}/maps/settings`)),
      pin,
    );
  }
  using next = await startAgain(mesh);
  assert.match(
    next.plane.notes.join('\n'),
    /settings was another map than the attached programs use; it is kept as/,
  );
  assert.equal(await idOf('map', pin), id);
});

test('where no program uses a map of that name, a foreign one makes way for a new one', async () => {
  await using sandbox = await makeSandbox('unused');
  const bpffsRoot = `${sandbox.bpffs}/cgroute`;
  mkdirSync(`${bpffsRoot}/${PIN_VERSION}/maps`, { recursive: true });
  await makeMap(`${bpffsRoot}/${PIN_VERSION}/maps/settings`, 24);
  {
    using plane = openTestPlane(sandbox);
    assert.match(
      notesOf(plane).join('\n'),
      /settings was a map of type 1, expected 1, with keys of 4 and values of 24 bytes, expected 4 and 16; it is kept as \S+\/aside\/settings_1$/,
    );
    plane.setProxy({ ip4: '10.0.0.1' });
  }
  using again = openTestPlane(sandbox);
  assert.deepEqual(notesOf(again), []);
});

test('what cannot be moved is refused in a sentence, and nothing is changed', async () => {
  await using sandbox = await makeSandbox('stuck');
  const bpffsRoot = `${sandbox.bpffs}/cgroute`;
  mkdirSync(`${bpffsRoot}/${PIN_VERSION}/maps`, { recursive: true });
  await makeMap(`${bpffsRoot}/${PIN_VERSION}/maps/settings`, 24);
  await makeMap(`${bpffsRoot}/aside`);
  assert.throws(
    () => openTestPlane(sandbox),
    (error) =>
      error instanceof CgrouteError &&
      error.code === 'EPINFOREIGN' &&
      /^\S+\/settings is a map of type 1[^\n]* and cannot be moved aside \(EEXIST[^\n]*\): expected a pin of cgroute's or nothing; remove it$/.test(
        error.message,
      ),
  );
  assert.ok(existsSync(`${bpffsRoot}/${PIN_VERSION}/maps/settings`));
});

test('attached programs that use a map of another layout, under this version, are not robbed of it', async () => {
  await using mesh = await makeMesh('conflict');
  mesh.plane[Symbol.dispose]();
  const held = heldMaps(links(mesh));
  const { size } = cgroupInfo;
  const settle = (wanted: Partial<WantedMap>): string[] =>
    settlePin(
      {
        name: 'cgroup_info_map',
        type: 1,
        keySize: 8,
        valueSize: size,
        flags: 0,
        shape: undefined,
        ...wanted,
      },
      { bpffsRoot: mesh.plane.bpffsRoot, mapDirectory: maps(mesh), held, adopt: () => undefined },
    );
  assert.deepEqual(settle({}), []);
  const word = { path: '', offset: 0, size: 8, count: 1, isText: false };
  for (const [other, why] of [
    [{ valueSize: size + 8 }, `keys of 8 and values of ${size} bytes, expected 8 and ${size + 8}`],
    [
      { shape: { key: { size: 8, leaves: [word] }, value: { size, leaves: [{ ...word, path: 'id' }] } } },
      'other fields than expected',
    ],
  ] as const) {
    assert.throws(
      () => settle(other),
      (error) =>
        error instanceof CgrouteError &&
        error.code === 'EPINLAYOUT' &&
        error.message ===
          `the map pinned at ${maps(mesh)}/cgroup_info_map has ${why}, and attached programs use it: it is of another build with the same pins; run \`cgroute cleanup\` first`,
    );
  }
  assert.deepEqual(aside(mesh), []);
  await assertRedirected(mesh, await connect(mesh.app, mesh.server.ip4, PORT), at(mesh.server.ip4, PORT));
});

test('a link that is dead, or of another program than its name says, is replaced', async () => {
  await using mesh = await makeMesh('links');
  mesh.plane[Symbol.dispose]();
  const pins = readdirSync(links(mesh));
  const named = (program: string): string =>
    `${links(mesh)}/${pins.find((name) => name.startsWith(`${program}@`)) ?? ''}`;
  await bpftool('link', 'detach', 'pinned', named('sock_release'));
  const dead = await idOf('link', named('sock_release'));
  renameSync(named('getpeername4'), `${links(mesh)}/was`);
  renameSync(named('getpeername6'), named('getpeername4'));
  renameSync(`${links(mesh)}/was`, named('getpeername6'));
  rmSync(named('sock_ops'));
  await makeMap(named('sock_ops'));
  {
    using next = await startAgain(mesh);
    assert.equal(next.warnings.length, 1, next.warnings.join('\n'));
    assert.match(
      next.warnings.join(),
      /sock_ops@\d+ was no link of sock_ops's; it is kept as \S+\/aside\/sock_ops@\d+_1$/,
    );
    assert.deepEqual(next.plane.repairLinks(), []);
  }
  assert.notEqual(await idOf('link', named('sock_release')), dead);
  for (const ip of [mesh.server.ip4, mesh.server.ip6])
    await assertRedirected(mesh, await connect(mesh.app, ip, PORT), at(ip, PORT));
  assert.deepEqual(readdirSync(links(mesh)).toSorted(), pins.toSorted());
});

test("somebody else's link in the place of ours is kept, and goes on", async () => {
  await using mesh = await makeMesh('rival');
  mesh.plane[Symbol.dispose]();
  using rival = loadRival();
  using _ = rival.attach('balance', { absolute: mesh.sandbox.cgroupRoot });
  const all = JSON.parse(await bpftool('link', 'list')) as readonly {
    readonly id: number;
    readonly prog_id: number;
    readonly cgroup_id?: number;
  }[];
  const programs = JSON.parse(await bpftool('prog', 'list')) as readonly {
    readonly id: number;
    readonly name?: string;
  }[];
  const named = new Map(programs.map(({ id, name }) => [id, name]));
  const link = all.find(
    (each) => named.get(each.prog_id) === 'balance4' && BigInt(each.cgroup_id ?? 0) === mesh.plane.root.id,
  );
  const pin = `${links(mesh)}/getpeername4@${mesh.plane.root.id}`;
  rmSync(pin);
  await bpftool('link', 'pin', 'id', String(link?.id), pin);
  using next = await startAgain(mesh);
  assert.match(
    next.warnings.join(),
    /getpeername4@\d+ was no link of getpeername4's; it is kept as \S+\/aside\/getpeername4@\d+_1$/,
  );
  assert.equal(
    await idOf('link', `${mesh.plane.bpffsRoot}/aside/getpeername4@${mesh.plane.root.id}_1`),
    link?.id,
  );
  const asked = { address: mesh.server.ip4, port: PORT };
  await assertRedirected(mesh, await connect(mesh.app, mesh.server.ip4, PORT), at(mesh.server.ip4, PORT));
  assert.ok(
    rival.shown({ address: mesh.proxy.ip4, port: 15001 }) > 0 && rival.shown(asked) === 0,
    'it sees what ours has rewritten',
  );
});

test('pins that are removed while the agent runs are put back', async () => {
  await using mesh = await makeMesh('unpinned');
  const pin = `${maps(mesh)}/connection_map`;
  const id = await idOf('map', pin);
  unlinkSync(pin);
  assert.deepEqual(mesh.plane.plane.repairLinks(), ['connection_map']);
  assert.equal(await idOf('map', pin), id);
  const link = readdirSync(links(mesh)).find((name) => name.startsWith('getpeername4@')) ?? '';
  rmSync(`${links(mesh)}/${link}`);
  await makeMap(`${links(mesh)}/${link}`);
  assert.deepEqual(mesh.plane.plane.repairLinks(), [link]);
  // Without a free descriptor nothing can be told of a pin, least of all that it is somebody else's.
  const kept = aside(mesh);
  const [, before = ''] = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
  const script =
    'prlimit --pid $1 --nofile=3: && echo low && read _; prlimit --pid $1 --nofile=$2: && echo high';
  const limit = mesh.sandbox.spawn({ cmd: 'sh', args: ['-c', script, 'sh', String(process.pid), before] });
  const errors: unknown[] = [];
  await limit.line(/low/);
  const repaired = mesh.plane.plane.repairLinks((error) => void errors.push(error));
  limit.end();
  await limit.line(/high/);
  assert.deepEqual([repaired, aside(mesh)], [[], kept]);
  assert.ok(
    errors.length > 0 && errors.every((error) => error instanceof CgrouteError && error.errno === 'EMFILE'),
    errors.map(String).join('\n'),
  );
  assert.deepEqual(mesh.plane.plane.repairLinks(), []);
  await assertRedirected(mesh, await connect(mesh.app, mesh.server.ip4, PORT), at(mesh.server.ip4, PORT));
});

for (const [from, what] of [
  ['v7', 'newer'],
  ['v0', 'older'],
] as const) {
  test(`the pins of a version that is ${what} are taken over, and each connection goes through the proxy meanwhile`, async () => {
    await using mesh = await makeMesh(what, { proxyOptions: ['--again'] });
    mesh.plane[Symbol.dispose]();
    const {
      sandbox,
      app,
      server,
      plane: { bpffsRoot },
    } = mesh;
    const held = await hold(sandbox, app, server.ip4, PORT);
    const { peer } = await seen(mesh.proxying, held.result.ok ? held.result.local : '');
    renameSync(`${bpffsRoot}/${PIN_VERSION}`, `${bpffsRoot}/${from}`);
    const before = Object.fromEntries(
      await Promise.all(
        readdirSync(`${bpffsRoot}/${from}/links`).map(
          async (name) => [name, await idOf('link', `${bpffsRoot}/${from}/links/${name}`)] as const,
        ),
      ),
    );
    const last = await whileDialling(mesh, async () => {
      using next = await startAgain(mesh);
      assert.match(
        next.done ?? '',
        new RegExp(
          `^version ${from} of the pins has been replaced by ${PIN_VERSION}, with 0 open connections$`,
        ),
      );
      assert.deepEqual(readdirSync(bpffsRoot), [PIN_VERSION]);
      assert.deepEqual(readdirSync(`${bpffsRoot}/${PIN_VERSION}`).toSorted(), ['links', 'maps']);
      const now = readdirSync(`${bpffsRoot}/${PIN_VERSION}/links`);
      assert.deepEqual(now.toSorted(), Object.keys(before).toSorted());
      for (const name of now.filter((pin) => /_connect/.test(pin)))
        assert.equal(
          await idOf('link', `${bpffsRoot}/${PIN_VERSION}/links/${name}`),
          before[name],
          `${name} is the same link`,
        );
      const soFar = next.counters(app.slot).redirected ?? 0;
      assert.ok(soFar > 0, 'the counters go on');
      await eventually('clients go on', () => (next.counters(app.slot).redirected ?? 0) > soFar + 20);
      return held.end();
    });
    assert.deepEqual({ alive: last.alive, peer: last.peer }, { alive: true, peer: at(server.ip4, PORT) });
    const { again } = await eventually('the proxy has asked again', () =>
      (mesh.proxying.accepted() as Proxied[]).find((line) => line.peer === peer && line.again !== undefined),
    );
    assert.equal(again, at(server.ip4, PORT));
    using after = openTestPlane(sandbox);
    await after.nothingLeft();
  });
}

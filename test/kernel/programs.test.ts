/** The programs as the kernel holds them: verified, attached by pinned links, taken over, removed. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { allBy, dial } from '../harness/dialler.ts';
import { probeFeatures } from '../../native/survey/capability.ts';
import { programsAt } from '../../native/survey/cgroup-query.ts';
import { CgrouteError } from '../../native/error.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { eventually, must } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { attachAll, notesOf, openTestPlane, netnsOf } from './data-plane.ts';
import {
  assertDirect,
  assertFailed,
  assertRedirected,
  hold,
  makeMesh,
  type Mesh,
  type Proxied,
  PORT,
  seen,
} from './mesh.ts';
import { at } from '../harness/travel.ts';

interface Link {
  readonly id: number;
  readonly prog_id: number;
}

/** The links that are pinned, by pin. */
async function linksOf(bpffsRoot: string): Promise<Record<string, Link>> {
  const directory = `${bpffsRoot}/${PIN_VERSION}/links`;
  const links: Record<string, Link> = {};
  for (const pin of readdirSync(directory)) {
    links[pin] = JSON.parse(
      await must({ cmd: 'bpftool', args: ['-j', 'link', 'show', 'pinned', join(directory, pin)] }),
    ) as Link;
  }
  return links;
}

/** The programs attached at a cgroup or below it. Not by `bpftool cgroup tree`, which shows none on Linux 5.10. */
function programsBelow(directory: string): string[] {
  const below = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isDirectory(),
  );
  return [directory, ...below.map(({ parentPath, name }) => join(parentPath, name))].flatMap((cgroup) =>
    [...programsAt(cgroup, new Map()).values()].flat().map(({ name }) => name ?? '?'),
  );
}

const pinsBelow = (directory: string): string[] =>
  existsSync(directory) ? readdirSync(directory, { recursive: true, encoding: 'utf8' }) : [];

test('every program is accepted by the verifier and, once attached, stands where it belongs', async () => {
  await using sandbox = await makeSandbox('verified');
  using plane = openTestPlane(sandbox);
  const mayFilter = probeFeatures().every(
    ({ name, support }) => name !== 'bpf_get_current_cgroup_id in socket' || support === 'yes',
  );
  assert.deepEqual(mayFilter ? plane.plane.notes : notesOf(plane), [], 'nothing is left out');
  assert.deepEqual(programsBelow(sandbox.cgroupRoot), [], 'loading attaches nothing');
  const tree = sandbox.cgroup('kubepods');
  const proxy = sandbox.cgroup('kubepods/proxy');
  attachAll(plane, tree, proxy);
  const pins = readdirSync(`${plane.bpffsRoot}/${PIN_VERSION}/links`);
  for (const [program, cgroup] of [
    ['pod_connect4', tree],
    ['pod_connect6', tree],
    ['original_dst', proxy],
  ] as const) {
    assert.ok(pins.includes(`${program}@${cgroup.id}`), `${program} in ${pins.join(' ')}`);
  }
  const attached = programsBelow(sandbox.cgroupRoot);
  for (const program of [
    'root_connect4',
    'root_connect6',
    'pod_connect4',
    'pod_connect6',
    'original_dst',
    'sock_ops',
    'sock_release',
    'getpeername4',
    'getpeername6',
  ]) {
    assert.ok(attached.includes(program), `${program} in ${attached.join(' ')}`);
  }
  attachAll(plane, tree, proxy);
  assert.deepEqual(
    programsBelow(sandbox.cgroupRoot).sort(),
    [...attached].sort(),
    'again is the same as once',
  );
});

/** Opens another data plane on the same pins, as a new agent does, and closes it. */
function takeOver(mesh: Mesh): void {
  using next = openTestPlane(mesh.sandbox);
  attachAll(next, mesh.podTree, mesh.proxy.podCgroup);
}

test('a second start takes over links and maps, and no connection slips through meanwhile', async () => {
  await using mesh = await makeMesh('takeover', { proxyOptions: ['--again'] });
  const { plane, app, server, sandbox } = mesh;
  const held = await hold(sandbox, app, server.ip4, PORT);
  assert.ok(held.result.ok);
  const { peer } = await seen(mesh.proxying, held.result.local);
  const loops = [server.ip4, server.ip6].map((ip) => dial(sandbox, app, { ip, port: PORT }, 0, 51));
  const connections = (): number => plane.counters(app.slot).redirected ?? 0;
  let before = await linksOf(plane.bpffsRoot);
  for (let i = 0; i < 5; i++) {
    const soFar = connections();
    takeOver(mesh);
    const now = await linksOf(plane.bpffsRoot);
    assert.deepEqual(Object.keys(now), Object.keys(before));
    for (const [pin, { id, prog_id: program }] of Object.entries(now)) {
      const old = before[pin];
      assert.equal(id, old?.id, `${pin} is the same link`);
      assert.notEqual(program, old?.prog_id, `${pin} has a new program`);
    }
    before = now;
    await eventually('clients go on, and are counted in the same map', () => connections() > soFar + 20);
  }
  for (const loop of loops) {
    const totals = await loop.end();
    assert.deepEqual(totals, allBy('proxy', totals.total));
    assert.ok(totals.total > 50, JSON.stringify(totals));
  }
  // The connection of before: its peer, and its original destination, asked for by now.
  const last = await held.end();
  assert.deepEqual({ alive: last.alive, peer: last.peer }, { alive: true, peer: at(server.ip4, PORT) });
  const { again } = await eventually('the proxy has asked again', () =>
    (mesh.proxying.accepted() as Proxied[]).find((line) => line.peer === peer && line.again !== undefined),
  );
  assert.equal(again, at(server.ip4, PORT));
  await plane.nothingLeft();
});

test("the proxy's ports are those of the last start, and nobody may dial them", async () => {
  await using mesh = await makeMesh('ports');
  const { app, proxy, server, sandbox } = mesh;
  const proxying = await listen(sandbox, proxy, 'proxy', '*', [16001, 16006], '--dual', '--level', 'both');
  using next = openTestPlane(sandbox, {
    hostNetns: netnsOf(mesh.hostProcess().netns),
    ports: { outbound: 16001, inbound: 16006 },
  });
  attachAll(next, mesh.podTree, proxy.podCgroup);
  next.captureInbound(app.ip4, app.slot);
  next.captureInbound(app.ip6, app.slot);
  for (const [address, own, ip] of [
    [server.ip4, app.ip4, proxy.ip4],
    [server.ip6, app.ip6, proxy.ip6],
  ] as const) {
    for (const [place, asked, port] of [
      [app, address, 16001],
      [mesh.hostProcess(), own, 16006],
    ] as const) {
      await assertRedirected({ proxying, proxy }, await connect(place, asked, PORT), at(asked, PORT), port);
      assertFailed(await connect(app, ip, port), 'EPERM');
    }
    await assertRedirected({ proxying, proxy }, await connect(app, ip, 15001), at(ip, 15001), 16001);
  }
  await next.nothingLeft();
});

test('redirection goes on when nobody holds the programs but their pins', async () => {
  await using mesh = await makeMesh('pinned');
  mesh.plane[Symbol.dispose]();
  await assertRedirected(mesh, await connect(mesh.app, mesh.server.ip4, PORT), at(mesh.server.ip4, PORT));
  await assertRedirected(mesh, await connect(mesh.app, mesh.server.ip6, PORT), at(mesh.server.ip6, PORT));
});

test('detach removes every link and map: connections are untouched from then on', async () => {
  await using mesh = await makeMesh('detach');
  const { plane, app, server, sandbox } = mesh;
  const held = await hold(sandbox, app, server.ip4, PORT);
  await assertRedirected(mesh, held.result, at(server.ip4, PORT));
  plane.plane.detach();
  assert.deepEqual(pinsBelow(plane.bpffsRoot), []);
  await eventually('no program is attached', () => programsBelow(sandbox.cgroupRoot).length === 0);
  for (const address of [server.ip4, server.ip6])
    await assertDirect(mesh, await connect(app, address, PORT), at(address, PORT));
  assert.ok((await held.end()).alive, 'an open connection goes on');
  plane.plane.detach(); // twice is fine
});

test('a link that somebody removed is put back, and links of other cgroups are dropped', async () => {
  await using mesh = await makeMesh('repair');
  const { plane, app, server } = mesh;
  const before = await linksOf(plane.bpffsRoot);
  assert.deepEqual(plane.plane.repairLinks(), []);
  const pin = Object.keys(before).find((name) => name.startsWith('pod_connect4@')) ?? '';
  await must({
    cmd: 'bpftool',
    args: ['link', 'detach', 'pinned', `${plane.bpffsRoot}/${PIN_VERSION}/links/${pin}`],
  });
  assert.deepEqual(plane.plane.repairLinks(), [pin]);
  await assertRedirected(mesh, await connect(app, server.ip4, PORT), at(server.ip4, PORT));
  await must({ cmd: 'rm', args: [`${plane.bpffsRoot}/${PIN_VERSION}/links/${pin}`] });
  assert.deepEqual(plane.plane.repairLinks(), [pin]);
  await assertRedirected(mesh, await connect(app, server.ip4, PORT), at(server.ip4, PORT));

  const other = mesh.sandbox.cgroup('kubepods-other');
  {
    using former = openTestPlane(mesh.sandbox);
    former.plane.attachPodTree({ path: other.absolute, id: other.id });
  }
  assert.equal(plane.plane.dropOtherLinks(), 2);
  assert.deepEqual(Object.keys(await linksOf(plane.bpffsRoot)).sort(), Object.keys(before).sort());
});

test('programs that are attached twice, as in the instant of a repair, redirect as one does', async () => {
  await using mesh = await makeMesh('twice');
  const { plane, app, server, sandbox } = mesh;
  for (const [pin, { prog_id: program }] of Object.entries(await linksOf(plane.bpffsRoot))) {
    const family = /^pod_connect([46])@/.exec(pin)?.[1];
    if (family !== undefined)
      await must({
        cmd: 'bpftool',
        args: [
          'cgroup',
          'attach',
          join(sandbox.cgroupRoot, 'kubepods'),
          `cgroup_inet${family}_connect`,
          'id',
          String(program),
          'multi',
        ],
      });
  }
  assert.equal((await programsBelow(sandbox.cgroupRoot)).filter((name) => name === 'pod_connect4').length, 2);
  for (const address of [server.ip4, server.ip6]) {
    for (let i = 0; i < 3; i++)
      await assertRedirected(mesh, await connect(app, address, PORT), at(address, PORT));
  }
});

test('a tree that is made again under the same path gets programs of its own', async () => {
  await using sandbox = await makeSandbox('again');
  using plane = openTestPlane(sandbox);
  const first = sandbox.cgroup('kubepods');
  plane.plane.attachPodTree({ path: first.absolute, id: first.id });
  rmdirSync(first.absolute);
  const second = sandbox.cgroup('kubepods');
  assert.notEqual(second.id, first.id);
  plane.plane.attachPodTree({ path: second.absolute, id: second.id });
  assert.deepEqual(programsBelow(sandbox.cgroupRoot).sort(), ['pod_connect4', 'pod_connect6']);
  using next = openTestPlane(sandbox);
  next.plane.attachPodTree({ path: second.absolute, id: second.id });
  assert.equal(next.plane.dropOtherLinks(), 2, 'those of the tree that is gone');
});

test('a directory that is on no BPF filesystem is refused', async () => {
  await using sandbox = await makeSandbox('nobpffs');
  assert.throws(
    () => openTestPlane(sandbox, { bpffsRoot: sandbox.file('cgroute') }),
    (error) => error instanceof CgrouteError && error.code === 'EBPFFS' && /--bpffs-root/.test(error.message),
  );
});

/** What doctor says of the programs on the kernel's hooks, and of the order in which they run. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describeHooks } from '../../../../mapper/cli/doctor-bpf.ts';
import type { DoctorLine } from '../../../../mapper/cli/doctor-line.ts';
import type { HookOrder, PlacedProgram } from '../../../../native/survey/cgroup-query.ts';

const places = { cgroupRoot: '/cg', podTrees: ['/kubepods.slice'] };
const program = (
  name: string,
  place: string,
  owner: PlacedProgram['owner'] = 'other',
  mode: PlacedProgram['mode'] = 'multi',
): PlacedProgram => ({ id: name.length, name, place, owner, mode });
const only = (
  runs: PlacedProgram[],
  hidden: PlacedProgram[] = [],
  hook: HookOrder['hook'] = 'connect4',
): DoctorLine => describeHooks([[{ hook, runs, hidden }]], places)[0] as DoctorLine;

test('programs are told in the order in which they run, with their places and owners', () => {
  const line = only([
    program('pod_connect4', '/cg/kubepods.slice', 'cgroute'),
    program('cil_sock4_connect', '/cg'),
    program('root_connect4', '/cg', 'cgroute'),
    program('root_connect6', '/', 'unpinned'),
  ]);
  assert.equal(line.state, 'ok');
  assert.equal(
    line.detail,
    'pod tree /kubepods.slice: pod_connect4 (cgroute), root: cil_sock4_connect (other), root_connect4 (cgroute), /: root_connect6 (cgroute, not of these pins)',
  );
});

test('a program of others before ours in the pod tree is a warning, after ours it is none', () => {
  const ours = program('pod_connect4', '/cg/kubepods.slice', 'cgroute');
  const lb = program('lb', '/cg/kubepods.slice');
  assert.equal(only([lb, ours]).state, 'warn');
  assert.equal(only([lb]).state, 'warn');
  assert.equal(only([ours, lb]).state, 'ok');
  assert.equal(only([program('deep', '/cg/elsewhere'), ours]).state, 'ok');
  assert.equal(only([lb, ours], [], 'sock_ops').state, 'ok');
});

test('a program that allows no other beside it fails, with the command that detaches it', () => {
  const alone = only([program('alone', '/', 'other', 'exclusive')]);
  assert.equal(alone.state, 'fail');
  assert.match(alone.remedy ?? '', /bpftool cgroup detach \/ connect4 id 5/);
  assert.equal(only([program('yields', '/cg', 'other', 'override')]).state, 'fail');
  assert.equal(only([program('yields', '/', 'other', 'override')]).state, 'ok');
  assert.equal(
    only(
      [program('pod_connect4', '/cg/kubepods.slice', 'cgroute')],
      [program('yields', '/', 'other', 'override')],
    ).state,
    'warn',
  );
});

test('hooks that nobody uses are one line, and equal orders are told once', () => {
  const runs = [program('root_connect4', '/cg', 'cgroute')];
  const chain: HookOrder[] = [
    { hook: 'connect4', runs, hidden: [] },
    { hook: 'sock_ops', runs: [], hidden: [] },
  ];
  const lines = describeHooks([chain, chain], places);
  assert.deepEqual(
    lines.map(({ check }) => check),
    ['connect4', 'hooks'],
  );
  assert.equal(lines[1]?.detail, 'no program on sock_ops');
});

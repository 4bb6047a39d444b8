import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { release } from 'node:os';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { featureLines } from '../../mapper/cli/doctor-bpf.ts';
import { type DoctorLine, runDoctor } from '../../mapper/cli/doctor.ts';
import {
  capabilityReport,
  isOlder,
  mayCall,
  type ProbedFeature,
  probeFeatures,
} from '../../native/survey/capability.ts';
import { cgroupHooks } from '../../native/programs/hooks.ts';
import { pinnedPrograms, programsAlong, programsAt } from '../../native/survey/cgroup-query.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { checked, libbpf } from '../../native/boundary/libbpf.ts';
import { addressOf } from '../../native/boundary/libc.ts';
import { type Cgroup, cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { openTestPlane } from './data-plane.ts';

const CGROUP_SOCK_ADDR = 18; // enum bpf_prog_type
const RETURN_1 = Buffer.from('b700000001000000' + '9500000000000000', 'hex');

/** Somebody else's connect4 program, which allows everything. */
function foreignProgram(name: string): Disposable & { readonly fd: number; readonly id: number } {
  const options = Buffer.alloc(104);
  options.writeBigUInt64LE(104n, 0);
  options.writeUInt32LE(cgroupHooks.connect4.attach, 12);
  const fd = checked(
    libbpf().progLoad(CGROUP_SOCK_ADDR, name, 'GPL', RETURN_1, 2, options),
    'bpf_prog_load',
    name,
  );
  const info = Buffer.alloc(128);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(info.length);
  checked(libbpf().objGetInfo(fd, info, length), 'bpf_obj_get_info_by_fd', name);
  assert.ok(addressOf(options) !== 0n); // keeps it alive until here
  return { fd, id: info.readUInt32LE(4), [Symbol.dispose]: () => closeSync(fd) };
}

/** A link to it; gone when disposed of. */
function attach(program: { readonly fd: number }, cgroup: string): Disposable {
  const directory = openSync(cgroup, 'r');
  const link = checked(
    libbpf().linkCreate(program.fd, directory, cgroupHooks.connect4.attach, null),
    'bpf_link_create',
    cgroup,
  );
  closeSync(directory);
  return { [Symbol.dispose]: () => closeSync(link) };
}

const doctor = (sandbox: Sandbox): Promise<DoctorLine[]> =>
  runDoctor({ cgroupRoot: sandbox.cgroupRoot, procRoot: '/proc', bpffsRoot: `${sandbox.bpffs}/cgroute` });

function named(lines: readonly DoctorLine[], check: string): DoctorLine {
  const line = lines.find((each) => each.check === check);
  assert.ok(line, `no line ${check} among ${lines.map((each) => each.check).join(', ')}`);
  return line;
}

const kubepods = (sandbox: Sandbox): Cgroup => sandbox.cgroup('kubepods.slice');

test('this kernel has all that the programs ask for, and says no to what it has not', () => {
  const features = probeFeatures();
  const isEnough = ({ support, without, instead }: ProbedFeature): boolean =>
    support === 'yes' || (support === 'no' && (without ?? instead) !== undefined);
  assert.deepEqual(
    features.filter((feature) => !isEnough(feature)),
    [],
  );
  // What later kernels were given, they have.
  const missing = features.filter(({ support, since }) => support !== 'yes' && !isOlder(release(), since));
  assert.deepEqual(missing, []);
  const { features: report } = capabilityReport();
  assert.equal(report['bpf_get_current_comm in cgroup/connect4'], true);
  assert.equal(Object.keys(report).length, features.length);
  // bpf_redirect_map is for other types of programs; 9999 is no helper.
  assert.equal(mayCall(CGROUP_SOCK_ADDR, cgroupHooks.connect4.attach, 51), false);
  assert.equal(mayCall(CGROUP_SOCK_ADDR, cgroupHooks.connect4.attach, 9999), false);
  assert.equal(mayCall(CGROUP_SOCK_ADDR, cgroupHooks.connect4.attach, 16), true);
});

test('programs come in the order in which the kernel runs them, ours told by their pins', async () => {
  await using sandbox = await makeSandbox('order');
  const tree = kubepods(sandbox);
  using before = foreignProgram('lb_at_root');
  using after = foreignProgram('late_in_pods');
  using atRoot = attach(before, sandbox.cgroupRoot);
  using plane = openTestPlane(sandbox);
  try {
    plane.plane.attachPodTree({ path: tree.absolute, id: tree.id });
    plane.plane.attachSockets();
    plane.plane.attachHandoff(plane.root);
    plane.plane.attachRoot();
    using inPods = attach(after, tree.absolute);
    const pinned = pinnedPrograms(`${plane.bpffsRoot}/${PIN_VERSION}/links`);
    assert.ok(pinned);
    const order = programsAlong([tree.absolute, sandbox.cgroupRoot], pinned).find(
      ({ hook }) => hook === 'connect4',
    );
    assert.deepEqual(
      order?.runs.map(({ name, owner, place }) => [name, owner, place]),
      [
        ['pod_connect4', 'cgroute', tree.absolute],
        ['late_in_pods', 'other', tree.absolute],
        ['lb_at_root', 'other', sandbox.cgroupRoot],
        ['root_connect4', 'cgroute', sandbox.cgroupRoot],
      ],
    );
    assert.deepEqual(order?.hidden, []);
    assert.equal(programsAt(tree.absolute, new Map()).get('connect4')?.[0]?.owner, 'unpinned');
    const line = named(await doctor(sandbox), 'connect4');
    assert.equal(line.state, 'ok');
    assert.equal(
      line.detail,
      'pod tree /kubepods.slice: pod_connect4 (cgroute), late_in_pods (other), root: lb_at_root (other), root_connect4 (cgroute)',
    );
    assert.ok(atRoot && inPods);
  } finally {
    plane.plane.detach();
  }
});

test('a foreign program ahead of ours in the pod tree is a warning', async () => {
  await using sandbox = await makeSandbox('ahead');
  const tree = kubepods(sandbox);
  using first = foreignProgram('came_first');
  using link = attach(first, tree.absolute);
  using plane = openTestPlane(sandbox);
  try {
    plane.plane.attachPodTree({ path: tree.absolute, id: tree.id });
    const line = named(await doctor(sandbox), 'connect4');
    assert.equal(line.state, 'warn');
    assert.match(
      line.detail,
      /pod tree \/kubepods\.slice: came_first \(other\), pod_connect4 \(cgroute\).*came_first runs first/,
    );
    assert.ok(link);
  } finally {
    plane.plane.detach();
  }
});

test('a program that allows no other is a failure, as the kernel refuses ours then, and the remedy works', async () => {
  await using sandbox = await makeSandbox('alone');
  const tree = kubepods(sandbox);
  using alone = foreignProgram('wants_it_alone');
  execFileSync('bpftool', ['cgroup', 'attach', sandbox.cgroupRoot, 'connect4', 'id', String(alone.id)]);
  const line = named(await doctor(sandbox), 'connect4');
  assert.equal(line.state, 'fail');
  assert.match(
    line.detail,
    /root: wants_it_alone \(other\); wants_it_alone was attached without BPF_F_ALLOW_MULTI/,
  );
  using plane = openTestPlane(sandbox);
  assert.throws(() => plane.plane.attachPodTree({ path: tree.absolute, id: tree.id }), /EPERM/);
  const [command = '', ...args] = (line.remedy ?? '').split(',')[0]?.split(' ') ?? [];
  execFileSync(command, args);
  plane.plane.attachPodTree({ path: tree.absolute, id: tree.id });
  plane.plane.detach();
});

test('a program that lets itself be replaced is told where ours replaces it', async () => {
  await using sandbox = await makeSandbox('yields');
  const tree = sandbox.cgroup('kubelet.slice/kubelet-kubepods.slice');
  const above = sandbox.cgroup('kubelet.slice');
  using yields = foreignProgram('yields');
  execFileSync('bpftool', [
    'cgroup',
    'attach',
    above.absolute,
    'connect4',
    'id',
    String(yields.id),
    'override',
  ]);
  using plane = openTestPlane(sandbox);
  try {
    plane.plane.attachPodTree({ path: tree.absolute, id: tree.id });
    const line = named(await doctor(sandbox), 'connect4');
    assert.equal(line.state, 'warn');
    assert.match(line.detail, /pod_connect4 \(cgroute\); replaced there: .*yields \(other\)/);
  } finally {
    plane.plane.detach();
    execFileSync('bpftool', ['cgroup', 'detach', above.absolute, 'connect4', 'id', String(yields.id)]);
  }
});

test('a sandbox with its own bpffs is fit', async () => {
  await using sandbox = await makeSandbox('fit');
  const lines = await doctor(sandbox);
  assert.deepEqual(
    lines.filter(({ state }) => state === 'fail'),
    [],
  );
  assert.match(named(lines, 'bpffs').detail, /is on a BPF file system/);
  assert.match(named(lines, 'hooks').detail, /no program on connect4, connect6, sock_ops/);
});

test('without privileges doctor says what is missing, and throws nothing', () => {
  const script = `import { runDoctor } from '${resolve(import.meta.dirname, '../../mapper/cli/doctor.ts')}'; console.log(JSON.stringify(await runDoctor({ cgroupRoot: '${cgroup2Mount()}', procRoot: '/proc', bpffsRoot: '/sys/fs/bpf/cgroute' })));`;
  const run = (...capabilities: string[]): DoctorLine[] => {
    const bounding = ['-all', ...capabilities.map((name) => `+${name}`)].join(',');
    const command = [
      '--inh-caps=-all',
      '--ambient-caps=-all',
      `--bounding-set=${bounding}`,
      process.execPath,
      '--input-type=module',
      '-e',
      script,
    ];
    return JSON.parse(execFileSync('setpriv', command, { encoding: 'utf8' })) as DoctorLine[];
  };
  const none = run();
  for (const check of ['CAP_BPF', 'CAP_NET_ADMIN', 'CAP_PERFMON', 'BPF programs', 'BPF helpers', 'hooks'])
    assert.equal(named(none, check).state, 'fail', check);
  assert.equal(named(none, 'libbpf').state, 'ok');
  const most = run('bpf', 'net_admin');
  assert.deepEqual(
    ['CAP_BPF', 'CAP_NET_ADMIN', 'CAP_PERFMON'].map((check) => named(most, check).state),
    ['ok', 'ok', 'fail'],
  );
  // Refused for want of a privilege, and not for want of a kernel.
  const lacking = new Set(featureLines(probeFeatures()).map(({ detail }) => detail));
  assert.deepEqual(
    most.filter(({ detail }) => detail.includes('is not in this kernel') && !lacking.has(detail)),
    [],
  );
  const enough = run('bpf', 'net_admin', 'perfmon', 'sys_ptrace');
  assert.deepEqual(
    enough.filter(
      ({ check, state, detail }) =>
        /^(CAP|BPF)/.test(check) && state !== 'ok' && !detail.includes('is not in this kernel'),
    ),
    [],
  );
});

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { test, type TestContext } from 'node:test';
import { runDoctor, doctorExitCode, doctorText } from '../../../../mapper/cli/doctor.ts';
import { capabilityLines, featureLines, findPodTrees } from '../../../../mapper/cli/doctor-bpf.ts';
import {
  bpffsLine,
  cgroupLine,
  iptablesLines,
  kernelLine,
  lockedMemoryLines,
  memoryLine,
  namespaceLines,
  settingLines,
} from '../../../../mapper/cli/doctor-host.ts';
import type { DoctorLine } from '../../../../mapper/cli/doctor-line.ts';
import { isOlder, leastKernel, type ProbedFeature } from '../../../../native/survey/capability.ts';
import { iptablesBackends } from '../../../../native/survey/iptables.ts';
import {
  type Capability,
  effectiveCapabilities,
  hostNamespaces,
} from '../../../../native/boundary/privilege.ts';

function tree(t: TestContext, files: Readonly<Record<string, string>>): string {
  const root = mkdtempSync(join(tmpdir(), 'cgroute-test-doctor-'));
  t.after(() => rmSync(root, { recursive: true }));
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return root;
}

const states = (lines: readonly DoctorLine[]): string[] =>
  lines.map(({ check, state }) => `${check}: ${state}`);
const withRemedies = (lines: readonly DoctorLine[]): void => {
  for (const line of lines)
    assert.equal(line.state === 'ok', line.remedy === undefined, `${line.check}: ${line.detail}`);
};

test('kernel releases are compared by their first two numbers', () => {
  assert.ok(isOlder('5.9', '5.15'));
  assert.ok(isOlder('4.19.0-27-amd64', '5.4'));
  assert.ok(!isOlder('6.18.44-generic', '5.19'));
  assert.ok(!isOlder('5.19.0', '5.19'));
});

test('the least kernel is the newest of the versions that are needed, without the optional ones', () => {
  assert.equal(leastKernel(), '5.9');
  assert.equal(kernelLine('5.8.0-63-generic', 'x86_64').state, 'warn');
  assert.equal(kernelLine('6.1.0', 'aarch64').state, 'ok');
  assert.match(kernelLine('6.1.0', 'riscv64').detail, /riscv64/);
});

test('settings of the kernel are read from fixture trees, each with its remedy', (t) => {
  const good = tree(t, {
    'proc/sys/net/core/bpf_jit_enable': '1\n',
    'proc/sys/kernel/unprivileged_bpf_disabled': '2\n',
    'sys/kernel/btf/vmlinux': '',
    'sys/kernel/security/lockdown': 'none [integrity] confidentiality\n',
  });
  const bad = tree(t, {
    'proc/sys/net/core/bpf_jit_enable': '0\n',
    'proc/sys/kernel/unprivileged_bpf_disabled': '0\n',
    'sys/kernel/security/lockdown': 'none integrity [confidentiality]\n',
  });
  const lines = (root: string) =>
    settingLines({ procRoot: `${root}/proc`, sysRoot: `${root}/sys`, bpffsRoot: '/x' });
  assert.deepEqual(states(lines(good)), ['BTF: ok', 'lockdown: ok', 'JIT: ok', 'unprivileged BPF: ok']);
  assert.deepEqual(states(lines(bad)), ['BTF: fail', 'lockdown: ok', 'JIT: warn', 'unprivileged BPF: warn']);
  withRemedies([...lines(good), ...lines(bad)]);
});

test('a host with cgroup v1 only, and a bpffs root elsewhere, fail with the remedy', (t) => {
  const root = tree(t, {
    'proc/self/mountinfo': '32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n',
  });
  const places = { procRoot: `${root}/proc`, bpffsRoot: `${root}/not/there` };
  const lines = [cgroupLine(places), bpffsLine(places)];
  assert.deepEqual(states(lines), ['cgroup2: fail', 'bpffs: fail']);
  assert.match(lines[0]?.detail ?? '', /cgroup v1 only/);
  assert.equal(lines[1]?.remedy, 'mount -t bpf bpf /sys/fs/bpf');
});

test('the least memory limit from the own cgroup upwards counts', (t) => {
  const root = tree(t, {
    'proc/self/cgroup': '9:memory:/x\n0::/pods/agent\n',
    'cg/memory.max': 'max\n',
    'cg/pods/memory.max': `${128 << 20}\n`,
    'cg/pods/agent/memory.max': `${512 << 20}\n`,
  });
  mkdirSync(`${root}/proc/self`, { recursive: true });
  writeFileSync(`${root}/proc/self/mountinfo`, `41 31 0:38 / ${root}/cg rw - cgroup2 cgroup2 rw\n`);
  const look = (): DoctorLine => memoryLine({ procRoot: `${root}/proc`, bpffsRoot: '/x' });
  assert.deepEqual([look().state, look().detail.startsWith('128 MiB for /pods,')], ['warn', true]);
  writeFileSync(`${root}/cg/pods/memory.max`, 'max\n');
  assert.deepEqual([look().state, look().detail], ['ok', '512 MiB for /pods/agent']);
  writeFileSync(`${root}/cg/pods/agent/memory.max`, 'max\n');
  assert.match(look().detail, /no limit/);
});

test("a container's own limit is found in the node's mount, which begins above it", (t) => {
  const root = tree(t, {
    'proc/self/cgroup': '0::/\n',
    'cg/memory.max': 'max\n',
    'cg/cgroup.procs': '',
    'cg/pods/cgroup.procs': '',
    'cg/pods/agent/memory.max': `${256 << 20}\n`,
    'cg/pods/agent/cgroup.procs': `${process.pid}\n`,
  });
  writeFileSync(`${root}/proc/self/mountinfo`, `41 31 0:38 /../.. ${root}/cg rw - cgroup2 cgroup2 rw\n`);
  assert.equal(memoryLine({ procRoot: `${root}/proc`, bpffsRoot: '/x' }).detail, '256 MiB for /pods/agent');
});

test('capabilities are read from the status file, and CAP_SYS_ADMIN stands for the two that came out of it', (t) => {
  const held = (hex: string) =>
    [
      ...effectiveCapabilities(
        tree(t, { 'self/status': `Name:\tx\nCapPrm:\tffff\nCapEff:\t${hex}\nCapBnd:\tffff\n` }),
      ),
    ].sort();
  assert.deepEqual(held('000000c000081000'), ['CAP_BPF', 'CAP_NET_ADMIN', 'CAP_PERFMON', 'CAP_SYS_PTRACE']);
  assert.deepEqual(held('0000000000200000'), ['CAP_BPF', 'CAP_PERFMON', 'CAP_SYS_ADMIN']);
  assert.deepEqual(held('0000000000000000'), []);
  // A /proc that knows nothing of this process, as another PID namespace's, takes no capability away.
  assert.deepEqual(effectiveCapabilities('/nowhere'), effectiveCapabilities('/proc'));
});

test('a capability that is missing fails, and one that is held and of no use is told apart', () => {
  const worked = { load: true, namespaces: true };
  const all = new Set(['CAP_BPF', 'CAP_NET_ADMIN', 'CAP_PERFMON', 'CAP_SYS_PTRACE'] as const);
  assert.deepEqual(
    states(capabilityLines(all, worked)).filter((line) => !line.endsWith('ok')),
    [],
  );
  const none = capabilityLines(new Set(), { load: false, namespaces: false });
  assert.deepEqual(states(none), [
    'CAP_BPF: fail',
    'CAP_NET_ADMIN: fail',
    'CAP_PERFMON: fail',
    'CAP_SYS_PTRACE: warn',
    'CAP_SYS_ADMIN: ok',
  ]);
  const useless = capabilityLines(all, { load: false, namespaces: false });
  assert.match(useless[0]?.detail ?? '', /held, yet refused/);
  withRemedies([...none, ...useless]);
});

test('namespaces are told by the numbers of the first ones, and kthreadd stands in for a hidden PID 1', (t) => {
  const root = tree(t, { 'self/ns/.keep': '', '2/ns/.keep': '' });
  symlinkSync('pid:[4026531836]', `${root}/self/ns/pid`);
  symlinkSync('user:[4026532999]', `${root}/self/ns/user`);
  symlinkSync('net:[7]', `${root}/self/ns/net`);
  symlinkSync('net:[8]', `${root}/2/ns/net`);
  const namespaces = hostNamespaces(root);
  assert.deepEqual(namespaces, { pid: true, user: false, net: false });
  assert.deepEqual(states(namespaceLines(namespaces)), [
    'PID namespace: ok',
    'user namespace: warn',
    'network namespace: warn',
  ]);
  assert.deepEqual(hostNamespaces('/nowhere'), { pid: undefined, user: undefined, net: undefined });
});

test('locked memory is looked at where the kernel counts maps as such, and the process may not raise its limit', (t) => {
  const limits = (bytes: string): string =>
    `Limit                     Soft Limit           Hard Limit           Units\nMax locked memory         ${bytes.padEnd(21)}${bytes.padEnd(21)}bytes\n`;
  const line = (bytes: string, version: string, ...held: Capability[]): DoctorLine[] =>
    lockedMemoryLines(
      { procRoot: tree(t, { 'self/limits': limits(bytes) }), bpffsRoot: '' },
      new Set(held),
      version,
    );
  assert.deepEqual(states(line('65536', '5.10.0-32-cloud-amd64')), ['locked memory: fail']);
  withRemedies(line('65536', '5.10.0-32-cloud-amd64'));
  assert.deepEqual(states(line('unlimited', '5.10.223')), ['locked memory: ok']);
  assert.deepEqual(line('65536', '5.10.223', 'CAP_SYS_RESOURCE'), []);
  assert.deepEqual(line('65536', '5.11.0'), []);
});

test('each missing feature is a line that names the kernel which has it', () => {
  const features: ProbedFeature[] = [
    { name: 'cgroup/connect4', kind: 'program', since: '4.17', support: 'yes' },
    { name: 'bpf_get_socket_cookie in sockops', kind: 'helper', since: '4.19', support: 'no' },
    {
      name: 'bpf_get_netns_cookie in sockops',
      kind: 'helper',
      since: '5.15',
      support: 'no',
      instead: 'its inode number',
    },
    {
      name: 'bpf_get_current_cgroup_id in socket',
      kind: 'helper',
      since: '6.4',
      support: 'no',
      without: 'more wakeups',
    },
    { name: 'map hash', kind: 'map', since: '3.19', support: 'unknown' },
  ];
  const lines = featureLines(features);
  assert.deepEqual(states(lines), [
    'BPF programs: ok',
    'BPF helpers: fail',
    'BPF helpers: ok',
    'BPF helpers: warn',
    'BPF maps: fail',
  ]);
  assert.match(lines[1]?.detail ?? '', /bpf_get_socket_cookie in sockops/);
  assert.equal(lines[1]?.remedy, 'Linux 4.19 has it');
  assert.match(lines[2]?.detail ?? '', /bpf_get_netns_cookie in sockops.* not needed: its inode number/);
  assert.match(lines[3]?.detail ?? '', /more wakeups/);
  withRemedies(lines);
});

test('pod trees are found below a root, and never inside a pod', (t) => {
  const pod = 'kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice';
  const root = tree(t, {
    [`${pod}/x`]: '',
    'kubelet.slice/kubelet-kubepods.slice/x': '',
    'system.slice/a.service/x': '',
    'pod2c48913c-b29f-11e7-9350-020968147796/kubepods/x': '',
  });
  assert.deepEqual(findPodTrees(root), {
    trees: ['/kubelet.slice/kubelet-kubepods.slice', '/kubepods.slice'],
    unseen: [],
  });
});

test('iptables backends are counted with fake tools, and a missing or silent one is a warning', async (t) => {
  const root = tree(t, {
    'bin/iptables-nft': '#!/bin/sh\nprintf -- "-P OUTPUT ACCEPT\\n-A OUTPUT -j X\\n-A X -j RETURN\\n"\n',
    'bin/iptables-legacy': '#!/bin/sh\n[ "$1" = -t ] && echo "-A OUTPUT -j Y"\nexit 0\n',
    'bin/ip6tables-nft': '#!/bin/sh\necho "you must be root" >&2\nexit 4\n',
    'bin/ip6tables-legacy': '#!/bin/sh\n[ "$1" = --version ] || echo "-A would make the table"\n',
    'proc/self/net/ip_tables_names': 'filter\nnat\n',
  });
  for (const name of readdirSync(`${root}/bin`)) chmodSync(`${root}/bin/${name}`, 0o755);
  const path = process.env['PATH'];
  t.after(() => {
    process.env['PATH'] = path;
  });
  process.env['PATH'] = `${root}/bin:${path}`;
  const backends = await iptablesBackends(`${root}/proc`);
  assert.deepEqual(Object.fromEntries(backends.map(({ tool, rules }) => [tool, rules])), {
    'iptables-nft': 2,
    'iptables-legacy': 1,
    'ip6tables-nft': { failed: 'you must be root' },
    'ip6tables-legacy': 0,
  });
  const lines = iptablesLines([...backends, { tool: 'ip6tables-x', rules: 'missing' }]);
  assert.deepEqual(states(lines), [
    'iptables-nft: ok',
    'iptables-legacy: ok',
    'ip6tables-nft: warn',
    'ip6tables-legacy: ok',
    'ip6tables-x: warn',
    'iptables: warn',
  ]);
  withRemedies(lines);
});

test('the text has a mark and a remedy for each line, and the exit code is 3 only when something fails', () => {
  const lines: DoctorLine[] = [
    { check: 'kernel', state: 'ok', detail: 'Linux 6.1' },
    { check: 'JIT', state: 'warn', detail: 'off', remedy: 'sysctl' },
    { check: 'bpffs', state: 'fail', detail: 'not mounted', remedy: 'mount it' },
  ];
  assert.equal(
    doctorText(lines),
    '✓ kernel  Linux 6.1\n! JIT     off\n          -> sysctl\n✗ bpffs   not mounted\n          -> mount it\n\nthis host is not fit for cgroute: 1 check fails, 1 warning\n',
  );
  assert.equal(doctorExitCode(lines), 3);
  assert.equal(doctorExitCode(lines.slice(0, 2)), 0);
  assert.match(doctorText(lines.slice(0, 1)), /\nthis host is fit for cgroute\n$/);
});

test('without libbpf doctor names the package, and the rest is looked at all the same', (t) => {
  const root = tree(t, { 'libbpf.so.1': '' });
  const script = `import { runDoctor } from '${resolve(import.meta.dirname, '../../../../mapper/cli/doctor.ts')}'; import { capabilityReport } from '${resolve(import.meta.dirname, '../../../../native/survey/capability.ts')}';
    let report = 'none';
    try { report = capabilityReport(); } catch (error) { report = error.code; }
    console.log(JSON.stringify({ lines: await runDoctor({ procRoot: '/proc', bpffsRoot: '/sys/fs/bpf/cgroute' }), report }));`;
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
    env: { ...process.env, LD_LIBRARY_PATH: root },
  });
  const { lines, report } = JSON.parse(output) as { lines: DoctorLine[]; report: unknown };
  const library = lines.find(({ check }) => check === 'libbpf');
  assert.equal(library?.state, 'fail');
  assert.match(library.remedy ?? '', /libbpf1/);
  assert.ok(
    lines.some(({ check }) => check === 'kernel') && lines.some(({ check }) => check === 'iptables-nft'),
  );
  // No features would read as none that is missing.
  assert.equal(report, 'ELIBBPF');
});

test('doctor never throws, whatever the places are', async (t) => {
  const rubbish = tree(t, { 'self/mountinfo': 'a b c - d', 'self/status': 'CapEff:\tzz\n' });
  for (const place of ['/nowhere', rubbish, '/dev/null', 'a\0b']) {
    const lines = await runDoctor({ cgroupRoot: place, procRoot: place, bpffsRoot: place, sysRoot: place });
    assert.ok(
      lines.some(({ state }) => state === 'fail'),
      place,
    );
    withRemedies(lines);
  }
});

/**
 * What may not be looked at is never said to be absent: every verb, by users who
 * lack a right or with places that cannot be used, over real pins that an agent left.
 */
import assert from 'node:assert/strict';
import { chmodSync, chownSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type Agent, startAgent } from '../../deploy/stage/agent.ts';
import type { NodeStatus } from '../../deploy/stage/node-status.ts';
import { beginWait, whenOver } from '../../deploy/stage/deadline.ts';
import type { Finished, Program } from '../../deploy/stage/process.ts';
import { type Sandbox, makeSandbox } from '../../deploy/stage/sandbox.ts';

const project = resolve(import.meta.dirname, '../..');
const NOBODY = 65534;
const MANIFEST = 'kind: Namespace\nmetadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}\n';

/** How a process gives its rights up; each is a command that starts another. */
const nobody = [
  ...['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'],
  ...['--inh-caps=-all', '--bounding-set=-all'],
];
const without = (...names: readonly string[]): string[] => [
  'setpriv',
  '--inh-caps=-all',
  `--bounding-set=${names.map((name) => `-${name}`).join(',')}`,
];
const fakeRoot = [...nobody, 'unshare', '--user', '--map-root-user'];
/** In a mount namespace of its own. The project is bound to a place that everybody can get to. */
const inMounts = (sandbox: Sandbox, ...steps: readonly string[]): string[] => [
  ...['unshare', '--mount', '--propagation', 'private', 'sh', '-c'],
  [`mount --bind "$0" ${sandbox.file('project')}`, ...steps, 'exec "$@"'].join(' && '),
  project,
];
const HIDES_PROCESSES = 'mount -t proc -o hidepid=2 proc /proc';

describe('rights that are missing are said as such', () => {
  let sandbox: Sandbox;
  let root: string;
  let pins: readonly string[];
  /** Below the mount of bpffs. */
  const listPins = (): string[] => readdirSync(sandbox.bpffs, { recursive: true, encoding: 'utf8' }).sort();

  before(async () => {
    sandbox = await makeSandbox('rights');
    root = `${sandbox.bpffs}/cgroute`;
    chmodSync(sandbox.directory, 0o755);
    mkdirSync(sandbox.file('project'));
    sandbox.cgroup('kubepods/burstable');
    for (const [name, mode] of [
      ['pods.yaml', 0o644],
      ['secret.yaml', 0o600],
      ['theirs.yaml', 0o600],
    ] as const) {
      writeFileSync(sandbox.file(name), MANIFEST);
      chmodSync(sandbox.file(name), mode);
    }
    chownSync(sandbox.file('theirs.yaml'), NOBODY, NOBODY);
    writeFileSync(sandbox.file('secret-config.yaml'), 'log: {level: info}\n', { mode: 0o600 });
    mkdirSync(sandbox.file('home/.kube'), { recursive: true });
    writeFileSync(sandbox.file('home/.kube/config'), 'kind: Config\n');
    chmodSync(sandbox.file('home/.kube'), 0o700);
    symlinkSync('loop', sandbox.file('loop'));
    mkdirSync(sandbox.file('ordinary'));
    const agent = startAgent(sandbox, { manifest: sandbox.file('pods.yaml') });
    await agent.ready();
    await agent.stop();
    pins = listPins();
    assert.ok(pins.length > 20, 'an agent has left its pins');
  });
  after(() => sandbox?.[Symbol.asyncDispose]());

  interface Call {
    /** What gives up rights, see above. Default: root, with all of them. */
    readonly as?: readonly string[];
    /** What is mounted otherwise, as commands. */
    readonly mounts?: readonly string[];
    readonly env?: Readonly<Record<string, string>>;
  }
  const cgroute = (
    args: readonly string[],
    { as = [], mounts = [], env = {} }: Call = {},
  ): Promise<Finished> => {
    const program = sandbox.file('project');
    const [cmd = '', ...rest] = [
      ...inMounts(sandbox, ...mounts),
      ...as,
      `${program}/node_modules/.bin/node`,
      `${program}/dist/cgroute.mjs`,
      ...args,
    ];
    return ended({ cmd, args: rest, cgroup: sandbox.hostCgroup, env: { KUBECONFIG: '', ...env } });
  };

  /** An agent that should have refused to start does not end by itself. */
  async function ended(program: Program): Promise<Finished> {
    await using running = sandbox.spawn({ stdin: '', ...program });
    const cancel = whenOver(beginWait(), () => running.kill('SIGKILL'));
    const exit = await running.exit.finally(cancel);
    return { ...exit, stdout: running.stdout.join('\n'), stderr: running.stderr.join('\n') };
  }

  /** The flags of a verb that would work, with some replaced. */
  function call(verb: string, changed: Readonly<Record<string, string>> = {}): string[] {
    const places = { '--cgroup-root': sandbox.cgroupRoot, '--bpffs-root': root };
    const all: Readonly<Record<string, string>> = {
      ...places,
      ...(verb === 'run' ? { '--source': `file:${sandbox.file('pods.yaml')}`, '--http': '127.0.0.1:0' } : {}),
      ...changed,
    };
    return [verb, ...(verb === 'explain' ? ['demo/web'] : []), ...Object.entries(all).flat()];
  }

  /** One sentence, the right code, nothing said to be absent, and nothing changed. */
  function refused({ code, stdout, stderr }: Finished, expected: number, sentence: RegExp): void {
    assert.match(stderr, /^cgroute: [^\n]+$/, 'one line on stderr');
    assert.match(stderr, sentence);
    assert.equal(code, expected, stderr);
    assert.doesNotMatch(
      stdout + stderr,
      /nothing of cgroute|nothing is redirected|no agent runs with|without cgroup/,
    );
    assert.doesNotMatch(stdout, /"msg":"(?:ready|serving)"/);
    assert.deepEqual(listPins(), pins, 'the pins are as they were');
  }

  const PIN_VERBS = ['status', 'explain', 'cleanup', 'run'];
  const PEOPLE: readonly (readonly [who: string, call: Call, verbs: readonly string[]])[] = [
    ['an ordinary user', { as: nobody }, PIN_VERBS],
    ['root of a user namespace', { as: fakeRoot }, PIN_VERBS],
    [
      'an ordinary user whom /proc shows no other processes',
      { as: nobody, mounts: [HIDES_PROCESSES] },
      ['status', 'cleanup'],
    ],
  ];
  for (const [who, by, verbs] of PEOPLE) {
    for (const verb of verbs)
      test(`${verb} by ${who}, whose the pins are not`, async () =>
        refused(await cgroute(call(verb), by), 1, /--bpffs-root cannot .*EACCES.*: run as root/));

    test(`version and help by ${who} work`, async () => {
      for (const verb of ['version', 'help']) {
        const { code, stdout, stderr } = await cgroute([verb], by);
        assert.deepEqual([code, stderr], [0, '']);
        assert.match(stdout, /cgroute/);
      }
    });
  }

  for (const verb of PIN_VERBS)
    test(`${verb} by an ordinary user, where the whole file system of pins is root's`, async () => {
      chmodSync(sandbox.bpffs, 0o700);
      try {
        refused(await cgroute(call(verb), { as: nobody }), 1, /--bpffs-root.*: EACCES.*: run as root/);
      } finally {
        chmodSync(sandbox.bpffs, 0o755);
      }
    });

  const NO_BPFFS = /--bpffs-root \S+ is not on a BPF filesystem/;
  const PLACES: readonly (readonly [what: string, path: (sandbox: Sandbox) => string, sentence: RegExp])[] = [
    ['an ordinary directory', ({ file }) => file('ordinary'), NO_BPFFS],
    ['a place that is not there', ({ file }) => file('none/at/all'), NO_BPFFS],
    ['a place below a file', ({ file }) => file('pods.yaml/pins'), NO_BPFFS],
    [
      'a pin',
      ({ bpffs }) => `${bpffs}/cgroute/v2/maps/agent_map`,
      /--bpffs-root \S+ is a pin: expected a directory/,
    ],
    ['a link that leads to itself', ({ file }) => file('loop'), /--bpffs-root cannot be told: .*ELOOP/],
  ];
  for (const [what, path, sentence] of PLACES) {
    for (const verb of ['status', 'cleanup', 'run'])
      test(`${verb} with ${what} for the pins`, async () =>
        refused(await cgroute(call(verb, { '--bpffs-root': path(sandbox) })), 1, sentence));
  }

  for (const verb of PIN_VERBS)
    test(`${verb} where no BPF file system is mounted`, async () =>
      refused(
        await cgroute(call(verb), { mounts: [`umount --lazy ${sandbox.bpffs}`] }),
        1,
        /--bpffs-root \S+ is not on a BPF filesystem: expected bpffs mounted/,
      ));

  for (const verb of ['cleanup', 'run'])
    test(`${verb} where the BPF file system is mounted read-only`, async () =>
      refused(
        await cgroute(call(verb), { mounts: [`mount -o remount,bind,ro ${sandbox.bpffs}`] }),
        1,
        /EROFS.*mounted read-only here/,
      ));

  for (const verb of ['status', 'cleanup', 'run'])
    test(`${verb} with a configuration that may not be read`, async () =>
      refused(
        await cgroute(call(verb, { '--config': sandbox.file('secret-config.yaml') }), { as: nobody }),
        2,
        /--config \S+secret-config\.yaml cannot be read: .*EACCES.*: run as root, or as a user who may/,
      ));

  test('run with a manifest that may not be read', async () =>
    refused(
      await cgroute(call('run', { '--source': `file:${sandbox.file('theirs.yaml')}` }), {
        as: without('dac_override', 'dac_read_search'),
      }),
      2,
      /theirs\.yaml: expected a file that can be read, but EACCES.*: run as root, or as a user who may/,
    ));

  for (const [what, args] of [
    ['run', () => call('run', { '--source': 'kube' })],
    ['uninstall', () => ['uninstall', 'demo/cgroute']],
  ] as const) {
    test(`${what} with a kubeconfig that may not be read`, async () => {
      const env = { KUBECONFIG: sandbox.file('secret.yaml') };
      refused(await cgroute(args(), { as: nobody, env }), 2, /secret\.yaml: .*EACCES.*: run as root/);
    });
    test(`${what} with a home whose kubeconfig may not be looked for`, async () => {
      const env = { HOME: sandbox.file('home') };
      refused(await cgroute(args(), { as: nobody, env }), 2, /\.kube\/config cannot be looked at: EACCES/);
    });
  }

  test('probe of a socket that may not be reached does not say that no agent answers', async () => {
    const socket = sandbox.file('home/.kube/probe.sock');
    const { code, stderr } = await cgroute(['probe', 'ready', '--probe-socket', socket], { as: nobody });
    assert.equal(code, 1, stderr);
    assert.match(
      stderr,
      /^(cgroute: )?whether an agent answers at --probe-socket \S+ cannot be told: .*EACCES/,
    );
  });

  test('run with a watched root that may not be listed', async () => {
    chmodSync(sandbox.cgroupRoot, 0o711);
    try {
      refused(
        await cgroute(call('run', { '--bpffs-root': `${sandbox.bpffs}/other` }), { as: nobody }),
        1,
        /--cgroup-root \S+ cannot be opened: EACCES.*: run as root, or as a user who may/,
      );
    } finally {
      chmodSync(sandbox.cgroupRoot, 0o755);
    }
  });

  test('status of cgroups that may not be listed shows the rest, and says so', async () => {
    chownSync(sandbox.cgroupRoot, NOBODY, NOBODY);
    chmodSync(sandbox.cgroupRoot, 0o700);
    try {
      const by = { as: without('dac_override', 'dac_read_search') };
      const { code, stdout } = await cgroute([...call('status'), '-o', 'json'], by);
      assert.equal(code, 3);
      assert.match(
        (JSON.parse(stdout) as NodeStatus & { unseen: string[] }).unseen.join(),
        /could not be looked for: .*EACCES/,
      );
      assert.match((await cgroute(call('status'), by)).stdout, /^WRONG +cgroups .*EACCES/m);
    } finally {
      chownSync(sandbox.cgroupRoot, 0, 0);
      chmodSync(sandbox.cgroupRoot, 0o755);
    }
  });

  for (const [who, as] of [
    ['no capability', without('all')],
    ['none of those for programs', without('bpf', 'net_admin', 'perfmon', 'sys_admin')],
    ['CAP_BPF missing', without('bpf', 'sys_admin')],
  ] as const) {
    test(`status by root with ${who} takes no feature for missing in the kernel`, async () => {
      const { stdout } = await cgroute(call('status'), { as });
      const kernel = /^kernel .*$/m.exec(stdout)?.[0] ?? stdout;
      assert.match(kernel, /features cannot be tried without CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON/);
      assert.doesNotMatch(kernel, /without cgroup|has every feature/);
      const status = JSON.parse((await cgroute([...call('status'), '-o', 'json'], { as })).stdout) as {
        capabilities: { features: Record<string, boolean | null> };
      };
      assert.deepEqual(
        Object.entries(status.capabilities.features).filter(([, there]) => there === false),
        [],
      );
    });

    test(`run by root with ${who} names what it takes`, async () =>
      refused(await cgroute(call('run'), { as }), 1, /EPERM.*CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON/));
  }

  /** Doctor's lines that match. */
  async function lines(pattern: RegExp, by: Call): Promise<string> {
    const { stdout, stderr, code } = await cgroute(call('doctor'), by);
    assert.deepEqual([code, stderr], [3, '']);
    return stdout
      .split('\n')
      .filter((line) => pattern.test(line))
      .join('\n');
  }

  test('doctor by an ordinary user counts no rules that it cannot list, and does not tell the pins', async () => {
    const found = await lines(/legacy|bpffs/, { as: nobody });
    assert.match(found, /✗ bpffs .*EACCES/);
    assert.match(found, /! iptables-legacy .*cannot be listed: .*EACCES/);
    assert.doesNotMatch(found, /no rules/);
  });

  test('doctor tells a BPF file system that is mounted read-only', async () => {
    const mounts = [`mount -o remount,bind,ro ${sandbox.bpffs}`];
    assert.match(await lines(/bpffs/, { mounts }), /✗ bpffs .*mounted read-only/);
  });

  test('doctor blames no security module for what CAP_BPF is missing for', async () => {
    const found = await lines(/CAP_NET_ADMIN|CAP_BPF|security module/, { as: without('bpf', 'sys_admin') });
    assert.match(found, /✗ CAP_BPF +not held/);
    assert.doesNotMatch(found, /held, yet refused|security module/);
  });

  describe('while an agent runs that /proc hides', () => {
    let agent: Agent;
    before(async () => {
      agent = startAgent(sandbox, { manifest: sandbox.file('pods.yaml') });
      await agent.ready();
      pins = listPins();
    });
    after(() => agent?.stop());
    // The group 0 sees all processes.
    const by = {
      as: [...without('sys_ptrace'), `--regid=${NOBODY}`, '--clear-groups'],
      mounts: [HIDES_PROCESSES],
    };

    test('no second one starts', async () =>
      refused(await cgroute(call('run'), by), 1, /another cgroute agent runs with --cgroup-root/));
    test('nothing is cleaned up', async () =>
      refused(await cgroute(call('cleanup'), by), 1, /an agent runs with --bpffs-root/));
  });

  test('root cleans up, and the second time nothing is there', async () => {
    const { code, stdout } = await cgroute(call('cleanup'));
    assert.equal(code, 0);
    assert.match(stdout, /^removed \d+ pins/);
    assert.match((await cgroute(call('cleanup'))).stdout, /^nothing of cgroute is pinned/);
    assert.ok(!listPins().some((pin) => basename(pin).includes('connect')));
  });
});

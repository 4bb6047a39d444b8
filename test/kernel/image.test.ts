/** The image of deploy/Containerfile, built and run: what is in it, and that it is all that the agent needs. */
import assert from 'node:assert/strict';
import { lstatSync, mkdtempSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type Agent, startAgent } from '../../deploy/stage/agent.ts';
import { type Confined, confine } from '../harness/confined.ts';
import { CAPABILITIES, CONTAINER, PROBES } from '../harness/daemon-set.ts';
import { IMAGE_MISSING, type Image, buildImage } from '../harness/image.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { type Finished, must, run } from '../../deploy/stage/process.ts';

const project = resolve(import.meta.dirname, '../..');
const read = (path: string): string => readFileSync(join(project, path), 'utf8');
const version = (JSON.parse(read('package.json')) as { readonly version: string }).version;

const MOST_MEGABYTES = 140;

/** As native/netns/iptables-rules.ts calls them. */
const IPTABLES = ['ip6tables', 'iptables'].flatMap((family) =>
  ['legacy', 'nft'].flatMap((backend) => [`${family}-${backend}`, `${family}-${backend}-save`]),
);

/** Of each test and not of the suite, so that they are counted. */
const built = { skip: IMAGE_MISSING };

describe('the image', () => {
  let node: TestNode;
  let image: Image;
  let files: readonly string[];
  let pod: NodePod;
  let own: NodePod;
  before(async () => {
    if (IMAGE_MISSING !== false) return;
    node = await startNode('image', { agent: false });
    image = await buildImage(node.sandbox);
    files = readdirSync(image.root, { recursive: true, withFileTypes: true })
      .filter((entry) => !entry.isDirectory())
      .map((entry) => `/${relative(image.root, join(entry.parentPath, entry.name))}`);
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

  /** A container of the image, as the chart has it. */
  function confined(): Confined {
    const { Env = [] } = image.config.config;
    return confine(node.sandbox, own.startContainer().path.slice(1), {
      root: image.root,
      capabilities: CAPABILITIES,
      // The kubelet gives each container a file of hosts.
      mounts: {
        '/etc/cgroute': { source: node.sandbox.directory },
        '/etc/hosts': { source: '/etc/hosts' },
        '/run/cgroute': { source: mkdtempSync(node.sandbox.file('run-')), writable: true },
      },
      env: Object.fromEntries(
        Env.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
      ),
    });
  }

  const entrypoint = (): readonly string[] => image.config.config.Entrypoint ?? [];
  const runIn = (args: readonly string[]): Promise<Finished> =>
    run({ ...confined().program(args), cgroup: node.sandbox.hostCgroup });

  test('is small', built, (t) => {
    const bytes = files
      .map((path) => lstatSync(join(image.root, path)).size)
      .reduce((sum, size) => sum + size, 0);
    const megabytes = bytes / 1e6;
    t.diagnostic(
      `the image is ${megabytes.toFixed(1)} MB for ${image.config.architecture}, built in ${(image.took / 1000).toFixed(1)} s`,
    );
    assert.ok(megabytes < MOST_MEGABYTES, `${megabytes} MB`);
  });

  test('runs the agent unless told otherwise, as root', built, () => {
    const { Entrypoint, Cmd, User } = image.config.config;
    assert.deepEqual([Entrypoint, Cmd, User], [['/opt/cgroute/dist/cgroute'], ['run'], '0:0']);
    // So the DaemonSet gives a verb and flags.
    assert.deepEqual([CONTAINER.command, CONTAINER.args?.[0]], [undefined, 'run']);
  });

  test('has Node, a shell, iptables and the agent to run, and no other program', built, () => {
    const programs = files.filter(
      (path) => (statSync(join(image.root, path)).mode & 0o111) !== 0 && !/\.so(\.|$)|\.node$/.test(path),
    );
    assert.deepEqual(programs.toSorted(), [
      '/bin/sh',
      '/opt/cgroute/dist/cgroute',
      '/opt/cgroute/node_modules/.bin/node',
      ...IPTABLES.map((name) => `/usr/sbin/${name}`),
      '/usr/sbin/xtables-legacy-multi',
      '/usr/sbin/xtables-nft-multi',
    ]);
    const privileged = files.filter((path) => (lstatSync(join(image.root, path)).mode & 0o6000) !== 0);
    assert.deepEqual(privileged, []);
  });

  test('has all that iptables is linked to', built, async () => {
    for (const name of IPTABLES) {
      const { code, stdout, stderr } = await runIn([`/usr/sbin/${name}`, '--version']);
      assert.deepEqual([code, stderr], [0, ''], name);
      assert.match(stdout, new RegExp(`\\((${name.includes('legacy') ? 'legacy' : 'nf_tables'})\\)`), name);
    }
  });

  test('has the BPF objects of dist, libbpf, and the licences of what is in it', built, () => {
    const objects = (directory: string): string[] =>
      readdirSync(directory)
        .filter((name) => name.endsWith('.bpf.o'))
        .toSorted();
    assert.deepEqual(
      objects(join(image.root, 'opt/cgroute/dist/bpf')),
      objects(join(project, 'dist/bpf')).filter((name) => !name.startsWith('.')),
    );
    assert.ok(files.some((path) => path.endsWith('/libbpf.so.1')));
    const copyrights = files.filter((path) => path.endsWith('/copyright')).map((path) => path.split('/')[4]);
    for (const name of [
      'libbpf1',
      'libelf1',
      'zlib1g',
      'libc6',
      'libstdc++6',
      'libgcc-s1',
      'libatomic1',
      'dash',
      'iptables',
      'libxtables12',
      'libip4tc2',
      'libip6tc2',
      'libmnl0',
      'libnftnl11',
    ])
      assert.ok(copyrights.includes(name), name);
  });

  test('says its version', built, async () => {
    assert.deepEqual(await runIn([...entrypoint(), 'version']), {
      code: 0,
      signal: null,
      stdout: `cgroute ${version}`,
      stderr: '',
    });
  });

  test('finds hosts by name', built, async () => {
    const script =
      "const { address } = await require('node:dns/promises').lookup('localhost', 4); console.log(address)";
    const { stdout, stderr } = await runIn([
      '/opt/cgroute/node_modules/.bin/node',
      '-e',
      `(async () => { ${script} })()`,
    ]);
    assert.deepEqual([stdout, stderr], ['127.0.0.1', '']);
  });

  test('has nothing to fear from doctor', built, async () => {
    const { code, stdout } = await runIn([...entrypoint(), 'doctor', '--cgroup-root', confined().cgroupRoot]);
    assert.equal(code, 0, stdout);
    assert.match(stdout, /this host is fit for cgroute/);
  });

  test('redirects a pod, answers what is asked of it by name, and ends on SIGTERM', built, async () => {
    const inside = confined();
    const agent: Agent = startAgent(node.sandbox, {
      manifest: '/etc/cgroute/pods.yaml',
      cgroupRoot: inside.cgroupRoot,
      bpffsRoot: '/sys/fs/bpf/cgroute',
      args: (CONTAINER.args ?? []).filter((flag) => /^--(wait|probe)/.test(flag)),
      start: (args) => inside.program([...entrypoint(), ...args]),
    });
    await agent.ready();
    for (const { exec } of PROBES) assert.match(await must(inside.exec(exec.command)), /^ok$/m);
    assert.equal(await node.travel(pod.place), 'redirected');
    const { sources } = await node.status();
    assert.deepEqual(
      sources.map(({ name, state }) => `${name} ${state}`),
      [
        'manifest ok',
        'kernel ok',
        'process-events ok',
        'cgroup-watch ok',
        'sweep ok',
        'sidecars off',
        'connections ok',
      ],
    );
    assert.match(await must(inside.exec(['cgroute', 'status'])), /demo +pod +in +namespace-label/);
    assert.match(await must(inside.exec(['cgroute', 'explain', 'demo/pod'])), /demo\/pod/);
    assert.deepEqual(await agent.stop(), { code: 0, signal: null });
    assert.equal(await node.travel(pod.place), 'redirected');
    assert.equal((await runIn([...entrypoint(), 'cleanup'])).code, 0);
    assert.equal(await node.travel(pod.place), 'direct');
  });
});

test('the base does not float', () => {
  const [, base] = /^ARG BASE=(\S+)$/m.exec(read('deploy/Containerfile')) ?? [];
  assert.match(base ?? '', /^[\w.]+\/[\w./-]+(?::[\w.]+-\d{8}(?:-slim)?|@sha256:[0-9a-f]{64})$/);
});

test('nothing that the image is made of is for one processor only', () => {
  const text = ['deploy/Containerfile', 'deploy/build/image.ts', 'deploy/cgroute.sh']
    .map((path) => read(path).replaceAll(/^\s*(#|\*|\/\*).*$/gm, ''))
    .join('\n');
  assert.doesNotMatch(text, /x86|amd64|x64|arm64|aarch64/);
  interface Package {
    readonly version: string;
    readonly integrity?: string;
    readonly os?: string | readonly string[];
    readonly cpu?: string | readonly string[];
  }
  const { packages } = JSON.parse(read('package-lock.json')) as {
    readonly packages: Readonly<Record<string, Package>>;
  };
  for (const name of ['node-linux-ARCH', '@koromix/koffi-linux-ARCH', '@parcel/watcher-linux-ARCH-glibc']) {
    const [intel, arm] = ['x64', 'arm64'].map((arch) => ({
      arch,
      entry: packages[`node_modules/${name.replace('ARCH', arch)}`],
    }));
    for (const { arch, entry } of [intel!, arm!]) {
      assert.ok(entry?.integrity, `${name} for ${arch} is in the lock file`);
      assert.deepEqual([[entry.os].flat(), [entry.cpu].flat()], [['linux'], [arch]]);
    }
    assert.equal(intel?.entry?.version, arm?.entry?.version);
  }
});

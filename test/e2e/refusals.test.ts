/** What the program refuses: one sentence, the right exit code, and nothing half-started. */
import assert from 'node:assert/strict';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { type Finished, must, run } from '../../deploy/stage/process.ts';
import { type Sandbox, makeSandbox } from '../../deploy/stage/sandbox.ts';

const root = resolve(import.meta.dirname, '../..');
const NODE = resolve(root, 'node_modules/.bin/node');
const BUNDLE = resolve(root, 'dist/cgroute.mjs');

const MANIFEST = 'kind: Namespace\nmetadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}\n';

describe('cgroute refuses', () => {
  let sandbox: Sandbox;
  /** What the kernel itself puts into a bpffs. */
  let empty: readonly string[];
  before(async () => {
    sandbox = await makeSandbox('refusals');
    empty = readdirSync(sandbox.bpffs);
    writeFileSync(sandbox.file('pods.yaml'), MANIFEST);
    sandbox.cgroup('kubepods/burstable');
  });
  after(() => sandbox?.[Symbol.asyncDispose]());

  const bundle = (
    args: readonly string[],
    wrapper: readonly string[] = [],
    program = BUNDLE,
  ): Promise<Finished> => {
    const [cmd = NODE, ...rest] = [...wrapper, NODE, program, ...args];
    return run({ cmd, args: rest, cgroup: sandbox.hostCgroup });
  };
  /** The flags of a `run` that would work, with some replaced; undefined leaves one out. */
  const flags = (changed: Readonly<Record<string, string | undefined>> = {}): string[] => {
    const all: Record<string, string | undefined> = {
      '--source': `file:${sandbox.file('pods.yaml')}`,
      '--cgroup-root': sandbox.cgroupRoot,
      '--bpffs-root': `${sandbox.bpffs}/cgroute`,
      '--http': '127.0.0.1:0',
      ...changed,
    };
    return Object.entries(all).flatMap(([name, value]) => (value === undefined ? [] : [name, value]));
  };

  /** One sentence on stderr, nothing else anywhere, and nothing left in the kernel. */
  async function refused(
    { code, stdout, stderr }: Finished,
    expected: number,
    sentence: RegExp,
  ): Promise<void> {
    assert.match(stderr, sentence);
    assert.match(stderr, /^cgroute: [^\n]+$/, 'one line on stderr');
    assert.equal(code, expected, stderr);
    assert.doesNotMatch(stdout, /"msg":"(?:ready|serving)"/);
    assert.deepEqual(readdirSync(sandbox.bpffs), empty, 'nothing is pinned');
    const attached = JSON.parse(
      await must({ cmd: 'bpftool', args: ['-j', 'cgroup', 'tree', sandbox.cgroupRoot] }),
    ) as unknown[];
    assert.deepEqual(attached, [], 'nothing is attached');
  }

  const USAGE: readonly (readonly [what: string, args: readonly string[], sentence: RegExp])[] = [
    ['no verb', [], /a verb is missing: expected one of run, status/],
    ['an unknown verb', ['start'], /"start" is no verb: expected one of run, status/],
    [
      'an unknown flag',
      ['run', '--sauce', 'file:x'],
      /cgroute run has no flag --sauce: expected --source, --node/,
    ],
    ['a short flag that there is not', ['run', '-x'], /cgroute run has no flag -x/],
    [
      "another verb's flag",
      ['status', '--source', 'file:x'],
      /cgroute status has no flag --source: expected --cgroup-root/,
    ],
    [
      'a flag of a verb without any',
      ['version', '--config', 'x'],
      /cgroute version has no flag --config: expected none/,
    ],
    ['a flag without its value', ['run', '--source'], /--source expects a value, got none/],
    ['a flag with an empty value', ['run', '--node='], /--node expects a value, got none/],
    [
      'a flag that swallows the next',
      ['run', '--source', '--node'],
      /--source expects kube or file:PATH, got "--node"/,
    ],
    ['a flag given twice', ['run', '--node', 'a', '--node=b'], /--node is given twice: "a" and "b"/],
    ['a word too many', ['run', 'pods.yaml'], /cgroute run takes flags only, got "pods\.yaml"/],
    [
      'a source of no kind',
      ['run', '--source', 'pods.yaml'],
      /--source expects kube or file:PATH, got "pods\.yaml"/,
    ],
    [
      'a source without a path',
      ['run', '--source', 'file:'],
      /--source expects kube or file:PATH, got "file:"/,
    ],
    [
      'an address without a port',
      ['run', '--http', 'localhost'],
      /--http expects ADDR:PORT such as 127\.0\.0\.1:15270, got "localhost"/,
    ],
    [
      'a port beyond 65535',
      ['run', '--http', '127.0.0.1:70000'],
      /--http expects ADDR:PORT .*got "127\.0\.0\.1:70000"/,
    ],
    ['a port that is no number', ['run', '--http', '127.0.0.1:http'], /--http expects ADDR:PORT/],
    [
      'a way to leave that there is not',
      ['run', '--on-exit', 'explode'],
      /--on-exit expects keep or detach or daemonset:NAMESPACE\/NAME, got "explode"/,
    ],
    [
      'an output that there is not',
      ['status', '-o', 'xml'],
      /--output expects table or json or yaml, got "xml"/,
    ],
    ['an output without a name', ['status', '-o'], /-o expects a value, got none/],
  ];
  for (const [what, args, sentence] of USAGE) {
    test(`${what}, as a matter of usage`, async () => refused(await bundle(args), 2, sentence));
  }

  const CONFIGS: readonly (readonly [what: string, text: string, sentence: RegExp])[] = [
    [
      'an unknown key',
      'log:\n  level: info\nunknownPod: deny\n',
      /config\.yaml:3: unknown key "unknownPod"; did you mean "unknownPods"\?/,
    ],
    [
      'a value that there is not',
      '# policy\nunknownPods: refuse\n',
      /config\.yaml:2: unknownPods: .*deny.*allow.*got "refuse"/,
    ],
    ['a number out of range', 'sweepSeconds: 0\n', /config\.yaml:1: sweepSeconds: .*got the number 0/],
    ['a text for a list', '\nmeshModes: [ambient,\n', /config\.yaml:\d: this is not YAML/],
    [
      'a mode that there is not',
      'existingConnections: close\n',
      /config\.yaml:1: existingConnections: .*keep.*reset.*got "close"/,
    ],
  ];
  for (const [what, text, sentence] of CONFIGS) {
    test(`a configuration with ${what}, with file and line`, async () => {
      const config = sandbox.file('config.yaml');
      writeFileSync(config, text);
      await refused(await bundle(['run', ...flags({ '--config': config })]), 2, sentence);
      await refused(await bundle(['cleanup', '--config', config]), 2, sentence);
    });
  }

  test('a configuration that is not there', async () => {
    await refused(
      await bundle(['run', ...flags({ '--config': sandbox.file('none.yaml') })]),
      2,
      /--config \S+none\.yaml cannot be read: expected a YAML file, got .*ENOENT/,
    );
    await refused(
      await bundle(['run', ...flags({ '--config': sandbox.directory })]),
      2,
      /--config \S+ cannot be read: expected a YAML file, got .*EISDIR/,
    );
  });

  const MANIFESTS: readonly (readonly [what: string, text: string, sentence: RegExp])[] = [
    ['no YAML', `${MANIFEST}---\nkind: Pod\nmetadata: {name: a\n`, /bad\.yaml:\d: this is not YAML/],
    [
      'a pod without a UID',
      `${MANIFEST}---\nkind: Pod\nmetadata: {name: a}\n`,
      /bad\.yaml:5: pod default\/a: metadata\.uid: expected a text, got nothing/,
    ],
    [
      'an address that is none',
      `kind: Pod\nmetadata: {name: a, uid: 00000000-0000-4000-8000-000000000001}\nstatus: {podIP: 10.0.0.256}\n`,
      /bad\.yaml:3: pod default\/a: status\.podIP: expected an IP address, got "10\.0\.0\.256"/,
    ],
    ['no objects', 'hello\n', /bad\.yaml:1: expected an object with a kind, got "hello"/],
  ];
  for (const [what, text, sentence] of MANIFESTS) {
    test(`a manifest with ${what}, with file and line`, async () => {
      writeFileSync(sandbox.file('bad.yaml'), text);
      await refused(
        await bundle(['run', ...flags({ '--source': `file:${sandbox.file('bad.yaml')}` })]),
        2,
        sentence,
      );
    });
  }

  test('a manifest that is not there, or is a directory or a pipe', async () => {
    const start = (path: string): Promise<Finished> =>
      bundle(['run', ...flags({ '--source': `file:${path}` })]);
    await refused(
      await start(sandbox.file('none.yaml')),
      2,
      /none\.yaml: expected a file that can be read, but there is none \(ENOENT\)/,
    );
    await refused(
      await start(sandbox.directory),
      2,
      /expected a regular file with Namespace and Pod objects, got a directory/,
    );
    await must({ cmd: 'mkfifo', args: [sandbox.file('pipe')] });
    await refused(await start(sandbox.file('pipe')), 2, /expected a regular file .* got a special file/);
  });

  test('a place for pins that is on no BPF filesystem, and makes nothing there', async () => {
    const place = sandbox.file('not-bpffs');
    await refused(
      await bundle(['run', ...flags({ '--bpffs-root': place })]),
      1,
      /--bpffs-root \S+not-bpffs is not on a BPF filesystem: expected bpffs mounted/,
    );
    assert.equal(existsSync(place), false);
  });

  test('to clean up a directory that is on no BPF filesystem, whose files are not its own', async () => {
    const place = sandbox.file('precious');
    mkdirSync(place);
    writeFileSync(`${place}/letter`, 'dear');
    const finished = await bundle(['cleanup', '--bpffs-root', place]);
    assert.equal(existsSync(`${place}/letter`) && readFileSync(`${place}/letter`, 'utf8'), 'dear');
    await refused(finished, 1, /--bpffs-root \S+precious is not on a BPF filesystem/);
  });

  test('to remove pins of others, where its own are beside them', async () => {
    const place = `${sandbox.bpffs}/shared`;
    mkdirSync(place);
    try {
      await must({
        cmd: 'bpftool',
        args: [
          'map',
          'create',
          `${place}/theirs`,
          'type',
          'array',
          'key',
          '4',
          'value',
          '4',
          'entries',
          '1',
          'name',
          'theirs',
        ],
      });
      await bundle(['cleanup', '--bpffs-root', place]);
      assert.deepEqual(readdirSync(place), ['theirs']);
    } finally {
      await must({ cmd: 'rm', args: ['-r', place] });
    }
  });

  test('a cgroup root that is not there, or is no cgroup2 directory', async () => {
    await refused(
      await bundle(['run', ...flags({ '--cgroup-root': `${sandbox.cgroupRoot}/none` })]),
      1,
      /--cgroup-root: expected a cgroup2 directory, and \S+none could not be read .*ENOENT/,
    );
    await refused(
      await bundle(['run', ...flags({ '--cgroup-root': sandbox.directory })]),
      1,
      /--cgroup-root: expected a directory of a cgroup2 file system .* is on another/,
    );
  });

  test('a proc root that is no proc file system', async () => {
    await refused(
      await bundle(['run', ...flags({ '--proc-root': sandbox.directory })]),
      1,
      /--proc-root: \S+mountinfo could not be read .*expected a proc file system/,
    );
  });

  test('an address for HTTP that is taken', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    try {
      await new Promise((done) => server.once('listening', done));
      const http = `127.0.0.1:${(server.address() as AddressInfo).port}`;
      await refused(
        await bundle(['run', ...flags({ '--http': http })]),
        1,
        new RegExp(`--http ${http} cannot be listened on: .*EADDRINUSE`),
      );
    } finally {
      server.close();
    }
  });

  for (const [what, drop] of [
    ['any privilege', '-all'],
    ['the privilege to load programs', '-bpf,-sys_admin'],
  ] as const) {
    test(`to run without ${what}`, async (t) => {
      const wrapper = ['setpriv', `--bounding-set=${drop}`, '--inh-caps=-all'];
      const held = await run({
        cmd: wrapper[0] ?? '',
        args: [...wrapper.slice(1), 'grep', 'CapEff', '/proc/self/status'],
      });
      const effective = BigInt(`0x${held.stdout.split(/\s+/)[1] ?? 'ff'}`);
      const [CAP_SYS_ADMIN, CAP_BPF] = [1n << 21n, 1n << 39n];
      if (held.code !== 0 || (effective & (CAP_SYS_ADMIN | CAP_BPF)) !== 0n)
        return t.skip(`setpriv does not drop them here: ${held.stderr || held.stdout}`);
      await refused(await bundle(['run', ...flags()], wrapper), 1, /CAP_BPF/);
    });
  }

  test('a host without cgroup2', async () => {
    const wrapper = [
      'unshare',
      '--mount',
      '--propagation',
      'private',
      'sh',
      '-c',
      'umount --lazy "$1" && shift && exec "$@"',
      'sh',
      cgroup2Mount(),
    ];
    for (const cgroupRoot of [sandbox.cgroupRoot, undefined]) {
      await refused(
        await bundle(['run', ...flags({ '--cgroup-root': cgroupRoot })], wrapper),
        1,
        /cgroup2|cgroup v2/,
      );
    }
  });

  test('to run without its BPF objects', async () => {
    const place = sandbox.file('bare');
    mkdirSync(place);
    copyFileSync(BUNDLE, `${place}/cgroute.mjs`);
    symlinkSync(resolve(root, 'node_modules'), `${place}/node_modules`);
    await refused(
      await bundle(['run', ...flags()], [], `${place}/cgroute.mjs`),
      1,
      /the compiled BPF object \w+\.bpf\.o is neither beside the program nor in dist\/bpf: run `npm run setup`/,
    );
  });

  test('nothing of the kind when all is well', async () => {
    for (const args of [
      ['help'],
      ['--help'],
      ['run', '--help'],
      ['version'],
      ['--version'],
      ['cleanup', '--bpffs-root', `${sandbox.bpffs}/cgroute`],
    ]) {
      const { code, stdout, stderr } = await bundle(args);
      assert.deepEqual([code, stderr], [0, ''], args.join(' '));
      assert.notEqual(stdout, '');
    }
  });
});

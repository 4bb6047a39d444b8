/**
 * The agent as its chart runs it: in a container by runc, with containerd's
 * seccomp profile, a read-only root file system and the capabilities of the
 * chart. With exactly these it does the whole job; each has a thing that fails
 * without it, and so have the host's PID namespace and its network.
 */
import assert from 'node:assert/strict';
import { globSync, mkdtempSync, readFileSync, readdirSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { type Agent, startAgent } from '../../deploy/stage/agent.ts';
import { type Confined, type Confinement, PROJECT, confine } from '../harness/confined.ts';
import { PROBE_SOCKET } from '../../mapper/cli/command-line.ts';
import { CAPABILITIES, CONTAINER, POD } from '../harness/daemon-set.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, must, run } from '../../deploy/stage/process.ts';
import { MODE } from '../harness/label-names.ts';

/** Bits of capabilities(7), <linux/capability.h>. */
const BITS: Readonly<Record<string, bigint>> = { NET_ADMIN: 12n, SYS_PTRACE: 19n, PERFMON: 38n, BPF: 39n };

const CGROUTE = `${PROJECT}/dist/cgroute`;

/** A sandbox's node with an enrolled pod, one that is not, one whose address only its network namespace tells, and the agent's own. */
interface Cast {
  readonly node: TestNode;
  readonly pod: NodePod;
  readonly plain: NodePod;
  readonly late: NodePod;
  readonly own: NodePod;
}

async function makeCast(name: string): Promise<Cast> {
  const node = await startNode(name, { agent: false });
  try {
    const pod = await node.addPod({ name: 'pod' });
    const plain = await node.addPod({ name: 'plain', labels: { [MODE]: 'none' } });
    const late = await node.addPod({ name: 'late', ips: [] });
    // As the proxy, it has IPv4 alone.
    await must({ cmd: 'ip', args: ['-n', late.host.netns, '-6', 'address', 'flush', 'dev', 'eth0'] });
    // No process of root's: what the kernel tells of it takes a capability.
    node.sandbox.spawn({
      ...late.place,
      cmd: 'setpriv',
      args: ['--reuid=1000', '--clear-groups', 'sleep', '1000'],
    });
    const own = await node.addPod({
      name: 'cgroute',
      namespace: 'mesh',
      hostNetwork: true,
      ips: [],
      running: false,
    });
    writeFileSync(node.sandbox.file('config.yaml'), 'sweepSeconds: 1\n');
    node.manifest.write();
    return { node, pod, plain, late, own };
  } catch (error) {
    await node[Symbol.asyncDispose]();
    throw error;
  }
}

/** A container of the agent's pod; by default as the chart has it. */
function confined({ node, own }: Cast, options: Partial<Confinement> = {}): Confined {
  return confine(node.sandbox, own.startContainer().path.slice(1), {
    capabilities: CAPABILITIES,
    mounts: {
      '/etc/cgroute': { source: node.sandbox.directory },
      '/host/proc': { source: '/proc' },
      // An emptyDir: each pod has its own.
      '/run/cgroute': { source: mkdtempSync(node.sandbox.file('run-')), writable: true },
    },
    ...options,
  });
}

/** What the agent is told about where things are in the container. */
const flagsIn = (inside: Confined): string[] => ['--cgroup-root', inside.cgroupRoot];

function startIn({ node }: Cast, inside: Confined, args: readonly string[] = []): Agent {
  return startAgent(node.sandbox, {
    manifest: '/etc/cgroute/pods.yaml',
    cgroupRoot: inside.cgroupRoot,
    bpffsRoot: '/sys/fs/bpf/cgroute',
    args: ['--config', '/etc/cgroute/config.yaml', '--probe-socket', PROBE_SOCKET, ...args],
    start: (all) => inside.program([CGROUTE, ...all]),
  });
}

const addressesOf = async ({ node, late }: Cast): Promise<readonly string[]> =>
  (await node.podStatus(late)).ips;
const source = async (
  { node }: Cast,
  name: string,
): Promise<{ readonly state: string; readonly detail: string } | undefined> =>
  (await node.status()).sources.find((each) => each.name === name);

/** A BPF file system has two files of the kernel's own. */
const pins = ({ node }: Cast): string[] =>
  readdirSync(node.sandbox.bpffs).filter((name) => !name.endsWith('.debug'));

/** Several sweeps later: what has not been found by then is not found. */
const SWEEPS_MS = 2500;

describe('the agent with what the chart gives it, and no more', () => {
  let cast: Cast;
  let inside: Confined;
  let agent: Agent;
  before(async () => {
    cast = await makeCast('confined');
    inside = confined(cast);
    agent = startIn(cast, inside);
    await agent.ready();
  });
  after(() => cast?.node[Symbol.asyncDispose]());

  test('has that and no more', async () => {
    const {
      agent: { pid },
    } = await cast.node.status();
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const field = (name: string): string => new RegExp(`^${name}:\\s+(\\S+)$`, 'm').exec(status)?.[1] ?? '';
    const wanted = CAPABILITIES.reduce((bits, name) => bits | (1n << (BITS[name] ?? 63n)), 0n);
    for (const set of ['CapEff', 'CapPrm', 'CapBnd']) assert.equal(BigInt(`0x${field(set)}`), wanted, set);
    assert.deepEqual([field('NoNewPrivs'), field('Seccomp')], ['1', '2']);
    const mounts = readFileSync(`/proc/${pid}/mountinfo`, 'utf8')
      .split('\n')
      .map((line) => line.split(' '));
    const writable = mounts
      .filter(([, , , , , options]) => options?.split(',').includes('rw'))
      .map(([, , , , at]) => at);
    // Its own /proc, an empty /dev and a directory of its pod's; on the node itself, pins alone.
    assert.deepEqual(
      writable.filter((at) => at !== undefined && !/^\/(proc|dev)(\/|$)/.test(at)),
      ['/sys/fs/bpf', '/run/cgroute'],
    );
  });

  test('redirects a pod that is enrolled, and leaves one that is not', async () => {
    assert.equal(await cast.node.travel(cast.pod.place), 'redirected');
    assert.equal(await cast.node.travel(cast.plain.place), 'direct');
  });

  test("finds the address of a pod in the pod's network namespace", async () => {
    await eventually('it is found', async () => (await addressesOf(cast)).includes(cast.late.host.ip4));
  });

  test('is told by the kernel of programs that start', async () => {
    const begun = async (): Promise<number> =>
      Number(/(\d+) programs begun/.exec((await source(cast, 'process-events'))?.detail ?? '')?.[1]);
    const before = await begun();
    // One that lives long enough for the agent to look at it, in a cgroup that has no entry of its own.
    const nested = cast.node.sandbox.cgroup(`${cast.late.cgroup.path}/nested`);
    cast.node.sandbox.spawn({ ...cast.late.place, cgroup: nested, cmd: 'sleep', args: ['1000'] });
    await eventually('it is counted', async () => (await begun()) > before);
  });

  test('puts back a link and an entry that somebody else removed', async () => {
    const directory = globSync(`${cast.node.sandbox.bpffs}/cgroute/*/links`)[0] ?? '';
    const links = readdirSync(directory).toSorted();
    for (const name of links) unlinkSync(join(directory, name));
    const map = globSync(`${cast.node.sandbox.bpffs}/cgroute/*/maps/settings`)[0] ?? '';
    await must({ cmd: 'bpftool', args: ['map', 'delete', 'pinned', map, 'key', '1', '0', '0', '0'] });
    await eventually('all is back', async () => {
      const settings = await cast.node.entries('settings');
      return settings.length === 4 && readdirSync(directory).toSorted().join() === links.join();
    });
    assert.equal(await cast.node.travel(cast.pod.place), 'redirected');
  });

  test('answers status, explain and doctor, called in the container as by kubectl exec', async () => {
    // It says of what was put back a moment ago, until the agent's next look finds nothing of the kind.
    const status = await eventually('all is as wanted', async () => {
      const now = await run(inside.exec([CGROUTE, 'status']));
      assert.equal(now.stderr, '');
      return now.code === 0 ? now : undefined;
    });
    assert.match(status.stdout, /demo +pod +in +namespace-label/);
    assert.match(await must(inside.exec([CGROUTE, 'explain', 'demo/pod'])), /demo\/pod/);
    const doctor = await run(inside.exec([CGROUTE, 'doctor', ...flagsIn(inside), '-o', 'json']));
    const lines = JSON.parse(doctor.stdout) as readonly {
      readonly check: string;
      readonly state: string;
      readonly detail: string;
    }[];
    // The iptables tools want a lock file outside; what they tell is of interest on the host. What an older kernel lacks, it lacks outside, too.
    const isOfHost = ({ check, state, detail }: (typeof lines)[number]): boolean =>
      check.includes('iptables') ||
      check.includes('ip6tables') ||
      (state === 'warn' && detail.includes('is not in this kernel'));
    assert.deepEqual(
      lines.filter((line) => line.state !== 'ok' && !isOfHost(line)),
      [],
    );
    assert.equal(doctor.code, 0);
  });

  test('is followed by another container that has waited, each probed by itself', async () => {
    const before = (await cast.node.podStatus(cast.pod)).connections['redirected'] ?? 0;
    const probe = async (container: Confined): Promise<string> => {
      const { stdout, stderr } = await run(container.exec([CGROUTE, 'probe', 'ready']));
      return stdout + stderr;
    };
    const nextInside = confined(cast);
    const next = startIn(cast, nextInside, ['--wait-for-lock']);
    await eventually('it has loaded all', async () =>
      (await probe(nextInside)).startsWith('ok: another agent runs'),
    );
    assert.equal(await probe(inside), 'ok');
    await agent.stop();
    [agent, inside] = [next, nextInside];
    await agent.ready();
    assert.equal(await probe(inside), 'ok');
    assert.equal(await cast.node.travel(cast.pod.place), 'redirected');
    assert.equal((await cast.node.podStatus(cast.pod)).connections['redirected'], before + 1);
  });

  for (const [what, end] of [
    ['SIGTERM', () => agent.stop()],
    ['SIGKILL', () => inside.kill()],
  ] as const) {
    test(`is succeeded by another container after ${what}`, async () => {
      const before = (await cast.node.podStatus(cast.pod)).connections['redirected'] ?? 0;
      await end();
      assert.equal(await cast.node.travel(cast.pod.place), 'redirected', 'nobody runs, and it goes on');
      inside = confined(cast);
      agent = startIn(cast, inside);
      await agent.ready();
      assert.equal(await cast.node.travel(cast.pod.place), 'redirected');
      assert.equal((await cast.node.podStatus(cast.pod)).connections['redirected'], before + 2);
    });
  }

  test('removes all that it pinned', async () => {
    await agent.stop();
    const { code, stdout } = await run({
      ...confined(cast).program([CGROUTE, 'cleanup']),
      cgroup: cast.node.sandbox.hostCgroup,
    });
    assert.equal(code, 0);
    assert.match(stdout, /^removed \d+ pins/);
    assert.deepEqual(pins(cast), []);
    assert.equal(await cast.node.travel(cast.pod.place), 'direct');
  });
});

describe('the agent with one thing less', () => {
  let cast: Cast;
  before(async () => {
    cast = await makeCast('less');
  });
  after(() => cast?.node[Symbol.asyncDispose]());

  /** It refuses to start with this sentence, and leaves nothing behind. */
  async function refuses(sentence: RegExp, options: Partial<Confinement>): Promise<void> {
    const agent = startIn(cast, confined(cast, options));
    await assert.rejects(agent.ready(), sentence).finally(() => agent.stop());
    assert.deepEqual(await agent.running.exit, { code: 1, signal: null });
    assert.deepEqual(pins(cast), []);
    assert.equal(await cast.node.travel(cast.pod.place), 'direct');
  }

  /** It redirects, and what `check` asserts is missing. */
  async function lacks(
    options: Partial<Confinement>,
    check: (agent: Agent, inside: Confined) => Promise<void>,
    args: readonly string[] = [],
  ): Promise<void> {
    const inside = confined(cast, options);
    const agent = startIn(cast, inside, ['--on-exit', 'detach', ...args]);
    await agent.ready();
    try {
      assert.equal(await cast.node.travel(cast.pod.place), 'redirected');
      await check(agent, inside);
    } finally {
      await agent.stop();
    }
  }

  async function findsNoAddress(): Promise<void> {
    await delay(SWEEPS_MS);
    assert.deepEqual(await addressesOf(cast), []);
  }

  const without = (name: string): Partial<Confinement> => ({
    capabilities: CAPABILITIES.filter((each) => each !== name),
  });

  const MISSED: Readonly<Record<string, readonly [string, () => Promise<void>]>> = {
    BPF: [
      'it refuses to start, as no map can be made',
      () => refuses(/^cgroute: [^\n]*EPERM[^\n]*CAP_BPF[^\n]*$/m, without('BPF')),
    ],
    NET_ADMIN: [
      'it refuses to start, as no program for a cgroup can be loaded',
      () => refuses(/^cgroute: [^\n]*EPERM[^\n]*CAP_NET_ADMIN[^\n]*$/m, without('NET_ADMIN')),
    ],
    PERFMON: [
      'it refuses to start, as sock_ops may not look into sockets',
      () => refuses(/^cgroute: [^\n]*origdst[^\n]* CAP_PERFMON[^\n]*$/m, without('PERFMON')),
    ],
    SYS_PTRACE: [
      'it works, finds no address of a pod, and doctor says so',
      () =>
        lacks(without('SYS_PTRACE'), async (_agent, inside) => {
          await findsNoAddress();
          assert.equal((await source(cast, 'process-events'))?.state, 'ok');
          const { stdout } = await run(inside.exec([CGROUTE, 'doctor', ...flagsIn(inside)]));
          assert.match(
            stdout,
            /^! CAP_SYS_PTRACE +not held: readlink\(2\) of \/proc\/PID\/ns\/net[^\n]*addresses/m,
          );
        }),
    ],
  };

  test('each capability of the chart is tried here', () => {
    assert.deepEqual(CAPABILITIES.toSorted(), Object.keys(MISSED).toSorted());
  });

  for (const [name, [what, proof]] of Object.entries(MISSED)) test(`without ${name} ${what}`, proof);

  test("without the host's PID namespace it gets no process events and finds no address, even with the host's /proc", async () => {
    assert.equal(POD.hostPID, true);
    for (const args of [[], ['--proc-root', '/host/proc']]) {
      await lacks(
        { hostPid: false },
        async () => {
          const events = await source(cast, 'process-events');
          assert.equal(events?.state, 'failed');
          assert.match(events?.detail ?? '', /hostPID: true/);
          await findsNoAddress();
        },
        args,
      );
    }
  });

  test("without the host's network it gets no process events", async () => {
    assert.equal(POD.hostNetwork, true);
    await lacks({ netns: cast.plain.host.netns }, async (agent) => {
      // Its HTTP server is in that network too, so status cannot ask it.
      const line = agent.log().find(({ msg }) => /process events were refused/.test(String(msg)));
      assert.match(String(line?.msg), /hostNetwork: true/);
    });
  });
});

test('the DaemonSet asks for no more than this', () => {
  const security = CONTAINER.securityContext ?? {};
  assert.notEqual(security.privileged, true);
  assert.equal(security.allowPrivilegeEscalation, false);
  assert.equal(security.readOnlyRootFilesystem, true);
  assert.deepEqual(security.capabilities?.drop, ['ALL']);
  assert.equal(security.seccompProfile?.type, 'RuntimeDefault');
  const mounts = Object.fromEntries(
    (CONTAINER.volumeMounts ?? []).map(({ mountPath, readOnly }) => [mountPath, readOnly === true]),
  );
  assert.equal(mounts['/sys/fs/cgroup'], true, 'read-only');
  assert.deepEqual(
    Object.entries(mounts)
      .filter(([, readOnly]) => !readOnly)
      .map(([path]) => path),
    ['/sys/fs/bpf', '/run/cgroute'],
  );
  assert.equal(POD.containers.length, 1);
});

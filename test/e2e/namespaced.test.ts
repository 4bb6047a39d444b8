/** Agents on nodes that are containers, as those of kind are: several on one kernel, each in its own namespaces. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { relative, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Agent, AgentOptions } from '../../deploy/stage/agent.ts';
import { cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { bootNode, type NamespacedNode } from '../harness/namespaced.ts';
import { startNode, type TestNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { containerId, newUid } from '../../deploy/stage/pod-cgroup.ts';
import type { NodeStatus } from '../../deploy/stage/node-status.ts';
import { eventually, type Finished, must, type Program, run } from '../../deploy/stage/process.ts';
import { MODE } from '../harness/label-names.ts';

const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');

interface Kind {
  readonly name: string;
  readonly node: TestNode;
  readonly box: NamespacedNode;
  /** Enrolled by its namespace. */
  readonly web: NodePod;
  /** The same, with its cgroup right below the root, where the root's program decides. */
  readonly joined: NodePod;
  /** Not enrolled. */
  readonly plain: NodePod;
  start(options?: Partial<AgentOptions>): Promise<Agent>;
  /** A verb of cgroute, run in the node; the flags are the same in all nodes. */
  cgroute(...args: readonly string[]): Promise<Finished>;
}

async function startKind(name: string): Promise<Kind> {
  const node = await startNode(name, { agent: false });
  try {
    const box = await bootNode(node.sandbox, node.network.gateway.netns);
    const { cgroupRoot } = box;
    const bpffsRoot = `${box.bpffs}/cgroute`;
    node.manifest.namespace('batch');
    return {
      name,
      node,
      box,
      web: await node.addPod({ name: `${name}-web`, style: 'systemd' }),
      joined: await node.addPod({ name: `${name}-joined`, style: 'joined' }),
      plain: await node.addPod({ name: `${name}-plain`, namespace: 'batch' }),
      start: (options) =>
        node.startAgent({
          node: name,
          cgroupRoot,
          bpffsRoot,
          procRoot: '/proc', // its own, with its own PID 1
          start: (args) => box.inside({ cmd: PROGRAM, args }),
          ...options,
        }),
      cgroute: (verb = '', ...args) =>
        run(
          box.inside({
            cmd: PROGRAM,
            args: [verb, '--cgroup-root', cgroupRoot, '--bpffs-root', bpffsRoot, ...args],
          }),
        ),
    };
  } catch (error) {
    await node[Symbol.asyncDispose]();
    throw error;
  }
}

/** How connections of the enrolled pods, of a cgroup that one of them has made, and of the other pod travel. */
async function journeys({ node, web, joined, plain }: Kind): Promise<string[]> {
  const nested = [web, joined].map(({ cgroup, host }) => ({
    cgroup: node.sandbox.cgroup(`${cgroup.path}/made/inside`),
    netns: host.netns,
  }));
  const found: string[] = [];
  for (const place of [web.place, joined.place, ...nested, plain.place]) found.push(await node.travel(place));
  return found;
}
const MESHED = ['redirected', 'redirected', 'redirected', 'redirected', 'direct'];
const DIRECT = MESHED.map(() => 'direct');

/** What the programs were told, and what is so: how deep the node's cgroup is below the kernel's root. */
const publishedLevel = async ({ node }: Kind): Promise<unknown> =>
  (await node.entries('agent_map'))[0]?.value['root_level'];
const trueLevel = ({ node }: Kind): number =>
  relative(cgroup2Mount(), node.sandbox.cgroupRoot).split('/').length;

/** The status as a process of the node sees it, with what the agent itself answers. */
async function statusInside({ cgroute }: Kind): Promise<NodeStatus> {
  const { stdout, stderr } = await cgroute('status', '-o', 'json');
  assert.equal(stderr, '');
  return JSON.parse(stdout) as NodeStatus;
}

/** Ends the agent by its PID in the node: what the test has started is nsenter. */
async function end({ node, box }: Kind, signal: 'TERM' | 'KILL'): Promise<void> {
  const { pid } = (await node.status()).agent;
  await must(box.inside({ cmd: 'kill', args: ['-s', signal, String(pid)] }));
  await node.agent.running.exit;
}

/**
 * Ids of the cgroups at which programs are attached, by the names of the pinned
 * links; without tracepoints, which have none, and sock_ops, which comes and goes.
 */
const linked = ({ node }: Kind): bigint[] =>
  readdirSync(`${node.sandbox.bpffs}/cgroute/${PIN_VERSION}/links`)
    .filter((pin) => !/@0$|^sock_ops@/.test(pin))
    .map((pin) => BigInt(pin.split('@')[1] ?? ''))
    .toSorted();

async function mapped({ node }: Kind): Promise<bigint[]> {
  return (await node.entries('cgroup_info_map')).map(({ key }) => BigInt(String(key)));
}

/** Ids of the cgroups at and below the node's root. */
async function cgroupsOf({ node }: Kind): Promise<Set<bigint>> {
  const ids = await must({ cmd: 'find', args: [node.sandbox.cgroupRoot, '-type', 'd', '-printf', '%i\n'] });
  return new Set(ids.trim().split('\n').map(BigInt));
}

/** Starts a program in a pod's new container as runtimes do: a process of the node first, which then enters the cgroup. */
function inPod({ box }: Kind, pod: NodePod): Program {
  const enter = 'echo 0 >"$1/cgroup.procs"; exec sleep 600';
  return box.inside({
    cmd: 'sh',
    args: ['-c', enter, 'sh', `${box.cgroupRoot}${pod.startContainer().path}`],
    netns: pod.host.netns,
  });
}

/** A pod whose status has no address yet is redirected, by the address that one of its processes has. */
async function findsLatePod(kind: Kind): Promise<void> {
  const { node } = kind;
  const late = await node.addPod({ name: `late-${newUid()}`, ips: [], running: false });
  await node.apply();
  node.sandbox.spawn(inPod(kind, late));
  await node.until('its address is read from its process', ({ pods }) =>
    pods.find(({ uid }) => uid === late.uid)?.ips.includes(late.host.ip4),
  );
  assert.equal(await node.travel(late.place), 'redirected');
}

describe('two nodes that are containers on one kernel', () => {
  let a: Kind;
  let b: Kind;
  before(async () => {
    [a, b] = await Promise.all([startKind('kind-a'), startKind('kind-b')]);
    await Promise.all([a.start(), b.start()]);
  });
  after(() => Promise.all([a, b].map((each) => each?.node[Symbol.asyncDispose]())));

  const bothMeshed = async (): Promise<void> =>
    assert.deepEqual(await Promise.all([a, b].map(journeys)), [MESHED, MESHED]);

  test('each redirects its own pods, with the same flags and at the same time', async () => {
    await bothMeshed();
    assert.deepEqual(await Promise.all([a, b].map(publishedLevel)), [a, b].map(trueLevel));
  });

  test("neither has the other's pods, cgroups or links", async () => {
    const stray = b.node.sandbox.cgroup(`kubepods/burstable/pod${newUid()}/${containerId('stray')}`);
    await b.node.until('the stray pod is unknown', ({ unknown }) =>
      unknown.some(({ id }) => id === String(stray.id)),
    );
    for (const [mine, other] of [
      [a, b],
      [b, a],
    ] as const) {
      const { pods, node, unknown } = await mine.node.status();
      assert.equal(node, mine.name);
      assert.deepEqual(
        pods.map(({ name }) => name),
        [mine.plain.name, mine.joined.name, mine.web.name, 'ztunnel'],
      );
      assert.equal(unknown.length > 0, mine === b);
      const [own, others] = [await cgroupsOf(mine), await cgroupsOf(other)];
      const known = [...linked(mine), ...(await mapped(mine))];
      assert.ok(known.length > 10);
      assert.deepEqual(
        known.filter((id) => !own.has(id) || others.has(id)),
        [],
      );
    }
  });

  test('a label in one changes nothing in the other', async () => {
    a.node.manifest.namespace('demo', {});
    await a.node.apply();
    assert.deepEqual(await Promise.all([a, b].map(journeys)), [DIRECT, MESHED]);
    a.node.manifest.namespace('demo', { [MODE]: 'ambient' });
    await a.node.apply();
    await bothMeshed();
  });

  test('status, explain and doctor work inside', async () => {
    const web = (await statusInside(a)).pods.find(({ uid }) => uid === a.web.uid);
    assert.equal(web?.verdict, 'in');
    assert.ok(
      web.cgroups.some(({ path }) => path === a.web.cgroup.path),
      JSON.stringify(web.cgroups),
    );
    const explained = await a.cgroute('explain', `demo/${a.web.name}`);
    assert.equal(explained.code, 0, explained.stderr);
    assert.match(explained.stdout, /namespace-label/);
    assert.equal((await a.cgroute('explain', `demo/${b.web.name}`)).code, 1);
    const doctor = await a.cgroute('doctor');
    assert.equal(doctor.code, 0, doctor.stdout);
    assert.match(
      doctor.stdout,
      /✓ cgroup2 +mounted at \/sys\/fs\/cgroup, a part of the hierarchy; the root is at level [1-9]\d* of the whole\n/,
    );
    assert.match(
      doctor.stdout,
      /✓ connect4 +pod tree \/kubepods\.slice: pod_connect4 \(cgroute\), root: root_connect4 \(cgroute\)\n/,
    );
  });

  test('without process events, which it says, new cgroups and unlisted addresses are found by the cgroup watch', async () => {
    const source = async (name: string) => (await statusInside(a)).sources.find((each) => each.name === name);
    const events = await source('process-events');
    assert.equal(events?.state, 'failed');
    assert.match(
      events.detail,
      /not told in this PID namespace; .*as in kind; until then new processes are found by the cgroup watch and the sweep/,
    );
    assert.equal((await source('cgroup-watch'))?.state, 'ok');
    const found = (await source('sweep'))?.detail.match(/\d+ were found by it alone/)?.[0];
    await findsLatePod(a);
    assert.equal((await source('sweep'))?.detail.match(/\d+ were found by it alone/)?.[0], found);
  });

  test('one that is killed is missed by nobody, and the next takes over', async () => {
    const before = linked(a);
    await end(a, 'KILL');
    await bothMeshed();
    await a.start();
    assert.deepEqual(linked(a), before);
    await bothMeshed();
  });

  test("in a pod of the node, it is told the level through the pod's own cgroup namespace too", async () => {
    const { node, box, start } = a;
    const before = linked(a);
    await end(a, 'TERM');
    const pod = await node.addPod({ name: 'cgroute', namespace: 'batch', hostNetwork: true });
    await start({
      cgroupRoot: box.hostCgroup,
      procRoot: '/proc',
      start: (args) => box.inContainer(pod.cgroup, { cmd: PROGRAM, args }),
    });
    assert.deepEqual(linked(a), before);
    assert.equal(await publishedLevel(a), trueLevel(a));
    await bothMeshed();
    await findsLatePod(a);
    // The container has two mounts, its own and the node's: the node's is taken.
    const doctor = await run(
      box.inContainer(pod.cgroup, { cmd: PROGRAM, args: ['doctor', '--bpffs-root', `${box.bpffs}/cgroute`] }),
    );
    assert.match(
      doctor.stdout,
      /✓ cgroup2 +mounted at \/mnt, a part of the hierarchy; the root is at level [1-9]\d* of the whole\n/,
    );
    await end(a, 'TERM');
    await start();
  });

  test("refuses a root inside another agent's, whose programs it cannot see attached", async () => {
    const args = [
      'run',
      '--source',
      `file:${a.node.manifest.path}`,
      '--http',
      '127.0.0.1:0',
      '--cgroup-root',
      a.box.cgroupRoot,
      '--bpffs-root',
      `${a.box.bpffs}/inner`,
    ];
    // Where it is not refused it would run for ever.
    const { code, stderr } = await run(
      a.box.inContainer(a.web.cgroup, { cmd: 'timeout', args: ['20', PROGRAM, ...args] }),
    );
    assert.match(
      stderr,
      /^cgroute: programs of another cgroute are attached at a cgroup above \/sys\/fs\/cgroup: expected none at --cgroup-root, above it or below; [^\n]*$/,
    );
    assert.equal(code, 1);
    assert.equal(existsSync(`${a.node.sandbox.bpffs}/inner`), false);
    const doctor = await run(
      a.box.inContainer(a.web.cgroup, { cmd: PROGRAM, args: ['doctor', ...args.slice(-4)] }),
    );
    assert.match(
      doctor.stdout,
      /a cgroup above \/sys\/fs\/cgroup: pod_connect4 \(cgroute, not of these pins\), root_connect4/,
    );
    await bothMeshed();
  });

  test('cleanup removes its own and leaves the other alone', async () => {
    await end(a, 'TERM');
    const links = linked(b);
    const { code, stdout } = await a.cgroute('cleanup');
    assert.deepEqual(
      [code, /^removed \d+ pins below \/sys\/fs\/bpf\/cgroute$/.test(stdout)],
      [0, true],
      stdout,
    );
    assert.equal(existsSync(`${a.node.sandbox.bpffs}/cgroute`), false);
    assert.deepEqual(await Promise.all([a, b].map(journeys)), [DIRECT, MESHED]);
    assert.deepEqual(linked(b), links);
    assert.equal((await statusInside(b)).agent.ready, true);
    assert.match((await b.cgroute('cleanup')).stderr, /an agent runs with --bpffs-root/);
    await eventually('the other is still at work', async () => (await journeys(b)).join() === MESHED.join());
  });
});

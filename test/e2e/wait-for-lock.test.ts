/** `run --wait-for-lock`: an agent gets ready beside the one that runs, and follows it without a gap. */
import assert from 'node:assert/strict';
import { globSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type Agent, type AgentOptions, cgroute, startAgent } from '../../deploy/stage/agent.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { eventually, type Finished, must, run } from '../../deploy/stage/process.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { allBy, dial } from '../harness/dialler.ts';
import { freePort } from '../harness/kube-server.ts';
import { BYPASS } from '../harness/label-names.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import { otherBuild } from '../harness/other-build.ts';
import { LAYOUTS } from './other-layouts.ts';

const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');
const WAITS = 'another agent runs: this one waits for it to go, and loads what it can';
const GONE = 'the other agent has gone: this one takes over';

describe('an agent that waits for another to go', () => {
  let node: TestNode;
  let pod: NodePod;
  /** Both agents' address for HTTP, as the chart gives them one. */
  let http: string;
  /** This one's pins and another version's make one another's maps anew. */
  let other: string;
  let sockets = 0;

  before(async () => {
    node = await startNode('standby', { proxy: false, agent: false });
    await listen(node.sandbox, node.proxyPod.place, 'proxy', '*', [15001, 15006], '--dual', '--quiet');
    pod = await node.addPod({ name: 'pod' });
    node.manifest.write();
    http = `127.0.0.1:${await freePort()}`;
    other = await otherBuild(LAYOUTS);
    await node.startAgent({ http });
  });
  after(() => node?.[Symbol.asyncDispose]());

  interface Waiting {
    readonly agent: Agent;
    probe(what: string): Promise<Finished>;
  }

  function startBeside(options: Partial<AgentOptions> = {}, socket = `probe-${++sockets}.sock`): Waiting {
    const path = node.sandbox.file(socket);
    const agent = startAgent(node.sandbox, {
      manifest: node.manifest.path,
      http,
      ...options,
      args: ['--wait-for-lock', '--probe-socket', path, ...(options.args ?? [])],
    });
    return { agent, probe: (what) => run({ cmd: PROGRAM, args: ['probe', what, '--probe-socket', path] }) };
  }

  /** Waits until it could take over at once. */
  async function besides(options?: Partial<AgentOptions>): Promise<Waiting> {
    const waiting = startBeside(options);
    await waiting.agent.logged(WAITS);
    await eventually('it has loaded all', async () => (await waiting.probe('ready')).code === 0);
    return waiting;
  }

  const running = async (): Promise<number | null> => (await node.status()).agent.pid;
  const pins = (): string[] => globSync(`${node.sandbox.bpffs}/**`).toSorted();
  const links = async (): Promise<string> =>
    must({ cmd: 'bpftool', args: ['-j', 'cgroup', 'tree', node.sandbox.cgroupRoot] });
  async function answers(): Promise<string | undefined> {
    const result = await connect(pod.place, node.server.ip4, 8080);
    return result.ok ? result.reply.split(' ')[0] : result.errno;
  }
  interface Shown {
    readonly id: number;
    readonly name?: string;
  }
  const bpftool = async (...args: readonly string[]): Promise<readonly Shown[]> =>
    JSON.parse(await must({ cmd: 'bpftool', args: ['-j', ...args] })) as Shown[];
  /** Programs of this name that are loaded on this machine, attached or not. */
  const loaded = async (name: string): Promise<readonly number[]> =>
    (await bpftool('prog', 'show')).filter((program) => program.name === name).map(({ id }) => id);
  const attached = async (name: string): Promise<number | undefined> =>
    (await bpftool('cgroup', 'show', node.sandbox.cgroupRoot)).find((program) => program.name === name)?.id;
  const loop = (): ReturnType<typeof dial> => dial(node.sandbox, pod.place, node.server, 300, 101);

  /** Ends the one that runs; the one that waits is ready, has the address, and no connection has noticed. */
  async function hands(over: () => Promise<unknown>, { agent, probe }: Waiting): Promise<void> {
    const dialling = loop();
    const programs = await loaded('root_connect4');
    await over();
    await agent.logged(GONE);
    await agent.ready();
    await agent.logged('serving');
    const totals = await dialling.end();
    assert.deepEqual(totals, allBy('proxy', totals.total));
    assert.equal(await running(), agent.running.pid);
    assert.ok(programs.includes((await attached('root_connect4')) ?? 0), 'its programs were loaded before');
    assert.deepEqual(
      await Promise.all(
        ['readyz', 'healthz'].map(async (path) => (await fetch(`http://${http}/${path}`)).text()),
      ),
      ['ok\n', 'ok\n'],
    );
    const { code, stdout } = await probe('ready');
    assert.deepEqual([code, stdout], [0, 'ok']);
    await current?.[Symbol.asyncDispose]();
    current = agent;
  }
  /** The one that runs, once it is not the node's own. */
  let current: Agent | undefined;
  const latest = (): Agent => current ?? node.agent;

  test('one started beside another changes nothing while it waits, counts as ready, and follows at once', async () => {
    const before = [pins(), await links(), await running()];
    const waiting = await besides();
    const ready = await waiting.probe('ready');
    assert.deepEqual(
      [ready.code, ready.stdout],
      [0, 'ok: another agent runs, and this one has loaded all to take over from it'],
    );
    assert.deepEqual((await waiting.probe('live')).stdout, 'ok');
    assert.deepEqual([pins(), await links(), await running()], before);
    await hands(() => latest().stop(), waiting);
    assert.ok(!waiting.agent.log().some(({ msg }) => msg?.includes('cannot be listened on')));
  });

  test('follows one that was killed', async () => {
    await hands(() => latest().kill9(), await besides());
  });

  test('knows what was changed while it waited', async () => {
    const waiting = await besides();
    const late = await node.addPod({ name: 'late', labels: { [BYPASS]: 'enabled' } });
    node.manifest.write();
    await node.until('the one that runs knows the pod', ({ pods }) =>
      pods.some(({ name, verdict }) => name === 'late' && verdict === 'bypass'),
    );
    node.manifest.change(late.uid, { labels: {} });
    await hands(async () => {
      await latest().stop();
      node.manifest.write();
    }, waiting);
    await node.until('it follows the manifest', ({ pods }) =>
      pods.some(({ name, verdict }) => name === 'late' && verdict === 'in'),
    );
  });

  test('ends on SIGTERM while it waits, and detaches nothing whatever it was to do on exit', async () => {
    for (const args of [[], ['--on-exit', 'detach']]) {
      const before = [pins(), await links(), await running()];
      const { agent } = await besides({ args });
      assert.deepEqual(await agent.stop(), { code: 0, signal: null });
      assert.ok(agent.log().some(({ msg }) => msg === 'leaving: another agent runs, and goes on'));
      assert.deepEqual([pins(), await links(), await running()], before);
    }
    assert.equal(await answers(), 'proxy');
  });

  test('ends on SIGTERM before it has loaded all, too', async () => {
    const { agent } = startBeside();
    await agent.logged(WAITS);
    assert.deepEqual(await agent.stop(), { code: 0, signal: null });
    assert.equal(await running(), latest().running.pid);
  });

  test('says what would keep it from taking over while the other one still runs', async () => {
    const { agent } = startBeside({ bpffsRoot: `${node.sandbox.bpffs}/elsewhere` });
    assert.equal((await agent.running.exit).code, 1);
    assert.match(
      agent.running.stderr.join('\n'),
      /^cgroute: programs of another cgroute are attached at \S+: expected none [^\n]*$/m,
    );
    const broken = startBeside({ manifest: node.sandbox.file('none.yaml') }).agent;
    assert.equal((await broken.running.exit).code, 2);
    assert.match(broken.running.stderr.join('\n'), /none\.yaml: expected a file that can be read/);
    assert.equal(await running(), latest().running.pid);
    assert.equal(await answers(), 'proxy');
  });

  test('without the flag a second start is refused as before', async () => {
    const second = startAgent(node.sandbox, { manifest: node.manifest.path });
    assert.equal((await second.running.exit).code, 1);
    assert.match(second.running.stderr.join('\n'), /another cgroute agent runs with --cgroup-root/);
  });

  test('of two that wait one follows, and the other one waits on', async () => {
    const [first, second] = [await besides(), await besides()];
    await latest().stop();
    const next = await eventually('one has followed', () =>
      [first, second].find(({ agent }) => agent.log().some(({ msg }) => msg === 'ready')),
    );
    const last = next === first ? second : first;
    assert.ok(!last.agent.log().some(({ msg }) => msg === GONE));
    assert.match((await last.probe('ready')).stdout, /another agent runs/);
    await hands(() => next.agent.stop(), last);
  });

  test('starts anew where the one before has taken everything along', async () => {
    await hands(() => latest().stop(), await besides({ args: ['--on-exit', 'detach'] }));
    const waiting = await besides();
    await latest().stop();
    await waiting.agent.ready();
    current = waiting.agent;
    assert.equal(await answers(), 'proxy');
  });

  test('follows another version with other layouts, and the other way round', async () => {
    for (const program of [other, PROGRAM]) {
      await hands(() => latest().stop(), await besides({ program }));
      assert.ok(
        latest()
          .log()
          .some(({ msg }) => msg?.includes(' of the pins has been replaced by ')),
      );
    }
  });

  test('waits for an agent that has the same pins under another root', async () => {
    const root = node.sandbox.cgroup('elsewhere');
    await latest().stop();
    await cgroute(node.sandbox, ['cleanup']);
    const before = startAgent(node.sandbox, { manifest: node.manifest.path, cgroupRoot: root.absolute });
    await before.ready();
    const waiting = startBeside();
    await waiting.agent.logged(WAITS);
    assert.equal(await running(), before.running.pid);
    await before.stop();
    await waiting.agent.ready();
    current = waiting.agent;
    assert.equal(await answers(), 'proxy');
  });

  test('with the flag, an agent that has nobody to wait for starts as any', async () => {
    await latest().stop();
    const { agent, probe } = startBeside({}, 'again.sock');
    await agent.ready();
    assert.ok(!agent.log().some(({ msg }) => msg === WAITS));
    assert.deepEqual((await probe('ready')).stdout, 'ok');
    // Its socket is left behind, and nobody answers there.
    await agent.kill9();
    const gone = await probe('live');
    assert.equal(gone.code, 1);
    assert.match(gone.stderr, /^no agent answers at --probe-socket \S+again\.sock: .*ECONNREFUSED/);
    const next = startBeside({}, 'again.sock');
    await next.agent.ready();
    assert.deepEqual((await next.probe('live')).stdout, 'ok');
    const taken = startBeside({}, 'again.sock');
    assert.equal((await taken.agent.running.exit).code, 1);
    assert.match(
      taken.agent.running.stderr.join('\n'),
      /--probe-socket \S+again\.sock cannot be listened on: .*EADDRINUSE/,
    );
    assert.equal(await running(), next.agent.running.pid);
  });
});

/** Whatever becomes of the API server and the way to it: no verdict that stands changes, and the state converges by itself. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE, REDIRECTION } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';
import type { PodOnNode } from '../harness/kubelet-view.ts';
import { agree } from './agreement.ts';
import { type FaultNode, startFaultNode } from './fault-node.ts';
import { FOR_NOW } from '../harness/for-now.ts';

const HOUR = 3_600_000;
const YEAR = 365 * 24 * HOUR;

describe('with the API server', { skip: KUBE_MISSING }, () => {
  let f: FaultNode;

  before(async () => {
    f = await startFaultNode('api-faults');
    await f.start();
    await agree(f.mesh, f.node);
  });
  /** A test that failed leaves no fault to the next. */
  afterEach(async () => {
    f.proxy.set({});
    f.jump(0);
    await f.mesh.cluster.startApiServer();
  });
  after(() => f?.[Symbol.asyncDispose]());

  const age = async (): Promise<number> =>
    (await f.node.metrics()).get('cgroute_source_last_event_age_seconds{source="pods"}') ?? NaN;
  const verdictOf = async (name: string): Promise<string | undefined> =>
    (await f.node.status()).pods.find((pod) => pod.name === name)?.reason;

  test('killed, and back after a while', async () => {
    const stands = await f.standing();
    await f.mesh.cluster.stopApiServer('SIGKILL');
    await f.isCutOff(/cannot be reached/);
    const before = await age();
    await delay(1000);
    assert.ok((await age()) >= before + 1);
    await stands();
    await f.mesh.cluster.startApiServer();
    await f.change();
    await f.isBack();
    assert.ok((await f.restarts('unreachable')) > 0);
    assert.ok((await age()) < 30);
  });

  test('stopped in order, and back', async () => {
    const stands = await f.standing();
    await f.mesh.cluster.stopApiServer('SIGTERM');
    await f.isCutOff(/cannot be reached|ended/);
    await stands();
    await f.mesh.cluster.startApiServer();
    await f.change();
    await f.isBack();
  });

  test('away for an hour, by the clocks of the agent, while pods change', async () => {
    const stands = await f.standing();
    f.proxy.set({ refuse: true });
    f.proxy.cut();
    await f.isCutOff(/cannot be reached/);
    const tries = await f.restarts('unreachable');
    for (let passed = 0; passed < HOUR; passed += 20_000) {
      await f.pass(20_000);
      await delay(10); // for a try that fails at once
    }
    await stands();
    assert.ok((await age()) >= 3600, String(await age()));
    await f.isCutOff(/not followed since .*\((3[6-9]\d\d) s\)/);
    const more = (await f.restarts('unreachable')) - tries;
    // Ever later, up to half a minute: some two hundred in an hour.
    assert.ok(more > 60 && more < 400, `${more} tries in an hour`);
    await f.change();
    await f.travels();
    f.proxy.set({});
    await f.isBack();
  });

  test('cut off in the middle of events, time and again', async () => {
    const { kubectl } = f.mesh.cluster;
    const broken = async (): Promise<number> => (await f.restarts('cut')) + (await f.restarts('unreachable'));
    for (let round = 0; round < 4; round++) {
      const before = await broken();
      // Each connection lives for its handshake and a few events, and is cut wherever it is then.
      f.proxy.set({ cutAfterBytes: 6000 + round * 1777 });
      f.proxy.cut();
      for (let i = 0; (await broken()) < before + 3; i++) {
        assert.ok(i < 50, `${(await broken()) - before} cuts after ${i} events`);
        await kubectl('-n', 'shop', 'annotate', 'pod', '--all', `x=${'y'.repeat(3000)}${i}`, '--overwrite');
        await f.hurry();
      }
      await kubectl(
        '-n',
        'shop',
        'label',
        'pod',
        'flip',
        '--overwrite',
        `${MODE}=${round % 2 === 0 ? 'none' : 'ambient'}`,
      );
      await f.travels();
    }
    f.proxy.set({});
    await f.change();
    await f.isBack();
  });

  test('compacted behind the version that the agent knows (410)', async () => {
    const stands = await f.standing();
    f.proxy.set({ refuse: true });
    f.proxy.cut();
    await f.isCutOff(/cannot be reached/);
    await stands();
    await f.change();
    await f.mesh.cluster.compact();
    f.proxy.set({});
    await f.isBack();
    assert.ok((await f.restarts('expired')) > 0);
  });

  test('slow', async () => {
    f.proxy.set({ delayMs: 2000 });
    await f.change();
    await f.isBack();
    f.proxy.cut();
    await f.change();
    assert.deepEqual(
      [(await f.node.http('healthz')).status, (await f.node.http('readyz')).status],
      [200, 200],
    );
    await f.isBack();
    // Slower than the agent's patience at its start: it attaches with what the maps hold, and is ready later.
    await f.node.agent.stop();
    f.proxy.set({ delayMs: 2500 });
    f.launch();
    await f.node.agent.logged('serving');
    assert.equal((await f.node.http('healthz')).status, 200);
    assert.equal((await f.node.http('readyz')).status, 503);
    await f.node.agent.ready();
    f.proxy.set({});
    await f.isBack();
  });

  test('and the wall clock jumps: a year ahead, two back, beyond the end of all certificates', async () => {
    const restarts = async (): Promise<number> =>
      (await f.restarts('unreachable')) + (await f.restarts('cut')) + (await f.restarts('idle'));
    const before = await restarts();
    for (const years of [1, -1, 0]) {
      const stands = await f.standing();
      f.jump(years * YEAR);
      await delay(300);
      await stands();
      assert.ok((await age()) < 120, 'the age is not by the wall clock');
      await f.change();
      await f.isBack();
    }
    assert.equal(await restarts(), before, 'the watches went on');
    f.jump(20 * YEAR);
    const stands = await f.standing();
    f.proxy.cut();
    await f.isCutOff(/cannot be reached: .*expired/);
    await stands();
    await f.change();
    f.jump(0);
    await f.isBack();
  });

  const startUnlisted = async (config: string): Promise<PodOnNode> => {
    await f.node.agent.stop();
    await f.node.cleanUp();
    f.proxy.set({ refuse: true });
    f.launch({ config });
    await f.node.agent.logged('serving');
    assert.deepEqual(
      [(await f.node.http('healthz')).status, (await f.node.http('readyz')).status],
      [200, 503],
    );
    assert.match(
      (await f.node.status()).sources.find(({ name }) => name === 'pods')?.detail ?? '',
      /never listed; since .*cannot be reached/,
    );
    return f.node.kubelet.started('shop', 'enrolled');
  };
  const isServed = async (): Promise<void> => {
    f.proxy.set({});
    await f.node.agent.ready();
    assert.equal((await f.node.http('readyz')).status, 200);
    await f.isBack();
    assert.equal(await verdictOf('enrolled'), 'namespace-label');
    await eventually(
      'it is annotated',
      async () =>
        (await f.mesh.cluster.pod('shop', 'enrolled'))?.metadata.annotations?.[REDIRECTION] === 'enabled',
    );
  };

  test('away when the agent starts for the first time: nothing is attached, which is said, before the lists are in', async () => {
    const enrolled = await startUnlisted('unknownPods: deny\nwhenProxyDown: deny\n');
    const waits = /^no list of pods and namespaces has come yet, so nothing is attached .*firstStart: wait/;
    assert.match((await f.node.http('readyz')).text.replace(/^not ready: /, ''), waits);
    const { redirecting, agent, sources } = await f.node.status();
    assert.deepEqual([redirecting, agent.ready], [false, false]);
    assert.match(sources.find(({ name }) => name === 'first-start')?.detail ?? '', waits);
    assert.ok(
      f.node.agent
        .log()
        .some(({ level, msg }) => level === 'warn' && /^not ready: no list/.test(String(msg))),
    );
    assert.equal(await f.node.travel(enrolled.place()), 'direct', 'as without cgroute');
    // Maps are pinned by now, and nothing of them redirects: the next one waits as well.
    await f.node.agent.kill9();
    f.launch({ config: 'unknownPods: deny\n' });
    await f.node.agent.logged('serving');
    assert.equal(await f.node.travel(enrolled.place()), 'direct', 'as without cgroute');
    await isServed();
    assert.equal(
      (await f.node.status()).sources.some(({ name }) => name === 'first-start'),
      false,
    );
  });

  test('away when an agent starts where another one was: redirection goes on as it stood', async () => {
    const enrolled = await f.node.kubelet.started('shop', 'enrolled');
    assert.equal(await f.node.travel(enrolled.place()), 'redirected');
    await f.node.agent.stop();
    f.proxy.set({ refuse: true });
    f.launch({ config: 'unknownPods: deny\n' });
    await f.node.agent.logged('serving');
    assert.equal((await f.node.http('readyz')).status, 503);
    assert.equal(await f.node.travel(enrolled.place()), 'redirected');
    await isServed();
  });

  test('away when the agent starts for the first time, with firstStart: deny: it attaches, and refuses', async () => {
    const enrolled = await startUnlisted('unknownPods: deny\nfirstStart: deny\n');
    assert.match((await f.node.http('readyz')).text, /^not ready: the first reconcile is not done/);
    assert.equal((await f.node.status()).redirecting, true);
    assert.equal(await f.node.travel(enrolled.place()), FOR_NOW, 'unknownPods: deny');
    await isServed();
  });
});

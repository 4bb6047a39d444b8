/**
 * The chart's DaemonSet, rolled by the real controller of DaemonSets and the real
 * scheduler. There is no kubelet: its part, to start and probe and end the agents and
 * to say so, is played by test/harness/agent-kubelet.ts.
 */
import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { CHART, helm, HELM_MISSING } from '../../deploy/build/helm.ts';
import type { Agent } from '../../deploy/stage/agent.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { type AgentKubelet, isAgentPod, startAgentKubelet } from '../harness/agent-kubelet.ts';
import { allBy, type Dialler, dial } from '../harness/dialler.ts';
import { CONTROLLERS_MISSING, startControllers } from '../harness/kube-controllers.ts';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { type KubeObject, namespaceObject, podObject } from '../harness/kube-objects.ts';
import { freePort } from '../harness/kube-server.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE, REDIRECTION } from '../harness/label-names.ts';
import { OLD_MISSING, type OldRelease, oldRelease } from '../harness/old-release.ts';

const DAEMONSET = '/apis/apps/v1/namespaces/kube-system/daemonsets/cgroute';
const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');

type Rolled = KubeObject & {
  readonly metadata: { readonly generation: number };
  readonly status?: Readonly<Record<string, number>>;
};

describe('a roll of the DaemonSet', {
  skip: HELM_MISSING || KUBE_MISSING || CONTROLLERS_MISSING || OLD_MISSING,
}, () => {
  let mesh: Mesh;
  let node: MeshNode;
  let kubelet: AgentKubelet;
  let old: OldRelease;
  let storm: Dialler;

  before(async () => {
    old = await oldRelease();
    mesh = await startMesh('roll');
    const { sandbox, cluster } = mesh;
    node = await mesh.addNode({ name: 'node-a', agent: false, proxy: false, leaves: isAgentPod });
    kubelet = startAgentKubelet({
      sandbox,
      cluster,
      node: 'node-a',
      roots: {
        cgroupRoot: `${sandbox.cgroupRoot}/node-a`,
        bpffsRoot: `${sandbox.bpffs}/node-a`,
        procRoot: node.procRoot,
      },
      http: `127.0.0.1:${await freePort()}`,
      programs: { old: old.program, new: PROGRAM },
    });
    await startControllers(sandbox, cluster, ['daemonset-controller']);
    await cluster.apply(
      namespaceObject('shop', { [MODE]: 'ambient' }),
      // One that names itself in its answers, so that a connection that went around it is told from the others.
      podObject('ztunnel', {
        node: 'node-a',
        namespace: 'istio-system',
        labels: { app: 'ztunnel' },
        command: ['sock', 'proxy', '--quiet', '--dual', '*', '15001,15006'],
      }),
      servingPod('web', { node: 'node-a', namespace: 'shop' }),
    );
    await node.kubelet.running('istio-system', 'ztunnel');
    await node.kubelet.running('shop', 'web');
    await runHelm('install', old.chart, 'image.tag=old');
    await rolled();
    await eventually('web is redirected', isAnnotated);
  });
  after(async () => {
    await kubelet?.[Symbol.asyncDispose]();
    await mesh?.[Symbol.asyncDispose]();
  });

  async function runHelm(verb: string, chart: string, ...values: readonly string[]): Promise<void> {
    const { code, stderr } = await helm(
      [
        verb,
        'cgroute',
        chart,
        '--namespace',
        'kube-system',
        ...['config.proxy.namespaces={istio-system}', ...values].flatMap((value) => ['--set', value]),
      ],
      { kubeconfig: mesh.cluster.kubeconfig, home: mesh.sandbox.file('helm') },
    );
    assert.equal(code, 0, stderr);
  }

  /** Waits until the controller says that all is as it should be, and no other pod is left. */
  async function rolled(): Promise<void> {
    await eventually('the DaemonSet is rolled', async () => {
      const { metadata, status = {} } = await mesh.cluster.api.get<Rolled>(DAEMONSET);
      const living = kubelet.moments.filter(([what]) => what === 'started').length - count('gone');
      return (
        status['observedGeneration'] === metadata.generation &&
        status['updatedNumberScheduled'] === 1 &&
        status['numberAvailable'] === 1 &&
        living === 1
      );
    }).catch(async (error: unknown) => {
      const pods = await mesh.cluster.kubectl('-n', 'kube-system', 'get', 'pods,daemonset', '-o', 'wide');
      const said = [...kubelet.agents.values()].map(({ running }) =>
        [...running.stdout.slice(-3), ...running.stderr].join('\n'),
      );
      throw new Error(`${String(error)}\n${JSON.stringify(kubelet.moments)}\n${pods}\n${said.join('\n')}`);
    });
    assert.deepEqual(kubelet.problems, []);
  }
  const count = (wanted: string): number => kubelet.moments.filter(([what]) => what === wanted).length;
  const isAnnotated = async (): Promise<boolean> =>
    (await mesh.cluster.pod('shop', 'web'))?.metadata.annotations?.[REDIRECTION] === 'enabled';
  /** The last of those that are not gone. */
  const latest = (): readonly [string, Agent] =>
    [...kubelet.agents].findLast(
      ([name]) => !kubelet.moments.some(([what, pod]) => what === 'gone' && pod === name),
    ) ?? assert.fail('no agent');

  /** Rolls it under a storm of connections. Gives what has happened meanwhile, with the pods as `old` and `new`. */
  async function roll(
    change: () => Promise<void>,
  ): Promise<{ readonly moments: string[]; readonly before: Agent }> {
    const [oldName, before] = latest();
    const from = kubelet.moments.length;
    storm = dial(
      mesh.sandbox,
      node.kubelet
        .pods()
        .find(({ name }) => name === 'web')
        ?.place() ?? assert.fail(),
      mesh.server,
    );
    await change();
    await rolled();
    await latest()[1].ready();
    const totals = await storm.end();
    assert.ok(totals.total > 100, JSON.stringify(totals));
    assert.deepEqual(totals, allBy('proxy', totals.total), 'none has escaped, and none was refused');
    const { agent } = await node.status();
    assert.equal(agent.pid, latest()[1].running.pid);
    assert.equal(await isAnnotated(), true);
    const moments = kubelet.moments
      .slice(from)
      .map(([what, pod]) => `${pod === oldName ? 'old' : 'new'} ${what}`);
    return { moments, before };
  }
  const SURGED = ['new started', 'new ready', 'old told to go', 'old gone'];
  const logged = (agent: Agent, text: RegExp): boolean => agent.log().some(({ msg = '' }) => text.test(msg));

  test('from 0.1: the old agent goes when the new one is ready, and no connection notices', async () => {
    const { moments, before } = await roll(() => runHelm('upgrade', CHART, 'image.tag=new'));
    assert.deepEqual(moments, SURGED);
    assert.ok(logged(before, /^leaving: links and maps stay, redirection goes on$/), 'its DaemonSet stays');
    const [, now] = latest();
    assert.ok(logged(now, /^another agent runs: this one waits for it to go/));
    assert.ok(logged(now, new RegExp(`^version v1 of the pins has been replaced by ${PIN_VERSION}, `)));
  });

  test('to another configuration: the same', async () => {
    const { moments, before } = await roll(() =>
      runHelm('upgrade', CHART, 'image.tag=new', 'config.sweepSeconds=7'),
    );
    assert.deepEqual(moments, SURGED);
    assert.ok(logged(before, /^leaving: links and maps stay/));
    assert.match(
      await (
        await fetch(
          `http://${
            latest()[1]
              .log()
              .findLast(({ http }) => http !== undefined)?.['http']
          }/readyz`,
        )
      ).text(),
      /^ok$/m,
    );
  });

  test('to an agent that cannot take over: the old one stays, and goes on', async () => {
    const [, before] = latest();
    const pods = kubelet.agents.size;
    await runHelm('upgrade', CHART, 'image.tag=new', 'extraArgs={--proc-root=/nonexistent}');
    await eventually('the new one has ended', () => [...kubelet.agents.values()].at(pods)?.running.exit);
    assert.equal((await node.status()).agent.pid, before.running.pid);
    assert.equal(kubelet.moments.filter(([what]) => what === 'told to go').length, 2);
    await runHelm('upgrade', CHART, 'image.tag=new', 'config.sweepSeconds=7');
    await rolled();
  });

  test('a pod that is deleted by force has no token any more, and its agent leaves all as it is', async () => {
    const { moments, before } = await roll(async () => {
      const [name] = latest();
      await mesh.cluster.kubectl('-n', 'kube-system', 'delete', 'pod', name, '--force', '--grace-period=0');
      await eventually('another one is there', () => latest()[0] !== name);
    });
    // Nobody knows of the old one any more: both may be there for a moment, as ever with such a deletion.
    assert.deepEqual(moments.toSorted(), ['new ready', 'new started', 'old gone', 'old told to go']);
    assert.ok(logged(before, /^leaving: links and maps stay/));
    // For some seconds the API server goes by what it has found of the token before.
    const why = before.log().find(({ msg = '' }) => msg.startsWith('leaving: links and maps stay'))?.['why'];
    assert.match(
      String(why),
      /^its pod was deleted by force, and its token with it$|^its DaemonSet is there/,
    );
  });

  test('without room for two: the old one goes first, and redirection goes on', async () => {
    const { moments } = await roll(() =>
      runHelm('upgrade', CHART, 'image.tag=new', 'maxSurge=0', 'maxUnavailable=1'),
    );
    assert.deepEqual(moments, ['old told to go', 'old gone', 'new started', 'new ready']);
  });
});

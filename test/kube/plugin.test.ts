/**
 * `kubectl cgroute`, with the real kubectl, the real API server and a running
 * agent. `kubectl exec` needs a kubelet that serves it, which the harness has
 * not: for this one verb alone a wrapper named kubectl stands first on PATH. It
 * checks which pod is meant, and runs what was to run there on this machine.
 */
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { cgroute } from '../../deploy/stage/agent.ts';
import { chartObjects, HELM_MISSING } from '../../deploy/build/helm.ts';
import {
  type KubeObject,
  namespaceObject,
  type Pod,
  podObject,
  type Texts,
} from '../harness/kube-objects.ts';
import { KUBE_MISSING, kubeTools } from '../harness/kube-tools.ts';
import type { Cluster } from '../harness/kube.ts';
import { type Finished, run } from '../../deploy/stage/process.ts';
import { type ClusterNode, startClusterNode } from '../harness/cluster-node.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { MODE } from '../harness/label-names.ts';

const root = resolve(import.meta.dirname, '../..');
const program = join(root, 'dist/cgroute');

describe('kubectl cgroute', { skip: HELM_MISSING || KUBE_MISSING }, () => {
  let node: ClusterNode;
  let sandbox: Sandbox;
  let cluster: Cluster;
  let kubectl: string;
  let path: string;
  let labels: Texts;

  before(async () => {
    node = await startClusterNode('kube-plugin');
    ({ sandbox, cluster } = node);
    kubectl = (await kubeTools()).kubectl;
    const { spec } = (await chartObjects()).find(({ kind }) => kind === 'DaemonSet') as KubeObject & {
      spec: { template: Pod };
    };
    labels = spec.template.metadata.labels ?? {};
    await cluster.apply(namespaceObject('shop', { [MODE]: 'ambient' }), namespaceObject('mesh'));
    await cluster.apply(
      podObject('web', { node: 'node-a', namespace: 'shop' }),
      podObject('far', { node: 'node-b', namespace: 'shop' }),
      podObject('nowhere', { node: '', namespace: 'shop' }),
    );
    await addAgent('agent-a', 'node-a', 'Running');
    await node.startPod('shop', 'web');
    await node.launchAgent().logged('serving');

    const directory = sandbox.file('bin');
    mkdirSync(directory);
    symlinkSync(join(root, 'deploy/kubectl-cgroute'), join(directory, 'kubectl-cgroute'));
    const wrapper = join(directory, 'kubectl');
    // `exec -n NAMESPACE POD -c agent -- cgroute VERB ARGS...`, and nothing else.
    writeFileSync(
      wrapper,
      `#!/bin/sh
case " $* " in *" exec "*) ;; *) exec '${kubectl}' "$@" ;; esac
while [ "$1" != exec ]; do shift; done
[ "$2 $3 $4 $5 $6 $7 $8" = '-n mesh agent-a -c agent -- cgroute' ] || { echo "wrapper: $*" >&2; exit 99; }
shift 8
verb=$1
shift
'${program}' "$verb" --bpffs-root '${sandbox.bpffs}/cgroute' "$@"
`,
    );
    chmodSync(wrapper, 0o755);
    path = `${directory}:${process.env['PATH'] ?? ''}`;
  });
  after(() => node?.[Symbol.asyncDispose]());

  async function addAgent(name: string, node: string, phase: string, namespace = 'mesh'): Promise<void> {
    await cluster.apply(
      podObject(name, {
        node,
        namespace,
        labels,
        spec: { containers: [{ name: 'agent', image: 'test.invalid/cgroute' }] },
      }),
    );
    await cluster.api.patch(`/api/v1/namespaces/${namespace}/pods/${name}/status`, 'merge-patch+json', {
      status: { phase },
    });
  }
  const removePod = (name: string, namespace = 'mesh'): Promise<string> =>
    cluster.kubectl('-n', namespace, 'delete', 'pod', name, '--grace-period=0', '--force');

  /** By the real kubectl, which finds the plugin on PATH by its name. */
  const plugin = (args: readonly string[], env: Texts = {}): Promise<Finished> =>
    run({
      cmd: kubectl,
      args: ['cgroute', ...args],
      env: { PATH: path, KUBECONFIG: cluster.kubeconfig, KUBECACHEDIR: sandbox.file('cache'), ...env },
    });

  /** It exits so, prints nothing, and says one sentence. */
  async function refuses(
    args: readonly string[],
    code: number,
    sentence: string,
    env: Texts = {},
  ): Promise<void> {
    const result = await plugin(args, env);
    assert.deepEqual(
      { code: result.code, stdout: result.stdout, stderr: result.stderr },
      { code, stdout: '', stderr: `kubectl cgroute: ${sentence}` },
    );
  }

  test('explains a pod by the agent of its node', async () => {
    const direct = await cgroute(sandbox, ['explain', 'shop/web']);
    assert.match(direct.stdout, /shop\/web/);
    for (const args of [
      ['explain', 'shop/web'],
      ['explain', 'web', '-n', 'shop'],
      ['explain', '--namespace=shop', 'web'],
      ['explain', 'shop/web', '-nshop', '--context', 'test'],
    ]) {
      const result = await plugin(args);
      assert.deepEqual([result.code, result.stdout, result.stderr], [0, direct.stdout, ''], args.join(' '));
    }
  });

  test('passes -o on', async () => {
    for (const flags of [['-o', 'json'], ['-ojson'], ['--output=json'], ['--output', 'json']]) {
      const { code, stdout } = await plugin(['explain', 'shop/web', ...flags]);
      assert.equal(code, 0);
      assert.deepEqual(
        (({ namespace, name }) => [namespace, name])(
          JSON.parse(stdout) as { namespace: string; name: string },
        ),
        ['shop', 'web'],
      );
    }
    const { code, stderr } = await plugin(['explain', 'shop/web', '-o', 'xml']);
    assert.equal(code, 2);
    assert.match(stderr, /--output expects table or json or yaml, got "xml"/);
  });

  test('takes the namespace of the context', async () => {
    const config = JSON.parse(await cluster.kubectl('config', 'view', '--raw', '-o', 'json')) as {
      contexts: { context: Record<string, string> }[];
    };
    for (const { context } of config.contexts) context['namespace'] = 'shop';
    const file = sandbox.file('shop.kubeconfig');
    writeFileSync(file, JSON.stringify(config));
    assert.equal((await plugin(['explain', 'web'], { KUBECONFIG: file })).code, 0);
    assert.equal(
      (await plugin(['explain', 'web', '--kubeconfig', file], { KUBECONFIG: '/dev/null' })).code,
      0,
    );
    await refuses(['explain', 'web'], 1, 'there is no pod default/web');
  });

  test('shows the status of one node, and of all', async () => {
    const one = await plugin(['status', 'node-a']);
    // There is no proxy here, and a pod that wants one.
    assert.equal(one.code, 3, one.stderr);
    assert.match(one.stdout, /^WRONG {2}no proxy of this node is known: new connections of 1 enrolled pod /);
    assert.match(one.stdout, /^shop +web /m);
    const rows = (text: string): string[] =>
      text.split('\n').filter((line) => !line.includes('last heard of'));
    const all = await plugin(['status']);
    assert.deepEqual([all.code, rows(all.stdout)], [3, rows(one.stdout)]);
    const { node } = JSON.parse((await plugin(['status', 'node-a', '-o', 'json'])).stdout) as {
      node: string;
    };
    assert.equal(node, 'node-a');
  });

  test("gives the agent's exit code", async () => {
    const real = sandbox.file('bin/kubectl');
    const broken = sandbox.file('bin3');
    mkdirSync(broken);
    writeFileSync(
      join(broken, 'kubectl'),
      `#!/bin/sh\ncase " $* " in *" exec "*) exit 3 ;; *) exec '${real}' "$@" ;; esac\n`,
      { mode: 0o755 },
    );
    const env = { PATH: `${broken}:${path}` };
    for (const args of [['explain', 'shop/web'], ['status', 'node-a'], ['status']])
      assert.equal((await plugin(args, env)).code, 3, args.join(' '));
  });

  test('says in one sentence why there is nobody to ask', async () => {
    await refuses(['explain', 'shop/nobody'], 1, 'there is no pod shop/nobody');
    await refuses(
      ['explain', 'shop/nowhere'],
      1,
      'pod shop/nowhere is on no node yet, so there is no agent to ask: kubectl -n shop describe pod nowhere says why',
    );
    await refuses(
      ['explain', 'shop/far'],
      1,
      'no agent of cgroute is on node node-b: does its DaemonSet select that node?',
    );
    await refuses(
      ['status', 'node-z'],
      1,
      'no agent of cgroute is on node node-z: does its DaemonSet select that node?',
    );
    await addAgent('agent-b', 'node-b', 'Pending');
    await refuses(
      ['explain', 'shop/far'],
      1,
      'the agent on node node-b does not run: its phase is Pending; kubectl -n mesh describe pod agent-b says why',
    );
    const all = await plugin(['status']);
    assert.deepEqual(
      [all.code, all.stderr],
      [3, 'kubectl cgroute: the agent on node-b does not run (phase Pending)'],
    );
    assert.match(all.stdout, /^node +node-a\n/m);
    await removePod('agent-b');
  });

  test('takes the pod that runs, while another one leaves', async () => {
    await addAgent('agent-0', 'node-a', 'Failed');
    assert.equal((await plugin(['explain', 'shop/web'])).code, 0);
    await removePod('agent-0');
  });

  test('asks no pod of another namespace that is labelled like an agent', async () => {
    await addAgent('agent-a', 'node-a', 'Running', 'shop');
    const sentence =
      'pods labelled as agents are in namespaces mesh,shop: expected one; set CGROUTE_NAMESPACE';
    await refuses(['explain', 'shop/web'], 1, sentence);
    await refuses(['status'], 1, sentence);
    assert.equal((await plugin(['explain', 'shop/web'], { CGROUTE_NAMESPACE: 'mesh' })).code, 0);
    await removePod('agent-a', 'shop');
  });

  test("leaves the API server's own words when it refuses", async () => {
    const { kubeconfig } = await cluster.serviceAccount({ name: 'nobody' });
    const { code, stderr } = await plugin(['explain', 'shop/web'], { KUBECONFIG: kubeconfig() });
    assert.equal(code, 1);
    assert.match(stderr, /^Error from server \(Forbidden\): pods "web" is forbidden/);
    assert.equal(stderr.split('\n').length, 1);
  });

  test('refuses what it does not know', async () => {
    await refuses(['explain'], 2, 'explain expects a pod as NAMESPACE/POD, got none');
    await refuses(['explain', 'a/b/c'], 2, 'explain expects a pod as NAMESPACE/POD, got "a/b/c"');
    await refuses(['explain', '/web'], 2, 'explain expects a pod as NAMESPACE/POD, got "/web"');
    await refuses(
      ['explain', 'shop/web', '-n', 'mesh'],
      2,
      'explain got namespace shop with the pod, and mesh by -n: expected one',
    );
    await refuses(
      ['explain', 'shop/web', 'shop/far'],
      2,
      'expected one name after explain, got "shop/web" and "shop/far"',
    );
    await refuses(['explain', 'shop/web', '-o'], 2, '-o expects a value, got none');
    await refuses(
      ['explain', 'shop/web', '--all'],
      2,
      'there is no flag --all: kubectl cgroute help lists them',
    );
    await refuses(['doctor'], 2, '"doctor" is no verb: expected explain, status or help');
    const [help, none] = [await plugin(['help']), await plugin([])];
    assert.match(help.stdout, /^usage: kubectl cgroute VERB/);
    assert.deepEqual([help.code, none.code, none.stdout], [0, 2, '']);
  });
});

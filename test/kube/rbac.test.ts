/** The agent under exactly the rights that the chart gives it: it does its whole job, and misses each one that is taken away. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { chartObjects, HELM_MISSING } from '../../deploy/build/helm.ts';
import type { PolicyRule, ServiceAccount } from '../harness/kube-account.ts';
import { type KubeObject, namespaceObject, podObject } from '../harness/kube-objects.ts';
import { makeKubeApi } from '../harness/kube-api.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { Cluster } from '../harness/kube.ts';
import { eventually, type Running } from '../../deploy/stage/process.ts';
import { type ClusterNode, startClusterNode } from '../harness/cluster-node.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { MODE, REDIRECTION } from '../harness/label-names.ts';

const TAINT = 'cgroute.io/agent-not-ready';

/** A node as its pool makes it, with taints of these keys. */
const nodeWith = (name: string, ...keys: readonly string[]): KubeObject => ({
  apiVersion: 'v1',
  kind: 'Node',
  metadata: { name },
  spec: { taints: keys.map((key) => ({ key, effect: 'NoSchedule' })) },
});

/** One verb on one resource, `patch pods/status`; with `apps/` before those of that group. */
type Right = string;

interface Role extends KubeObject {
  readonly rules: readonly PolicyRule[];
}

function rightsOf(rules: readonly PolicyRule[]): Right[] {
  return rules.flatMap(({ verbs, resources = [], apiGroups = [] }) =>
    verbs.flatMap((verb) =>
      resources.flatMap((resource) =>
        apiGroups.map((group) => `${verb} ${group === '' ? '' : `${group}/`}${resource}`),
      ),
    ),
  );
}

/** The same role, with a rule for each right but one. */
function without(role: Role, right: Right): Role {
  const rules = role.rules.flatMap((rule) =>
    rule.verbs.flatMap((verb) =>
      (rule.resources ?? []).map(
        (resource): PolicyRule => ({ ...rule, verbs: [verb], resources: [resource] }),
      ),
    ),
  );
  return { ...role, rules: rules.filter((rule) => !rightsOf([rule]).includes(right)) };
}

/** What a request used: `/api/v1/namespaces/shop/pods/web/status` is `pods/status`. */
function usedBy({ verb, uri }: { readonly verb: string; readonly uri: string }): Right {
  const { pathname } = new URL(uri, 'https://host');
  const [, group = '', rest = ''] = /^\/(?:api|apis\/([^/]+))\/v1\/(.*)$/.exec(pathname) ?? [];
  const [resource = '', , sub] = rest.replace(/^namespaces\/[^/]+\/(?=[^/])/, '').split('/');
  return `${verb} ${group === '' ? '' : `${group}/`}${resource}${sub === undefined ? '' : `/${sub}`}`;
}

describe('under the rights of the chart, the agent', { skip: HELM_MISSING || KUBE_MISSING }, () => {
  const program = resolve(import.meta.dirname, '../../dist/cgroute');
  let node: ClusterNode;
  let sandbox: Sandbox;
  let cluster: Cluster;
  let account: ServiceAccount;
  let roles: Role[];
  let args: readonly string[];

  before(async () => {
    node = await startClusterNode('kube-rbac', { audit: true });
    ({ sandbox, cluster } = node);
    // All that takes a right is on.
    const objects = (await chartObjects('--set', `config.startupTaint=${TAINT}`)).filter(
      ({ metadata }) => metadata.annotations?.['helm.sh/hook'] === undefined,
    );
    await cluster.apply(...objects);
    roles = objects.filter((object): object is Role => /^(Cluster)?Role$/.test(object.kind));
    account = await accountOn('node-a');
    const config = sandbox.file('config.yaml');
    const { data } = objects.find(({ kind }) => kind === 'ConfigMap') as KubeObject & {
      data: Record<string, string>;
    };
    writeFileSync(config, data['config.yaml'] ?? '');
    const { spec } = objects.find(({ kind }) => kind === 'DaemonSet') as KubeObject & {
      spec: { template: { spec: { containers: [{ args: string[] }] } } };
    };
    args = spec.template.spec.containers[0].args.map((flag) =>
      flag.startsWith('--config=')
        ? `--config=${config}`
        : flag.startsWith('--http=')
          ? '--http=127.0.0.1:0'
          : flag.startsWith('--probe-socket=')
            ? `--probe-socket=${sandbox.file('probe.sock')}`
            : flag,
    );
    await cluster.apply(
      namespaceObject('shop', { [MODE]: 'ambient' }),
      ...['node-a', 'node-b'].map((name) => nodeWith(name, TAINT, 'pool')),
    );
  });
  after(() => node?.[Symbol.asyncDispose]());

  /** As the kubelet of that node gives it to the agent's pod. Without rules: the account is the chart's, and so are its rights. */
  async function accountOn(node: string): Promise<ServiceAccount> {
    await cluster.apply(
      podObject(`agent-${node}`, { node, namespace: 'kube-system', spec: { serviceAccountName: 'cgroute' } }),
    );
    const { name, uid = '' } = (await cluster.pod('kube-system', `agent-${node}`))?.metadata ?? { name: '' };
    return cluster.serviceAccount({ name: 'cgroute', namespace: 'kube-system', pod: { name, uid } });
  }

  const start = (): Running =>
    sandbox.spawn({
      cmd: program,
      args: [
        ...args,
        '--node=node-a',
        '--cgroup-root',
        sandbox.cgroupRoot,
        '--bpffs-root',
        `${sandbox.bpffs}/cgroute`,
      ],
      env: { KUBECONFIG: account.kubeconfig() },
    });
  const logOf = (agent: Running): string => [...agent.stdout, ...agent.stderr].join('\n');
  const ready = (agent: Running) => eventually('it is ready', () => logOf(agent).includes('"msg":"ready"'));
  /** A pod of its own for each test, with a cgroup, so that what was said before is not in the way. */
  const addPod = async (name: string): Promise<void> => {
    await cluster.apply(podObject(name, { node: 'node-a', namespace: 'shop' }));
    await node.startPod('shop', name);
  };
  const removePods = async (...names: string[]): Promise<void> =>
    void (await cluster.kubectl('-n', 'shop', 'delete', 'pod', '--grace-period=0', '--force', ...names));
  const isAnnotated = async (name: string): Promise<boolean> =>
    (await cluster.pod('shop', name))?.metadata.annotations?.[REDIRECTION] === 'enabled';
  const taintsOf = async (name: string): Promise<string[]> => {
    const { spec } = await cluster.api.get<{ spec: { taints?: { key: string }[] } }>(`/api/v1/nodes/${name}`);
    // The API server adds one of its own to a node that nobody has called ready.
    return (spec.taints ?? []).map(({ key }) => key).filter((key) => !key.startsWith('node.kubernetes.io/'));
  };
  const reasons = async (name: string): Promise<string[]> =>
    (
      await cluster.api.get<{ items: { reason: string; involvedObject: { name: string } }[] }>(
        '/api/v1/namespaces/shop/events',
      )
    ).items
      .filter(({ involvedObject }) => involvedObject.name === name)
      .map(({ reason }) => reason)
      .sort();
  const pins = (): string[] =>
    existsSync(`${sandbox.bpffs}/cgroute`) ? readdirSync(`${sandbox.bpffs}/cgroute`) : [];
  const requests = () => cluster.requests().filter(({ user }) => user === account.user);

  /** The API server looks at roles through a watch of its own. */
  async function isAllowed(right: Right): Promise<boolean> {
    const [verb = '', what = ''] = right.split(' ');
    const isApps = what.startsWith('apps/');
    const [resource = '', subresource = ''] = what.replace(/^apps\//, '').split('/');
    const { status } = await cluster.api.request<{ status: { allowed: boolean } }>(
      'POST',
      '/apis/authorization.k8s.io/v1/subjectaccessreviews',
      {
        apiVersion: 'authorization.k8s.io/v1',
        kind: 'SubjectAccessReview',
        spec: {
          user: account.user,
          resourceAttributes: {
            verb,
            group: isApps ? 'apps' : '',
            resource,
            subresource,
            ...(isApps ? { namespace: 'kube-system', name: 'cgroute' } : {}),
          },
        },
      },
    );
    return status.allowed;
  }

  test('does its whole job, and uses every right that it has', async () => {
    await addPod('web');
    const agent = start();
    await ready(agent);
    await eventually('web is annotated', () => isAnnotated('web'));
    await cluster.kubectl('-n', 'shop', 'label', 'pod', 'web', `${MODE}=none`);
    await eventually('web is not annotated', async () => !(await isAnnotated('web')));
    await eventually(
      'both are said',
      async () => (await reasons('web')).join() === 'MeshEnrolled,MeshRemoved',
    );
    await eventually('its node has lost the taint', async () => (await taintsOf('node-a')).join() === 'pool');
    // As in an upgrade: the DaemonSet is there, so redirection goes on.
    assert.deepEqual(await agent.stop('SIGTERM'), { code: 0, signal: null });
    assert.match(logOf(agent), /leaving: links and maps stay/);
    assert.notDeepEqual(pins(), []);
    assert.deepEqual(
      [...new Set(requests().map(usedBy))].sort(),
      roles.flatMap(({ rules }) => rightsOf(rules)).sort(),
    );
  });

  test('may write nothing but its annotation, on pods of its own node alone', async () => {
    await cluster.apply(
      podObject('near', { node: 'node-a', namespace: 'shop' }),
      podObject('far', { node: 'node-b', namespace: 'shop' }),
    );
    const own = { [REDIRECTION]: 'enabled' };
    const patch = async (name: string, body: object, as = account): Promise<string> => {
      using api = makeKubeApi(cluster.endpoint, as.identity);
      return await api.patch(`/api/v1/namespaces/shop/pods/${name}/status`, 'merge-patch+json', body).then(
        () => 'done',
        (error: unknown) => String(error),
      );
    };
    // The API server takes a policy up some time after it is made.
    await eventually('the policy is in force', async () =>
      / may annotate pods of its own node only/.test(
        await patch('far', { metadata: { annotations: { [REDIRECTION]: null } } }),
      ),
    );
    assert.match(await patch('far', { metadata: { annotations: own } }), /403 /);
    assert.equal(await patch('near', { metadata: { annotations: own } }), 'done');
    for (const body of [
      { metadata: { annotations: { other: 'x' } } },
      { metadata: { labels: { app: 'ztunnel' } } },
      { metadata: { finalizers: ['example.com/x'] } },
      { status: { phase: 'Failed' } },
      { status: { podIP: '192.0.2.1', podIPs: [{ ip: '192.0.2.1' }] } },
      { metadata: { annotations: own }, status: { conditions: [{ type: 'Ready', status: 'False' }] } },
    ])
      assert.match(
        await patch('near', body),
        /403 .*may change the annotation ambient\.istio\.io\/redirection only/,
        JSON.stringify(body),
      );
    await cluster.kubectl('-n', 'shop', 'annotate', 'pod', 'near', 'mine=1');
    assert.match(await patch('near', { metadata: { annotations: { mine: null } } }), /403/);
    assert.match(await patch('near', { metadata: { annotations: { mine: '2' } } }), /403/);
    assert.equal(await patch('near', { metadata: { annotations: { [REDIRECTION]: null } } }), 'done');
    const unbound = await cluster.serviceAccount({ name: 'cgroute', namespace: 'kube-system' });
    assert.match(await patch('near', { metadata: { annotations: own } }, unbound), /403 .*its own node only/);
    // Both accounts are one, with one file for the token.
    await account.renewToken();
    await removePods('near', 'far');
  });

  test('may take its taint off its own node, and change nothing else of any', async () => {
    const patch = async (name: string, body: object): Promise<string> => {
      using api = makeKubeApi(cluster.endpoint, account.identity);
      return await api.patch(`/api/v1/nodes/${name}`, 'merge-patch+json', body).then(
        () => 'done',
        (error: unknown) => String(error),
      );
    };
    const others = async (name: string): Promise<object[]> => {
      const { spec } = await cluster.api.get<{ spec: { taints?: { key: string }[] } }>(
        `/api/v1/nodes/${name}`,
      );
      return (spec.taints ?? []).filter(({ key }) => key !== TAINT);
    };
    await cluster.kubectl('taint', '--overwrite', 'node', 'node-a', `${TAINT}=:NoSchedule`);
    await eventually('the policy is in force', async () =>
      / may change its own node only/.test(
        await patch('node-b', { spec: { taints: await others('node-b') } }),
      ),
    );
    assert.ok((await taintsOf('node-b')).includes(TAINT));
    const own = { spec: { taints: await others('node-a') } };
    for (const body of [
      { spec: { taints: null } },
      { spec: { taints: [...own.spec.taints, { key: 'more', effect: 'NoExecute' }] } },
      { ...own, metadata: { labels: { pool: 'mine' } } },
      { ...own, metadata: { annotations: { pool: 'mine' } } },
      { spec: { ...own.spec, unschedulable: true } },
      { spec: { ...own.spec, providerID: 'mine' } },
    ])
      assert.match(
        await patch('node-a', body),
        /403 .*may take the taint \S+ off its node only/,
        JSON.stringify(body),
      );
    assert.equal(await patch('node-a', own), 'done');
    assert.deepEqual(await taintsOf('node-a'), ['pool']);
  });

  /** What is seen when the right is not there. The agent runs, and `name` is a new pod that should be redirected. */
  const missed: Readonly<Record<Right, (agent: Running, name: string) => Promise<unknown>>> = {
    'list pods': (agent) => saysSo(agent, 'pods'),
    'watch pods': (agent) => saysSo(agent, 'pods'),
    'list namespaces': (agent) => saysSo(agent, 'namespaces'),
    'watch namespaces': (agent) => saysSo(agent, 'namespaces'),
    'patch pods/status': async (agent, name) => {
      await eventually('it says that it may not', () =>
        new RegExp(`annotation of pod shop/${name} could not be written.*403`).test(logOf(agent)),
      );
      assert.equal(await isAnnotated(name), false);
    },
    'create events': async (_, name) => {
      await eventually('it is annotated', () => isAnnotated(name));
      await eventually('an Event was tried', () =>
        requests().some(({ verb, uri }) => verb === 'create' && uri.includes('/events')),
      );
      assert.deepEqual(await reasons(name), []);
    },
    'get nodes': (agent) => saysSo(agent, 'startup-taint'),
    'patch nodes': async (agent) => {
      await cluster.kubectl('taint', '--overwrite', 'node', 'node-a', `${TAINT}=:NoSchedule`);
      await saysSo(agent, 'startup-taint');
    },
    'get apps/daemonsets': async (agent, name) => {
      await eventually('it is annotated', () => isAnnotated(name));
      const before = requests().length;
      agent.kill('SIGTERM');
      // It asks again and again: it might be on its way out with its account.
      await eventually(
        'it asks for its DaemonSet',
        () =>
          requests()
            .slice(before)
            .filter((request) => usedBy(request) === 'get apps/daemonsets').length > 1,
      );
      assert.doesNotMatch(logOf(agent), /"msg":"leaving/);
    },
  };

  /** The source is not as it should be, and its detail tells of the API server's refusal. */
  const saysSo = (agent: Running, source: string): Promise<unknown> =>
    eventually(`source ${source} tells of a 403`, async () => {
      const address = /"http":"([^"]+)"/.exec(logOf(agent))?.[1];
      if (address === undefined) return false;
      const { sources } = (await (await fetch(`http://${address}/status`)).json()) as {
        sources: { name: string; state: string; detail: string }[];
      };
      return sources.some(
        ({ name, state, detail }) => name === source && state !== 'ok' && detail.includes('403'),
      );
    });

  test('each right of the chart is among those that are taken away below', () => {
    assert.deepEqual(Object.keys(missed).sort(), roles.flatMap(({ rules }) => rightsOf(rules)).sort());
  });

  for (const [at, [right, isMissed]] of Object.entries(missed).entries()) {
    test(`misses the right to ${right}`, async () => {
      const role = roles.find(({ rules }) => rightsOf(rules).includes(right));
      assert.ok(role);
      const name = `pod-${at}`;
      await addPod(name);
      await cluster.apply(without(role, right));
      try {
        await eventually('the API server knows the new role', async () => !(await isAllowed(right)));
        await using agent = start();
        await isMissed(agent, name);
      } finally {
        await cluster.apply(role);
        await eventually('the API server knows the old role', () => isAllowed(right));
      }
    });
  }
});

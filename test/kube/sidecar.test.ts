/** Pods with a sidecar and a real API server: kubectl's labels, and Events where nothing can be done. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { type Mesh, type MeshNode, servingPod, startMesh } from '../harness/kube-mesh.ts';
import { namespaceObject } from '../harness/kube-objects.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import type { PodOnNode } from '../harness/kubelet-view.ts';
import { BYPASS, MODE, SIDECAR_STATUS } from '../harness/label-names.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { installSidecarRules, ownRules, startSidecar } from '../../deploy/stage/sidecar.ts';
import { connect } from '../../deploy/stage/sock.ts';

const PROGRAM = resolve(import.meta.dirname, '../../dist/cgroute');

interface ConfigMap {
  readonly kind: string;
  readonly data: Readonly<Record<string, string>>;
}

interface EventObject {
  readonly reason: string;
  readonly message: string;
  readonly type: string;
  readonly involvedObject: { readonly name: string };
}

describe('a pod with a sidecar', { skip: KUBE_MISSING }, () => {
  let mesh: Mesh;
  let node: MeshNode;
  let pod: PodOnNode;
  let netns = '';

  before(async () => {
    mesh = await startMesh('kube-sidecar');
    node = await mesh.addNode({ name: 'node-a' });
    await mesh.cluster.apply(
      namespaceObject('shop'),
      servingPod('app', {
        node: 'node-a',
        namespace: 'shop',
        annotations: { [SIDECAR_STATUS]: '{}' },
      }),
    );
    pod = await node.kubelet.running('shop', 'app');
    netns = pod.place().netns ?? '';
    await installSidecarRules(netns);
    await startSidecar(mesh.sandbox, { name: 'app', netns }, pod.place());
  });
  after(() => mesh?.[Symbol.asyncDispose]());

  const label = (what: readonly string[], text: string) =>
    mesh.cluster.kubectl('-n', 'shop', 'label', '--overwrite', ...what, text);
  /** `direct`, or by somebody: the server sees another port than the client has. */
  const travel = async (): Promise<string> => {
    const result = await connect(pod.place(), mesh.server.ip, mesh.server.port);
    if (!result.ok) return result.errno;
    return result.reply.endsWith(result.local.replace(/.*:/, ':')) ? 'direct' : 'sidecar';
  };
  const becomes = (way: string) => eventually(`connections are ${way}`, async () => (await travel()) === way);

  test('is bypassed when kubectl labels it, and no longer when the label goes', async () => {
    assert.equal(await travel(), 'sidecar');
    await label(['pod', 'app'], `${BYPASS}=enabled`);
    await becomes('direct');
    await label(['pod', 'app'], `${BYPASS}-`);
    await becomes('sidecar');
    await eventually('its rules are gone', async () => (await ownRules(netns)).length === 0);
  });

  test('is redirected past its sidecar when kubectl labels the namespace kmesh', async () => {
    await label(['namespace', 'shop'], `${MODE}=kmesh`);
    await node.until('it is redirected', ({ pods }) =>
      pods.some(({ name, reason }) => name === 'app' && reason === 'sidecar-short-circuited'),
    );
    assert.equal(await node.travel(pod.place()), 'redirected');
    await label(['namespace', 'shop'], `${MODE}-`);
    await eventually('its rules are gone', async () => (await ownRules(netns)).length === 0);
    assert.equal(await travel(), 'sidecar');
  });

  test('has an Event where the agent may not enter its namespace', async () => {
    await node.agent.stop();
    await node.startAgent({
      start: (args) => ({
        cmd: 'setpriv',
        args: ['--bounding-set', '-sys_admin', '--inh-caps', '-sys_admin', PROGRAM, ...args],
      }),
    });
    await label(['pod', 'app'], `${BYPASS}=enabled`);
    const event = await eventually('there is an Event', async () => {
      const { items } = await mesh.cluster.api.get<{ items: EventObject[] }>(
        '/api/v1/namespaces/shop/events',
      );
      return items.find(({ reason }) => reason === 'SidecarStays');
    });
    assert.deepEqual([event.type, event.involvedObject.name], ['Warning', 'app']);
    assert.match(
      event.message,
      /^the sidecar of pod shop\/app cannot be bypassed: the agent lacks CAP_SYS_ADMIN/,
    );
    assert.equal(await travel(), 'sidecar');
  });

  test("has an Event that names the chart's value where it is as the chart has it by default", async () => {
    const manifest = parseAllDocuments(
      readFileSync(resolve(import.meta.dirname, '../../deploy/cgroute.yaml'), 'utf8'),
    ).map((document) => document.toJS() as ConfigMap | null);
    const config = manifest.find((object) => object?.kind === 'ConfigMap')?.data['config.yaml'];
    await label(['pod', 'app'], `${BYPASS}-`);
    await node.agent.stop();
    const agent = await node.startAgent(config === undefined ? {} : { config });
    assert.ok(
      agent
        .log()
        .some(
          ({ level, msg }) =>
            level === 'info' &&
            /^sidecars stay in the path of their pods: the agent runs with sidecars: false/.test(String(msg)),
        ),
    );
    await label(['pod', 'app'], `${BYPASS}=enabled`);
    const says =
      /^the sidecar of pod shop\/app cannot be bypassed: the agent runs with sidecars: false; to allow it, set sidecars: true in the chart's values/;
    await eventually('there is an Event', async () => {
      const { items } = await mesh.cluster.api.get<{ items: EventObject[] }>(
        '/api/v1/namespaces/shop/events',
      );
      return items.some(
        ({ reason, type, message, involvedObject }) =>
          reason === 'SidecarStays' &&
          type === 'Warning' &&
          involvedObject.name === 'app' &&
          says.test(message),
      );
    });
    assert.equal(await travel(), 'sidecar');
  });
});

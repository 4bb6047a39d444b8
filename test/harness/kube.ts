/**
 * A real kube-apiserver with its etcd, on loopback, in a sandbox. There are no
 * controllers and no scheduler: a test binds its pods to nodes itself
 * (`spec.nodeName`), and only {@link Cluster.removeNamespace} empties a namespace.
 */
import { mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type FaultProxy, type Faults, startFaultProxy } from './fault-proxy.ts';
import {
  type ServiceAccount,
  type ServiceAccountOptions,
  makeServiceAccount,
  writeKubeconfig,
} from './kube-account.ts';
import { type Endpoint, type KubeApi, KubeApiError, makeKubeApi } from './kube-api.ts';
import { type KeyPair, makeAuthority, makeSigningKey } from './kube-certificates.ts';
import type { KubeObject, Pod } from './kube-objects.ts';
import {
  type RecordedRequest,
  type ServerOptions,
  makeApiServer,
  requestsIn,
  startEtcd,
} from './kube-server.ts';
import { kubeTools } from './kube-tools.ts';
import { type Finished, eventually, run } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export interface Cluster extends AsyncDisposable {
  readonly endpoint: Endpoint;
  /** The API as `system:masters` may use it. */
  readonly api: KubeApi;
  /** The admin's kubeconfig file. */
  readonly kubeconfig: string;
  /** Runs kubectl as the admin; an exit code other than 0 is an error. Returns its standard output. */
  kubectl(...args: readonly string[]): Promise<string>;
  /** Runs kubectl as the admin, or with another kubeconfig, whatever comes of it. */
  tryKubectl(
    args: readonly string[],
    options?: { readonly kubeconfig?: string; readonly stdin?: string },
  ): Promise<Finished>;
  /** Server-side apply, without the start of a program. */
  apply(...objects: readonly KubeObject[]): Promise<void>;
  /** One pod as it is now; undefined when there is none. */
  pod(namespace: string, name: string): Promise<Pod | undefined>;
  /** Deletes a namespace, the pods in it first, in the place of the namespace controller. */
  removeNamespace(name: string): Promise<void>;
  stopApiServer(signal?: NodeJS.Signals): Promise<void>;
  startApiServer(): Promise<void>;
  restartApiServer(signal?: NodeJS.Signals): Promise<void>;
  /**
   * Compacts etcd, so that a watch from any resourceVersion handed out before
   * gets a 410. An API server with its watch cache is restarted for that, as it
   * would go on answering from memory.
   */
  compact(): Promise<void>;
  /** A proxy in front of the API server, gone with the cluster. */
  proxied(faults?: Faults): Promise<FaultProxy & { readonly url: string }>;
  serviceAccount(options: ServiceAccountOptions): Promise<ServiceAccount>;
  /** A client certificate of this user in these groups; a kubelet's is `system:node:NAME` in `system:nodes`. */
  certificate(user: string, ...groups: readonly string[]): Promise<KeyPair>;
  /** Another certificate of the API server, by the same authority; it is not put in place. */
  serverCertificate(): Promise<KeyPair>;
  /** Every request so far, of a cluster started with `audit: true`. */
  requests(): RecordedRequest[];
  /** The last lines of the API server's log. */
  log(lines?: number): string;
}

/** With the address of the service `kubernetes`, which pods are told. */
const SERVER_NAMES = 'IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc';

/** Starts etcd and an API server, which takes three to four seconds. Goes away with `await using`, and with the sandbox. */
export async function startCluster(sandbox: Sandbox, options: ServerOptions = {}): Promise<Cluster> {
  const tools = await kubeTools();
  const directory = sandbox.file('kube');
  mkdirSync(directory, { recursive: true });
  const files = async () => {
    const authority = await makeAuthority(directory);
    const server = await authority.issue('kube-apiserver', '/CN=kube-apiserver', SERVER_NAMES);
    const admin = await authority.issue('admin', '/O=system:masters/CN=admin');
    return { authority, server, admin };
  };
  const [etcd, { authority, server, admin }] = await Promise.all([startEtcd(sandbox, tools), files()]);
  const signing = makeSigningKey(directory);
  const apiServer = await makeApiServer(
    sandbox,
    tools,
    etcd.url,
    { ca: authority.certFile, server, signing, directory },
    options,
    async () => (await api.get('/readyz')) === 'ok',
  );
  const endpoint: Endpoint = { url: `https://127.0.0.1:${apiServer.port}`, ca: authority.cert };
  const api = makeKubeApi(endpoint, admin, 'test-admin');
  const kubeconfig = writeKubeconfig(join(directory, 'admin.kubeconfig'), endpoint, {
    'client-certificate': admin.certFile,
    'client-key': admin.keyFile,
  });
  const proxies: FaultProxy[] = [];
  let issued = 0;

  async function pod(namespace: string, name: string): Promise<Pod | undefined> {
    try {
      return await api.get<Pod>(`/api/v1/namespaces/${namespace}/pods/${name}`);
    } catch (error) {
      if (error instanceof KubeApiError && error.status === 404) return undefined;
      throw error;
    }
  }

  const tryKubectl: Cluster['tryKubectl'] = (args, { kubeconfig: config = kubeconfig, stdin = '' } = {}) =>
    // By the environment, as a plugin's name must be the first argument.
    run({
      cmd: tools.kubectl,
      args,
      stdin,
      env: {
        KUBECONFIG: config,
        KUBECACHEDIR: join(directory, 'kubectl'),
        PATH: `${dirname(tools.kubectl)}:${process.env['PATH'] ?? ''}`,
      },
    });

  async function kubectl(...args: readonly string[]): Promise<string> {
    const { code, signal, stdout, stderr } = await tryKubectl(args);
    if (code !== 0) throw new Error(`kubectl ${args.join(' ')}: exited with ${code ?? signal}\n${stderr}`);
    return stdout;
  }

  async function removeNamespace(name: string): Promise<void> {
    const path = `/api/v1/namespaces/${name}`;
    await api.request('DELETE', path);
    await api.request('DELETE', `${path}/pods`);
    await eventually(
      `no pod is left in namespace ${name}`,
      async () => (await api.get<{ items: unknown[] }>(`${path}/pods`)).items.length === 0,
      { ownMs: 30_000 },
    );
    const now = await api.get<KubeObject>(path);
    await api.request('PUT', `${path}/finalize`, { ...now, spec: { finalizers: [] } });
  }

  /** One call of etcd's gateway for JSON; the revision after it. */
  async function etcdCall(method: string, body: unknown): Promise<number> {
    const response = await fetch(`${etcd.url}/v3/kv/${method}`, {
      method: 'POST',
      body: JSON.stringify(body),
    });
    if (!response.ok) throw new Error(`etcd ${method}: ${response.status} ${await response.text()}`);
    const { header } = (await response.json()) as { header: { revision: string } };
    return Number(header.revision);
  }

  async function compact(): Promise<void> {
    const cached = options.watchCache !== false;
    if (cached) await apiServer.stop();
    // A write, as the latest revision stays watchable: no event after it is lost.
    const key = Buffer.from('/compacted').toString('base64');
    const revision = await etcdCall('put', { key, value: key });
    await etcdCall('compaction', { revision, physical: true });
    if (cached) await apiServer.start();
  }

  async function proxied(faults?: Faults): Promise<FaultProxy & { readonly url: string }> {
    const proxy = await startFaultProxy(apiServer.port, faults);
    proxies.push(proxy);
    return Object.defineProperty(proxy, 'url', { value: `https://127.0.0.1:${proxy.port}` }) as FaultProxy & {
      readonly url: string;
    };
  }

  await apiServer.start();
  await eventually('the API server has made its namespaces', async () => {
    const { items } = await api.get<{ items: KubeObject[] }>('/api/v1/namespaces');
    return ['default', 'kube-system'].every((name) => items.some(({ metadata }) => metadata.name === name));
  });
  return {
    endpoint,
    api,
    kubeconfig,
    kubectl,
    tryKubectl,
    pod,
    removeNamespace,
    compact,
    proxied,
    apply: (...objects) => api.apply(objects),
    stopApiServer: (signal) => apiServer.stop(signal),
    startApiServer: () => apiServer.start(),
    async restartApiServer(signal) {
      await apiServer.stop(signal);
      await apiServer.start();
    },
    serviceAccount: (account) =>
      makeServiceAccount(api, endpoint, join(directory, `account-${account.name}`), account),
    certificate: (user, ...groups) =>
      authority.issue(`client-${++issued}`, `/${groups.map((group) => `O=${group}/`).join('')}CN=${user}`),
    serverCertificate: () =>
      authority.issue(`kube-apiserver-${++issued}`, '/CN=kube-apiserver', SERVER_NAMES),
    requests: () => requestsIn(directory),
    log: (lines) => apiServer.log(lines),
    async [Symbol.asyncDispose]() {
      await Promise.all(proxies.map((proxy) => proxy[Symbol.asyncDispose]()));
      api[Symbol.dispose]();
      await apiServer.stop('SIGKILL');
      await etcd.running.stop('SIGKILL');
    },
  };
}

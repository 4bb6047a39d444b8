/**
 * A real node: a guest with systemd, containerd and a kubelet, joined to an API
 * server that runs here. Its network is QEMU's, closed but for two ways: the
 * guest reaches the API server at the address of the service `kubernetes`, and
 * the kubelet is reached from here, to run commands in its containers.
 */
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { buildImage } from '../../harness/image.ts';
import { type Cluster, startCluster } from '../../harness/kube.ts';
import { writeKubeconfig } from '../../harness/kube-account.ts';
import type { KubeObject, Pod } from '../../harness/kube-objects.ts';
import { freePort } from '../../harness/kube-server.ts';
import type { CgroupDriver } from '../../harness/kubelet-cgroups.ts';
import { type Sandbox, makeSandbox } from '../../../deploy/stage/sandbox.ts';
import { type Kernel, makeExt4, prepareKernel } from '../kernel.ts';
import { type Ended, runGuest } from '../machine.ts';
import { buildKubelet, KUBELET_VERSION } from './kubelet.ts';
import { type KubeletApi, makeKubeletApi } from './kubelet-api.ts';
import { SUITE, prepareRoot } from './root.ts';

export const NODE = 'node';
export const NODE_IP = '10.96.255.15';
const NETWORK = [
  'net=10.96.0.0/16',
  'host=10.96.255.2',
  'dns=10.96.255.3',
  'dhcpstart=10.96.255.15',
  'restrict=on',
];
/** The service `kubernetes`: the first of the API server's range. */
const API_SERVER = '10.96.0.1:443';
const MEMORY_MIB = 3072;
const CPUS = 2;
/**
 * HAProxy needs cmpxchg16b; the kernel should not use it, as its slab allocator
 * has fallen over under emulation when it did.
 */
const KERNEL_ARGUMENTS = 'clearcpuid=cx16 systemd.show_status=no systemd.unified_cgroup_hierarchy=1';
const POLL_MS = 500;

export interface RealNode extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly cluster: Cluster;
  readonly kernel: Kernel;
  /** Of Debian's packages, and of the kubelet. */
  readonly versions: Readonly<Record<string, string>>;
  /** Waits until `check` gives something; an end of the guest before that is an error, with the node's last words. */
  until<T>(what: string, check: () => Promise<T | undefined | false>, timeoutMs?: number): Promise<T>;
  /** Binds pods to the node, and waits until each is ready, or has come to its end. */
  start(...pods: readonly Pod[]): Promise<readonly Pod[]>;
  /** Deletes pods and waits until the kubelet has removed them. */
  remove(...pods: readonly { readonly namespace: string; readonly name: string }[]): Promise<void>;
  /** Runs a command in a container; the words have no spaces. Its output, whatever its exit code is. */
  exec(namespace: string, pod: string, container: string, ...command: readonly string[]): Promise<string>;
  /** What a container has written. */
  logs(namespace: string, pod: string, container: string): Promise<string>;
  /** The cgroup driver that the kubelet says it uses; undefined while it does not run. */
  driver(): Promise<CgroupDriver | undefined>;
  /** The last lines of the node's journal. */
  journal(lines?: number): string;
}

export interface NodeOptions {
  readonly driver: CgroupDriver;
  /** Where kernels and root file systems are kept. */
  readonly cache: string;
  readonly limitMs: number;
  /** Files for the node's directory /data, by name. */
  readonly files?: Readonly<Record<string, string>>;
  readonly say: (line: string) => void;
}

/** What the guest's disk with this run's files has. */
async function makeData(
  sandbox: Sandbox,
  cluster: Cluster,
  driver: CgroupDriver,
  files: Readonly<Record<string, string>>,
): Promise<string> {
  const directory = sandbox.file('data');
  mkdirSync(directory);
  const identity = await cluster.certificate(`system:node:${NODE}`, 'system:nodes');
  const server = await cluster.serverCertificate();
  const text = (pem: string): string => Buffer.from(pem).toString('base64');
  writeKubeconfig(
    join(directory, 'kubeconfig'),
    { ...cluster.endpoint, url: `https://${API_SERVER}` },
    {
      'client-certificate-data': text(identity.cert),
      'client-key-data': text(identity.key),
    },
  );
  writeFileSync(join(directory, 'ca.crt'), cluster.endpoint.ca);
  copyFileSync(server.certFile, join(directory, 'kubelet.crt'));
  copyFileSync(server.keyFile, join(directory, 'kubelet.key'));
  writeFileSync(join(directory, 'cgroup-driver'), `${driver}\n`);
  for (const [name, content] of Object.entries(files)) writeFileSync(join(directory, name), content);
  const archive = { file: join(directory, 'agent.tar'), name: 'docker.io/library/cgroute:0.1.0' };
  await buildImage(sandbox, { archive });
  const image = sandbox.file('data.ext4');
  makeExt4(directory, image, 0);
  rmSync(directory, { recursive: true });
  return image;
}

/** Boots it, and waits until the node is ready. */
export async function startNode({ driver, cache, limitMs, files = {}, say }: NodeOptions): Promise<RealNode> {
  const stack = new AsyncDisposableStack();
  try {
    mkdirSync(cache, { recursive: true });
    const kubeletProgram = await buildKubelet((line) => say(line));
    const kernel = await prepareKernel({ name: '6.12', suite: SUITE }, cache);
    const root = await prepareRoot(kubeletProgram, cache, say);
    const sandbox = stack.use(await makeSandbox('real-node'));
    const cluster = stack.use(await startCluster(sandbox));
    const data = await makeData(sandbox, cluster, driver, files);
    const port = await freePort();
    const journal: string[] = [];
    const stopped = new AbortController();
    let ended: Ended | undefined;
    const guest = runGuest({
      kernel,
      image: root.image,
      console: sandbox.file('console'),
      memoryMib: MEMORY_MIB,
      cpus: CPUS,
      timeoutMs: limitMs,
      drives: [data],
      kernelArguments: KERNEL_ARGUMENTS,
      signal: stopped.signal,
      network: [
        ...NETWORK,
        `guestfwd=tcp:${API_SERVER}-cmd:busybox nc 127.0.0.1 ${new URL(cluster.endpoint.url).port}`,
        `hostfwd=tcp:127.0.0.1:${port}-${NODE_IP}:10250`,
      ],
      onLine: (line) => void journal.push(line),
    }).then((how) => (ended = how));
    stack.defer(async () => {
      stopped.abort();
      await guest;
    });
    const identity = await cluster.certificate('test', 'system:masters');
    const kubelet = makeKubeletApi(port, cluster.endpoint.ca, identity);
    const node = makeNode({
      sandbox,
      cluster,
      kernel,
      versions: { ...root.versions, kubelet: KUBELET_VERSION },
      kubelet,
      journal,
      ended: () => ended,
    });
    await node.until(
      'the node is ready',
      async () => {
        const { items } = await cluster.api.get<{ items: readonly KubeObject[] }>('/api/v1/nodes');
        const status = items[0]?.['status'] as
          | { readonly conditions?: readonly { readonly type: string; readonly status: string }[] }
          | undefined;
        return status?.conditions?.some(({ type, status: is }) => type === 'Ready' && is === 'True');
      },
      limitMs,
    );
    return { ...node, [Symbol.asyncDispose]: () => stack.disposeAsync() };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

interface Parts extends Pick<RealNode, 'sandbox' | 'cluster' | 'kernel' | 'versions'> {
  readonly kubelet: KubeletApi;
  readonly journal: readonly string[];
  ended(): Ended | undefined;
}

/** Whether a pod that serves is ready, or one that ends has ended. */
function isSettled({ status, spec }: Pod): boolean {
  if (spec.restartPolicy === 'Never') return status?.phase === 'Succeeded' || status?.phase === 'Failed';
  return status?.conditions?.some(({ type, status: is }) => type === 'Ready' && is === 'True') ?? false;
}

function makeNode({ kubelet, journal, ended, ...parts }: Parts): Omit<RealNode, typeof Symbol.asyncDispose> {
  const { cluster } = parts;
  const pathOf = (namespace: string, name: string): string => `/api/v1/namespaces/${namespace}/pods/${name}`;
  const lastWords = (lines = 60): string => journal.slice(-lines).join('\n');

  const until: RealNode['until'] = async (what, check, timeoutMs = 240_000) => {
    const end = performance.now() + timeoutMs;
    for (let last: unknown; ; await delay(POLL_MS)) {
      try {
        const value = await check();
        if (value !== undefined && value !== false) return value;
      } catch (error) {
        last = error;
      }
      const guest = ended();
      if (guest === undefined && performance.now() < end) continue;
      const why =
        guest === undefined
          ? `not within ${timeoutMs / 1000} s`
          : `the guest has ended: ${guest.failure ?? 'switched off'}\n${guest.tail}`;
      throw new Error(`${what}: ${why}\n${lastWords()}`, { cause: last });
    }
  };

  return {
    ...parts,
    until,
    async start(...pods) {
      await cluster.apply(...pods);
      return Promise.all(
        pods.map(({ metadata: { namespace = 'default', name } }) => {
          let seen = '';
          return until(`pod ${namespace}/${name} runs`, async () => {
            const pod = await cluster.pod(namespace, name);
            seen = JSON.stringify(pod?.status);
            return pod !== undefined && isSettled(pod) ? pod : undefined;
          }).catch((error: unknown) => {
            throw new Error(`${String(error)}\n${seen}`, { cause: error });
          });
        }),
      );
    },
    async remove(...pods) {
      await Promise.all(
        pods.map(async ({ namespace, name }) => {
          await cluster.api.request('DELETE', pathOf(namespace, name));
          await until(
            `pod ${namespace}/${name} is gone`,
            async () => (await cluster.pod(namespace, name)) === undefined,
          );
        }),
      );
    },
    exec: (namespace, pod, container, ...command) =>
      kubelet.ask(
        'POST',
        `/run/${namespace}/${pod}/${container}?cmd=${encodeURIComponent(command.join(' '))}`,
      ),
    logs: (namespace, pod, container) =>
      kubelet.ask('GET', `/containerLogs/${namespace}/${pod}/${container}`),
    async driver() {
      try {
        const { kubeletconfig } = JSON.parse(await kubelet.ask('GET', '/configz')) as {
          kubeletconfig: { cgroupDriver: CgroupDriver };
        };
        return kubeletconfig.cgroupDriver;
      } catch {
        return undefined;
      }
    },
    journal: lastWords,
  };
}

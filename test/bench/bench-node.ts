/**
 * The topology that connections are measured in: one pod, whose network has
 * all four ways over its own loopback device, its equal with iptables, and, over
 * a bridge, a server and a proxy with networks of their own.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { PodOptions } from '../../mapper/maps/pod-options.ts';
import { redirectByIptables } from '../harness/iptables-redirect.ts';
import { trafficOptions } from '../../mapper/decisions/traffic-options.ts';
import { infoFlag } from '../../native/layout/layouts.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { ip, makeNetwork } from '../../deploy/stage/netns.ts';
import { must, run } from '../../deploy/stage/process.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import { listen, type Place, SOCK } from '../../deploy/stage/sock.ts';
import { openTestPlane } from '../kernel/data-plane.ts';
import { TRAFFIC } from '../harness/label-names.ts';

/** An address of its own on `lo`, where each pod finds a server on port 8080. */
const LOCAL = '10.88.0.1';
const PORT = 8080;
const OUTBOUND = 15001;

/**
 * Clients and listeners run ahead of whatever else the machine does (SCHED_FIFO),
 * and on the CPUs that the scheduler gives them: by far the steadiest on a machine
 * that others work on. Pinned to one CPU they wait for each other; pinned to two
 * they were no steadier.
 */
const PRIORITY = '10';

/** Of the pod with traffic options; none of them is the destination, so all are looked through. */
export const RANGES = 200;
export const EXCLUDED_PORTS = 20;
const OPTIONS_SLOT = 4;

/** A way for a connection to go. */
export interface Way {
  /** Who connects, and from where. */
  readonly place: Place;
  readonly address: string;
  /** The proxy that redirected connections go to. */
  readonly proxy: string;
  /** Whether our programs are there at all. */
  readonly attached: boolean;
}

export type WayName =
  | 'direct'
  | 'control'
  | 'untouched'
  | 'untouched_host'
  | 'redirected'
  | 'redirected_options'
  | 'iptables_redirect'
  | 'node_direct'
  | 'node_redirected';

export interface BenchNode extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly bpffsRoot: string;
  /** Whether clients and listeners run with real-time priority; a container may lack the right to. */
  readonly hasPriority: boolean;
  readonly ways: Readonly<Record<WayName, Way>>;
  /** Attaches or detaches our programs as this way wants it, and tells them the proxy. */
  prepare(way: Way): Promise<void>;
  /** Connects again and again: the median of connect() alone, nanoseconds. A connection that fails is an error. */
  connect(way: Way, count: number): Promise<number>;
}

/** As {@link BenchNode.connect} counts: `sock bench` warms up with a tenth more. */
export const connections = (count: number): number => count + Math.floor(count / 10);

/** Starts a server that asks for the original destination: all listeners do, so that they do the same work. */
async function serve(
  sandbox: Sandbox,
  place: Place,
  address: string,
  port: number,
  priority: boolean,
): Promise<void> {
  const { running } = await listen(sandbox, place, 'proxy', address, [port], '--quiet');
  if (priority) await must({ cmd: 'chrt', args: ['-f', '-p', PRIORITY, String(running.pid)] });
}

/** Makes it, with our programs not attached yet. */
export async function makeBenchNode(): Promise<BenchNode> {
  const stack = new AsyncDisposableStack();
  try {
    return await build(stack);
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

async function build(stack: AsyncDisposableStack): Promise<BenchNode> {
  const sandbox = stack.use(await makeSandbox('bench'));
  const network = await makeNetwork(sandbox);
  const podTree = sandbox.cgroup('kubepods');
  const appPod = sandbox.cgroup('kubepods/podapp');
  const appCgroup = sandbox.cgroup('kubepods/podapp/container');
  const optionsPod = sandbox.cgroup('kubepods/podoptions');
  const optionsCgroup = sandbox.cgroup('kubepods/podoptions/container');
  const outCgroup = sandbox.cgroup('kubepods/podout/container');
  const proxyCgroup = sandbox.cgroup('kubepods/podproxy');
  const pod = await network.addHost('pod');
  const iptables = await network.addHost('iptables');
  const server = await network.addHost('server');
  const proxy = await network.addHost('proxy');
  const host = { cgroup: sandbox.hostCgroup };
  const inPod = { ...host, netns: pod.netns };
  const inIptables = { ...host, netns: iptables.netns };
  const hasPriority = (await run({ cmd: 'chrt', args: ['-f', PRIORITY, 'true'] })).code === 0;

  for (const { netns } of [pod, iptables]) await ip(netns, `address add ${LOCAL}/32 dev lo`);
  await redirectByIptables(iptables.netns, 'iptables', { ip: LOCAL, port: PORT }, OUTBOUND);
  await serve(sandbox, inPod, LOCAL, PORT, hasPriority);
  await serve(sandbox, { cgroup: proxyCgroup, netns: pod.netns }, '127.0.0.1', OUTBOUND, hasPriority);
  await serve(sandbox, inIptables, '127.0.0.1', OUTBOUND, hasPriority);
  await serve(sandbox, { ...host, netns: server.netns }, server.ip4, PORT, hasPriority);
  await serve(sandbox, { cgroup: proxyCgroup, netns: proxy.netns }, proxy.ip4, OUTBOUND, hasPriority);

  const bpffsRoot = `${sandbox.bpffs}/cgroute`;
  const plane = stack.use(
    openTestPlane(sandbox, { bpffsRoot, ports: { outbound: OUTBOUND, inbound: 15006 } }),
  );
  const { plane: programs } = plane;
  const { maps } = programs;
  const enrol = (cgroup: Cgroup, slot: number, inMesh: boolean, flags: number, ip4: string): void =>
    plane.enrol(cgroup, { slot, inMesh, flags, detectedFlags: flags, ip4 });
  enrol(appCgroup, 1, true, infoFlag.ambient, pod.ip4);
  enrol(outCgroup, 2, false, 0, pod.ip4);
  enrol(optionsCgroup, OPTIONS_SLOT, true, infoFlag.ambient | infoFlag.options, pod.ip4);
  new PodOptions(maps).set(
    OPTIONS_SLOT,
    trafficOptions({
      [`${TRAFFIC}excludeOutboundIPRanges`]: Array.from(
        { length: RANGES },
        (_, n) => `172.${16 + (n & 15)}.${n}.0/24`,
      ).join(),
      [`${TRAFFIC}excludeOutboundPorts`]: Array.from({ length: EXCLUDED_PORTS }, (_, n) =>
        String(9000 + n),
      ).join(),
    }).options,
    undefined,
  );
  enrol(proxyCgroup, 3, false, infoFlag.proxy, proxy.ip4);
  maps.podTrees.set(0, { count: 1, id: [podTree.id] });

  let attached = false;
  async function attach(wanted: boolean): Promise<void> {
    if (wanted === attached) return;
    attached = wanted;
    if (wanted) {
      programs.attachPodTree({ path: podTree.absolute, id: podTree.id });
      programs.attachProxy({ path: proxyCgroup.absolute, id: proxyCgroup.id });
      programs.attachSockets();
      for (const { absolute, id } of [appPod, optionsPod, sandbox.hostCgroup])
        programs.attachHandoff({ path: absolute, id });
      programs.attachRoot();
    } else {
      programs.detachPrograms();
    }
    // The kernel patches its own code, and lets go of programs a little later.
    await delay(20);
  }

  const app = { cgroup: appCgroup, netns: pod.netns };
  const way = (place: Place, isAttached: boolean, to: { address?: string; proxy?: string } = {}): Way => ({
    place,
    attached: isAttached,
    address: to.address ?? LOCAL,
    proxy: to.proxy ?? '127.0.0.1',
  });
  return {
    sandbox,
    bpffsRoot,
    hasPriority,
    ways: {
      direct: way(app, false),
      control: way(app, false),
      untouched: way({ cgroup: outCgroup, netns: pod.netns }, true),
      untouched_host: way(inPod, true),
      redirected: way(app, true),
      redirected_options: way({ cgroup: optionsCgroup, netns: pod.netns }, true),
      iptables_redirect: way({ cgroup: appCgroup, netns: iptables.netns }, false),
      node_direct: way(app, false, { address: server.ip4 }),
      node_redirected: way(app, true, { address: server.ip4, proxy: proxy.ip4 }),
    },
    async prepare(to) {
      await attach(to.attached);
      plane.setProxy({ ip4: to.proxy });
    },
    async connect(to, count) {
      const args = ['bench', String(count), to.address, String(PORT)];
      const text = await must({
        ...to.place,
        ...(hasPriority ? { cmd: 'chrt', args: ['-f', PRIORITY, SOCK, ...args] } : { cmd: SOCK, args }),
      });
      const { p50, errors } = JSON.parse(text) as { p50: number; errors: number };
      if (errors > 0) throw new Error(`${errors} of ${count} connections to ${to.address}:${PORT} failed`);
      return p50;
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

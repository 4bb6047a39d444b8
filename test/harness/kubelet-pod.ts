/**
 * One pod on a node, from its cgroup to its end: what a kubelet's pod worker
 * does. It knows the runtime and the network, and nothing of the API server.
 */
import { type Cgroup, removeCgroup } from '../../deploy/stage/cgroup.ts';
import type { ContainerSpec, PodSpec, PodStatus } from './kube-objects.ts';
import { type CgroupDriver, containerCgroupPath, podCgroupPath, qosOf } from './kubelet-cgroups.ts';
import {
  type PodNetwork,
  type Runtime,
  type RuntimeContainer,
  startRuntimeContainer,
} from './kubelet-runtime.ts';
import { type ContainerFacts, isPassed, isRunning, isSidecar, podStatus } from './kubelet-status.ts';
import type { NetworkHost } from '../../deploy/stage/netns.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export interface PodPlace {
  readonly sandbox: Sandbox;
  readonly driver: CgroupDriver;
  readonly runtime: Runtime;
  /** Where the kubelet's own root is below the sandbox's: empty, or `node-a/`. */
  readonly root: string;
  readonly podNetwork: PodNetwork;
  /** The node's own network, for pods with `hostNetwork`. */
  readonly host: NetworkHost;
}

/** A container of a pod, changing under one's hands when it is started again. */
export interface PodContainer extends ContainerFacts {
  readonly current: RuntimeContainer | undefined;
}

export interface PodWorker {
  readonly name: string;
  readonly namespace: string;
  /** What stands in the cgroup's name: the UID, or a static pod's hash. */
  readonly cgroupUid: string;
  /** Undefined before it is made and after the end. */
  readonly cgroup: Cgroup | undefined;
  readonly network: NetworkHost | undefined;
  /** By name. The pause container, which no specification names, is not among them. */
  readonly containers: ReadonlyMap<string, PodContainer>;
  /** Its containers and its network are gone, for whatever reason. */
  readonly over: boolean;
  /** The specification as it is now; only new ephemeral containers matter. */
  update(spec: PodSpec): void;
  /** Plays the readiness probe of all its containers. One that has a probe is not ready before this says so. */
  setReady(ready: boolean): void;
  /** Ends it: SIGTERM, after so many seconds SIGKILL; a second call may shorten the time. Settles when all is gone but {@link PodWorker.removeCgroup}'s. */
  terminate(graceSeconds: number): Promise<void>;
  removeCgroup(): void;
  /** Lets it run on as it is, and starts nothing again. */
  abandon(): void;
  status(before?: PodStatus): PodStatus;
}

/** The wait before a container that ended is started again: none the first time, then growing (a kubelet's, times a tenth). */
function backoffMs(restarts: number): number {
  return restarts === 0 ? 0 : Math.min(1000 * 2 ** (restarts - 1), 30_000);
}

interface Slot {
  spec: ContainerSpec;
  kind: ContainerFacts['kind'];
  current: RuntimeContainer | undefined;
  id?: string;
  startedAt?: string;
  ended?: { readonly exitCode: number; readonly at: string };
  restarts: number;
  probed: boolean;
  waiting?: string;
  starting: boolean;
}

/** Starts a pod. `changed` is called whenever its status is another; `failed` with what could not be done (it is tried again). */
export function startPodWorker(
  place: PodPlace,
  pod: {
    readonly namespace: string;
    readonly name: string;
    readonly cgroupUid: string;
    readonly spec: PodSpec;
  },
  changed: () => void,
  failed: (error: unknown) => void,
): PodWorker {
  const { sandbox, driver, runtime, podNetwork } = place;
  const { cgroupUid } = pod;
  let { spec } = pod;
  const path = podCgroupPath(driver, qosOf(spec), cgroupUid);
  const startedAt = new Date().toISOString();
  const slots = new Map<string, Slot>();
  const deadline = { at: Infinity };
  let cgroup: Cgroup | undefined;
  let network: NetworkHost | undefined;
  let pause: RuntimeContainer | undefined;
  let ips: readonly string[] = [];
  let terminating: Promise<void> | undefined;
  let over = false;
  let turn: Promise<void> = Promise.resolve();

  const of = (kind: Slot['kind']): Slot[] => [...slots.values()].filter((slot) => slot.kind === kind);
  const policy = (): string => spec.restartPolicy ?? 'Always';

  function addSlots(): void {
    const kinds = [
      ['init', spec.initContainers],
      ['main', spec.containers],
      ['ephemeral', spec.ephemeralContainers],
    ] as const;
    for (const [kind, containers] of kinds) {
      for (const container of containers ?? []) {
        if (slots.has(container.name)) continue;
        slots.set(container.name, {
          spec: container,
          kind,
          current: undefined,
          restarts: 0,
          probed: container.readinessProbe === undefined,
          starting: false,
        });
      }
    }
  }

  function startContainer(args: readonly string[] | undefined): Promise<RuntimeContainer> {
    const cgroupPath = (id: string): string => place.root + containerCgroupPath(driver, path, id);
    return startRuntimeContainer(sandbox, { runtime, cgroupPath, netns: network?.netns ?? '', args });
  }

  /** The pod's cgroup, then its namespace and address, then the container that holds them. */
  async function prepare(): Promise<void> {
    cgroup ??= sandbox.cgroup(place.root + path);
    if (pause !== undefined) return;
    network ??=
      spec.hostNetwork === true ? place.host : await podNetwork.attach(pod.name, runtime === 'none');
    pause = await startContainer(undefined);
    ips = [network.ip4, network.ip6];
    changed();
  }

  function wantsStart(slot: Slot): boolean {
    if (slot.starting || isRunning(slot)) return false;
    if (slot.id === undefined) return true;
    if (slot.kind === 'ephemeral') return false;
    const exitCode = slot.ended?.exitCode ?? 0;
    if (slot.kind === 'init' && !isSidecar(slot)) return exitCode !== 0 && policy() !== 'Never';
    return isSidecar(slot) || policy() === 'Always' || (policy() === 'OnFailure' && exitCode !== 0);
  }

  async function start(slot: Slot): Promise<void> {
    const { command = [], args = [] } = slot.spec;
    slot.starting = true;
    try {
      const again = slot.id !== undefined;
      await slot.current?.remove();
      slot.current = undefined;
      const line = [...command, ...args];
      const container = await startContainer(line.length > 0 ? line : undefined);
      if (again) {
        slot.restarts++;
        // What the probe said of the one before counts no more.
        if (slot.spec.readinessProbe !== undefined) slot.probed = false;
      }
      delete slot.ended;
      delete slot.waiting;
      Object.assign(slot, { current: container, id: container.id, startedAt: new Date().toISOString() });
      void container.exit.then((exitCode) => ended(slot, container, exitCode));
    } finally {
      slot.starting = false;
    }
    changed();
  }

  function ended(slot: Slot, container: RuntimeContainer, exitCode: number): void {
    if (slot.current !== container) return;
    slot.ended = { exitCode, at: new Date().toISOString() };
    const wait = backoffMs(slot.restarts);
    if (terminating === undefined && wantsStart(slot) && wait > 0) {
      slot.waiting = 'CrashLoopBackOff';
      slot.starting = true; // not before the wait is over
      setTimeout(() => {
        slot.starting = false;
        kick();
      }, wait).unref();
    }
    changed();
    kick();
  }

  /** One step towards what the specification wants. */
  async function sync(): Promise<void> {
    if (terminating !== undefined || over) return;
    addSlots();
    await prepare();
    for (const slot of of('ephemeral')) if (wantsStart(slot)) await start(slot);
    for (const slot of of('init')) {
      if (terminating !== undefined) return;
      if (wantsStart(slot)) await start(slot);
      if (!isPassed(slot)) return finishWhenOver();
    }
    for (const slot of of('main')) {
      if (terminating !== undefined) return;
      if (wantsStart(slot)) await start(slot);
    }
    await finishWhenOver();
  }

  /** A pod whose containers have all ended for good gives back its network and its cgroup, and stays listed. */
  async function finishWhenOver(): Promise<void> {
    const stuck = of('init').some(
      (slot) =>
        !isSidecar(slot) &&
        slot.ended !== undefined &&
        slot.ended.exitCode !== 0 &&
        !wantsStart(slot) &&
        !slot.starting,
    );
    const finished = of('main').every(
      (slot) => slot.ended !== undefined && !slot.starting && !wantsStart(slot),
    );
    if (!stuck && !finished) return;
    await tearDown();
    dropCgroup();
    changed();
  }

  function dropCgroup(): void {
    if (cgroup !== undefined) removeCgroup(cgroup.absolute);
    cgroup = undefined;
  }

  async function tearDown(): Promise<void> {
    const containers = [...slots.values()].map(({ current }) => current);
    await Promise.all([...containers, pause].map((container) => container?.remove()));
    for (const slot of slots.values()) slot.current = undefined;
    pause = undefined;
    if (network !== undefined && network !== place.host) await podNetwork.detach(network);
    network = undefined;
    over = true;
  }

  function kick(): void {
    turn = turn.then(sync).catch((error: unknown) => {
      if (terminating !== undefined) return;
      failed(error);
      setTimeout(kick, 1000).unref();
    });
  }

  async function end(): Promise<void> {
    await turn;
    if (over) return;
    const running = [...slots.values()].flatMap(({ current, ended: at }) =>
      current === undefined || at !== undefined ? [] : [current],
    );
    const exits = Promise.all(running.map(({ exit }) => exit));
    let done = false;
    void exits.then(() => (done = true));
    if (performance.now() < deadline.at)
      await Promise.all(running.map((container) => container.kill('TERM')));
    while (!done && performance.now() < deadline.at) {
      await Promise.race([
        exits,
        new Promise((wake) => setTimeout(wake, Math.min(50, Math.max(0, deadline.at - performance.now())))),
      ]);
    }
    if (!done) await Promise.all(running.map((container) => container.kill('KILL')));
    await exits;
    await tearDown();
    changed();
  }

  addSlots();
  kick();
  return {
    name: pod.name,
    namespace: pod.namespace,
    cgroupUid,
    get cgroup() {
      return cgroup;
    },
    get network() {
      return network;
    },
    get over() {
      return over;
    },
    containers: slots,
    update(next) {
      spec = next;
      if (terminating === undefined && !over) kick();
    },
    setReady(ready) {
      for (const slot of slots.values()) slot.probed = ready;
      changed();
    },
    terminate(graceSeconds) {
      deadline.at = Math.min(deadline.at, performance.now() + graceSeconds * 1000);
      return (terminating ??= end());
    },
    removeCgroup: dropCgroup,
    abandon: () => void (terminating ??= Promise.resolve()),
    status: (before) =>
      podStatus(
        { spec, containers: [...slots.values()], hostIp: place.host.ip4, ips, startedAt, terminal: over },
        before?.conditions,
      ),
  };
}

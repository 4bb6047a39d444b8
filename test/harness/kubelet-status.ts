/** The status that a kubelet reports for a pod, from what its containers do (kubernetes/pkg/kubelet/kubelet_pods.go). */
import type { ContainerSpec, ContainerStatus, PodCondition, PodSpec, PodStatus } from './kube-objects.ts';

export interface ContainerFacts {
  readonly spec: ContainerSpec;
  readonly kind: 'init' | 'main' | 'ephemeral';
  /** Its runtime's id while it runs, or when it has run. */
  readonly id?: string;
  readonly startedAt?: string;
  /** Set when the latest one has ended. */
  readonly ended?: { readonly exitCode: number; readonly at: string };
  readonly restarts: number;
  /** What its readiness probe says. */
  readonly probed: boolean;
  /** Why it does not run: `ContainerCreating`, `CrashLoopBackOff`. */
  readonly waiting?: string;
}

export interface PodFacts {
  readonly spec: PodSpec;
  readonly containers: readonly ContainerFacts[];
  readonly hostIp: string;
  /** None before the network plugin has given one. */
  readonly ips: readonly string[];
  readonly startedAt: string;
  /** All is over: nothing will be started again. */
  readonly terminal: boolean;
}

export function isRunning(facts: ContainerFacts): boolean {
  return facts.id !== undefined && facts.ended === undefined;
}

/** A sidecar: an init container that goes on. */
export function isSidecar({ kind, spec }: Pick<ContainerFacts, 'kind' | 'spec'>): boolean {
  return kind === 'init' && spec.restartPolicy === 'Always';
}

/** Whether an init container is no reason any more for others to wait. */
export function isPassed(facts: ContainerFacts): boolean {
  return isSidecar(facts) ? isRunning(facts) : facts.ended?.exitCode === 0;
}

function stateOf(facts: ContainerFacts): NonNullable<ContainerStatus['state']> {
  const { id, startedAt = '', ended, waiting = 'PodInitializing' } = facts;
  if (id === undefined) return { waiting: { reason: waiting } };
  if (ended === undefined) return { running: { startedAt } };
  const { exitCode, at } = ended;
  const reason = exitCode === 0 ? 'Completed' : 'Error';
  const terminated = { exitCode, reason, startedAt, finishedAt: at, containerID: `containerd://${id}` };
  return facts.waiting === undefined ? { terminated } : { waiting: { reason: facts.waiting } };
}

function containerStatus(facts: ContainerFacts): ContainerStatus {
  const { spec, id, restarts } = facts;
  const ready = (isRunning(facts) && facts.probed) || (facts.kind === 'init' && isPassed(facts));
  return {
    name: spec.name,
    image: spec.image,
    imageID: '',
    ready: facts.kind === 'ephemeral' ? false : ready,
    started: isRunning(facts),
    restartCount: restarts,
    ...(id === undefined ? {} : { containerID: `containerd://${id}` }),
    state: stateOf(facts),
  };
}

function phaseOf({ containers, terminal }: PodFacts): string {
  const main = containers.filter(({ kind }) => kind === 'main');
  if (terminal) {
    const failed = containers.some(
      (each) => each.kind !== 'ephemeral' && !isSidecar(each) && (each.ended?.exitCode ?? 0) !== 0,
    );
    return failed ? 'Failed' : 'Succeeded';
  }
  const started = main.some(({ id }) => id !== undefined);
  return started ? 'Running' : 'Pending';
}

/** The whole of what a kubelet owns in a pod's status. */
export function podStatus(facts: PodFacts, before: readonly PodCondition[] = []): PodStatus {
  const { containers, hostIp, ips, startedAt } = facts;
  const of = (kind: ContainerFacts['kind']): ContainerStatus[] =>
    containers.filter((each) => each.kind === kind).map(containerStatus);
  const [main, init, ephemeral] = [of('main'), of('init'), of('ephemeral')];
  const initialized = containers.every((each) => each.kind !== 'init' || isPassed(each));
  const ready = initialized && !facts.terminal && main.every((each) => each.ready);
  const now = new Date().toISOString();
  const conditions = Object.entries({
    PodReadyToStartContainers: ips.length > 0 && !facts.terminal,
    Initialized: initialized,
    Ready: ready,
    ContainersReady: ready,
    PodScheduled: true,
  }).map(([type, is]): PodCondition => {
    const status = is ? 'True' : 'False';
    const last = before.find((each) => each.type === type);
    const reason =
      is || type === 'PodReadyToStartContainers'
        ? {}
        : { reason: facts.terminal ? 'PodCompleted' : 'ContainersNotReady' };
    const lastTransitionTime =
      last?.status === status && last.lastTransitionTime !== undefined ? last.lastTransitionTime : now;
    return { type, status, lastTransitionTime, ...reason };
  });
  const [podIP] = ips;
  return {
    phase: phaseOf(facts),
    conditions,
    hostIP: hostIp,
    hostIPs: [{ ip: hostIp }],
    startTime: startedAt,
    ...(podIP === undefined ? {} : { podIP, podIPs: ips.map((each) => ({ ip: each })) }),
    containerStatuses: main,
    ...(init.length > 0 ? { initContainerStatuses: init } : {}),
    ...(ephemeral.length > 0 ? { ephemeralContainerStatuses: ephemeral } : {}),
  };
}

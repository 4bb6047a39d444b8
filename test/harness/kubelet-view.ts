/** A pod on its node, as a test uses it: where it runs, how to enter it, restart it, make it unready. */
import type { Pod } from './kube-objects.ts';
import type { PodWorker } from './kubelet-pod.ts';
import type { RuntimeContainer } from './kubelet-runtime.ts';
import { isRunning } from './kubelet-status.ts';
import { type Running, eventually } from '../../deploy/stage/process.ts';
import type { Place } from '../../deploy/stage/sock.ts';

/** A pod as its node knows it. */
export interface PodOnNode {
  readonly namespace: string;
  readonly name: string;
  /** The API object's; undefined for a static pod whose mirror pod is not there. */
  readonly uid: string | undefined;
  readonly worker: PodWorker;
  /** Where a container's processes are. Default: its first container, or the pod's cgroup when none runs. */
  place(container?: string): Place;
  /** Another process in a container, as by `kubectl exec`. */
  exec(container: string, ...args: readonly string[]): Running;
  /** Plays the readiness probe: true or false for all its containers. */
  setReady(ready: boolean): void;
  /** Kills a container; settles when the next one runs, which has another id. */
  restart(container: string): Promise<void>;
}

/** The view of a pod's worker and of the API's object, which may come and go. */
export function podOnNode(of: { readonly worker: PodWorker; readonly object: Pod | undefined }): PodOnNode {
  const { worker } = of;
  const container = (name: string): RuntimeContainer => {
    const found = worker.containers.get(name);
    if (found?.current === undefined)
      throw new Error(`no container ${name} runs in ${worker.namespace}/${worker.name}`);
    return found.current;
  };
  return {
    worker,
    name: worker.name,
    namespace: worker.namespace,
    get uid() {
      return of.object?.metadata.uid;
    },
    place(name) {
      const main = [...worker.containers.values()].find(
        ({ kind, current }) => kind === 'main' && current !== undefined,
      );
      const cgroup = name === undefined ? (main?.current?.cgroup ?? worker.cgroup) : container(name).cgroup;
      const { network } = worker;
      if (cgroup === undefined || network === undefined)
        throw new Error(`${worker.namespace}/${worker.name} does not run`);
      return network.netns === '' ? { cgroup } : { cgroup, netns: network.netns };
    },
    exec: (name, ...args) => container(name).exec(...args),
    setReady: (ready) => worker.setReady(ready),
    async restart(name) {
      const before = container(name);
      await before.kill('KILL');
      await eventually(
        `container ${name} of ${worker.name} runs again`,
        () => {
          const now = worker.containers.get(name);
          return now !== undefined && isRunning(now) && now.id !== before.id;
        },
        { ownMs: 30_000 },
      );
    },
  };
}

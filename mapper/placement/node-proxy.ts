/** The node's proxy in the kernel's maps: its address follows the ready pod, and its processes get SO_ORIGINAL_DST. */
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import type { Inventory } from '../inventory/inventory.ts';
import { podKeys, type Pod } from '../objects/pod.ts';
import type { Settings } from '../maps/settings.ts';

export interface NodeProxyOptions {
  readonly dataPlane: Pick<DataPlane, 'attachProxy'>;
  readonly settings: Pick<Settings, 'writeProxy'>;
  readonly inventory: Pick<Inventory, 'nodeProxy'>;
  readonly cgroupRoot: string;
  readonly logger: Logger;
  /** The addresses that count for a pod. */
  readonly addressesOf: (pod: Pod) => readonly string[];
}

export class NodeProxy {
  readonly #options: NodeProxyOptions;
  /** Cgroups of each proxy pod that answer SO_ORIGINAL_DST. */
  readonly #attached = new Map<string, Set<bigint>>();
  #current = '';

  constructor(options: NodeProxyOptions) {
    this.#options = options;
  }

  /** A cgroup of a pod that is one of the node's proxies. Idempotent. */
  cgroupFound(podKey: string, cgroup: Cgroup): void {
    const attached = this.#attached.get(podKey) ?? new Set<bigint>();
    if (attached.has(cgroup.id)) return;
    this.#options.dataPlane.attachProxy({ path: `${this.#options.cgroupRoot}${cgroup.path}`, id: cgroup.id });
    attached.add(cgroup.id);
    this.#attached.set(podKey, attached);
  }

  cgroupGone(cgroupId: bigint): void {
    for (const [podKey, attached] of this.#attached) {
      if (attached.delete(cgroupId) && attached.size === 0) this.#attached.delete(podKey);
    }
  }

  /**
   * Points the settings at the node's ready proxy. One whose cgroup has not been
   * seen could not ask for the original destination, so it is not ready for us.
   */
  follow(): void {
    const pod = this.#options.inventory.nodeProxy();
    const ips = pod === undefined ? [] : this.#options.addressesOf(pod);
    const isAttached = pod !== undefined && podKeys(pod).some((key) => this.#attached.has(key));
    const usable = pod !== undefined && isAttached && ips.length > 0;
    this.#options.settings.writeProxy(usable ? ips : []);
    const now = usable ? `${pod.namespace}/${pod.name} at ${ips.join(', ')}` : `${isAttached} ${ips.join()}`;
    if (now === this.#current) return;
    this.#current = now;
    const name = pod === undefined ? undefined : `${pod.namespace}/${pod.name}`;
    if (usable) this.#options.logger.info({ pod: name, podUid: pod.uid, ips }, "the node's proxy is known");
    else
      this.#options.logger.warn(
        { pod: name },
        pod === undefined
          ? 'no proxy of this node is ready'
          : `the node's proxy is ready, but ${isAttached ? 'has no address' : 'its cgroup has not been found'}`,
      );
  }
}

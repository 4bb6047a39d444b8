/** The node's proxy in the kernel's maps: its address follows the ready pod, and its processes get SO_ORIGINAL_DST. */
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import { policies, policy, proxyPorts, setting, settingValue } from '../../native/layout/layouts.ts';
import type { Layout } from '../../native/layout/layout.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import type { Config } from '../config/config.ts';
import type { Inventory } from '../inventory/inventory.ts';
import { podKeys, type Pod } from '../objects/pod.ts';
import { MapMirror } from '../maps/map-mirror.ts';
import { podAddresses } from '../maps/pod-entry.ts';

export interface NodeProxyOptions {
  readonly dataPlane: DataPlane;
  readonly inventory: Inventory;
  readonly config: Config;
  readonly cgroupRoot: string;
  readonly logger: Logger;
  /** The addresses that count for a pod. */
  readonly addressesOf: (pod: Pod) => readonly string[];
}

export class NodeProxy {
  readonly #options: NodeProxyOptions;
  readonly #settings;
  /** Cgroups of each proxy pod that answer SO_ORIGINAL_DST. */
  readonly #attached = new Map<string, Set<bigint>>();
  #current = '';

  constructor(options: NodeProxyOptions) {
    this.#options = options;
    this.#settings = new MapMirror(options.dataPlane.maps.settings, String);
  }

  /** Ports and policies of the configuration. */
  writeConfig(): void {
    const { proxy, unknownPods, whenProxyDown } = this.#options.config;
    this.#set(setting.ports, proxyPorts, { outbound: proxy.outboundPort, inbound: proxy.inboundPort });
    this.#set(setting.policies, policies, {
      unknownPods: policy[unknownPods],
      whenProxyDown: policy[whenProxyDown],
    });
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
    const { ip4, ip6 } = podAddresses(usable ? ips : []);
    this.#setAddress(setting.proxyIp4, ip4);
    this.#setAddress(setting.proxyIp6, ip6);
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

  /** Undoes what others did to the settings. Returns the number of entries. */
  repair(): number {
    return this.#settings.repair();
  }

  #setAddress(key: number, bytes: Uint8Array): void {
    if (bytes.every((byte) => byte === 0)) this.#settings.delete(key);
    else this.#settings.set(key, { bytes });
  }

  #set<T>(key: number, layout: Layout<T>, value: T): void {
    const bytes = Buffer.alloc(settingValue.size);
    layout.encode(value, bytes);
    this.#settings.set(key, { bytes: Uint8Array.from(bytes) });
  }
}

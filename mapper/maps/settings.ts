/** What holds for the whole node, in the kernel's map `settings`. Nothing else writes that map. */
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { Layout } from '../../native/layout/layout.ts';
import {
  policies,
  policy,
  proxyMode,
  proxyNetwork,
  proxyPorts,
  setting,
  settingValue,
} from '../../native/layout/layouts.ts';
import type { Config } from '../config/config.ts';
import { addressText } from '../objects/address.ts';
import { MapMirror } from './map-mirror.ts';
import { podAddresses } from './pod-entry.ts';

const NETWORK_POLICY = { untouched: policy.allow, deny: policy.deny } as const;

export class Settings {
  readonly #map;

  constructor(map: DataPlane['maps']['settings']) {
    this.#map = new MapMirror(map, String);
  }

  /** Ports and policies of the configuration. @throws CgrouteError `EBPF` */
  writeConfig({ proxy, unknownPods, whenProxyDown, nestedNetworks, otherNetworks }: Config): void {
    this.#set(setting.ports, proxyPorts, { outbound: proxy.outboundPort, inbound: proxy.inboundPort });
    this.#set(setting.policies, policies, {
      unknownPods: policy[unknownPods],
      whenProxyDown: policy[whenProxyDown],
      proxyMode: proxyMode.node,
      nestedNetworks: NETWORK_POLICY[nestedNetworks],
      otherNetworks: NETWORK_POLICY[otherNetworks],
    });
  }

  /**
   * The first address of each family is the proxy's; without any there is no proxy.
   * @param netns inode of its network namespace; 0: not known, as it is while the address changes
   * @throws CgrouteError `EBPF`
   */
  writeProxy(ips: readonly string[], netns: bigint): void {
    const { ip4, ip6 } = podAddresses(ips);
    const before = this.#map.get(setting.proxyNetwork)?.bytes;
    if (before !== undefined && proxyNetwork.decode(Buffer.from(before)).netns !== netns)
      this.#map.delete(setting.proxyNetwork);
    this.#setAddress(setting.proxyIp4, ip4);
    this.#setAddress(setting.proxyIp6, ip6);
    if (netns !== 0n) this.#set(setting.proxyNetwork, proxyNetwork, { netns });
  }

  /** As they are, be they an earlier agent's. */
  proxyIps(): readonly string[] {
    return [setting.proxyIp4, setting.proxyIp6].flatMap((key) => {
      const bytes = this.#map.get(key)?.bytes;
      return (bytes === undefined ? undefined : addressText(bytes)) ?? [];
    });
  }

  /** Undoes what others did to the map. Returns the number of entries. */
  repair(): number {
    return this.#map.repair();
  }

  #setAddress(key: number, bytes: Uint8Array): void {
    if (bytes.every((byte) => byte === 0)) this.#map.delete(key);
    else this.#map.set(key, { bytes });
  }

  #set<T>(key: number, layout: Layout<T>, value: T): void {
    const bytes = Buffer.alloc(settingValue.size);
    layout.encode(value, bytes);
    this.#map.set(key, { bytes: Uint8Array.from(bytes) });
  }
}

/** The node's proxy in the kernel's maps: its address follows the ready pod, and its processes get SO_ORIGINAL_DST. */
import type { Logger } from 'pino';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import type { Config } from '../config/config.ts';
import { nameOf } from '../decisions/pod-case.ts';
import {
  chooseProxy,
  mayBeProxy,
  unready,
  type NotTaken,
  type ProxyCandidate,
} from '../decisions/proxy-choice.ts';
import type { Inventory } from '../inventory/inventory.ts';
import { NO_NETWORK } from '../inventory/pod-networks.ts';
import type { Settings } from '../maps/settings.ts';
import { hasEnded, podKeys, type Pod } from '../objects/pod.ts';
import { lookAtProxy, notListened, type ProxyHost, type ProxyLook } from './proxy-look.ts';

export interface NodeProxyOptions {
  readonly dataPlane: Pick<DataPlane, 'attachProxy'>;
  readonly settings: Pick<Settings, 'proxyIps' | 'writeProxy'>;
  readonly inventory: Pick<Inventory, 'pods'>;
  readonly config: Pick<Config, 'proxy'>;
  readonly host: ProxyHost;
  readonly cgroupRoot: string;
  readonly logger: Logger;
  /** The addresses that count for a pod. */
  readonly addressesOf: (pod: Pod) => readonly string[];
  /** Those of its status alone that can be a pod's. */
  readonly toldOf: (pod: Pod) => readonly string[];
  /** Its cgroups whose processes are in its network, relative to the watched root. */
  readonly pathsOf: (pod: Pod) => readonly string[];
  /** Inode of its network namespace, {@link NO_NETWORK} while that is not known. */
  readonly networkOf: (pod: Pod) => bigint;
  /** Connections that have been redirected so far. */
  readonly redirected: () => number;
}

/** How the proxy is, for `status`, `explain` and metrics. */
export interface ProxyReport {
  /** `NAMESPACE/NAME` of the pod whose address the maps hold. */
  readonly pod: string | null;
  /** In words, where that pod is not ready and stays for want of another. */
  readonly unready: string | null;
  /** Addresses and ports of it that nobody listens on, `10.0.0.5:15001`; null where that cannot be looked at. */
  readonly notListening: readonly string[] | null;
  /** Since when one of these two is so, RFC 3339, and how many connections had been redirected until then. */
  readonly trouble: { readonly since: string; readonly redirectedBefore: number } | null;
  /** Other pods that the selector matches, and why they are not the proxy. */
  readonly notTaken: readonly NotTaken[];
}

/** What is wrong with the proxy, in words; undefined where nothing is, or nobody has looked. */
export function proxyTrouble(report: ProxyReport | undefined): string | undefined {
  if (report === undefined) return undefined;
  if (report.pod === null) return 'no proxy of this node is known';
  if (report.unready !== null) return `the node's proxy is not ready (${report.unready})`;
  return report.notListening === null || report.notListening.length === 0
    ? undefined
    : `nobody listens at ${report.notListening.join(', ')}, the node's proxy`;
}

/** Anybody can make pods with the proxy's label. */
const MOST_NOT_TAKEN = 20;

export class NodeProxy {
  readonly #options: NodeProxyOptions;
  /** Cgroups of each proxy pod that answer SO_ORIGINAL_DST. */
  readonly #attached = new Map<string, Set<bigint>>();
  /** UID of the pod whose address the maps hold. */
  #uid: string | undefined;
  #report: ProxyReport = { pod: null, unready: null, notListening: null, trouble: null, notTaken: [] };
  #said = '';
  #isPassing = false;

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

  get report(): ProxyReport {
    return this.#report;
  }

  /** Whether something is wrong that may pass by itself, of which nobody tells. */
  get isPassing(): boolean {
    return this.#isPassing;
  }

  /** Whether a process of this pod may be what it lacks to be the proxy. */
  isWaitingIn(podKey: string | undefined): boolean {
    return this.#isPassing && podKey !== undefined && this.#attached.has(podKey);
  }

  /**
   * Points the settings at the node's proxy, and looks how that is. One whose cgroup
   * has not been seen could not ask for the original destination.
   * @throws CgrouteError `EBPF`
   */
  follow(): void {
    const { settings, config, networkOf } = this.#options;
    const looks = new Map<string, ProxyLook>();
    const candidates = this.#candidates(looks);
    const lastUid = this.#uid ?? this.#earlier(candidates);
    const { chosen, notTaken, mayPass } = chooseProxy(candidates, lastUid, config.proxy);
    settings.writeProxy(chosen?.ips ?? [], chosen === undefined ? NO_NETWORK.netns : networkOf(chosen.pod));
    this.#uid = chosen?.pod.uid;
    const listeners = chosen === undefined ? undefined : looks.get(chosen.pod.uid)?.listeners;
    const ports = [config.proxy.outboundPort, config.proxy.inboundPort];
    const notListening = listeners && chosen ? notListened(listeners, chosen.ips, ports) : null;
    const isDeaf = notListening !== null && notListening.length > 0;
    const notReady = chosen === undefined || chosen.pod.ready ? null : unready(chosen.pod);
    this.#report = {
      pod: chosen === undefined ? null : nameOf(chosen.pod),
      unready: notReady,
      notListening,
      trouble:
        isDeaf || notReady !== null
          ? (this.#report.trouble ?? {
              since: new Date().toISOString(),
              redirectedBefore: this.#options.redirected(),
            })
          : null,
      notTaken: notTaken.slice(0, MOST_NOT_TAKEN),
    };
    this.#isPassing = mayPass || isDeaf;
    this.#say(chosen);
  }

  #candidates(looks: Map<string, ProxyLook>): ProxyCandidate[] {
    const { inventory, config, host, addressesOf, pathsOf } = this.#options;
    const pods = [...inventory.pods()].filter(({ labels }) => config.proxy.selector.matches(labels));
    return pods.map((pod) => {
      if (!mayBeProxy(pod, config.proxy)) return { pod, seen: undefined };
      const look = lookAtProxy(host, pathsOf(pod));
      looks.set(pod.uid, look);
      return {
        pod,
        seen: {
          isAttached: podKeys(pod).some((key) => this.#attached.has(key)),
          hasProcesses: look.hasProcesses,
          addresses: addressesOf(pod),
          network: look.network,
          claimants: (ip) => this.#claimants(ip, pod),
        },
      };
    });
  }

  /** What a pod only shows in its own network namespace is no claim: it may show what it likes. */
  #claimants(ip: string, { uid }: Pod): readonly Pod[] {
    const { inventory, toldOf } = this.#options;
    return [...inventory.pods()].filter(
      (pod) =>
        pod.uid !== uid &&
        !pod.hostNetwork &&
        !hasEnded(pod) &&
        pod.ips.includes(ip) &&
        toldOf(pod).includes(ip),
    );
  }

  /** The one that an earlier agent pointed at. */
  #earlier(candidates: readonly ProxyCandidate[]): string | undefined {
    const ips = this.#options.settings.proxyIps();
    return candidates.find(({ seen }) => seen?.addresses.some((ip) => ips.includes(ip)) === true)?.pod.uid;
  }

  /** Once for each change. */
  #say(chosen: { readonly pod: Pod; readonly ips: readonly string[] } | undefined): void {
    const { logger } = this.#options;
    const { notListening, notTaken, unready: notReady } = this.#report;
    const text = JSON.stringify([chosen?.pod.uid, chosen?.ips, notReady, notListening, notTaken]);
    if (text === this.#said) return;
    this.#said = text;
    const about = notTaken.length === 0 ? {} : { notTaken };
    if (chosen === undefined) {
      logger.warn(about, 'no pod of this node is its proxy');
      return;
    }
    const facts = { pod: nameOf(chosen.pod), podUid: chosen.pod.uid, ips: chosen.ips, ...about };
    if (notReady !== null)
      logger.warn(facts, `the node's proxy is not ready, and stays for want of another: ${notReady}`);
    else logger.info(facts, "the node's proxy is known");
    if (notListening !== null && notListening.length > 0)
      logger.error(facts, `nobody listens at ${notListening.join(', ')}, where connections are sent`);
  }
}

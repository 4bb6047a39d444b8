/**
 * A real data plane in a sandbox, with maps that a test fills by hand: what the
 * agent does for the kernel, without the agent.
 */
import { statSync } from 'node:fs';
import { relative } from 'node:path';
import { podAddresses } from '../../mapper/maps/pod-entry.ts';
import { addressBytes } from '../../mapper/objects/address.ts';
import type { CgroupPlace } from '../../native/bpf/cgroup-link.ts';
import { type DataPlane, openDataPlane } from '../../native/data-plane/data-plane.ts';
import type { MapShares } from '../../native/data-plane/maps.ts';
import { makePinDirectory } from '../../native/pins/pin-directory.ts';
import { lossOf } from '../../native/programs/programs.ts';
import {
  branch,
  infoFlag,
  policies as policiesLayout,
  policy,
  proxyMode,
  proxyNetwork,
  setting,
  type CgroupInfo,
} from '../../native/layout/layouts.ts';
import { type Cgroup, cgroup2Mount } from '../../deploy/stage/cgroup.ts';
import { eventually } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export type Branch = Exclude<keyof typeof branch, 'count'>;
/** Connections by branch; branches that nothing went through are left out. */
export type Counts = Partial<Record<Branch, number>>;

export interface Enrolment {
  readonly slot: number;
  readonly ip4?: string;
  readonly ip6?: string;
  /** Default true. */
  readonly inMesh?: boolean;
  /** Inode of its network namespace. Default: not known. */
  readonly netns?: number;
  /** Bits of `infoFlag`. Default `ambient` for a pod in the mesh, else none. */
  readonly flags?: number;
  /** Default: all. */
  readonly detectedFlags?: number;
}

type Policy = keyof typeof policy;

interface Policies {
  readonly unknownPods: Policy;
  readonly whenProxyDown: Policy;
  /** Default `allow`, like the next. */
  readonly nestedNetworks?: Policy;
  readonly otherNetworks?: Policy;
}

/** A data plane below a sandbox's root, with its verbs. */
export interface TestPlane extends Disposable {
  readonly plane: DataPlane;
  readonly root: CgroupPlace;
  readonly bpffsRoot: string;
  /** Writes a cgroup's entry in `cgroup_info_map`. */
  enrol(cgroup: Cgroup, enrolment: Enrolment): void;
  /** Makes host processes go through the proxy to this address, counted for the slot. */
  captureInbound(address: string, slot: number): void;
  /** The proxy's addresses; without any, there is no proxy. */
  setProxy(addresses: { readonly ip4?: string; readonly ip6?: string } | undefined): void;
  /** The network namespace where the proxy is, by its name; without any, it is not known. */
  setProxyNetwork(netns: string | undefined): void;
  policies(policies: Policies | undefined): void;
  counters(slot: number): Counts;
  /** Entries that connections have in the maps: sockets of clients, and tuples on their way to the proxy. */
  /** What a slot has of the maps that all share, by the kernel's count. */
  share(slot: number): MapShares;
  leftovers(): { readonly connections: number; readonly originals: number };
  /** Waits until no connection has an entry; fails with the numbers that stay. */
  nothingLeft(): Promise<void>;
}

export interface PlaneOptions {
  readonly maxEntries?: Readonly<Record<string, number>>;
  /** Default 15001 and 15006. */
  readonly ports?: { readonly outbound: number; readonly inbound: number };
  /** What one slot may have of the maps that all share; default: no less than a test makes. */
  readonly shares?: MapShares;
  /** Inode of the network namespace that is the host's. Default: of the sandbox's /proc, if it has one. */
  readonly hostNetns?: number;
  /** Default `cgroute` in the sandbox's bpffs. A second plane on the same takes over. */
  readonly bpffsRoot?: string;
  /** Is told of pins that were not as they should be. */
  readonly warn?: (sentence: string) => void;
}

const ALL_FLAGS = Object.values(infoFlag).reduce((all, bit) => all | bit, 0);
const NO_KEY = 0;

/** An address as the maps have it; throws for a text that is none. */
export function bytesOf(text: string): Uint8Array {
  const bytes = addressBytes(text);
  if (bytes === undefined) throw new Error(`"${text}" is no address`);
  return bytes;
}

/** What a data plane says of its pins and maps; that an older kernel refuses the filter of process events is the kernel's. */
export function notesOf({ plane }: Pick<TestPlane, 'plane'>): string[] {
  return plane.notes.filter((note) => !note.startsWith(lossOf('execs') ?? '-'));
}

/** Inode of the network namespace of a process's directory in /proc, or of a name of `ip netns`. */
export function netnsOf(where: string): number {
  return statSync(where.startsWith('/') ? `${where}/ns/net` : `/run/netns/${where}`).ino;
}

function placeOf(path: string): { path: string; id: bigint } {
  return { path, id: statSync(path, { bigint: true }).ino };
}

/** Opens a data plane whose watched root is the sandbox's. Nothing is attached yet. */
export function openTestPlane(sandbox: Sandbox, options: PlaneOptions = {}): TestPlane {
  const bpffsRoot = options.bpffsRoot ?? `${sandbox.bpffs}/cgroute`;
  makePinDirectory(bpffsRoot);
  const root = placeOf(sandbox.cgroupRoot);
  const plane = openDataPlane({
    bpffsRoot,
    root,
    rootLevel: relative(cgroup2Mount(), sandbox.cgroupRoot).split('/').length,
    hostNetns:
      options.hostNetns ?? (sandbox.procRoot === undefined ? undefined : netnsOf(`${sandbox.procRoot}/1`)),
    maxEntries: options.maxEntries ?? {},
    ...(options.ports === undefined ? {} : { ports: options.ports }),
    ...(options.shares === undefined ? {} : { shares: options.shares }),
    ...(options.warn === undefined ? {} : { warn: options.warn }),
  });
  const { maps } = plane;
  let closed = false;
  const leftovers = () => ({
    connections: maps.connections.keys().length + maps.overflowConnections.keys().length,
    originals: maps.originals.keys().length,
  });
  return {
    plane,
    root,
    bpffsRoot,
    leftovers,
    enrol(
      cgroup,
      {
        slot,
        ip4,
        ip6,
        inMesh = true,
        flags = inMesh ? infoFlag.ambient : 0,
        detectedFlags = ALL_FLAGS,
        netns = 0,
      },
    ) {
      const addresses = podAddresses([ip4, ip6].filter((text) => text !== undefined));
      const info: CgroupInfo = {
        id: cgroup.id,
        slot,
        flags,
        detectedFlags,
        isInMesh: inMesh ? 1 : 0,
        cgroupIp: addresses.ip4,
        cgroupIp6: addresses.ip6,
        proxyMode: proxyMode.node,
        netns: BigInt(netns),
      };
      maps.cgroups.set(cgroup.id, info);
    },
    share(slot) {
      const { connections = 0n, originals = 0n } = maps.shares.get(slot) ?? {};
      return { connections: Number(connections), originals: Number(originals) };
    },
    captureInbound: (address, slot) =>
      maps.podAddresses.set({ word: bytesOf(address) }, { slot, hasOptions: 0 }),
    setProxy(addresses = {}) {
      for (const [key, address] of [
        [setting.proxyIp4, addresses.ip4],
        [setting.proxyIp6, addresses.ip6],
      ] as const) {
        if (address === undefined) maps.settings.delete(key);
        else maps.settings.set(key, { bytes: bytesOf(address) });
      }
    },
    setProxyNetwork(netns) {
      if (netns === undefined) {
        maps.settings.delete(setting.proxyNetwork);
        return;
      }
      const bytes = Buffer.alloc(proxyNetwork.size);
      proxyNetwork.encode({ netns: statSync(`/run/netns/${netns}`, { bigint: true }).ino }, bytes);
      maps.settings.set(setting.proxyNetwork, { bytes });
    },
    policies(policies) {
      if (policies === undefined) {
        maps.settings.delete(setting.policies);
        return;
      }
      const bytes = Buffer.alloc(policiesLayout.size);
      policiesLayout.encode(
        {
          unknownPods: policy[policies.unknownPods],
          whenProxyDown: policy[policies.whenProxyDown],
          proxyMode: proxyMode.node,
          nestedNetworks: policy[policies.nestedNetworks ?? 'allow'],
          otherNetworks: policy[policies.otherNetworks ?? 'allow'],
        },
        bytes,
      );
      maps.settings.set(setting.policies, { bytes });
    },
    counters(slot) {
      const counts: Counts = {};
      const numbers = maps.counters.get(slot)?.count ?? [];
      for (const [name, index] of Object.entries(branch)) {
        const number = Number(numbers[index] ?? 0n);
        if (name !== 'count' && number > 0) counts[name as Branch] = number;
      }
      return counts;
    },
    async nothingLeft() {
      await eventually('no connection has an entry', () => {
        const { connections, originals } = leftovers();
        return connections + originals === 0;
      }).catch(() => {
        const left = leftovers();
        // Gone, so that only the test that made them fails.
        for (const map of [maps.connections, maps.overflowConnections])
          for (const key of map.keys()) map.delete(key);
        for (const key of maps.originals.keys()) maps.originals.delete(key);
        throw new Error(`entries of closed connections stay: ${JSON.stringify(left)}`);
      });
    },
    [Symbol.dispose]() {
      if (!closed) plane[Symbol.dispose]();
      closed = true;
    },
  };
}

/** Attaches everything for a tree of pods and the proxy's cgroup, and says where pods are, as the agent does. */
export function attachAll({ plane, root }: TestPlane, podTree: Cgroup, proxy: Cgroup): void {
  plane.maps.podTrees.set(NO_KEY, { count: 1, id: [podTree.id] });
  plane.attachPodTree({ path: podTree.absolute, id: podTree.id });
  plane.attachProxy({ path: proxy.absolute, id: proxy.id });
  plane.attachSockets();
  plane.attachHandoff(root);
  plane.maps.handoffs.set(root.id, 1);
  plane.attachRoot();
}

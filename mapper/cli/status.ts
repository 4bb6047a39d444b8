/** What is true on this node now, read from the pinned maps, so that it works with the agent down. */
import { existsSync } from 'node:fs';
import { pino } from 'pino';
import { capabilityReport, type CapabilityReport } from '../../native/survey/capability.ts';
import { isRedirecting, openPinnedMaps, type PinnedMaps } from '../../native/data-plane/maps.ts';
import { branch, infoFlag, setting, type PodInfo } from '../../native/layout/layouts.ts';
import { isLocked } from '../../native/boundary/lock.ts';
import { openCgroupTree, type Cgroup } from '../../watcher/cgroup-tree.ts';
import { findCgroupMount, realCgroupRoot } from '../../watcher/host.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import { readAgentRecord } from '../maps/agent-record.ts';
import { mapRoom, type MapRoom } from '../connections/connection-room.ts';
import { addressText } from '../objects/address.ts';
import { SHARED_SLOT } from '../maps/pod-slots.ts';

/** Connections by what became of them, one counter for each branch. */
export type Connections = Record<Exclude<keyof typeof branch, 'count'>, number>;

export interface CgroupStatus {
  readonly id: string;
  /** Relative to the watched root; null for one that exists no more. */
  readonly path: string | null;
}

export interface PodStatus {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly verdict: string;
  readonly reason: string;
  readonly ips: readonly string[];
  readonly cgroups: readonly CgroupStatus[];
  readonly connections: Connections;
}

export interface NodeStatus {
  readonly node: string | null;
  /** Whether a connect program is attached by a pinned link. */
  readonly redirecting: boolean;
  readonly agent: {
    readonly running: boolean;
    readonly ready: boolean;
    readonly pid: number | null;
    readonly version: string | null;
  };
  readonly proxy: {
    readonly address: string | null;
    readonly address6: string | null;
    readonly pod: string | null;
    readonly ready: boolean;
  };
  readonly sources: readonly SourceState[];
  /** What this host's kernel offers; null where it could not be tried. */
  readonly capabilities: CapabilityReport | null;
  readonly pods: readonly PodStatus[];
  /** Cgroups of pods that nobody knows. */
  readonly unknown: readonly CgroupStatus[];
  /** Connections of host processes and of unknown pods. */
  readonly host: Connections;
  /** How full the maps are whose room can run out. */
  readonly maps: readonly MapRoom[];
}

export interface StatusOptions {
  readonly cgroupRoot: string | undefined;
  readonly procRoot: string;
  readonly bpffsRoot: string;
}

const NO_CONNECTIONS = connectionsOf([]);

/** @throws CgrouteError when the maps are there but cannot be read */
export async function readStatus(options: StatusOptions): Promise<NodeStatus> {
  using maps = openPinnedMaps(options.bpffsRoot);
  if (maps === undefined) {
    return {
      node: null,
      redirecting: false,
      agent: { running: false, ready: false, pid: null, version: null },
      proxy: { address: null, address6: null, pod: null, ready: false },
      sources: [],
      capabilities: capabilities(),
      pods: [],
      unknown: [],
      host: NO_CONNECTIONS,
      maps: [],
    };
  }
  const record = readAgentRecord(maps.agent);
  const running = existsSync(options.bpffsRoot) && isLocked(options.bpffsRoot);
  const live =
    running && record !== undefined && record.http !== '' ? await askAgent(record.http) : undefined;
  const tree = await cgroupTree(options);
  const cgroups = maps.cgroups.entries();
  const cgroupStatus = (id: bigint): CgroupStatus => ({ id: String(id), path: tree.get(id)?.path ?? null });
  const infos = maps.pods.entries().map(([, info]) => info);
  return {
    node: record?.node ?? null,
    redirecting: isRedirecting(options.bpffsRoot),
    agent: {
      running,
      ready: live?.ready ?? false,
      pid: running ? (record?.pid ?? null) : null,
      version: record?.version ?? null,
    },
    proxy: proxyOf(maps, infos),
    sources: live?.sources ?? [],
    capabilities: capabilities(),
    pods: infos
      .map((info) => ({
        namespace: info.podNamespace,
        name: info.podName,
        uid: info.uid,
        verdict: info.verdict,
        reason: info.reason,
        ips: [addressText(info.ip4), addressText(info.ip6)].filter((ip) => ip !== undefined),
        cgroups: cgroups
          .filter(([, entry]) => entry.slot === info.slot && info.slot !== SHARED_SLOT)
          .map(([id]) => cgroupStatus(id)),
        connections: connectionsOf(maps.counters.get(info.slot)?.count ?? []),
      }))
      .sort((a, b) => `${a.namespace}/${a.name}`.localeCompare(`${b.namespace}/${b.name}`)),
    unknown: cgroups
      .filter(([, { flags }]) => (flags & infoFlag.unknownPod) !== 0)
      .map(([id]) => cgroupStatus(id)),
    host: connectionsOf(maps.counters.get(SHARED_SLOT)?.count ?? []),
    maps: mapRoom(maps),
  };
}

function capabilities(): CapabilityReport | null {
  try {
    return capabilityReport();
  } catch {
    return null;
  }
}

function connectionsOf(counts: readonly bigint[]): Connections {
  const names = (Object.keys(branch) as (keyof typeof branch)[]).filter((name) => name !== 'count');
  return Object.fromEntries(names.map((name) => [name, Number(counts[branch[name]] ?? 0n)])) as Connections;
}

function proxyOf(maps: PinnedMaps, infos: readonly PodInfo[]): NodeStatus['proxy'] {
  const read = (key: number): string | undefined => {
    const bytes = maps.settings.get(key)?.bytes;
    return bytes === undefined ? undefined : addressText(bytes);
  };
  const address = read(setting.proxyIp4);
  const address6 = read(setting.proxyIp6);
  const pod = infos.find(
    ({ flags, ip4, ip6 }) =>
      (flags & infoFlag.proxy) !== 0 &&
      ((address !== undefined && addressText(ip4) === address) ||
        (address6 !== undefined && addressText(ip6) === address6)),
  );
  return {
    address: address ?? address6 ?? null,
    address6: address6 ?? null,
    pod: pod === undefined ? null : `${pod.podNamespace}/${pod.podName}`,
    ready: address !== undefined || address6 !== undefined,
  };
}

/** The tree is only there to show paths; without it the ids stand alone. */
async function cgroupTree({ cgroupRoot, procRoot }: StatusOptions): Promise<ReadonlyMap<bigint, Cgroup>> {
  try {
    const root = realCgroupRoot(cgroupRoot ?? findCgroupMount(procRoot).mountPoint);
    const tree = openCgroupTree({
      cgroupRoot: root,
      logger: pino({ level: 'silent' }),
      onAppeared: () => {},
      onGone: () => {},
    });
    await tree.sweep();
    return tree.cgroups;
  } catch {
    return new Map();
  }
}

/** Undefined when it does not answer: it may be in another network namespace, or starting. */
async function askAgent(address: string): Promise<{ ready: boolean; sources: SourceState[] } | undefined> {
  try {
    const response = await fetch(`http://${address}/status`, { signal: AbortSignal.timeout(1000) });
    return (await response.json()) as { ready: boolean; sources: SourceState[] };
  } catch {
    return undefined;
  }
}

/**
 * Every map of cgroute: what is in it, how large it is, what becomes of it from one
 * version to another. Data, and the questions that are asked of it. A new map is one
 * row; a test compares the rows with the compiled objects.
 */
import { bytes, u8, u32, u64, type Codec } from '../layout/codec.ts';
import {
  address,
  agentInfo,
  cgroupEvent,
  cgroupInfo,
  connection,
  localKey,
  originalDst,
  podAddress,
  podCounters,
  podDevices,
  podInfo,
  podKey,
  podOptions,
  podShare,
  podTrees,
  portKey,
  rangeKey,
  settingValue,
  tuple,
} from '../layout/layouts.ts';
import type { ObjectName, Tunable } from './programs.ts';

export interface MapType {
  /** `enum bpf_map_type`, <linux/bpf.h>. */
  readonly id: number;
  /** The first kernel version that has it; from the same places as those of hooks. */
  readonly since: string;
}

export const mapTypes = {
  hash: { id: 1, since: '3.19' },
  array: { id: 2, since: '3.19' },
  percpu_array: { id: 6, since: '4.6' },
  lru_hash: { id: 9, since: '4.10' },
  lpm_trie: { id: 11, since: '4.11' },
  sk_storage: { id: 24, since: '5.2' },
  ringbuf: { id: 27, since: '5.8' },
} as const satisfies Readonly<Record<string, MapType>>;
export type MapTypeName = keyof typeof mapTypes;

/** Room for so many entries: `times` for each of what it is made for, and `plus`; `most` at most. */
export interface SizeRule {
  readonly per: 'pod' | 'connection' | 'trafficEntry';
  readonly times?: number;
  readonly plus?: number;
  readonly most?: number;
}

/** What becomes of a map when another version's pins are taken over. */
export type Handover =
  /** Each version has its own, which begins empty. */
  | 'fresh'
  /** What connections are judged by: copied before this version's programs run. */
  | 'copied'
  /** Programs write it: one map for both where its layout is the same, and else as `fresh`. */
  | 'shared'
  /** As `shared`; where the layout is another, copied, and what the other version counts until its end is added. */
  | 'counted'
  /** As `shared`; where the layout is another, copied while both versions' programs look after it. */
  | 'connections'
  /** As `shared`; where the layout is another, sockets that a proxy has accepted are answered by the other version's program, as long as they live. */
  | 'answers';

export interface OwnMap {
  readonly name: string;
  readonly type: MapTypeName;
  /** Of what the agent reads or writes; absent for what is the programs' own. */
  readonly key?: Codec<unknown>;
  readonly value?: Codec<unknown>;
  /** Of a ring buffer. */
  readonly record?: Codec<unknown>;
  /** As it is compiled, where absent. */
  readonly size?: SizeRule;
  readonly handover: Handover;
  /** The map whose entries it counts: it is shared with another version together with that one alone. */
  readonly counts?: string;
  /** The tunable that says how much of it a single pod may have, of a map that all pods share. */
  readonly share?: Tunable;
  /** The one object that uses it, where cgroute can do without that. */
  readonly only?: ObjectName;
}

/** By what the agent calls them, and in the order in which they are copied: what a pod's entry points to before the entry. */
export const maps = {
  podPorts: {
    name: 'pod_port_map',
    type: 'hash',
    key: portKey,
    value: u32,
    size: { per: 'trafficEntry' },
    handover: 'copied',
  },
  podRanges: {
    name: 'pod_range_map',
    type: 'lpm_trie',
    key: rangeKey,
    value: u32,
    size: { per: 'trafficEntry' },
    handover: 'copied',
  },
  podOptions: {
    name: 'pod_options_map',
    type: 'array',
    key: u32,
    value: podOptions,
    size: { per: 'pod', plus: 1 },
    handover: 'copied',
  },
  podLocals: {
    name: 'pod_local_map',
    type: 'hash',
    key: localKey,
    value: u32,
    // Few pods have other addresses than their own; some have many.
    size: { per: 'pod', times: 4 },
    handover: 'copied',
  },
  podDevices: {
    name: 'pod_device_map',
    type: 'array',
    key: u32,
    value: podDevices,
    size: { per: 'pod', plus: 1 },
    handover: 'copied',
  },
  cgroups: {
    name: 'cgroup_info_map',
    type: 'hash',
    key: u64,
    value: cgroupInfo,
    // A pod has its own cgroup, a few containers', and for a while those of restarted ones.
    size: { per: 'pod', times: 8 },
    handover: 'copied',
  },
  settings: { name: 'settings', type: 'hash', key: u32, value: settingValue, handover: 'copied' },
  podAddresses: {
    name: 'pod_ip_map',
    type: 'hash',
    key: address,
    value: podAddress,
    size: { per: 'pod', times: 2 },
    handover: 'copied',
  },
  pods: {
    name: 'pod_info_map',
    type: 'hash',
    key: podKey,
    value: podInfo,
    size: { per: 'pod' },
    handover: 'copied',
  },
  podTrees: { name: 'pod_trees_map', type: 'array', key: u32, value: podTrees, handover: 'copied' },
  agent: { name: 'agent_map', type: 'array', key: u32, value: agentInfo, handover: 'copied' },
  counters: {
    name: 'pod_counters_map',
    type: 'array',
    key: u32,
    value: podCounters,
    size: { per: 'pod', plus: 1 },
    handover: 'counted',
  },
  connections: {
    name: 'connection_map',
    type: 'hash',
    key: u64,
    value: connection,
    handover: 'connections',
  },
  overflowConnections: {
    name: 'connection_overflow_map',
    type: 'hash',
    key: u64,
    value: connection,
    // The small one before it is not counted.
    size: { per: 'connection' },
    handover: 'connections',
    share: 'connection_share',
  },
  overflowCount: {
    name: 'overflow_count_map',
    type: 'array',
    key: u32,
    value: u64,
    handover: 'shared',
    counts: 'connection_overflow_map',
  },
  originals: {
    name: 'original_dst_map',
    type: 'hash',
    key: tuple,
    value: originalDst,
    // Those that have not been accepted yet, several proxies' listen backlogs; a small map is a fast one.
    size: { per: 'connection', most: 32_768 },
    handover: 'answers',
    share: 'original_share',
  },
  originalCount: {
    name: 'original_count_map',
    type: 'array',
    key: u32,
    value: u64,
    handover: 'shared',
    counts: 'original_dst_map',
  },
  accepted: { name: 'accepted_map', type: 'sk_storage', handover: 'answers' },
  shares: {
    name: 'pod_share_map',
    type: 'array',
    key: u32,
    value: podShare,
    size: { per: 'pod', plus: 1 },
    handover: 'shared',
  },
  /** Its layout never changes: while a pod's connect program is replaced and the root's is not, it tells the second that the other version's has done the work. */
  handled: { name: 'handled_map', type: 'percpu_array', handover: 'shared' },
  /** Rules in pods name the filter that reads these two by its path, whose program is replaced. */
  bypass4: {
    name: 'bypass_filter_map',
    type: 'hash',
    key: bytes(4),
    value: u8,
    size: { per: 'pod' },
    handover: 'shared',
  },
  bypass6: {
    name: 'bypass_filter6_map',
    type: 'hash',
    key: bytes(16),
    value: u8,
    size: { per: 'pod' },
    handover: 'shared',
  },
  /** Not taken over, as it tells where the program of this version is attached that brings original destinations to the proxy. */
  handoffs: { name: 'handoff_map', type: 'hash', key: u64, value: u32, handover: 'fresh' },
  seenBranches: { name: 'seen_branch_map', type: 'lru_hash', handover: 'fresh', only: 'execs' },
  cgroupEvents: {
    name: 'cgroup_event_map',
    type: 'ringbuf',
    record: cgroupEvent,
    handover: 'fresh',
    only: 'cgroups',
  },
} as const satisfies Readonly<Record<string, OwnMap>>;

export type Maps = typeof maps;
/** Maps with entries that the agent reads or writes. */
export type EntryMap = {
  [H in keyof Maps]: Maps[H] extends { readonly key: Codec<unknown> } ? H : never;
}[keyof Maps];
export type KeyOf<H extends EntryMap> = Maps[H]['key'] extends Codec<infer K> ? K : never;
export type ValueOf<H extends EntryMap> = Maps[H]['value'] extends Codec<infer V> ? V : never;

export const allMaps: readonly OwnMap[] = Object.values(maps);

/** Undefined for the name of none. */
export const mapNamed = (name: string): OwnMap | undefined => allMaps.find((map) => map.name === name);

/** Names of the maps that are handed over in one of these ways, in the table's order. */
export function handedOver(...ways: readonly Handover[]): readonly string[] {
  return allMaps.filter(({ handover }) => ways.includes(handover)).map(({ name }) => name);
}

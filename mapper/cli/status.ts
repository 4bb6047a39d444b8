/** What is true on this node now, read from the pinned maps, so that it works with the agent down. */
import { pino } from 'pino';
import { capabilityReport, type CapabilityReport } from '../../native/survey/capability.ts';
import { isRedirecting, openPinnedMaps, type PinnedMaps } from '../../native/data-plane/maps.ts';
import { branch, infoFlag, policies, policy, setting } from '../../native/layout/layouts.ts';
import { isLocked } from '../../native/boundary/lock.ts';
import { isThere } from '../../native/boundary/presence.ts';
import { messageOf, refusalOf } from '../../native/error.ts';
import { isPopulated } from '../../watcher/cgroup-population.ts';
import { openCgroupTree, type Cgroup } from '../../watcher/cgroup-tree.ts';
import { findCgroupMount, realCgroupRoot } from '../../watcher/host.ts';
import { readAgentRecord } from '../maps/agent-record.ts';
import { mapRoom } from '../connections/connection-room.ts';
import { addressText } from '../objects/address.ts';
import { SHARED_SLOT } from '../maps/pod-slots.ts';
import type { CgroupStatus, Connections, LiveAgent, NodeFacts, PolicyStatus } from './node-facts.ts';
import { conditionsOf, type Condition } from './status-conditions.ts';
import { NO_PROXY, proxyStatus } from './status-proxy.ts';

export interface NodeStatus extends Omit<NodeFacts, 'live'> {
  readonly conditions: readonly Condition[];
}

export interface StatusOptions {
  readonly cgroupRoot: string | undefined;
  readonly procRoot: string;
  readonly bpffsRoot: string;
}

const NO_CONNECTIONS = connectionsOf([]);

/** @throws CgrouteError when the maps are there but cannot be read */
export async function readStatus(options: StatusOptions): Promise<NodeStatus> {
  const facts = await readFacts(options);
  const { live: _live, ...shown } = facts;
  return { conditions: conditionsOf(facts), ...shown };
}

async function readFacts(options: StatusOptions): Promise<NodeFacts> {
  using maps = openPinnedMaps(options.bpffsRoot);
  if (maps === undefined) {
    return {
      node: null,
      redirecting: false,
      agent: { running: false, ready: false, answers: false, pid: null, version: null },
      proxy: NO_PROXY,
      policies: null,
      sources: [],
      capabilities: capabilities(),
      unseen: [],
      pods: [],
      unknown: [],
      host: NO_CONNECTIONS,
      maps: [],
      live: undefined,
    };
  }
  const record = readAgentRecord(maps.agent);
  const running = isThere(options.bpffsRoot) && isLocked(options.bpffsRoot);
  const live =
    running && record !== undefined && record.http !== '' ? await askAgent(record.http) : undefined;
  const { cgroupRoot, tree, unseen } = await cgroupTree(options);
  const cgroups = maps.cgroups.entries();
  const ofSlot = (slot: number): CgroupStatus[] =>
    cgroups
      .filter(([, entry]) => entry.slot === slot && slot !== SHARED_SLOT)
      .map(([id]) => cgroupStatus(id));
  const cgroupStatus = (id: bigint): CgroupStatus => ({ id: String(id), path: tree.get(id)?.path ?? null });
  const infos = maps.pods.entries().map(([, info]) => info);
  return {
    node: record?.node ?? null,
    redirecting: isRedirecting(options.bpffsRoot),
    agent: {
      running,
      ready: live?.ready ?? false,
      answers: live !== undefined,
      // One that is taking over has not written it yet.
      pid: running ? record?.pid || null : null,
      version: record?.version ?? null,
    },
    proxy: proxyStatus(maps, infos, live?.ready === true ? live.proxy : undefined, {
      cgroupRoot,
      procRoot: options.procRoot,
      pathsOf: (slot) => ofSlot(slot).flatMap(({ path }) => path ?? []),
    }),
    policies: policiesIn(maps),
    sources: live?.sources ?? [],
    capabilities: capabilities(),
    unseen,
    pods: infos
      .map((info) => ({
        namespace: info.podNamespace,
        name: info.podName,
        uid: info.uid,
        verdict: info.verdict,
        reason: info.reason,
        ips: [addressText(info.ip4), addressText(info.ip6)].filter((ip) => ip !== undefined),
        cgroups: ofSlot(info.slot),
        connections: connectionsOf(maps.counters.get(info.slot)?.count ?? []),
      }))
      .sort((a, b) => `${a.namespace}/${a.name}`.localeCompare(`${b.namespace}/${b.name}`)),
    unknown: cgroups
      .filter(([, { flags }]) => (flags & infoFlag.unknownPod) !== 0)
      .map(([id]) => {
        const cgroup = cgroupStatus(id);
        const isKnown = cgroupRoot !== undefined && cgroup.path !== null;
        return { ...cgroup, isPopulated: isKnown ? isPopulated(`${cgroupRoot}${cgroup.path}`) : null };
      }),
    host: connectionsOf(maps.counters.get(SHARED_SLOT)?.count ?? []),
    maps: mapRoom(maps),
    live,
  };
}

function policiesIn({ settings }: PinnedMaps): PolicyStatus | null {
  const bytes = settings.get(setting.policies)?.bytes;
  if (bytes === undefined) return null;
  const { unknownPods, whenProxyDown } = policies.decode(Buffer.from(bytes));
  const word = (of: number): keyof typeof policy => (of === policy.deny ? 'deny' : 'allow');
  return { unknownPods: word(unknownPods), whenProxyDown: word(whenProxyDown) };
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

/** The tree is only there to show paths; without it, or a part of it, the ids stand alone. */
async function cgroupTree({ cgroupRoot, procRoot }: StatusOptions): Promise<{
  readonly cgroupRoot: string | undefined;
  readonly tree: ReadonlyMap<bigint, Cgroup>;
  readonly unseen: readonly string[];
}> {
  const unseen: string[] = [];
  try {
    const root = realCgroupRoot(cgroupRoot ?? findCgroupMount(procRoot).mountPoint);
    const tree = openCgroupTree({
      cgroupRoot: root,
      logger: pino({ level: 'silent' }),
      onAppeared: () => {},
      onGone: () => {},
      onUnlisted: (path, error) =>
        unseen.push(`cgroups below ${path} could not be looked for: ${refusalOf(error)}`),
    });
    await tree.sweep();
    return { cgroupRoot: root, tree: tree.cgroups, unseen };
  } catch (error) {
    return {
      cgroupRoot: undefined,
      tree: new Map(),
      unseen: [`cgroups could not be looked for: ${messageOf(error)}`],
    };
  }
}

/** Undefined when it does not answer: it may be in another network namespace, or starting. */
async function askAgent(address: string): Promise<LiveAgent | undefined> {
  try {
    const response = await fetch(`http://${address}/status`, { signal: AbortSignal.timeout(1000) });
    return (await response.json()) as LiveAgent;
  } catch {
    return undefined;
  }
}

/**
 * What the parts of the agent are made of: what is there before any of them, and
 * those features that take part in each pod's write and so lean on one another.
 */
import type { Logger } from 'pino';
import type { CgroupPlace } from '../../native/bpf/cgroup-link.ts';
import type { DataPlane } from '../../native/data-plane/data-plane.ts';
import type { OpenHost } from '../../watcher/open-host.ts';
import type { LiveAgent } from '../cli/node-facts.ts';
import type { Config } from '../config/config.ts';
import { ownerOf } from '../decisions/cgroup-path.ts';
import { EndedPods } from '../inventory/ended-pods.ts';
import { Enrolment } from '../inventory/enrolment.ts';
import { createInventory, type Inventory } from '../inventory/inventory.ts';
import { isOutermost } from '../inventory/owned-cgroup.ts';
import { PodAddressBook } from '../inventory/pod-addresses.ts';
import { PodNetworks } from '../inventory/pod-networks.ts';
import type { AgentRecord } from '../maps/agent-record.ts';
import { redirectedOf } from '../maps/pod-counters.ts';
import { Settings } from '../maps/settings.ts';
import type { ObjectSource } from '../object-sources/object-source.ts';
import { HandoffPlaces } from '../placement/handoff-places.ts';
import { NodeProxy } from '../placement/node-proxy.ts';
import { makePodAnnotator } from '../reports/pod-annotator.ts';
import { makePodEvents } from '../reports/pod-events.ts';
import { PodMarks } from '../reports/pod-marks.ts';
import { SidecarRules } from '../sidecars/sidecar-rules.ts';
import { addressHost, witnessHost } from './address-host.ts';
import { CgroupLedger } from './cgroup-ledger.ts';

import type { PartWalk } from './part-walk.ts';
import { PodWriter } from './pod-writer.ts';
import { Reconciler } from './reconciler.ts';

export interface NodeAgentOptions {
  readonly node: string;
  readonly version: string;
  /** Absolute; by default where cgroup2 is mounted. */
  readonly cgroupRoot: string | undefined;
  readonly procRoot: string;
  readonly bpffsRoot: string;
  readonly config: Config;
  readonly source: ObjectSource;
  readonly logger: Logger;
}

/** What is there before any part. */
export interface AgentGround extends NodeAgentOptions {
  /** The watched root. */
  readonly root: CgroupPlace;
  readonly dataPlane: DataPlane;
  readonly record: AgentRecord;
  readonly host: OpenHost;
  /** Tells all parts; nobody before they are wired. */
  readonly tell: Pick<PartWalk, 'podsChanged' | 'podWritten' | 'proxyMoved' | 'reconciled'>;
  readonly isReady: () => boolean;
  /** Counts and logs what went wrong where nobody waits for it. */
  readonly failed: (error: unknown, what: string) => void;
  /** An object's change has reached the maps, so many seconds after it was told. */
  readonly mapped: (seconds: number) => void;
}

export interface AgentCore extends AgentGround {
  readonly inventory: Inventory;
  readonly enrolment: Enrolment;
  readonly ended: EndedPods;
  readonly settings: Settings;
  readonly networks: PodNetworks;
  readonly ledger: CgroupLedger;
  readonly sidecars: SidecarRules;
  readonly proxy: NodeProxy;
  readonly handoffs: HandoffPlaces;
  readonly reconciler: Reconciler;
  /** Undefined where pods are told nothing: it is not wanted, or no API server knows them. */
  readonly marks: PodMarks | undefined;
}

/** Attaches nothing and writes nothing. @throws CgrouteError `EBPF` when the maps cannot be read */
export function agentCore(ground: AgentGround): AgentCore {
  const { node, config, procRoot, root, dataPlane, host, tell, logger } = ground;
  const inventory = createInventory({ node });
  const ledger = new CgroupLedger();
  const sidecars = new SidecarRules({
    dataPlane,
    config,
    procRoot,
    logger: logger.child({ component: 'sidecars' }),
    host,
    onChanged: (uid) => tell.podsChanged([uid]),
  });
  const ended = new EndedPods({
    lifeOf(pod) {
      const cgroups = ledger.of(ledger.homeOf(pod));
      if (cgroups.length === 0) return 'unseen';
      const isRunning = cgroups.some((each) => isOutermost(each) && host.isPopulated(each.cgroup.path));
      return isRunning ? 'running' : 'empty';
    },
    isComplete: () => reconciler.hasTakenOver,
  });
  const enrolment = new Enrolment({
    inventory,
    config,
    ended,
    maps: dataPlane.maps,
    adjust: (pod, decision) => sidecars.adjust(pod, decision),
  });
  const addresses = new PodAddressBook({
    host: addressHost(host),
    pathsOf: (podKey) => ledger.pathsOf(podKey),
  });
  const settings = new Settings(dataPlane.maps.settings);
  const proxy = new NodeProxy({
    dataPlane,
    settings,
    inventory,
    config,
    host,
    cgroupRoot: root.path,
    logger: logger.child({ component: 'proxy' }),
    addressesOf: (pod) => addresses.reachedAt(ledger.homeOf(pod), pod),
    toldOf: (pod) => addresses.told(pod),
    pathsOf: (pod) => ledger.pathsOf(ledger.homeOf(pod)),
    networkOf: (pod) =>
      pod.hostNetwork ? BigInt(host.hostNetns() ?? 0) : networks.of(ledger.homeOf(pod), pod).netns,
    redirected: () => redirectedOf(dataPlane.maps),
  });
  const networks = new PodNetworks({
    host: witnessHost(host),
    pathsOf: (podKey) => ledger.pathsOf(podKey),
    proxyIps: () => settings.proxyIps(),
    remembered: (podKey) => writer.netnsOf(podKey),
  });
  const handoffs = new HandoffPlaces({
    dataPlane,
    root,
    logger: logger.child({ component: 'handoff' }),
    hasRootProcesses: () => host.hasUserProcess('/'),
  });
  const own = ownerOf(host.ownCgroup() ?? '/');
  const writer = new PodWriter({
    dataPlane,
    config,
    ownKey: own.kind === 'pod' ? own.uid : undefined,
    enrolment,
    handoffs,
    proxy,
    sidecars,
    onWritten: (written) => tell.podWritten(written),
  });
  const reconciler = new Reconciler({
    writer,
    ledger,
    addresses,
    networks,
    inventory,
    enrolment,
    sidecars,
    logger: logger.child({ component: 'mapper' }),
    cgroupIdAt: (path) => host.ensure(path)?.id,
    onReconciled: () => tell.reconciled(),
    onMapped: (seconds) => ground.mapped(seconds),
    onDisplaced: (uid) => tell.podsChanged([uid]),
  });
  const core = {
    ...ground,
    inventory,
    enrolment,
    ended,
    settings,
    networks,
    ledger,
    sidecars,
    proxy,
    handoffs,
    reconciler,
  };
  return { ...core, marks: podMarks(core) };
}

/** What `status` is answered. */
export function liveAgent(
  { proxy, reconciler }: AgentCore,
  own: Pick<LiveAgent, 'ready' | 'sources' | 'drift'>,
): LiveAgent {
  return { ...own, proxy: proxy.report, failedPods: reconciler.figures.failedPods };
}

/** With connections of its own to the API server, so the watches never wait for it. */
function podMarks(core: Omit<AgentCore, 'marks'>): PodMarks | undefined {
  const { source, config, node, dataPlane, inventory, enrolment, reconciler } = core;
  const { client } = source;
  if (client === undefined || (!config.annotate && !config.events)) return undefined;
  const logger = core.logger.child({ component: 'marks' });
  return new PodMarks({
    inventory,
    enrolment,
    config,
    logger,
    maps: dataPlane.maps,
    annotator: config.annotate ? makePodAnnotator({ client, logger, takeOver: config.takeOver }) : undefined,
    events: config.events ? makePodEvents({ client, node, logger }) : undefined,
    reconciled: () => reconciler.idle(),
  });
}

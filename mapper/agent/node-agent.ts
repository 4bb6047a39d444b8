/**
 * The agent of one node: facts of the host and objects of the source go in, the
 * kernel's maps come out. It starts whole or not at all.
 */
import { statSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { capabilityReport } from '../../native/survey/capability.ts';
import type { CgroupPlace } from '../../native/bpf/cgroup-link.ts';
import { openDataPlane, type DataPlane } from '../../native/data-plane/data-plane.ts';
import { messageOf } from '../../native/error.ts';
import { lockDirectory, type DirectoryLock } from '../../native/boundary/lock.ts';
import { trimMemory } from '../../native/boundary/memory.ts';
import { lockPinDirectory, pinnedVersions } from '../../native/pins/pin-directory.ts';
import { undoPins } from '../../native/data-plane/pin-removal.ts';
import { attachProgram } from '../../native/netlink/proc-connector.ts';
import { levelOf } from '../../watcher/cgroup-level.ts';
import { findCgroupMount, realCgroupRoot, refuseV1Only } from '../../watcher/host.ts';
import type { HostWatch } from '../../watcher/host-watch.ts';
import { openHost } from '../../watcher/open-host.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import { AgentRecord } from '../maps/agent-record.ts';
import type { Config } from '../config/config.ts';
import { ConnectionReset } from '../connections/connection-reset.ts';
import { ConnectionRoom } from '../connections/connection-room.ts';
import { Enrolment } from '../inventory/enrolment.ts';
import { explain, type Explanation } from '../cli/explain.ts';
import { HandoffPlaces } from '../placement/handoff-places.ts';
import { hostView } from './host-view.ts';
import { createInventory, type Inventory } from '../inventory/inventory.ts';
import {
  agentMetrics,
  driftMetrics,
  lostEventMetrics,
  sourceStateMetrics,
} from '../reports/agent-metrics.ts';
import { connectionMetrics, connectionsFromNow, resetMetrics } from '../reports/connection-metrics.ts';
import { mapErrorMetrics, mapMetrics } from '../reports/map-metrics.ts';
import { metricSources } from '../reports/metric-source.ts';
import { createMetrics, type Metrics } from '../reports/metrics.ts';
import { objectSourceMetrics } from '../reports/object-source-metrics.ts';
import { cgroupMetrics, podMetrics } from '../reports/pod-metrics.ts';
import { proxyMetrics } from '../reports/proxy-metrics.ts';
import { sidecarMetrics } from '../reports/sidecar-metrics.ts';
import { mapShares, mapSizes } from '../maps/map-sizes.ts';
import { Settings } from '../maps/settings.ts';
import { NodeProxy } from '../placement/node-proxy.ts';
import { objectIntake } from '../inventory/object-intake.ts';
import { settlesWithin, type ObjectSource } from '../object-sources/object-source.ts';
import { makePodAnnotator } from '../reports/pod-annotator.ts';
import { makePodEvents } from '../reports/pod-events.ts';
import { PodMarks } from '../reports/pod-marks.ts';
import { PodTrees } from '../placement/pod-trees.ts';
import { Reconciler } from './reconciler.ts';
import { refuseOthers } from './rival-programs.ts';
import { removeSidecarRules } from '../sidecars/sidecar-cleanup.ts';
import { SidecarRules } from '../sidecars/sidecar-rules.ts';

/** Where a kubelet keeps its pods, to tell a host that does so on cgroup v1. */
const KUBELET_CGROUPS = ['kubepods', 'kubepods.slice', 'kubelet-kubepods.slice'];

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

export interface NodeAgent {
  /** Programs attached, all objects seen once, and all that ran then is mapped. Once true it stays so. */
  readonly isReady: boolean;
  sources(): SourceState[];
  readonly metrics: Metrics;
  /** @throws CgrouteError a sentence for who asked, see {@link explain} */
  explain(pod: string): Explanation;
  /** `ADDR:PORT` of the HTTP server, for `status`. */
  listening(address: string): void;
  /** @param detach removes links and maps; by default they stay, and redirection goes on */
  stop(detach: boolean): Promise<void>;
}

/** @throws CgrouteError with a sentence for the operator; nothing is left half-started */
export async function startNodeAgent(options: NodeAgentOptions): Promise<NodeAgent> {
  const { config, logger, procRoot, bpffsRoot } = options;
  const stack = new AsyncDisposableStack();
  let before: readonly string[] | undefined;
  try {
    refuseV1Only(KUBELET_CGROUPS, procRoot);
    const cgroupRoot = realCgroupRoot(options.cgroupRoot ?? findCgroupMount(procRoot).mountPoint);
    const rootLevel = levelOf(cgroupRoot, procRoot);
    const root = { path: cgroupRoot, id: statSync(cgroupRoot, { bigint: true }).ino };
    const lock = stack.use(lockDirectory(cgroupRoot, '--cgroup-root'));
    if (lock.note !== undefined) logger.warn(lock.note);
    await refuseOthers({
      cgroupRoot,
      mountPoint: findCgroupMount(procRoot, cgroupRoot).mountPoint,
      bpffsRoot,
      procRoot,
      logger,
    });
    const pinLock = stack.use(lockPinDirectory(bpffsRoot));
    before = pinnedVersions(bpffsRoot);
    const ports = { outbound: config.proxy.outboundPort, inbound: config.proxy.inboundPort };
    const dataPlane = stack.use(
      openDataPlane({
        bpffsRoot,
        root,
        rootLevel,
        ports,
        maxEntries: mapSizes(config),
        shares: mapShares(config),
        warn: (sentence) => logger.warn(sentence),
      }),
    );
    logger.info({ capabilities: capabilityReport() }, 'the kernel took the programs');
    for (const note of dataPlane.notes) logger.warn(note);
    const record = stack.use(
      new AgentRecord(dataPlane.maps.agent, {
        node: options.node,
        version: options.version,
        rootLevel,
        rootId: root.id,
      }),
    );

    const agent = stack.use(new RunningAgent(options, root, dataPlane, record, pinLock));
    await agent.start();
    const disposables = stack.move();
    return {
      get isReady() {
        return agent.isReady;
      },
      sources: () => agent.sources(),
      metrics: agent.metrics,
      explain: (pod) => agent.explain(pod),
      listening: (address) => record.listening(address),
      async stop(detach) {
        if (detach) await agent.withdraw();
        else agent.leave();
        await disposables.disposeAsync();
      },
    };
  } catch (error) {
    await stack.disposeAsync();
    // What an earlier agent left goes on as it was; what this one began is undone.
    if (before !== undefined) undoPins(bpffsRoot, before);
    throw error;
  }
}

/** So long the programs of a fresh start wait for the API server; what an earlier agent attached works meanwhile. */
const PATIENCE_MS = 3000;
const RETRY_MS = 10_000;

class RunningAgent implements AsyncDisposable {
  readonly #options: NodeAgentOptions;
  readonly #dataPlane: DataPlane;
  readonly #record: AgentRecord;
  readonly #lock: DirectoryLock;
  readonly #reconciler: Reconciler;
  readonly #settings: Settings;
  readonly #proxy: NodeProxy;
  readonly #trees: PodTrees;
  readonly #handoffs: HandoffPlaces;
  readonly #sidecars: SidecarRules;
  readonly #room: ConnectionRoom;
  readonly #host: HostWatch;
  readonly #inventory: Inventory;
  readonly #enrolment: Enrolment;
  readonly #stack = new AsyncDisposableStack();
  readonly metrics: Metrics;
  #marks: PodMarks | undefined;
  #follows = false;
  #eventsLost = 0;
  #driftRepaired = 0;
  #isStopped = false;
  #isAttached = false;
  isReady = false;

  constructor(
    options: NodeAgentOptions,
    root: CgroupPlace,
    dataPlane: DataPlane,
    record: AgentRecord,
    lock: DirectoryLock,
  ) {
    this.#lock = lock;
    const cgroupRoot = root.path;
    const { node, config, logger, procRoot } = options;
    this.#options = options;
    this.#dataPlane = dataPlane;
    this.#record = record;
    const host = openHost({ cgroupRoot, procRoot, logger: logger.child({ component: 'watcher' }) });
    const inventory = createInventory({ node, proxy: config.proxy });
    this.#sidecars = this.#stack.use(
      new SidecarRules({
        dataPlane,
        config,
        procRoot,
        logger: logger.child({ component: 'sidecars' }),
        host,
        onChanged: (uid) => this.#changed([uid]),
      }),
    );
    const enrolment = new Enrolment({
      inventory,
      config,
      maps: dataPlane.maps,
      adjust: (pod, decision) => this.#sidecars.adjust(pod, decision),
    });
    this.#settings = new Settings(dataPlane.maps.settings);
    this.#proxy = new NodeProxy({
      dataPlane,
      settings: this.#settings,
      inventory,
      cgroupRoot,
      logger: logger.child({ component: 'proxy' }),
      addressesOf: (pod) => this.#reconciler.addressesOf(pod),
    });
    this.#trees = new PodTrees(dataPlane, cgroupRoot);
    this.#handoffs = new HandoffPlaces({
      dataPlane,
      root,
      logger: logger.child({ component: 'handoff' }),
      hasRootProcesses: () => host.hasUserProcess('/'),
    });
    const reset =
      config.existingConnections === 'keep'
        ? undefined
        : this.#stack.use(
            new ConnectionReset({
              maps: dataPlane.maps,
              sidecarUser: config.sidecarUser,
              cgroupRoot,
              procRoot,
              logger: logger.child({ component: 'reset' }),
              host,
              isReady: () => this.isReady,
              onFailed: (pod, message) => this.#marks?.notReset(pod, message),
            }),
          );
    this.#reconciler = new Reconciler({
      dataPlane,
      inventory,
      enrolment,
      config,
      sidecars: this.#sidecars,
      trees: this.#trees,
      handoffs: this.#handoffs,
      logger: logger.child({ component: 'mapper' }),
      host: hostView(host),
      onProxyCgroup: (podKey, cgroup) => this.#proxy.cgroupFound(podKey, cgroup),
      onReconciled: () => {
        void this.#followSoon();
        this.#marks?.soon();
      },
      onWritten: reset && ((written) => reset.written(written)),
      onMapped: (seconds) => this.metrics.mapped(seconds),
    });
    this.#marks = this.#podMarks(inventory, enrolment);
    this.#room = new ConnectionRoom({
      maps: dataPlane.maps,
      shares: mapShares(config),
      logger,
      tell: (uid, message) => this.#marks?.noRoom(uid, message),
    });
    const filter = dataPlane.execFilter;
    // From here on the kernel writes entries, too; what it cannot know yet it marks as unknown.
    const cgroupEvents = dataPlane.attachIdentity() ? dataPlane.watchCgroupEvents : undefined;
    this.#host = this.#stack.use(
      host.follow({
        sweepMs: config.sweepSeconds * 1000,
        onCgroup: (cgroup) => {
          this.#handoffs.cgroupAppeared(cgroup);
          this.#reconciler.cgroupAppeared(cgroup);
          this.#marks?.cgroupAppeared(cgroup);
        },
        onCgroupGone: (cgroup) => {
          this.#reconciler.cgroupGone(cgroup);
          this.#handoffs.cgroupGone(cgroup);
          this.#marks?.cgroupGone(cgroup);
          this.#proxy.cgroupGone(cgroup.id);
          void this.#followSoon();
        },
        onProcess: ({ cgroupId }) => this.#reconciler.processSeen(cgroupId),
        onLost: () => void this.#eventsLost++,
        wantsProcess: (cgroupId) => this.#reconciler.wantsAddress(cgroupId),
        cgroupEvents,
        ...(filter === undefined ? {} : { attachFilter: (fd: number) => attachProgram(fd, filter) }),
      }),
    );
    this.#inventory = inventory;
    this.#enrolment = enrolment;
    const figures = () => this.#reconciler.figures;
    this.metrics = createMetrics([
      ...metricSources(agentMetrics, () => ({ version: options.version, isReady: this.isReady })),
      ...metricSources(podMetrics, () => ({
        maps: dataPlane.maps,
        intended: () =>
          [...inventory.pods()].map((pod) => ({
            uid: pod.uid,
            isRunning: pod.phase === 'Running',
            verdict: enrolment.decide(pod).verdict,
          })),
        failedPods: () => figures().failedPods,
      })),
      ...metricSources(cgroupMetrics, figures),
      ...metricSources(mapMetrics, () => dataPlane.maps),
      ...metricSources(mapErrorMetrics, () => figures().errors),
      ...metricSources(sourceStateMetrics, () => this.sources()),
      ...metricSources(objectSourceMetrics, () => options.source.figures()),
      ...metricSources(lostEventMetrics, () => this.#eventsLost),
      ...metricSources(driftMetrics, () => this.#driftRepaired),
      ...metricSources(sidecarMetrics, () => this.#sidecars.figures),
      ...metricSources(resetMetrics, () => reset?.figures),
      ...metricSources(connectionMetrics, connectionsFromNow({ maps: dataPlane.maps, former: figures })),
      ...metricSources(proxyMetrics, () => dataPlane.maps),
    ]);
  }

  explain(pod: string): Explanation {
    return explain(pod, {
      maps: this.#dataPlane.maps,
      config: this.#options.config,
      podsNamed: (name, namespace) => this.#reconciler.podsNamed(name, namespace),
      proxyPod: () => this.#inventory.nodeProxy(),
    });
  }

  /** Only pods that an API server knows can be told anything; with connections of its own, so the watches never wait for it. */
  #podMarks(inventory: Inventory, enrolment: Enrolment): PodMarks | undefined {
    const {
      source: { client },
      config,
      node,
      logger: parent,
    } = this.#options;
    if (client === undefined || (!config.annotate && !config.events)) return undefined;
    const logger = parent.child({ component: 'marks' });
    return this.#stack.use(
      new PodMarks({
        inventory,
        enrolment,
        config,
        logger,
        maps: this.#dataPlane.maps,
        annotator: config.annotate ? makePodAnnotator({ client, logger }) : undefined,
        events: config.events ? makePodEvents({ client, node, logger }) : undefined,
        reconciled: () => this.#reconciler.idle(),
      }),
    );
  }

  /** Takes away all that there is of cgroute: what redirects first, and what rules in pods name after them. */
  async withdraw(): Promise<void> {
    const { procRoot, cgroupRoot, bpffsRoot, logger } = this.#options;
    await this.#marks?.withdraw();
    await this.#sidecars.stop();
    this.#dataPlane.stopRedirecting();
    const { problems } = await removeSidecarRules({ procRoot, cgroupRoot, bpffsRoot });
    for (const problem of problems)
      logger.error(`rules for a sidecar may be left in ${problem}; run \`cgroute cleanup\``);
    this.#dataPlane.detach(problems.length > 0);
  }

  /** What goes on without an agent. */
  leave(): void {
    if (this.#isAttached) this.#handoffs.leave();
  }

  #changed(uids: Iterable<string>): void {
    const follow = (now: Iterable<string>): void => this.#reconciler.objectsChanged(now);
    if (this.#marks === undefined) follow(uids);
    else this.#marks.objectsChanged(uids, follow);
  }

  async start(): Promise<void> {
    const { logger, source, config } = this.#options;
    this.#settings.writeConfig(config);
    const following = this.#stack.use(
      await source.follow(objectIntake(this.#inventory, this.#enrolment, (uids) => this.#changed(uids))),
    );
    await this.#host.ready;
    // Maps first, programs second: the first connection that they see gets its verdict.
    const isSynced = await settlesWithin(following.synced, PATIENCE_MS);
    await this.#reconciler.idle();
    const removed = isSynced ? this.#takeOver() : 0;
    this.#handoffs.look(this.#reconciler.isHostRedirected);
    this.#dataPlane.attachSockets();
    this.#trees.attach();
    this.#dataPlane.attachRoot();
    this.#isAttached = true;
    await this.#completeHandover();
    const timer = setInterval(() => this.#beat(), config.sweepSeconds * 1000).unref();
    this.#stack.defer(() => {
      this.#isStopped = true;
      clearInterval(timer);
    });
    this.#record.beat();
    if (isSynced) return this.#becomeReady(removed);
    logger.warn(
      { sources: source.states() },
      'nobody says yet which pods there are: what the maps hold from before stands',
    );
    void this.#becomeReadyLater(following.synced);
  }

  /** Whatever is left of another version after this does no harm, and the next start tries again. */
  async #completeHandover(): Promise<void> {
    const { logger } = this.#options;
    try {
      const done = await this.#dataPlane.completeHandover();
      if (done !== undefined) logger.info(done);
    } catch (error) {
      logger.error(
        { err: error },
        `another version's pins could not all be taken over, which the next start tries again: ${messageOf(error)}`,
      );
    }
  }

  /** What an earlier agent knew is replaced by what is so now. Gives the number of entries that this removed. */
  #takeOver(): number {
    const removed = this.#reconciler.removeLeftovers() + this.#sidecars.removeLeftovers();
    this.#proxy.follow();
    return removed;
  }

  async #becomeReadyLater(synced: Promise<void>): Promise<void> {
    await synced;
    while (!this.#isStopped) {
      try {
        await this.#reconciler.idle();
        if (!this.#isStopped) this.#becomeReady(this.#takeOver());
        return;
      } catch (error) {
        this.metrics.failed(error);
        this.#options.logger.error(
          { err: error },
          `the first reconcile failed, and is tried again: ${messageOf(error)}`,
        );
        await delay(RETRY_MS, undefined, { ref: false });
      }
    }
  }

  #becomeReady(removed: number): void {
    const { logger } = this.#options;
    const dropped = this.#dataPlane.dropOtherLinks();
    if (removed + dropped > 0)
      logger.info({ entries: removed, links: dropped }, 'leftovers of an earlier agent were removed');
    this.isReady = true;
    this.#marks?.start();
    trimMemory();
    logger.info({ ...this.#reconciler.counts }, 'ready');
  }

  /**
   * Once for all that changes in a row, and when the queue is empty: in the middle
   * of a change of several pods it may look as if there were no proxy at all.
   */
  async #followSoon(): Promise<void> {
    if (!this.isReady || this.#follows) return;
    this.#follows = true;
    try {
      await this.#reconciler.idle();
      this.#follows = false;
      this.#proxy.follow();
    } catch (error) {
      this.metrics.failed(error);
      this.#options.logger.error(
        { err: error },
        `the proxy's address could not be written: ${messageOf(error)}`,
      );
    }
  }

  /** What nobody tells the agent about, it looks at from time to time. What fails keeps nothing else from its turn. */
  #beat(): void {
    const { logger } = this.#options;
    const failed = (error: unknown): void => {
      this.metrics.failed(error);
      logger.error({ err: error }, `the periodic check failed: ${messageOf(error)}`);
    };
    const attempt = <T>(work: () => T): T | undefined => {
      try {
        return work();
      } catch (error) {
        return void failed(error);
      }
    };
    const looks = [
      () => this.#record.beat(),
      () => this.#reconciler.retryFailed(),
      () => this.#trees.retry(),
      () => this.#handoffs.look(this.#reconciler.isHostRedirected),
      () => this.#room.look(),
    ];
    for (const look of looks) attempt(look);
    void this.#followSoon();
    const repairs = [
      ...this.#reconciler.repairs(),
      () => this.#settings.repair(),
      () => this.#handoffs.repair(),
      () => this.#trees.repair(),
      () => this.#sidecars.repair(),
    ];
    const entries = repairs.reduce((sum, repair) => sum + (attempt(repair) ?? 0), 0);
    this.#driftRepaired += entries;
    if (entries > 0)
      logger.warn(
        { entries },
        'entries of the maps had been altered by somebody else, and are as they should be again',
      );
    this.#marks?.soon();
    // Where another agent has them by now, they are not ours to repair.
    const isLocked =
      attempt(() => {
        this.#lock.renew();
        return true;
      }) ?? false;
    const repaired = isLocked ? this.#dataPlane.repairLinks(failed) : [];
    this.#driftRepaired += repaired.length;
    if (repaired.length > 0)
      logger.warn({ links: repaired }, 'programs had been detached by somebody else, and are attached again');
    trimMemory();
    const expired = attempt(() => this.#dataPlane.expireOriginals()) ?? 0;
    if (expired > 0)
      logger.warn(
        { entries: expired },
        'original destinations that no proxy fetched were dropped: is the proxy under the watched root?',
      );
  }

  sources(): SourceState[] {
    return [...this.#options.source.states(), ...this.#host.sources(), this.#sidecars.source()];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
    this.#reconciler.stop();
  }
}

/**
 * The agent of one node: facts of the host and objects of the source go in, the
 * kernel's maps come out. It starts whole or not at all. What it does for each
 * feature its parts say, see agent-parts.ts.
 */
import { statSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { capabilityReport } from '../../native/survey/capability.ts';
import type { CgroupPlace } from '../../native/bpf/cgroup-link.ts';
import { openDataPlane, type DataPlane, type DataPlaneOptions } from '../../native/data-plane/data-plane.ts';
import { messageOf } from '../../native/error.ts';
import type { DirectoryLock } from '../../native/boundary/lock.ts';
import { trimMemory } from '../../native/boundary/memory.ts';
import { pinnedVersions } from '../../native/pins/pin-directory.ts';
import { isRedirecting } from '../../native/data-plane/maps.ts';
import { undoPins } from '../../native/data-plane/pin-removal.ts';
import { attachProgram } from '../../native/netlink/proc-connector.ts';
import { levelOf } from '../../watcher/cgroup-level.ts';
import { findCgroupMount, realCgroupRoot, refuseV1Only } from '../../watcher/host.ts';
import type { HostWatch } from '../../watcher/host-watch.ts';
import { openHost, type OpenHost } from '../../watcher/open-host.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import { explain, type Explanation } from '../cli/explain.ts';
import type { LiveAgent } from '../cli/node-facts.ts';
import { objectIntake } from '../inventory/object-intake.ts';
import { AgentRecord } from '../maps/agent-record.ts';
import { mapShares, mapSizes } from '../maps/map-sizes.ts';
import { settlesWithin } from '../object-sources/object-source.ts';
import {
  agentMetrics,
  driftMetrics,
  lostEventMetrics,
  sourceStateMetrics,
} from '../reports/agent-metrics.ts';
import { mapMetrics } from '../reports/map-metrics.ts';
import { metricSources } from '../reports/metric-source.ts';
import { createMetrics, type Metrics } from '../reports/metrics.ts';
import { objectSourceMetrics } from '../reports/object-source-metrics.ts';
import { agentCore, liveAgent, type AgentCore, type NodeAgentOptions } from './agent-core.ts';
import { agentParts } from './agent-parts.ts';
import { leave, withdraw, type Departing } from './departure.ts';
import { attachesUnlisted, WAITS, waitingState } from './first-start.ts';
import { Heartbeat } from './heartbeat.ts';
import { PartWalk } from './part-walk.ts';
import { awaitTurn, takeTurn, type Standby } from './standby.ts';

/** Where a kubelet keeps its pods, to tell a host that does so on cgroup v1. */
const KUBELET_CGROUPS = ['kubepods', 'kubepods.slice', 'kubelet-kubepods.slice'];

const NO_HOST_NETNS =
  "the host's network namespace cannot be told (--proc-root: PID 1 shows none): processes of pods in it pass for the pods', and processes of no pod anywhere for the host's";

export interface NodeAgent {
  /** Programs attached, all objects seen once, and all that ran then is mapped. Once true it stays so. */
  readonly isReady: boolean;
  /** Why it is not, where somebody should know; for `/readyz`. */
  readonly waitsFor: string | undefined;
  /** How it does, for `status`. */
  live(): LiveAgent;
  readonly metrics: Metrics;
  /** @throws CgrouteError a sentence for who asked, see {@link explain} */
  explain(pod: string): Explanation;
  /** Whether the source has this pod, by UID; undefined where none is named, or the source has not told all yet. */
  knowsPod(uid: string): boolean | undefined;
  /** `ADDR:PORT` of the HTTP server, for `status`. */
  listening(address: string): void;
  /** @param detach removes links and maps; by default they stay, and redirection goes on */
  stop(detach: boolean): Promise<void>;
}

/** @throws CgrouteError with a sentence for the operator; nothing is left half-started */
export async function startNodeAgent(options: NodeAgentOptions): Promise<NodeAgent>;
/** Waits where another agent runs. Undefined when that was ended. @throws CgrouteError as without it */
export async function startNodeAgent(
  options: NodeAgentOptions,
  standby: Standby | undefined,
): Promise<NodeAgent | undefined>;
export async function startNodeAgent(
  options: NodeAgentOptions,
  standby?: Standby,
): Promise<NodeAgent | undefined> {
  const { config, logger, procRoot, bpffsRoot } = options;
  const stack = new AsyncDisposableStack();
  let before: readonly string[] | undefined;
  try {
    refuseV1Only(KUBELET_CGROUPS, procRoot);
    const cgroupRoot = realCgroupRoot(options.cgroupRoot ?? findCgroupMount(procRoot).mountPoint);
    const rootLevel = levelOf(cgroupRoot, procRoot);
    const root = { path: cgroupRoot, id: statSync(cgroupRoot, { bigint: true }).ino };
    const { mountPoint } = findCgroupMount(procRoot, cgroupRoot);
    const place = { cgroupRoot, mountPoint, bpffsRoot, procRoot, logger };
    const host = openHost({ cgroupRoot, procRoot, logger: logger.child({ component: 'watcher' }) });
    const hostNetns = host.hostNetns();
    if (hostNetns === undefined) logger.warn(NO_HOST_NETNS);
    const plane: DataPlaneOptions = {
      bpffsRoot,
      root,
      rootLevel,
      hostNetns,
      ports: { outbound: config.proxy.outboundPort, inbound: config.proxy.inboundPort },
      maxEntries: mapSizes(config),
      shares: mapShares(config),
      warn: (sentence) => logger.warn(sentence),
    };
    const asked = { place, plane, source: options.source, logger };
    const turn = standby === undefined ? await takeTurn(asked) : await awaitTurn(asked, standby);
    if (turn === undefined) return undefined;
    stack.use(turn);
    const { lock: pinLock, source } = turn;
    before = pinnedVersions(bpffsRoot);
    const wasRedirecting = isRedirecting(bpffsRoot);
    const dataPlane = stack.use(openDataPlane(plane, turn.objects));
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

    const running = { options: { ...options, source }, root, host, dataPlane, record, lock: pinLock };
    const agent = stack.use(new RunningAgent(running));
    await agent.start(wasRedirecting);
    const disposables = stack.move();
    return {
      get isReady() {
        return agent.isReady;
      },
      get waitsFor() {
        return agent.waits ? WAITS : undefined;
      },
      live: () => agent.live(),
      metrics: agent.metrics,
      explain: (pod) => agent.explain(pod),
      knowsPod: (uid) => agent.knowsPod(uid),
      listening: (address) => record.listening(address),
      async stop(detach) {
        try {
          if (detach) await withdraw(agent);
          else leave(agent);
        } finally {
          await disposables.disposeAsync();
        }
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

interface RunningAgentOptions {
  readonly options: NodeAgentOptions;
  readonly root: CgroupPlace;
  readonly host: OpenHost;
  readonly dataPlane: DataPlane;
  readonly record: AgentRecord;
  readonly lock: DirectoryLock;
}

class RunningAgent implements AsyncDisposable, Departing {
  readonly #options: NodeAgentOptions;
  readonly #record: AgentRecord;
  readonly #core: AgentCore;
  readonly #watch: HostWatch;
  readonly #heartbeat: Heartbeat;
  readonly #stack = new AsyncDisposableStack();
  readonly dataPlane: DataPlane;
  readonly walk: PartWalk;
  readonly logger: NodeAgentOptions['logger'];
  readonly metrics: Metrics;
  #eventsLost = 0;
  #isStopped = false;
  #isAttached = false;
  /** For the first list of objects, with nothing attached. */
  waits = false;
  isReady = false;

  constructor({ options, root, host, dataPlane, record, lock }: RunningAgentOptions) {
    const { config, logger } = options;
    this.#options = options;
    this.#record = record;
    this.dataPlane = dataPlane;
    this.logger = logger;
    const walk = this.#stack.use(new PartWalk({ logger, onFailed: (error) => this.metrics.failed(error) }));
    this.walk = walk;
    const failed = (error: unknown, what: string): void => this.#failed(error, what);
    this.#core = agentCore({
      ...options,
      root,
      dataPlane,
      record,
      host,
      tell: walk,
      isReady: () => this.isReady,
      failed,
      mapped: (seconds) => this.metrics.mapped(seconds),
    });
    walk.wire(agentParts(this.#core));
    const everyMs = config.sweepSeconds * 1000;
    this.#heartbeat = new Heartbeat({ everyMs, walk, dataPlane, lock, logger, failed });
    this.metrics = createMetrics([
      ...metricSources(agentMetrics, () => ({ version: options.version, isReady: this.isReady })),
      ...metricSources(mapMetrics, () => dataPlane.maps),
      ...metricSources(sourceStateMetrics, () => this.sources()),
      ...metricSources(objectSourceMetrics, () => options.source.figures()),
      ...metricSources(lostEventMetrics, () => this.#eventsLost),
      ...metricSources(driftMetrics, () => this.#heartbeat.driftRepaired),
      ...walk.metrics(),
    ]);
    const filter = dataPlane.execFilter;
    const { ledger } = this.#core;
    // From here on the kernel writes entries, too; what it cannot know yet it marks as unknown.
    const cgroupEvents = dataPlane.attachIdentity() ? dataPlane.watchCgroupEvents : undefined;
    this.#watch = this.#stack.use(
      host.follow({
        sweepMs: everyMs,
        onCgroup: (cgroup) => walk.cgroupAppeared(ledger.appeared(cgroup)),
        onCgroupGone: (cgroup) => walk.cgroupGone(ledger.gone(cgroup)),
        onProcess: (process) => walk.processSeen(process),
        onLost: () => void this.#eventsLost++,
        wantsProcess: (cgroupId) => walk.wantsProcess(cgroupId),
        cgroupEvents,
        ...(filter === undefined ? {} : { attachFilter: (fd: number) => attachProgram(fd, filter) }),
      }),
    );
  }

  knowsPod(uid: string): boolean | undefined {
    return this.isReady && uid !== '' ? this.#core.inventory.pod(uid) !== undefined : undefined;
  }

  explain(pod: string): Explanation {
    const { reconciler } = this.#core;
    return explain(pod, {
      maps: this.dataPlane.maps,
      config: this.#options.config,
      podsNamed: (name, namespace) => reconciler.podsNamed(name, namespace),
      proxy: () => this.#core.proxy.report,
    });
  }

  async start(wasRedirecting: boolean): Promise<void> {
    const { source, config } = this.#options;
    const { inventory, enrolment, reconciler } = this.#core;
    this.walk.start();
    const following = this.#stack.use(
      await source.follow(objectIntake(inventory, enrolment, (uids) => this.walk.podsChanged(uids))),
    );
    await this.#watch.ready;
    // Maps first, programs second: the first connection that they see gets its verdict.
    const isSynced = await settlesWithin(following.synced, PATIENCE_MS);
    reconciler.begin();
    await reconciler.idle();
    const removed = isSynced ? this.walk.takeOver() : 0;
    // What found no room before the leftovers of an earlier agent were gone.
    await reconciler.idle();
    this.waits = !isSynced && !attachesUnlisted(wasRedirecting, config);
    if (!this.waits) await this.#attach();
    this.#stack.use(this.#heartbeat).start();
    this.#stack.defer(() => void (this.#isStopped = true));
    this.#record.beat();
    if (isSynced) return this.#becomeReady(removed);
    this.logger.warn(
      { sources: source.states() },
      this.waits
        ? `not ready: ${WAITS}`
        : 'nobody says yet which pods there are: what the maps hold from before stands',
    );
    void this.#becomeReadyLater(following.synced);
  }

  async #attach(): Promise<void> {
    if (this.#isAttached) return;
    this.walk.attach();
    this.dataPlane.attachRoot();
    this.#isAttached = true;
    await this.#completeHandover();
  }

  /** Whatever is left of another version after this does no harm, and the next start tries again. */
  async #completeHandover(): Promise<void> {
    try {
      const done = await this.dataPlane.completeHandover();
      if (done !== undefined) this.logger.info(done);
    } catch (error) {
      this.logger.error(
        { err: error },
        `another version's pins could not all be taken over, which the next start tries again: ${messageOf(error)}`,
      );
    }
  }

  async #becomeReadyLater(synced: Promise<void>): Promise<void> {
    await synced;
    while (!this.#isStopped) {
      try {
        await this.#core.reconciler.idle();
        if (this.#isStopped) return;
        const removed = this.walk.takeOver();
        await this.#attach();
        this.waits = false;
        if (!this.#isStopped) this.#becomeReady(removed);
        return;
      } catch (error) {
        this.#failed(error, 'the first reconcile failed, and is tried again');
        await delay(RETRY_MS, undefined, { ref: false });
      }
    }
  }

  #becomeReady(removed: number): void {
    const dropped = this.dataPlane.dropOtherLinks();
    if (removed + dropped > 0)
      this.logger.info({ entries: removed, links: dropped }, 'leftovers of an earlier agent were removed');
    this.isReady = true;
    this.walk.ready();
    trimMemory();
    this.logger.info({ ...this.#core.reconciler.counts }, 'ready');
  }

  #failed(error: unknown, what: string): void {
    this.metrics.failed(error);
    this.logger.error({ err: error }, `${what}: ${messageOf(error)}`);
  }

  sources(): SourceState[] {
    const waiting = this.waits ? [waitingState] : [];
    return [...waiting, ...this.#options.source.states(), ...this.#watch.sources(), ...this.walk.sources()];
  }

  live(): LiveAgent {
    const drift = this.#heartbeat.lastRepaired;
    return liveAgent(this.#core, { ready: this.isReady, sources: this.sources(), drift });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

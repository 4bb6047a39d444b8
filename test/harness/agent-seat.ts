/** The place of an agent on a node: one after another may take it, and what is asked is asked of the latest. */
import { type Agent, type AgentOptions, cgroute, nodeStatus, startAgent } from '../../deploy/stage/agent.ts';
import type { NodeStatus, PodStatus } from '../../deploy/stage/node-status.ts';
import { eventually } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { type Answer, askAgent, type Metrics, metricsOf } from './agent-http.ts';
import { entriesOf, type MapEntry } from './pinned-maps.ts';

export interface AgentSeat<Options> {
  /** An error when there was none yet. */
  latest(): Agent;
  /** Starts the agent and waits for nothing. */
  launchAgent(options?: Options): Agent;
  /** Starts the agent and waits until it is ready. */
  startAgent(options?: Options): Promise<Agent>;
  /** `cgroute cleanup`: nothing is pinned any more. */
  cleanUp(): Promise<void>;
  status(): Promise<NodeStatus>;
  /** The status of one pod; an error when there is none. */
  podStatus(pod: { readonly uid: string }): Promise<PodStatus>;
  /** Waits until the status is so. */
  until(
    what: string,
    check: (status: NodeStatus) => unknown,
    options?: { readonly ownMs?: number },
  ): Promise<NodeStatus>;
  /** What a pinned map of the kernel holds, as bpftool reads it by the map's own BTF. */
  entries(map: string): Promise<readonly MapEntry[]>;
  /** The ids of the cgroups that have an entry, in order. */
  knownCgroups(): Promise<string[]>;
  /** The agent's HTTP: `healthz`, `readyz`, `metrics`. */
  http(path: string): Promise<Answer>;
  /** The values by name and labels, as they stand in the text of `/metrics`. */
  metrics(): Promise<Metrics>;
  /** The last that the latest agent has said, for messages. */
  lastWords(): string;
}

export interface SeatOptions<Options> {
  /** For messages. */
  readonly node: string;
  /** Default the sandbox's, as {@link startAgent} has them. */
  readonly roots?: Required<Pick<AgentOptions, 'cgroupRoot' | 'bpffsRoot'>> & Pick<AgentOptions, 'procRoot'>;
  /** What an agent of this node is started with: among it, the source of its objects. */
  agentOptions(options: Options | undefined): AgentOptions;
  /** What the tests see of the status. Default: all. */
  shown?(status: NodeStatus): NodeStatus;
}

/** A seat that nobody has taken yet. */
export function agentSeat<Options>(sandbox: Sandbox, seat: SeatOptions<Options>): AgentSeat<Options> {
  const { roots = { cgroupRoot: sandbox.cgroupRoot, bpffsRoot: `${sandbox.bpffs}/cgroute` } } = seat;
  let agent: Agent | undefined;

  function latest(): Agent {
    if (agent === undefined) throw new Error(`${seat.node} has no agent yet`);
    return agent;
  }

  function launchAgent(options?: Options): Agent {
    return (agent = startAgent(sandbox, { ...roots, ...seat.agentOptions(options) }));
  }

  async function status(): Promise<NodeStatus> {
    const all = await nodeStatus(sandbox, roots);
    return seat.shown?.(all) ?? all;
  }

  const lastWords = (): string => agent?.running.stdout.slice(-10).join('\n') ?? 'there was no agent yet';

  return {
    latest,
    launchAgent,
    status,
    lastWords,
    async startAgent(options) {
      const started = launchAgent(options);
      await started.ready();
      return started;
    },
    async cleanUp() {
      const { code, stderr } = await cgroute(sandbox, ['cleanup'], { bpffsRoot: roots.bpffsRoot });
      if (code !== 0) throw new Error(`cgroute cleanup exited with ${code}\n${stderr}`);
    },
    async podStatus({ uid }) {
      const found = (await status()).pods.find((pod) => pod.uid === uid);
      if (found === undefined) throw new Error(`the status of ${seat.node} has no pod ${uid}`);
      return found;
    },
    async until(what, check, options) {
      let now = await status();
      const isSo = async (): Promise<unknown> => check(now) || check((now = await status()));
      await eventually(`${seat.node}: ${what}`, isSo, options).catch((error: unknown) => {
        const text = JSON.stringify(
          { ...now, capabilities: undefined, host: undefined },
          (key, value: unknown) => (key === 'connections' ? undefined : value),
          1,
        );
        throw new Error(`${String(error)}\n${text}\n${lastWords()}`);
      });
      return now;
    },
    entries: (map) => entriesOf(roots.bpffsRoot, map),
    async knownCgroups() {
      const all = await entriesOf(roots.bpffsRoot, 'cgroup_info_map');
      return all.map(({ key }) => String(key)).toSorted();
    },
    http: (path) => askAgent(latest(), path),
    metrics: () => metricsOf(latest()),
  };
}

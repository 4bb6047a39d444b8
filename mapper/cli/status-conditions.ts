/**
 * What is not as it should be on this node, as conditions: `status` begins with those
 * that are false, and its exit code follows from them. Pure.
 */
import { isFull, type MapRoom } from '../connections/connection-room.ts';
import type { NodeFacts } from './node-facts.ts';

/** The gravest first. */
export type ConditionType =
  | 'Redirecting'
  | 'ProxyServing'
  | 'MapsHaveRoom'
  | 'AgentRunning'
  | 'AgentReady'
  | 'PodsWritten'
  | 'PodsKnown'
  | 'SourcesFollowed'
  | 'EverythingSeen'
  | 'NothingDrifted';

export interface Condition {
  readonly type: ConditionType;
  readonly status: 'True' | 'False' | 'Unknown';
  /** What follows for connections, and of how many pods. */
  readonly message: string;
}

/** Witnesses of new cgroups stand in for each other; what these tell, nobody else does. */
const ALONE: ReadonlySet<string> = new Set([
  'pods',
  'namespaces',
  'manifest',
  'sweep',
  'sidecars',
  'connections',
  'startup-taint',
]);

export function conditionsOf(facts: NodeFacts): readonly Condition[] {
  return [
    condition('Redirecting', redirecting(facts)),
    condition('ProxyServing', proxyServing(facts)),
    condition('MapsHaveRoom', facts.maps.filter(isFull).map(withoutRoom).join('; ')),
    condition('AgentRunning', facts.agent.running ? '' : agentDown(facts)),
    condition('AgentReady', agentReady(facts)),
    condition('PodsWritten', podsWritten(facts)),
    condition('PodsKnown', podsKnown(facts)),
    condition('SourcesFollowed', sourcesFollowed(facts)),
    condition('EverythingSeen', facts.unseen.join('; ')),
    condition('NothingDrifted', drifted(facts)),
  ];
}

/** Whether anything is not as wanted. */
export const isAsWanted = (conditions: readonly Condition[]): boolean =>
  conditions.every(({ status }) => status !== 'False');

/** @param wrong what is, in words; empty where nothing is, undefined where nobody can tell */
function condition(type: ConditionType, wrong: string | undefined): Condition {
  if (wrong === undefined)
    return { type, status: 'Unknown', message: 'this is the agent to say, and it does not answer' };
  return wrong === '' ? { type, status: 'True', message: '' } : { type, status: 'False', message: wrong };
}

const pods = (count: number, of = 'enrolled pods'): string =>
  count === 1 ? `1 ${of.replace(/s$/, '')}` : `${count} ${of}`;

/** Those of which some connections go to the proxy: a bypass of one direction leaves the other. */
const inMesh = ({ pods: all }: NodeFacts): NodeFacts['pods'] =>
  all.filter(({ verdict, reason }) => verdict === 'in' || (verdict === 'bypass' && reason !== 'bypass'));

const enrolled = (facts: NodeFacts): number => inMesh(facts).length;

function sum(
  { pods: all }: NodeFacts,
  counter: 'noProxyDenied' | 'noProxyAllowed' | 'redirected' | 'inboundRedirected',
): number {
  return all.reduce((total, { connections }) => total + connections[counter], 0);
}

function redirecting(facts: NodeFacts): string {
  const { node, redirecting: is, agent } = facts;
  if (node === null || is || (agent.running && !agent.ready)) return '';
  return `no program of cgroute is attached: new connections of ${pods(enrolled(facts))} pass the mesh by`;
}

function proxyServing(facts: NodeFacts): string {
  const { proxy, policies } = facts;
  const count = enrolled(facts);
  if (count === 0 || facts.node === null) return '';
  if (proxy.address === null) {
    const what = `no proxy of this node is known: new connections of ${pods(count)}`;
    return policies?.whenProxyDown === 'allow'
      ? `${what} pass the mesh by (whenProxyDown: allow), ${sum(facts, 'noProxyAllowed')} so far`
      : `${what} are refused (whenProxyDown: deny), ${sum(facts, 'noProxyDenied')} so far`;
  }
  const where = `the proxy ${proxy.pod ?? 'that the maps name'}`;
  const without = withoutFamily(facts, where);
  if (without !== '') return without;
  const wrong = [
    ...(proxy.unready === null ? [] : [`${where} is not ready (${proxy.unready})`]),
    ...(proxy.notListening === null || proxy.notListening.length === 0
      ? []
      : [`nobody listens at ${proxy.notListening.join(', ')} of ${where}`]),
  ];
  if (wrong.length === 0) return '';
  const redirected = sum(facts, 'redirected') + sum(facts, 'inboundRedirected');
  const since =
    proxy.trouble === null
      ? ''
      : `, ${Math.max(0, redirected - proxy.trouble.redirectedBefore)} since ${proxy.trouble.since.replace(/\.\d+Z$/, 'Z')}`;
  return `${wrong.join(', and ')}: new connections of ${pods(count)} are sent there${since}`;
}

/** Of a family that the proxy has no address of, no connection finds it. */
function withoutFamily(facts: NodeFacts, where: string): string {
  const { proxy, policies } = facts;
  const has6 = proxy.address6 !== null;
  const has4 = proxy.address !== null && proxy.address !== proxy.address6;
  for (const [family, isThere, mark] of [
    ['IPv4', has4, '.'],
    ['IPv6', has6, ':'],
  ] as const) {
    const count = inMesh(facts).filter(({ ips }) => ips.some((ip) => ip.includes(mark))).length;
    if (isThere || count === 0) continue;
    const what = `${where} has no ${family} address that counts: new ${family} connections of ${pods(count)}`;
    return policies?.whenProxyDown === 'allow'
      ? `${what} pass the mesh by (whenProxyDown: allow), ${sum(facts, 'noProxyAllowed')} so far`
      : `${what} are refused (whenProxyDown: deny), ${sum(facts, 'noProxyDenied')} so far`;
  }
  return '';
}

function agentReady({ agent }: NodeFacts): string | undefined {
  if (!agent.running || agent.ready) return '';
  return agent.answers
    ? 'the agent is not ready: it has not heard yet of all pods and namespaces, or its first pass through them fails'
    : 'the agent runs and does not answer: it is starting, or in another network namespace';
}

function podsWritten({ live }: NodeFacts): string | undefined {
  if (live?.failedPods === undefined) return undefined;
  return live.failedPods === 0
    ? ''
    : `the entries of ${pods(live.failedPods, 'pods')} cannot be written, which have an old verdict or none; the agent's log says why`;
}

function podsKnown({ unknown, policies, host }: NodeFacts): string {
  const count = unknown.filter(({ isPopulated }) => isPopulated === true).length;
  if (count === 0) return '';
  return policies?.unknownPods !== 'allow'
    ? `${count} cgroups with processes belong to pods that nobody knows: their connections are refused (unknownPods: deny), ${host.unknownDenied} so far`
    : `${count} cgroups with processes belong to pods that nobody knows: their connections pass the mesh by (unknownPods: allow), ${host.unknownAllowed} so far`;
}

function sourcesFollowed({ sources, live }: NodeFacts): string | undefined {
  if (live === undefined) return undefined;
  return sources
    .filter(({ name, state }) => ALONE.has(name) && (state === 'degraded' || state === 'failed'))
    .map(({ name, state, detail }) => `${name} is ${state}: ${detail}`)
    .join('; ');
}

function drifted({ live }: NodeFacts): string | undefined {
  if (live?.drift === undefined) return undefined;
  return live.drift === 0
    ? ''
    : `${live.drift} programs or entries had been removed or altered by somebody else, and were put back just now`;
}

/** What becomes of connections. */
const WITHOUT_ROOM: Readonly<Record<string, string>> = {
  cgroup_info_map: 'pods that are not in it are treated as unknown: see maxPods',
  pod_info_map: 'pods that are not in it are treated as unknown: see maxPods',
  pod_ip_map: 'host processes reach pods that are not in it directly: see maxPods',
  connection_overflow_map: 'further connections are refused (errorDenied): see maxConnections',
  original_dst_map:
    'the proxy is not told the destination of further connections (handoffLost): is it stuck?',
};

function withoutRoom({ name, capacity }: MapRoom): string {
  return `${name} has no room for more than its ${capacity} entries; ${WITHOUT_ROOM[name] ?? 'see the log of the agent'}`;
}

function agentDown({ node, redirecting: is }: NodeFacts): string {
  if (is)
    return 'no agent runs: what it left pinned goes on redirecting, new pods get no verdict, and a proxy at another address is not followed';
  return node === null
    ? 'no agent runs, nothing of cgroute is pinned here, and nothing is redirected'
    : 'no agent runs, and nothing is redirected: its programs are detached';
}

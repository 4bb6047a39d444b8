/** The DaemonSet that runs the agents, as far as its end matters to them: an upgrade leaves redirection as it stands, the end takes it off the nodes. */
import { setTimeout as delay } from 'node:timers/promises';
import { CgrouteError, messageOf } from '../../native/error.ts';
import type { KubeClient } from '../kube/kube-client.ts';
import { KubeError } from '../kube/kube-error.ts';

export interface AgentSet {
  readonly namespace: string;
  readonly name: string;
}

/** `NAMESPACE/NAME`. @throws CgrouteError `EUSAGE`, which begins with `what` */
export function parseAgentSet(text: string, what: string): AgentSet {
  const [, namespace, name] = /^([a-z0-9-]+)\/([a-z0-9.-]+)$/.exec(text) ?? [];
  if (namespace === undefined || name === undefined)
    throw new CgrouteError('EUSAGE', `${what} expects a DaemonSet as NAMESPACE/NAME, got "${text}"`);
  return { namespace, name };
}

export interface Asking extends Waiting {
  /** Whether the agent's own pod is no object any more: deleted by force, its token went with it. @default never */
  readonly isPodGone?: () => boolean;
}

export interface Waiting {
  /** Milliseconds in all, and between two questions. */
  readonly patienceMs?: number;
  readonly everyMs?: number;
}

const path = ({ namespace, name }: AgentSet): string =>
  `/apis/apps/v1/namespaces/${encodeURIComponent(namespace)}/daemonsets/${encodeURIComponent(name)}`;

type Fate = 'stays' | 'ends' | 'gone';

async function fateOf(client: Pick<KubeClient, 'json'>, set: AgentSet, signal: AbortSignal): Promise<Fate> {
  try {
    const { metadata } = (await client.json({ path: path(set), signal })) as {
      metadata?: { deletionTimestamp?: unknown };
    };
    return metadata?.deletionTimestamp === undefined ? 'stays' : 'ends';
  } catch (error) {
    if (error instanceof KubeError && error.status === 404) return 'gone';
    throw error;
  }
}

/**
 * Asked by an agent that was told to leave: is its DaemonSet deleted? Where the
 * rights and the account were deleted along with it, the answer is 403 for some
 * seconds, as the API server remembers tokens, and 401 from then on. The same 401
 * comes to an agent whose pod alone was deleted by force, which a DaemonSet replaces.
 * Without an answer the DaemonSet counts as one that stays.
 */
export async function isEnding(
  client: Pick<KubeClient, 'json'>,
  set: AgentSet,
  { patienceMs = 15_000, everyMs = 500, isPodGone = () => false }: Asking = {},
): Promise<{ readonly ends: boolean; readonly why: string }> {
  const signal = AbortSignal.timeout(patienceMs);
  let why = 'the API server did not answer in time';
  for (;;) {
    try {
      const fate = await fateOf(client, set, signal);
      return {
        ends: fate !== 'stays',
        why: fate === 'stays' ? 'its DaemonSet is there' : 'its DaemonSet is deleted',
      };
    } catch (error) {
      if (error instanceof KubeError && error.status === 401)
        return isPodGone()
          ? { ends: false, why: 'its pod was deleted by force, and its token with it' }
          : { ends: true, why: 'its service account is deleted' };
      if (!signal.aborted) why = messageOf(error);
    }
    await delay(everyMs, undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return { ends: false, why };
  }
}

/**
 * Deletes the DaemonSet in a way that keeps it until its pods are gone, and waits
 * for that. Gives false when it is still there when the time is up: a node that is
 * down keeps its pod.
 * @throws KubeError when it may not, or the API server is away throughout
 */
export async function endAgents(
  client: Pick<KubeClient, 'json'>,
  set: AgentSet,
  { patienceMs = 120_000, everyMs = 500 }: Waiting = {},
): Promise<boolean> {
  const signal = AbortSignal.timeout(patienceMs);
  let isDeleted = false;
  let failure: unknown;
  for (;;) {
    try {
      if (!isDeleted)
        await client.json({
          method: 'DELETE',
          path: path(set),
          query: { propagationPolicy: 'Foreground' },
          signal,
        });
      isDeleted = true;
      if ((await fateOf(client, set, signal)) === 'gone') return true;
    } catch (error) {
      const status = error instanceof KubeError ? error.status : undefined;
      if (status === 404) return true;
      const isLasting = status !== undefined && status < 500 && status !== 429;
      if (!isDeleted && isLasting) throw error;
      // Of the end of our patience itself there is nothing to say.
      if (!signal.aborted || failure === undefined) failure = error;
    }
    await delay(everyMs, undefined, { signal }).catch(() => undefined);
    if (!signal.aborted) continue;
    if (isDeleted) return false;
    throw failure;
  }
}

/**
 * The taint that keeps pods off a new node until its agent is ready: taken off then,
 * and again where somebody puts it back, as a cloud provider may that makes a node's
 * taints what its pool says.
 */
import type { Logger } from 'pino';
import { messageOf } from '../../native/error.ts';
import type { SourceState } from '../../watcher/source-state.ts';
import type { KubeClient } from '../kube/kube-client.ts';
import { KubeError } from '../kube/kube-error.ts';
import { FIELD_MANAGER } from '../objects/field-owners.ts';

/** So long after the start each look asks the API server: who puts taints back does it soon. */
const EAGER_MS = 600_000;
/** And this often later. */
const RARE_MS = 600_000;
/** Somebody else writes to the node at the same time: so often it is tried at once, then with the next look. */
const TRIES = 5;

export interface StartupTaintOptions {
  readonly client: Pick<KubeClient, 'json'>;
  readonly node: string;
  /** The taint's key; any value and any effect. */
  readonly key: string;
  readonly logger: Logger;
}

interface Taint {
  readonly key?: unknown;
}

interface Node {
  readonly metadata?: { readonly resourceVersion?: unknown };
  readonly spec?: { readonly taints?: readonly Taint[] };
}

export class StartupTaint implements Disposable {
  readonly #options: StartupTaintOptions;
  readonly #closing = new AbortController();
  #startedAt: number | undefined;
  #lookedAt = -Infinity;
  #isLooking = false;
  #failure: string | undefined;
  #removed = 0;

  constructor(options: StartupTaintOptions) {
    this.#options = options;
  }

  /** The agent is ready: from now on the node does not have it. Resolves when that was tried. */
  async begin(): Promise<void> {
    this.#startedAt ??= performance.now();
    await this.#look();
  }

  /** To be called from time to time. */
  async soon(): Promise<void> {
    if (this.#startedAt === undefined) return;
    const now = performance.now();
    const isDue =
      this.#failure !== undefined || now - this.#startedAt < EAGER_MS || now - this.#lookedAt >= RARE_MS;
    if (isDue) await this.#look();
  }

  source(): SourceState {
    const { key, node } = this.#options;
    const name = 'startup-taint';
    if (this.#failure !== undefined) return { name, state: 'failed', detail: this.#failure };
    const detail =
      this.#startedAt === undefined
        ? `${key} stays on node ${node} until this agent is ready`
        : `${key} is not on node ${node}; taken off ${this.#removed} times`;
    return { name, state: 'ok', detail };
  }

  async #look(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    const { logger } = this.#options;
    try {
      await this.#remove();
      if (this.#failure !== undefined) logger.info('the taint of the start can be looked at again');
      this.#failure = undefined;
      this.#lookedAt = performance.now();
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      const sentence = this.#sentenceOf(error);
      if (sentence !== this.#failure) logger.error({ err: error }, `${sentence}; it is tried again`);
      this.#failure = sentence;
    } finally {
      this.#isLooking = false;
    }
  }

  async #remove(): Promise<void> {
    const { client, key, node, logger } = this.#options;
    const { signal } = this.#closing;
    const path = `/api/v1/nodes/${encodeURIComponent(node)}`;
    for (let left = TRIES; ; ) {
      const { metadata = {}, spec = {} } = (await client.json({ path, signal })) as Node;
      const taints = spec.taints ?? [];
      const others = taints.filter((taint) => taint.key !== key);
      if (others.length === taints.length) return;
      // The list is written as a whole: with the version the patch is refused where somebody has changed it since.
      const text = JSON.stringify({
        metadata: { resourceVersion: metadata.resourceVersion },
        spec: { taints: others.length === 0 ? null : others },
      });
      try {
        await client.json({
          method: 'PATCH',
          path,
          query: { fieldManager: FIELD_MANAGER },
          body: { type: 'application/merge-patch+json', text },
          signal,
        });
      } catch (error) {
        if (!(error instanceof KubeError && error.status === 409) || --left <= 0) throw error;
        continue;
      }
      this.#removed++;
      logger.info({ taint: key }, 'the taint of the start is taken off the node: pods may come');
      return;
    }
  }

  #sentenceOf(error: unknown): string {
    const { key, node } = this.#options;
    const status = error instanceof KubeError ? error.status : undefined;
    const remedy =
      status === 403
        ? ': expected the rights to get and patch nodes, which the chart gives with config.startupTaint'
        : status === 404
          ? `: expected --node ${node} to be the name of a node`
          : '';
    return `the taint ${key} cannot be taken off node ${node}${remedy}; got ${messageOf(error)}`;
  }

  [Symbol.dispose](): void {
    this.#closing.abort();
  }
}

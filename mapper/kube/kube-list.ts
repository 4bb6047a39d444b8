/** One list of the API server, page by page. */
import type { KubeClient, KubeRequest } from './kube-client.ts';
import { KubeError } from './kube-error.ts';

/**
 * Which state a list may show.
 * - `any`: what the server has at hand, cheapest; once, at the start;
 * - `newer`: at hand too, and not older than what is known;
 * - `latest`: read through to etcd, in pages.
 */
export type Freshness = 'any' | 'newer' | 'latest';

export interface ListOptions {
  readonly client: Pick<KubeClient, 'json'>;
  readonly path: string;
  readonly selector: Readonly<Record<string, string>>;
  readonly freshness: Freshness;
  /** What is known; for `newer`. */
  readonly version: string;
  /** Objects in a page, where there are pages. */
  readonly pageSize: number;
  readonly signal: AbortSignal;
}

export interface ListPage {
  readonly items: readonly unknown[];
  /** The `resourceVersion` of the list. */
  readonly version: string;
}

/** @throws KubeError in the middle, too; the pages before that stand */
export async function* listPages(options: ListOptions): AsyncGenerator<ListPage, void> {
  for (let more = ''; ; ) {
    const { next, ...page } = await pageAt(more, options);
    yield page;
    more = next;
    if (more === '') return;
  }
}

async function pageAt(
  more: string,
  { client, path, selector, freshness, version: known, pageSize, signal }: ListOptions,
): Promise<ListPage & { readonly next: string }> {
  // The server's cache gives a list as a whole: with a limit the server would go to etcd and through all nodes' pods there.
  const query: KubeRequest['query'] = {
    any: { resourceVersion: '0', limit: pageSize },
    newer: { resourceVersion: known, resourceVersionMatch: 'NotOlderThan' },
    latest: { limit: pageSize },
  }[more === '' ? freshness : 'latest'];
  const list = await client.json({
    path,
    query: { ...query, ...(more === '' ? {} : { continue: more }), ...selector },
    signal,
  });
  const { items, metadata } = list as {
    readonly items?: unknown;
    readonly metadata?: Readonly<Record<string, unknown>>;
  };
  const version = metadata?.['resourceVersion'];
  if ((!Array.isArray(items) && items !== null) || typeof version !== 'string')
    throw new KubeError(
      'garbage',
      `GET ${path}: expected a list with items and a resourceVersion, got something else`,
    );
  const next = metadata?.['continue'];
  return {
    items: (items ?? []) as readonly unknown[],
    version,
    next: typeof next === 'string' ? next : '',
  };
}

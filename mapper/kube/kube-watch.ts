/** One watch of the API server, from its opening to its end. */
import type { IncomingMessage } from 'node:http';
import { reasonOf, type KubeClient, type KubeRequest } from './kube-client.ts';
import { errorOfStatus, KubeError } from './kube-error.ts';

export type WatchEventType = 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK';

export interface WatchOptions {
  readonly client: KubeClient;
  readonly path: string;
  readonly query: NonNullable<KubeRequest['query']>;
  /** A healthy server sends a bookmark each minute; one that is silent for longer than this is given up. */
  readonly idleMs: number;
  readonly signal: AbortSignal;
  readonly onOpen: () => void;
  readonly onEvent: (type: WatchEventType, object: unknown) => void;
}

/** One object of the API is 3 MB at the very most, as etcd takes no more than 1.5 MB. */
const LONGEST_LINE = 16 * 1024 * 1024;
const NEWLINE = 0x0a;
const TYPES: ReadonlySet<unknown> = new Set<WatchEventType>(['ADDED', 'MODIFIED', 'DELETED', 'BOOKMARK']);

/**
 * Resolves when the server ends the watch in order, as it does after its
 * timeout. Each event is handed on as soon as its line is there.
 * @throws KubeError for every other end; what came before it stands
 */
export async function watch({
  client,
  path,
  query,
  idleMs,
  signal,
  onOpen,
  onEvent,
}: WatchOptions): Promise<void> {
  const what = `watch of ${path}`;
  const response = await client.stream({
    path,
    query: { ...query, watch: 1, allowWatchBookmarks: true },
    signal,
  });
  onOpen();
  const idle = setTimeout(() => {
    response.destroy(
      new KubeError('idle', `${what}: neither an event nor a bookmark for ${Math.round(idleMs / 1000)} s`),
    );
  }, idleMs);
  try {
    for await (const line of linesOf(response, what)) {
      idle.refresh();
      const event = parsed(line, what);
      if (event.type === 'ERROR') throw errorOfStatus(what, event.object);
      // A type that a newer server adds is none of ours.
      if (TYPES.has(event.type)) onEvent(event.type as WatchEventType, event.object);
    }
  } catch (cause) {
    if (signal.aborted || cause instanceof KubeError) throw cause;
    throw new KubeError('cut', `${what}: it was cut off: ${reasonOf(cause)}`, { cause });
  } finally {
    clearTimeout(idle);
    response.destroy();
  }
}

/** Whole lines; what a broken end leaves over is no line. */
async function* linesOf(response: IncomingMessage, what: string): AsyncGenerator<string> {
  let begun: Buffer[] = [];
  let length = 0;
  for await (const piece of response as AsyncIterable<Buffer>) {
    let from = 0;
    for (let end = piece.indexOf(NEWLINE); end >= 0; end = piece.indexOf(NEWLINE, from)) {
      const last = piece.subarray(from, end);
      const line = begun.length === 0 ? last : Buffer.concat([...begun, last]);
      begun = [];
      length = 0;
      from = end + 1;
      if (line.length > 0) yield line.toString('utf8');
    }
    if (from === piece.length) continue;
    begun.push(piece.subarray(from));
    length += piece.length - from;
    if (length > LONGEST_LINE)
      throw new KubeError(
        'garbage',
        `${what}: expected an event on each line, got a line of more than ${LONGEST_LINE} bytes`,
      );
  }
  if (length > 0) throw new KubeError('cut', `${what}: it was cut off in the middle of an event`);
}

function parsed(line: string, what: string): { readonly type?: unknown; readonly object?: unknown } {
  try {
    const event = JSON.parse(line) as unknown;
    if (typeof event === 'object' && event !== null) return event;
  } catch {
    // Told below, with what came.
  }
  throw new KubeError(
    'garbage',
    `${what}: expected an event as JSON, got ${JSON.stringify(line.slice(0, 60))}`,
  );
}

/**
 * `cgroute probe live|ready`, for the kubelet: asks the agent of the same pod over a
 * Unix socket that no other pod has. An address of the node would be answered by
 * another agent, the one that this is to follow.
 */
import { createConnection } from 'node:net';
import { CgrouteError, isForbidden } from '../../native/error.ts';
import { PROBE_SOCKET, usage, type Flags } from './command-line.ts';

const PATHS = { live: '/healthz', ready: '/readyz' } as const;
/** The chart gives a probe five seconds. */
const PATIENCE_MS = 4000;

export interface ProbeAnswer {
  readonly isFine: boolean;
  /** What the agent says of itself, or why it says nothing. */
  readonly sentence: string;
}

/** @throws CgrouteError `EUSAGE` for another word than live or ready */
export async function probe(flags: Flags, argument: string): Promise<ProbeAnswer> {
  if (argument !== 'live' && argument !== 'ready')
    throw usage(`cgroute probe expects live or ready, got "${argument}"`);
  const path = PATHS[argument];
  const socket = flags['probe-socket'] ?? PROBE_SOCKET;
  try {
    const answer = await ask(socket, path);
    const [, code = '', body = ''] = /^HTTP\/1\.[01] (\d{3})[^]*?\r\n\r\n([^]*)$/.exec(answer) ?? [];
    if (code === '')
      throw new Error(`an answer that is none of an agent's: ${JSON.stringify(answer.slice(0, 80))}`);
    return { isFine: code === '200', sentence: body.trim() };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    const sentence = isForbidden(error)
      ? `whether an agent answers at --probe-socket ${socket} cannot be told: ${why}: run as root, or as a user who may`
      : `no agent answers at --probe-socket ${socket}: ${why}`;
    return { isFine: false, sentence };
  }
}

/** The whole answer to one request, by HTTP 1.0, which ends with the connection. `node:http` takes as long to load as all else. */
function ask(path: string, url: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const socket = createConnection({ path }, () => socket.write(`GET ${url} HTTP/1.0\r\n\r\n`));
    socket.setEncoding('utf8');
    socket.setTimeout(PATIENCE_MS, () =>
      socket.destroy(new CgrouteError('ETIMEDOUT', `nothing within ${PATIENCE_MS / 1000} s`)),
    );
    socket.on('data', (chunk: string) => void (text += chunk));
    socket.on('end', () => resolve(text));
    socket.on('error', reject);
  });
}

/**
 * Has an agent collect its garbage at once, so that memory can be compared: what is
 * left is what it holds. Node does that by itself when it sees fit. The way is its
 * debugger, which SIGUSR1 starts in any Node, so the agent is the one that is shipped.
 */
import type { Agent } from '../../deploy/stage/agent.ts';
import { eventually } from '../../deploy/stage/process.ts';

/** For the agent's environment: a port of the kernel's choice. */
export const DEBUGGER_ENV = { NODE_OPTIONS: '--inspect-port=0' } as const;
/** On a machine that is busy with something else. */
const TIMEOUT_MS = 60_000;

export interface ForcedRest extends Disposable {
  collect(): Promise<void>;
}

/** Opens the debugger of an agent that was started with {@link DEBUGGER_ENV}; it stays open, and its few megabytes with it. */
export async function openForcedRest({ running }: Agent): Promise<ForcedRest> {
  running.kill('SIGUSR1');
  const url = await eventually('the debugger listens', () =>
    running.stderr
      .map((line) => /Debugger listening on (ws:\S+)/.exec(line)?.[1])
      .find((found) => found !== undefined),
  );
  const socket = new WebSocket(url);
  await new Promise((resolve, reject) => {
    socket.addEventListener('open', resolve);
    socket.addEventListener('error', () => reject(new Error(`${url} does not answer`)));
  });
  let id = 0;
  return {
    async collect() {
      const answered = Promise.withResolvers<void>();
      const wanted = ++id;
      const hear = ({ data }: MessageEvent): void => {
        if ((JSON.parse(String(data)) as { id?: number }).id === wanted) answered.resolve();
      };
      const timer = setTimeout(
        () =>
          answered.reject(new Error(`the agent did not collect its garbage within ${TIMEOUT_MS / 1000} s`)),
        TIMEOUT_MS,
      );
      socket.addEventListener('message', hear);
      socket.send(JSON.stringify({ id: wanted, method: 'HeapProfiler.collectGarbage' }));
      await answered.promise.finally(() => {
        clearTimeout(timer);
        socket.removeEventListener('message', hear);
      });
    },
    [Symbol.dispose]: () => socket.close(),
  };
}

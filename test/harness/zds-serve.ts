/** The agent's end of ZDS without an agent (`inpod-proxy zds-serve`): it sends what a test says. */
import { type Running, eventually } from '../../deploy/stage/process.ts';
import { INPOD_PROXY, eventReader } from '../../deploy/stage/inpod-proxy.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export type ZdsEvent =
  | { readonly event: 'serving' }
  | { readonly event: 'hello' | 'closed' | 'rubbish'; readonly client: number }
  /** Without an error a proxy has taken what it was told. */
  | { readonly event: 'ack'; readonly client: number; readonly error: string }
  | { readonly event: 'order'; readonly order: string; readonly ok: boolean; readonly sent: number };

export interface ZdsServe extends AsyncDisposable {
  readonly socket: string;
  readonly running: Running;
  /** What came, in order; clients are numbered from 1. */
  events(): ZdsEvent[];
  /** The errors of a client's acknowledgements so far; empty texts where there was none. */
  acks(client?: number): string[];
  /**
   * Sends to all proxies; returns to how many. `add UID NS NAME ACCOUNT PID|FILE`, `add-twice` (the
   * descriptor), `add-bare` (none), `del UID`, `keep UID`, `snapshot`, `raw HEX`, `hang-up`.
   */
  send(text: string): Promise<number>;
  /** Waits until a client has said something for the n-th time. */
  said(event: 'hello' | 'closed' | 'rubbish' | 'ack', client?: number, times?: number): Promise<ZdsEvent>;
}

/** Serves on a path, by default one of the sandbox's own, and replaces what is there. */
export async function serveZds(sandbox: Sandbox, socket = sandbox.file('zds.sock')): Promise<ZdsServe> {
  const running = sandbox.spawn({ cmd: INPOD_PROXY, args: ['zds-serve', socket] });
  const events = eventReader<ZdsEvent>(running);
  await running.line(/serving/);
  return {
    socket,
    running,
    events,
    acks: (client = 1) =>
      events().flatMap((each) => (each.event === 'ack' && each.client === client ? [each.error] : [])),
    async send(text) {
      const answers = (): ZdsEvent[] => events().filter(({ event }) => event === 'order');
      const before = answers().length;
      running.write(`${text}\n`);
      const answer = await eventually(`${text} is sent`, () => answers()[before]);
      if (answer.event !== 'order' || !answer.ok) throw new Error(`not understood: ${text}`);
      return answer.sent;
    },
    said: (event, client = 1, times = 1) =>
      eventually(`client ${client} says ${event}`, () =>
        events()
          .filter((each) => each.event === event && 'client' in each && each.client === client)
          .at(times - 1),
      ),
    [Symbol.asyncDispose]: () => running[Symbol.asyncDispose](),
  };
}

/** A TCP proxy on loopback in front of a server, which can be slow, silent, or cut connections off. */
import { type AddressInfo, type Server, type Socket, connect, createServer } from 'node:net';
import { once } from 'node:events';

export interface Faults {
  /** Added to what the server says, milliseconds. */
  readonly delayMs?: number;
  /** A connection is reset after so many bytes of the server's, TLS and all counted, be it in the middle of a line. */
  readonly cutAfterBytes?: number;
  /** Nothing goes through any more, in both directions, and connections stay open. */
  readonly silent?: boolean;
  /** New connections are reset. */
  readonly refuse?: boolean;
}

export interface FaultProxy extends AsyncDisposable {
  readonly port: number;
  /** Connections taken so far. */
  readonly accepted: number;
  /** Connections open now. */
  readonly open: number;
  /** Bytes that came from the server. */
  readonly bytes: number;
  /** Replaces the faults, of open connections too. `{}`: none. */
  set(faults: Faults): void;
  /** Resets every open connection. */
  cut(): void;
}

async function listenOnLoopback(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

/** Starts a proxy to a port on 127.0.0.1. */
export async function startFaultProxy(target: number, initial: Faults = {}): Promise<FaultProxy> {
  let faults = initial;
  let accepted = 0;
  let bytes = 0;
  const cuts = new Set<() => void>();
  const wakes = new Set<() => void>();

  function join(client: Socket): void {
    accepted++;
    if (faults.refuse) return void client.resetAndDestroy();
    const server = connect(target, '127.0.0.1');
    let received = 0;
    const cut = (): void => {
      cuts.delete(cut);
      client.resetAndDestroy();
      server.destroy();
    };
    cuts.add(cut);
    for (const socket of [client, server]) {
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.once('close', () => {
        cuts.delete(cut);
        client.destroy();
        server.destroy();
      });
    }
    relay(
      client,
      server,
      () => 0,
      (chunk) => chunk,
    );
    relay(
      server,
      client,
      () => faults.delayMs ?? 0,
      (chunk) => {
        received += chunk.length;
        bytes += chunk.length;
        const over = received - (faults.cutAfterBytes ?? Infinity);
        if (over < 0) return chunk;
        // What is written is not sent yet; a reset would take it back.
        client.write(chunk.subarray(0, Math.max(0, chunk.length - over)), cut);
        return undefined;
      },
    );
  }

  /** Passes chunks on one after the other, each as late as the faults of the moment say. */
  function relay(
    from: Socket,
    to: Socket,
    delay: () => number,
    pass: (chunk: Buffer) => Buffer | undefined,
  ): void {
    let turn: Promise<unknown> = Promise.resolve();
    const step = async (due: number, last: () => void): Promise<void> => {
      while (faults.silent) await new Promise<void>((resolve) => wakes.add(resolve));
      const rest = due - performance.now();
      if (rest > 0) await new Promise((resolve) => setTimeout(resolve, rest));
      if (!to.destroyed) last();
    };
    from.on('data', (chunk: Buffer) => {
      const due = performance.now() + delay();
      turn = turn.then(() =>
        step(due, () => {
          const part = pass(chunk);
          if (part !== undefined) to.write(part);
        }),
      );
    });
    from.once('end', () => (turn = turn.then(() => step(0, () => void to.end()))));
  }

  const server = createServer({ allowHalfOpen: true }, join);
  const port = await listenOnLoopback(server);
  server.unref();
  const cut = (): void => [...cuts].forEach((each) => each());
  const set = (next: Faults): void => {
    faults = next;
    for (const wake of wakes) wake();
    wakes.clear();
  };
  return {
    port,
    cut,
    set,
    get accepted() {
      return accepted;
    },
    get open() {
      return cuts.size;
    },
    get bytes() {
      return bytes;
    },
    async [Symbol.asyncDispose]() {
      set({});
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

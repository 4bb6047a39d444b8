/** A TCP relay on loopback, in front of the API server, which knows when each connection was told something. */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

export interface Relayed {
  /** What the server has said on this connection, TLS and all. */
  readonly bytes: number;
  /** When it began to speak since this was last set to undefined; performance.now(). */
  heardAt: number | undefined;
}

export interface Relay extends AsyncDisposable {
  readonly url: string;
  /** What the server has said on all connections so far. */
  readonly bytes: number;
  /** Those that are open. */
  readonly connections: ReadonlySet<Relayed>;
  /** Resets them all. */
  cut(): void;
}

/** Relays to an `https` URL. Nothing is held back for a slow reader: bursts here are small. */
export async function startRelay(target: string): Promise<Relay> {
  const { port } = new URL(target);
  const sockets = new Map<Relayed, Socket>();
  let bytes = 0;
  const server = createServer((client) => {
    const upstream = connect(Number(port), '127.0.0.1');
    const relayed = { bytes: 0, heardAt: undefined as number | undefined };
    sockets.set(relayed, client);
    upstream.on('data', (piece: Buffer) => {
      relayed.heardAt ??= performance.now();
      relayed.bytes += piece.length;
      bytes += piece.length;
      client.write(piece);
    });
    client.on('data', (piece: Buffer) => void upstream.write(piece));
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.once('close', () => {
        sockets.delete(relayed);
        client.destroy();
        upstream.destroy();
      });
    }
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const cut = (): void => sockets.forEach((client) => void client.resetAndDestroy());
  return {
    url: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get bytes() {
      return bytes;
    },
    get connections() {
      return new Set(sockets.keys());
    },
    cut,
    async [Symbol.asyncDispose]() {
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

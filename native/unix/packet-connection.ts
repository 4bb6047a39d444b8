/** One connection of a Unix socket that carries whole messages. It never blocks, and nothing that a peer does throws. */
import { close, watchReadable } from '../boundary/libc.ts';
import { receiveMessage, sendMessage, type Peer } from '../boundary/unix-socket.ts';

export interface PacketEvents {
  /** The bytes are the message's until it returns. Must not throw. */
  readonly onMessage: (message: Buffer) => void;
  /** What could not be sent may be tried again. Must not throw. */
  readonly onRoom: () => void;
  /** The peer has ended it, or it broke; it is closed. Called once, and not after a disposal. Must not throw. */
  readonly onEnd: (why: string) => void;
}

export interface PacketConnection extends Disposable {
  readonly peer: Peer;
  /**
   * False where it cannot be sent now: {@link PacketEvents.onRoom} follows, or the end.
   * @param descriptor goes along; it stays the caller's
   */
  send(message: Uint8Array, descriptor?: number): boolean;
  /** Reads what is there, now. */
  receive(): void;
}

/** Larger than any message that somebody of good will sends: one that does not fit ends the connection. */
const MOST_BYTES = 64 * 1024;
/** At most this many messages of one peer in one turn of the event loop. */
const BATCH = 64;
/** Where the kernel is short of something that no reader gives back. */
const AGAIN_MS = 250;
const SHORTAGES: ReadonlySet<string> = new Set(['ENOBUFS', 'ENOMEM', 'ETOOMANYREFS']);

/** Reading is done at once, so that one buffer is enough for all. */
let buffer: Buffer | undefined;

/** @param fd becomes the connection's */
export function packetConnection(fd: number, peer: Peer, events: PacketEvents): PacketConnection {
  let closed = false;
  let again: NodeJS.Timeout | undefined;
  const readiness = watchReadable(fd, receive, events.onRoom);

  function receive(): void {
    buffer ??= Buffer.alloc(MOST_BYTES);
    for (let n = 0; n < BATCH && !closed; n++) {
      const length = receiveMessage(fd, buffer);
      if (length === 'EAGAIN') return;
      if (length === 'EINTR') continue;
      if (typeof length === 'string') return end(`it broke with ${length}`);
      if (length === 0) return end('it has ended it');
      if (length > buffer.length)
        return end(`it sent a message of ${length} bytes, where at most ${buffer.length} were expected`);
      events.onMessage(buffer.subarray(0, length));
    }
  }

  function dispose(): void {
    if (closed) return;
    closed = true;
    clearTimeout(again);
    readiness[Symbol.dispose]();
    close(fd);
  }

  function end(why: string): void {
    if (closed) return;
    dispose();
    events.onEnd(why);
  }

  function tryAgain(): void {
    again = undefined;
    if (!closed) events.onRoom();
  }

  return {
    peer,
    send(message, descriptor) {
      if (closed) return false;
      const errno = sendMessage(fd, message, descriptor);
      if (errno === '') return true;
      if (errno === 'EAGAIN') readiness.awaitRoom();
      else if (errno === 'EINTR' || SHORTAGES.has(errno)) again ??= setTimeout(tryAgain, AGAIN_MS);
      // Not from within the caller's work.
      else setImmediate(end, `it broke with ${errno}`);
      return false;
    },
    receive,
    [Symbol.dispose]: dispose,
  };
}

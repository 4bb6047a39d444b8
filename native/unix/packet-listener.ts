/** A Unix socket at a path of the file system, to which others connect to exchange whole messages. */
import { chmodSync, lstatSync, mkdirSync, renameSync, unlinkSync, type BigIntStats } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { close, watchReadable } from '../boundary/libc.ts';
import {
  accept,
  bindUnix,
  connectUnix,
  listen,
  LONGEST_PATH,
  openUnixSocket,
  peerOf,
  type Peer,
} from '../boundary/unix-socket.ts';
import { CgrouteError, errnoOf, isAbsent, messageOf, refusalOf } from '../error.ts';
import { packetConnection, type PacketConnection, type PacketEvents } from './packet-connection.ts';

export interface PacketListenerOptions {
  readonly path: string;
  /** The setting or flag that names the path, for the errors. */
  readonly purpose: string;
  /** Somebody has connected: it is to be opened or disposed of before this returns. Must not throw. */
  readonly onConnection: (caller: Caller) => void;
  /** No connection can be accepted for a while. Must not throw. */
  readonly onTrouble: (why: string) => void;
}

/** Somebody who has connected, and with whom nothing was exchanged yet. */
export interface Caller extends Disposable {
  readonly peer: Peer;
  open(events: PacketEvents): PacketConnection;
}

export interface PacketListener extends Disposable {
  /** Whether the path still leads to this socket. */
  isOurs(): boolean;
}

const BACKLOG = 128;
/** At most this many connections in one turn of the event loop. */
const BATCH = 64;
/** Without descriptors or memory, a connection that waits would be reported all the time. */
const PAUSE_MS = 1000;

/** What is added to a path's last part while the socket is made. */
const [BEFORE, AFTER] = ['.', '.new'] as const;

/**
 * Listens at a path, for root alone. The socket is made under another name in the
 * same directory and renamed, so that whoever finds it there is answered. One that is
 * there already and that nobody answers on is replaced.
 *
 * @throws CgrouteError `ESOCKETTAKEN` where somebody answers there, `ESOCKETPATH` where
 * the path cannot be used
 */
export function listenForPackets(options: PacketListenerOptions): PacketListener {
  const { path, purpose, onConnection, onTrouble } = options;
  const { fd, made } = socketAt(path, purpose);
  let pause: NodeJS.Timeout | undefined;
  let readiness = watchReadable(fd, acceptAll);
  let closed = false;

  function acceptAll(): void {
    for (let n = 0; n < BATCH && !closed; n++) {
      const accepted = accept(fd);
      if (typeof accepted === 'number') onConnection(callerOf(accepted));
      else if (accepted === 'EAGAIN') return;
      else if (accepted !== 'EINTR' && accepted !== 'ECONNABORTED') return rest(accepted);
    }
  }

  function rest(why: string): void {
    readiness[Symbol.dispose]();
    pause = setTimeout(goOn, PAUSE_MS);
    onTrouble(why);
  }

  function goOn(): void {
    try {
      readiness = watchReadable(fd, acceptAll);
    } catch (error) {
      rest(messageOf(error));
    }
  }

  function isOurs(): boolean {
    try {
      const found = lstatSync(path, { bigint: true });
      return found.dev === made.dev && found.ino === made.ino;
    } catch {
      return false;
    }
  }

  return {
    isOurs,
    [Symbol.dispose]() {
      if (closed) return;
      closed = true;
      clearTimeout(pause);
      readiness[Symbol.dispose]();
      // Before it is closed: nobody else's has that inode as long as it is open.
      if (isOurs()) remove(path);
      close(fd);
    },
  };
}

function callerOf(fd: number): Caller {
  const peer = peerOf(fd);
  return {
    peer,
    open: (events) => packetConnection(fd, peer, events),
    [Symbol.dispose]: () => close(fd),
  };
}

interface SocketFile {
  readonly fd: number;
  readonly made: BigIntStats;
}

function socketAt(path: string, purpose: string): SocketFile {
  const most = LONGEST_PATH - BEFORE.length - AFTER.length;
  const length = Buffer.byteLength(path);
  if (length > most || path.includes('\0') || !path.startsWith('/') || path.endsWith('/'))
    throw unusable(path, purpose, `expected an absolute path of at most ${most} bytes, got ${length}`);
  const temporary = join(dirname(path), `${BEFORE}${basename(path)}${AFTER}`);
  let fd: number | undefined;
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    refuseTaken(path, purpose);
    // Of one that was killed in the middle of this.
    if (typeOf(temporary) === 'socket') unlinkSync(temporary);
    fd = openUnixSocket(purpose);
    bindUnix(fd, temporary, purpose);
    // Until it listens nobody can connect, whatever the mask has left of its rights.
    chmodSync(temporary, 0o600);
    listen(fd, BACKLOG, purpose);
    const made = lstatSync(temporary, { bigint: true });
    renameSync(temporary, path);
    return { fd, made };
  } catch (cause) {
    if (fd !== undefined) {
      if (typeOf(temporary) === 'socket') remove(temporary);
      close(fd);
    }
    if (cause instanceof CgrouteError && cause.code.startsWith('ESOCKET')) throw cause;
    throw unusable(path, purpose, refusalOf(cause), cause);
  }
}

function refuseTaken(path: string, purpose: string): void {
  const type = typeOf(path);
  if (type === 'nothing') return;
  if (type === 'other')
    throw unusable(path, purpose, 'expected a socket or nothing there, got something else');
  const fd = openUnixSocket(purpose);
  try {
    const errno = connectUnix(fd, path);
    // Nobody holds it; or it has gone meanwhile.
    if (errno === 'ECONNREFUSED' || errno === 'ENOENT') return;
    // EAGAIN: more wait there to be accepted than fit. EPROTOTYPE: a socket of another type.
    if (errno === '' || errno === 'EAGAIN' || errno === 'EPROTOTYPE')
      throw new CgrouteError('ESOCKETTAKEN', `${purpose} ${path} is a socket on which somebody answers`);
    throw unusable(path, purpose, `whether somebody answers on it cannot be told: ${errno}`);
  } finally {
    close(fd);
  }
}

function typeOf(path: string): 'nothing' | 'socket' | 'other' {
  try {
    return lstatSync(path).isSocket() ? 'socket' : 'other';
  } catch (error) {
    if (isAbsent(error)) return 'nothing';
    throw error;
  }
}

/** What is left behind is replaced at the next start. */
function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // It has gone, or is on a file system that may not be written any more.
  }
}

function unusable(path: string, purpose: string, why: string, cause?: unknown): CgrouteError {
  return new CgrouteError('ESOCKETPATH', `${purpose} ${path} cannot be used: ${why}`, {
    cause,
    errno: errnoOf(cause),
  });
}

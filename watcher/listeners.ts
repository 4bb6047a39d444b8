/**
 * Where a process's network namespace listens for TCP, without entering it, by
 * /proc/PID/net/tcp and tcp6. Listeners stand first in these files, so little is
 * read of one that lists 100,000 connections. A listener with MPTCP has its first
 * subflow there, as one of TCP has itself.
 */
import { closeSync, openSync, readSync } from 'node:fs';

/** TCP_LISTEN, <net/tcp_states.h>. */
const LISTEN = '0A';
const ANY: ReadonlySet<string> = new Set(['0'.repeat(8), '0'.repeat(32)]);
/** `::ffff:0:0/96`, which stands for IPv4. */
const MAPPED = `${'0'.repeat(20)}ffff`;

export interface Listener {
  /** 8 or 32 hex digits, in network order. */
  readonly address: string;
  readonly port: number;
}

/** Undefined where one of the files cannot be read: the process is gone, or may not be looked at. */
export function listenersOf(pid: number, procRoot: string): readonly Listener[] | undefined {
  try {
    return ['tcp', 'tcp6'].flatMap((name) => firstListeners(`${procRoot}/${pid}/net/${name}`));
  } catch {
    return undefined;
  }
}

/**
 * Whether one of them takes connections to an address (4 or 16 bytes) and port. One
 * on `::` takes IPv4, too: that it would rather not (IPV6_V6ONLY), these files don't say.
 */
export function isListenedOn(listeners: readonly Listener[], address: Uint8Array, port: number): boolean {
  const text = Buffer.from(address).toString('hex');
  return listeners.some(
    (listener) =>
      listener.port === port &&
      (listener.address === text ||
        listener.address === MAPPED + text ||
        (ANY.has(listener.address) && listener.address.length >= text.length)),
  );
}

/** The kernel prints words that are in network order as numbers of this host's. */
function networkOrder(address: string): string {
  const words = Uint32Array.from(address.match(/.{8}/g) ?? [], (word) => Number.parseInt(word, 16));
  return Buffer.from(words.buffer).toString('hex');
}

function firstListeners(file: string): Listener[] {
  const found: Listener[] = [];
  const fd = openSync(file, 'r');
  try {
    const buffer = Buffer.alloc(16 * 1024);
    let rest = '';
    let isHead = true;
    for (let length = readSync(fd, buffer); length > 0; length = readSync(fd, buffer)) {
      const lines = (rest + buffer.toString('latin1', 0, length)).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const isFirst = isHead;
        isHead = false;
        if (isFirst) continue;
        // number, local address:port, remote address:port, state, ...
        const [, local = '', , state] = line.trim().split(/ +/);
        if (state !== LISTEN) return found;
        const [address = '', port = ''] = local.split(':');
        found.push({ address: networkOrder(address), port: Number.parseInt(port, 16) });
      }
    }
    return found;
  } finally {
    closeSync(fd);
  }
}

/**
 * The few libc calls that Node does not offer, through koffi.
 *
 * All of them are called synchronously and must not block: sockets are opened
 * non-blocking, and readiness comes from {@link watchReadable}.
 */
import koffi from 'koffi';
import { CgrouteError } from '../error.ts';

/** From <sys/socket.h>, <linux/netlink.h>, <linux/filter.h>, <sys/file.h>; the same on x86-64 and arm64. */
export const AF_NETLINK = 16;
export const SOCK_DGRAM = 2;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
export const SO_RCVBUF = 8;
export const SO_ATTACH_FILTER = 26;
export const SO_RCVBUFFORCE = 33;
export const SO_ATTACH_BPF = 50;
export const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_NB = 4;

// null is the process itself: its libc is already loaded, whichever it is.
const libc = koffi.load(null);

const c = {
  socket: libc.func('int socket(int domain, int type, int protocol)') as (
    domain: number,
    type: number,
    protocol: number,
  ) => number,
  bind: libc.func('int bind(int fd, void *addr, uint32_t len)') as (
    fd: number,
    addr: Buffer,
    len: number,
  ) => number,
  setsockopt: libc.func('int setsockopt(int fd, int level, int name, void *value, uint32_t len)') as (
    fd: number,
    level: number,
    name: number,
    value: Buffer,
    len: number,
  ) => number,
  send: libc.func('int64_t send(int fd, void *buf, size_t len, int flags)') as (
    fd: number,
    buf: Buffer,
    len: number,
    flags: number,
  ) => number,
  recv: libc.func('int64_t recv(int fd, void *buf, size_t len, int flags)') as (
    fd: number,
    buf: Buffer,
    len: number,
    flags: number,
  ) => number,
  close: libc.func('int close(int fd)') as (fd: number) => number,
  flock: libc.func('int flock(int fd, int operation)') as (fd: number, operation: number) => number,
  setns: libc.func('int setns(int fd, int nstype)') as (fd: number, type: number) => number,
};

const errnoNames = new Map<number, string>();
for (const [name, value] of Object.entries(koffi.os.errno)) {
  // EAGAIN and EWOULDBLOCK are one number; the first name is the usual one.
  if (!errnoNames.has(value)) errnoNames.set(value, name);
}

/** The name of an errno value, `EPERM`; `errno 4711` when it has none. */
export function errnoName(errno: number): string {
  return errnoNames.get(errno) ?? `errno ${errno}`;
}

/** The value of an errno's name, as the C headers of this machine have it. */
export function errnoValue(name: string): number {
  const value = koffi.os.errno[name];
  if (value === undefined) throw new RangeError(`${name} is no errno name`);
  return value;
}

function failed(syscall: string, purpose: string): CgrouteError {
  const errno = errnoName(koffi.errno());
  return new CgrouteError('ESYSCALL', `${syscall}() for ${purpose} failed with ${errno}`, { syscall, errno });
}

/** Opens a socket and returns its descriptor. Throws CgrouteError 'ESYSCALL'. */
export function socket(domain: number, type: number, protocol: number, purpose: string): number {
  const fd = c.socket(domain, type, protocol);
  if (fd < 0) throw failed('socket', purpose);
  return fd;
}

/** Binds `fd` to a raw `struct sockaddr`. Throws CgrouteError 'ESYSCALL'. */
export function bind(fd: number, address: Buffer, purpose: string): void {
  if (c.bind(fd, address, address.length) < 0) throw failed('bind', purpose);
}

/** Sets a socket option to the raw bytes of `value`. Throws CgrouteError 'ESYSCALL'. */
export function setsockopt(fd: number, level: number, name: number, value: Buffer, purpose: string): void {
  if (c.setsockopt(fd, level, name, value, value.length) < 0) throw failed('setsockopt', purpose);
}

/** Sends the whole of `buffer` as one message. Throws CgrouteError 'ESYSCALL'. */
export function send(fd: number, buffer: Buffer, purpose: string): void {
  if (c.send(fd, buffer, buffer.length, 0) < 0) throw failed('send', purpose);
}

/**
 * Receives one message into `buffer`: its length, or the negated errno.
 * It does not throw, as EAGAIN and ENOBUFS are everyday answers here.
 */
export function recv(fd: number, buffer: Buffer): number {
  const length = c.recv(fd, buffer, buffer.length, 0);
  return length < 0 ? -koffi.errno() : length;
}

/** Closes a descriptor that came from {@link socket}. */
export function close(fd: number): void {
  c.close(fd);
}

/**
 * flock(2) with LOCK_NB: true when the lock was taken, false when another open
 * file holds it. Throws CgrouteError 'ESYSCALL' on anything else.
 */
export function tryFlock(fd: number, operation: number, purpose: string): boolean {
  if (c.flock(fd, operation | LOCK_NB) === 0) return true;
  if (koffi.errno() === errnoValue('EWOULDBLOCK')) return false;
  throw failed('flock', purpose);
}

/**
 * Moves this thread, which JavaScript runs on, into another namespace; the other
 * threads stay. Throws CgrouteError 'ESYSCALL'.
 */
export function setns(fd: number, type: number, purpose: string): void {
  if (c.setns(fd, type) < 0) throw failed('setns', purpose);
}

/** The address of a buffer's bytes, for C structs that hold pointers. The caller keeps the buffer alive. */
export function addressOf(buffer: Buffer): bigint {
  return koffi.address(buffer);
}

/** What is to be called when a descriptor is ready, until it is disposed of. */
export interface Readiness extends Disposable {
  /** Calls `onWritable` once, as soon as there is room to write. */
  awaitRoom(): void;
}

/**
 * Calls `onReadable` from the event loop each time that `fd` has something to
 * read or an error to report: no thread, no wakeups while nothing happens.
 *
 * The call is moved to a setImmediate, which comes before the next poll: koffi
 * enters JavaScript outside Node's own callback scope, where a promise that is
 * resolved would wait for the next timer. An error on the socket (ENOBUFS on a
 * netlink socket) makes libuv stop the handle; it is started again.
 */
export function watchReadable(fd: number, onReadable: () => void, onWritable?: () => void): Readiness {
  const handle = koffi.node.poll(fd, onEvent);
  let scheduled = false;
  let stopped = false;
  let closed = false;
  let awaitsRoom = false;
  let hasRoom = false;

  // koffi 3.3 passes (status, events); its declaration has the events alone.
  function onEvent(...args: unknown[]): void {
    if (typeof args[0] === 'number' && args[0] < 0) stopped = true;
    if (awaitsRoom && (args[1] as { readonly writable?: boolean } | undefined)?.writable === true)
      hasRoom = true;
    if (scheduled) return;
    scheduled = true;
    setImmediate(run);
  }

  function start(): void {
    stopped = false;
    handle.start({ readable: true, writable: awaitsRoom }, onEvent);
  }

  function run(): void {
    scheduled = false;
    if (closed) return;
    const isRoomy = hasRoom;
    hasRoom = false;
    if (isRoomy) {
      // There mostly is room, and nobody wants to hear of it all the time.
      awaitsRoom = false;
      start();
    }
    onReadable();
    if (!closed && isRoomy) onWritable?.();
    if (!closed && stopped) start();
  }

  return {
    awaitRoom() {
      if (closed || awaitsRoom) return;
      awaitsRoom = true;
      start();
    },
    [Symbol.dispose]() {
      if (closed) return;
      closed = true;
      handle.close();
    },
  };
}

/**
 * Unix sockets that carry whole messages (SOCK_SEQPACKET, unix(7)), and a descriptor
 * with one of them, through koffi. No call blocks, and each descriptor that is made is
 * closed in a child.
 */
import koffi from 'koffi';
import { CgrouteError } from '../error.ts';
import { addressOf, bind, errnoName, SOCK_CLOEXEC, SOCK_NONBLOCK, socket, SOL_SOCKET } from './libc.ts';

/** From <sys/socket.h>, <sys/un.h>; the same on x86-64 and arm64. */
const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SO_PEERCRED = 17;
const SCM_RIGHTS = 1;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** Bytes of a path in `struct sockaddr_un`, without the zero at its end. */
export const LONGEST_PATH = 107;

const libc = koffi.load(null);

const c = {
  connect: libc.func('int connect(int fd, void *addr, uint32_t len)') as (
    fd: number,
    addr: Buffer,
    len: number,
  ) => number,
  listen: libc.func('int listen(int fd, int backlog)') as (fd: number, backlog: number) => number,
  accept4: libc.func('int accept4(int fd, void *addr, void *len, int flags)') as (
    fd: number,
    addr: null,
    len: null,
    flags: number,
  ) => number,
  getsockopt: libc.func('int getsockopt(int fd, int level, int name, void *value, void *len)') as (
    fd: number,
    level: number,
    name: number,
    value: Buffer,
    len: Buffer,
  ) => number,
  sendmsg: libc.func('int64_t sendmsg(int fd, void *msg, int flags)') as (
    fd: number,
    msg: Buffer,
    flags: number,
  ) => number | bigint,
  recv: libc.func('int64_t recv(int fd, void *buf, size_t len, int flags)') as (
    fd: number,
    buf: Buffer,
    len: number,
    flags: number,
  ) => number | bigint,
};

/** Who connected, at that moment. */
export interface Peer {
  /** As this process's PID namespace numbers it; 0 for one outside of it. */
  readonly pid: number;
  readonly uid: number;
}

/** Throws CgrouteError 'ESYSCALL'. */
export const openUnixSocket = (purpose: string): number =>
  socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, purpose);

/** Makes the socket's file, with no more rights than the process's mask leaves. Throws CgrouteError 'ESYSCALL'. */
export function bindUnix(fd: number, path: string, purpose: string): void {
  bind(fd, addressAt(path), purpose);
}

/** Throws CgrouteError 'ESYSCALL'. */
export function listen(fd: number, backlog: number, purpose: string): void {
  if (c.listen(fd, backlog) === 0) return;
  const errno = errnoName(koffi.errno());
  throw new CgrouteError('ESYSCALL', `listen() for ${purpose} failed with ${errno}`, {
    syscall: 'listen',
    errno,
  });
}

/** Connects: empty, or the errno's name. */
export function connectUnix(fd: number, path: string): string {
  const address = addressAt(path);
  return c.connect(fd, address, address.length) === 0 ? '' : errnoName(koffi.errno());
}

/** The next connection's descriptor, or the errno's name. */
export function accept(fd: number): number | string {
  const accepted = c.accept4(fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return accepted < 0 ? errnoName(koffi.errno()) : accepted;
}

/** Who connected this socket; nobody's number where the kernel does not say. */
export function peerOf(fd: number): Peer {
  const credentials = Buffer.alloc(12); // struct ucred: pid, uid, gid
  const length = Buffer.alloc(4);
  length.writeUInt32LE(credentials.length);
  if (c.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, length) < 0) return { pid: 0, uid: 0xffff_ffff };
  return { pid: credentials.readInt32LE(0), uid: credentials.readUInt32LE(4) };
}

/**
 * Sends one message: empty, or the errno's name, EAGAIN where its reader is behind.
 * @param descriptor goes along; the reader gets one of its own
 */
export function sendMessage(fd: number, message: Uint8Array, descriptor?: number): string {
  const bytes = Buffer.from(message.buffer, message.byteOffset, message.byteLength);
  const vector = Buffer.alloc(16); // struct iovec
  vector.writeBigUInt64LE(addressOf(bytes), 0);
  vector.writeBigUInt64LE(BigInt(bytes.length), 8);
  const header = Buffer.alloc(56); // struct msghdr; where musl has 32 bits and padding, glibc has 64
  header.writeBigUInt64LE(addressOf(vector), 16);
  header.writeBigUInt64LE(1n, 24);
  const control = Buffer.alloc(24); // struct cmsghdr, and the descriptor
  if (descriptor !== undefined) {
    control.writeBigUInt64LE(20n, 0);
    control.writeInt32LE(SOL_SOCKET, 8);
    control.writeInt32LE(SCM_RIGHTS, 12);
    control.writeInt32LE(descriptor, 16);
    header.writeBigUInt64LE(addressOf(control), 32);
    header.writeBigUInt64LE(BigInt(control.length), 40);
  }
  return c.sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? errnoName(koffi.errno()) : '';
}

/**
 * Receives one message: its length, which is larger than the buffer where it did not
 * fit, 0 at the end of the connection, or the errno's name. Descriptors that come along
 * are dropped inside the kernel, as recv() has no place for them.
 */
export function receiveMessage(fd: number, buffer: Buffer): number | string {
  const length = Number(c.recv(fd, buffer, buffer.length, MSG_DONTWAIT | MSG_TRUNC));
  return length < 0 ? errnoName(koffi.errno()) : length;
}

/** `struct sockaddr_un`. */
function addressAt(path: string): Buffer {
  const bytes = Buffer.from(path);
  if (bytes.length > LONGEST_PATH)
    throw new RangeError(`a path of ${bytes.length} bytes is no Unix socket's`);
  const address = Buffer.alloc(2 + bytes.length + 1);
  address.writeUInt16LE(AF_UNIX);
  bytes.copy(address, 2);
  return address;
}

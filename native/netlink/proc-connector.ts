/**
 * The kernel's process events, through the netlink connector.
 *
 * One datagram is one event, all in the host's byte order: struct nlmsghdr
 * (<linux/netlink.h>), struct cn_msg (<linux/connector.h>), struct proc_event
 * (<linux/cn_proc.h>):
 *
 *     0 nlmsghdr   16 cn_msg   36 what   40 cpu   44 timestamp   52 event data
 *
 * Only CAP_NET_ADMIN may send to this socket, and what arrives is a hint that
 * the reader checks in /proc, so the sender is not looked at.
 */
import { randomInt } from 'node:crypto';
import { endianness } from 'node:os';
import { CgrouteError } from '../error.ts';
import {
  addressOf,
  AF_NETLINK,
  bind,
  close,
  errnoName,
  errnoValue,
  recv,
  send,
  setsockopt,
  SO_ATTACH_BPF,
  SO_ATTACH_FILTER,
  SO_RCVBUF,
  SO_RCVBUFFORCE,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  socket,
  SOL_SOCKET,
  watchReadable,
} from '../boundary/libc.ts';
import { hostNamespaces } from '../boundary/privilege.ts';

const NETLINK_CONNECTOR = 11;
const NLMSG_DONE = 3;
const CN_IDX_PROC = 1;
const CN_VAL_PROC = 1;
const PROC_CN_MCAST_LISTEN = 1;
const PROC_EVENT_NONE = 0;
const PROC_EVENT_EXEC = 2;

/** Where the fields stand in a datagram. */
const AT = { sequence: 24, acknowledged: 28, what: 36, data: 52, end: 56 } as const;
const HEADER_BYTES = 36;

/** An event is charged with about 800 bytes, so this is some 10,000 events. */
const RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024;
/** At most this many events in one turn of the event loop. */
const BATCH = 512;
const ACKNOWLEDGE_MS = 2_000;

/** There, hostNetwork and hostPID lead to the node's namespaces and no further. */
const IN_KIND = ', unless this node is itself a container, as in kind';

const little = endianness() === 'LE';

export interface ProcConnectorOptions {
  /** A process called execve(2) and got through; `pid` as this PID namespace numbers it. Must not throw. */
  readonly onExec: (pid: number) => void;
  /** The kernel dropped events because the socket's buffer was full. Must not throw. */
  readonly onLost: () => void;
  /** Nothing more will come: the socket failed after it had been confirmed. It is to be disposed of. Must not throw. */
  readonly onBroken: (error: CgrouteError) => void;
  /**
   * Replaces the classic filter, which passes exec events, by another one, with
   * {@link attachProgram} for instance: a program runs in the process that called
   * execve(), so it can look at the current cgroup. It must let PROC_EVENT_NONE
   * through: that is the kernel's answer to the subscription.
   */
  readonly attachFilter?: (fd: number) => void;
  /** Bytes asked for as the socket's buffer. @default 8 MiB */
  readonly receiveBuffer?: number;
}

export interface ProcConnector extends Disposable {
  /** The netlink socket, to attach another filter to. */
  readonly fd: number;
}

/**
 * Subscribes to exec events. Resolves when the kernel has confirmed.
 *
 * Throws CgrouteError 'EPROCEVENTS' with the remedy: it needs CAP_NET_ADMIN and
 * the host's own network, PID and user namespaces.
 */
export async function openProcConnector(options: ProcConnectorOptions): Promise<ProcConnector> {
  const { pid, user } = hostNamespaces();
  // The kernel would not answer, and the agent's start would wait for that.
  if (pid === false || user === false) throw elsewhere(pid === false ? 'PID' : 'user');
  const fd = openSocket(options);
  const acknowledged = Promise.withResolvers<void>();
  const token = randomInt(1, 0x7fff_0000);
  const buffer = Buffer.alloc(1024);
  const again = -errnoValue('EAGAIN');
  const overrun = -errnoValue('ENOBUFS');
  let isConfirmed = false;

  function drain(): void {
    for (let n = 0; n < BATCH; n++) {
      const length = recv(fd, buffer);
      if (length === again) return;
      if (length === overrun) options.onLost();
      else if (length < 0) return fail(refused(errnoName(-length)));
      else if (length >= AT.end) take();
    }
  }

  function fail(error: CgrouteError): void {
    acknowledged.reject(error);
    if (!isConfirmed) return;
    // It would be readable for ever.
    readable[Symbol.dispose]();
    options.onBroken(error);
  }

  function take(): void {
    const what = readU32(buffer, AT.what);
    if (what === PROC_EVENT_EXEC) {
      options.onExec(readU32(buffer, AT.data + 4)); // process_tgid
    } else if (what === PROC_EVENT_NONE && readU32(buffer, AT.acknowledged) === token + 1) {
      // Answers to other programs' subscriptions come along; the token tells ours.
      const errno = readU32(buffer, AT.data);
      if (errno === 0) acknowledged.resolve();
      else acknowledged.reject(refused(errnoName(errno)));
    }
  }

  const readable = watchReadable(fd, drain);
  const timer = setTimeout(() => acknowledged.reject(unanswered()), ACKNOWLEDGE_MS);
  const connector: ProcConnector = {
    fd,
    [Symbol.dispose]() {
      readable[Symbol.dispose]();
      close(fd);
    },
  };
  try {
    send(fd, subscription(token), 'the subscription to process events');
    await acknowledged.promise;
    isConfirmed = true;
    askForExecsOnly(fd);
    return connector;
  } catch (error) {
    connector[Symbol.dispose]();
    if (error instanceof CgrouteError && error.code === 'EPROCEVENTS') throw error;
    throw refused(error instanceof CgrouteError ? (error.errno ?? '') : '', error);
  } finally {
    clearTimeout(timer);
  }
}

/** Replaces a socket's filter by the loaded BPF_PROG_TYPE_SOCKET_FILTER program `program`. Throws CgrouteError 'ESYSCALL'. */
export function attachProgram(fd: number, program: number): void {
  const value = Buffer.alloc(4);
  writeU32(value, 0, program);
  setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, value, 'a socket filter program');
}

function openSocket(options: ProcConnectorOptions): number {
  let fd: number;
  try {
    fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_CONNECTOR, 'process events');
  } catch (error) {
    throw refused(error instanceof CgrouteError ? (error.errno ?? '') : '', error);
  }
  try {
    growReceiveBuffer(fd, options.receiveBuffer ?? RECEIVE_BUFFER_BYTES);
    // Before bind(), so that no unfiltered event is ever queued.
    attachExecFilter(fd);
    options.attachFilter?.(fd);
    const address = Buffer.alloc(12); // struct sockaddr_nl
    writeU16(address, 0, AF_NETLINK);
    writeU32(address, 8, CN_IDX_PROC); // a bit mask of groups; group 1 is bit 0
    bind(fd, address, 'process events');
    return fd;
  } catch (error) {
    close(fd);
    throw refused(error instanceof CgrouteError ? (error.errno ?? '') : '', error);
  }
}

/** The FORCE form goes beyond net.core.rmem_max, and needs CAP_NET_ADMIN. */
function growReceiveBuffer(fd: number, bytes: number): void {
  const value = Buffer.alloc(4);
  writeU32(value, 0, bytes);
  try {
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, value, 'a larger receive buffer');
  } catch {
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, value, 'a larger receive buffer');
  }
}

/**
 * Classic BPF that passes exec events and the kernel's answers, and drops forks,
 * exits and the rest inside the kernel: they would only wake the agent.
 */
function attachExecFilter(fd: number): void {
  // BPF_LD|BPF_W|BPF_ABS reads big-endian, while the event is in host order.
  const seen = (value: number): number => (little ? (value << 24) >>> 0 : value);
  const program: readonly (readonly [code: number, jt: number, jf: number, k: number])[] = [
    [0x20, 0, 0, AT.what],
    [0x15, 1, 0, seen(PROC_EVENT_EXEC)],
    [0x15, 0, 1, seen(PROC_EVENT_NONE)],
    [0x06, 0, 0, 0xffff_ffff],
    [0x06, 0, 0, 0],
  ];
  const code = Buffer.alloc(program.length * 8);
  program.forEach(([op, jt, jf, k], i) => {
    writeU16(code, i * 8, op);
    code[i * 8 + 2] = jt;
    code[i * 8 + 3] = jf;
    writeU32(code, i * 8 + 4, k);
  });
  const header = Buffer.alloc(16); // struct sock_fprog: u16 len, padding, pointer
  writeU16(header, 0, program.length);
  if (little) header.writeBigUInt64LE(addressOf(code), 8);
  else header.writeBigUInt64BE(addressOf(code), 8);
  setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, header, 'the exec filter');
}

/** nlmsghdr, cn_msg and what is asked for. `token` comes back, plus one, as the answer's ack; its seq is the kernel's own count. */
function request(token: number, ...words: readonly number[]): Buffer {
  const message = Buffer.alloc(HEADER_BYTES + words.length * 4);
  writeU32(message, 0, message.length);
  writeU16(message, 4, NLMSG_DONE);
  writeU32(message, 12, process.pid);
  writeU32(message, 16, CN_IDX_PROC);
  writeU32(message, 20, CN_VAL_PROC);
  writeU32(message, AT.sequence, token);
  writeU32(message, AT.acknowledged, token);
  writeU16(message, 32, words.length * 4);
  words.forEach((word, i) => writeU32(message, HEADER_BYTES + i * 4, word));
  return message;
}

const subscription = (token: number): Buffer => request(token, PROC_CN_MCAST_LISTEN);

/**
 * Has the kernel itself leave out forks and exits for this socket, so that they do
 * not get as far as its filter. Before Linux 6.6 a request of this length is passed
 * over in silence, and the filter drops them. Such a socket is not told the answer
 * to a request either, so this comes after the subscription and expects none.
 */
function askForExecsOnly(fd: number): void {
  try {
    // struct proc_input: the operation, then a mask of the events that are wanted.
    send(fd, request(0, PROC_CN_MCAST_LISTEN, PROC_EVENT_EXEC), 'the choice of process events');
  } catch {
    // It has all it needs without that.
  }
}

function refused(errno: string, cause?: unknown): CgrouteError {
  const remedy: Readonly<Record<string, string>> = {
    EPERM: 'they need CAP_NET_ADMIN: add NET_ADMIN to the capabilities of the agent',
    ECONNREFUSED: `they exist in the host's own network namespace only: run the agent there (hostNetwork: true)${IN_KIND}`,
    EPROTONOSUPPORT:
      'this kernel was built without CONFIG_CONNECTOR: nothing can be done short of another kernel',
  };
  const message = `process events were refused with ${errno || 'an error'}; ${remedy[errno] ?? 'see the cause'}`;
  return new CgrouteError('EPROCEVENTS', message, { cause, ...(errno && { errno }) });
}

function elsewhere(namespace: string): CgrouteError {
  return new CgrouteError(
    'EPROCEVENTS',
    `process events are not told in this ${namespace} namespace; run the agent in the host's PID and user namespaces (hostPID: true)${IN_KIND}`,
  );
}

function unanswered(): CgrouteError {
  return new CgrouteError(
    'EPROCEVENTS',
    `the kernel did not answer the subscription to process events within ${ACKNOWLEDGE_MS / 1000} s; this takes a kernel with CONFIG_PROC_EVENTS`,
  );
}

function readU32(buffer: Buffer, at: number): number {
  return little ? buffer.readUInt32LE(at) : buffer.readUInt32BE(at);
}

function writeU16(buffer: Buffer, at: number, value: number): void {
  if (little) buffer.writeUInt16LE(value, at);
  else buffer.writeUInt16BE(value, at);
}

function writeU32(buffer: Buffer, at: number, value: number): void {
  if (little) buffer.writeUInt32LE(value, at);
  else buffer.writeUInt32BE(value, at);
}

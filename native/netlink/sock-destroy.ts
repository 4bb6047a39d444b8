/**
 * The TCP sockets of a network namespace, and the end of some: NETLINK_SOCK_DIAG,
 * sock_diag(7), with SOCK_DESTROY as `ss -K` uses it.
 *
 * A netlink socket belongs to the namespace that it was made in, so a thread has to
 * be there for that one call. The iterators of BPF see no more than their reader's
 * namespace either, and need Linux 6.5 to destroy a socket.
 */
import { CgrouteError } from '../error.ts';
import {
  AF_NETLINK,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  close,
  errnoName,
  recv,
  send,
  socket,
} from '../boundary/libc.ts';
import { insideNetns } from '../netns/pod-netns.ts';

/** From <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h> and <net/tcp_states.h>. */
const NETLINK_SOCK_DIAG = 4;
const SOCK_DIAG_BY_FAMILY = 20;
const SOCK_DESTROY = 21;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLM_F_DUMP = 0x300;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const AF_INET = 2;
const AF_INET6 = 10;
const IPPROTO_TCP = 6;
const INET_DIAG_CGROUP_ID = 21;
/** Sizes of nlmsghdr, inet_diag_req_v2 and inet_diag_msg; where the socket's id is in the last two. */
const HEADER = 16;
const REQUEST = 56;
const MESSAGE = 72;
const REQUEST_ID = 8;
const MESSAGE_ID = 4;
const ID = 48;

const STATES = { established: 1, synSent: 2, finWait1: 4, finWait2: 5, closeWait: 8, listen: 10 } as const;
export type TcpState = keyof typeof STATES;

export interface TcpSocket {
  readonly family: 4 | 6;
  readonly state: TcpState;
  /** The kernel's, as bpf_get_socket_cookie() has it. */
  readonly cookie: bigint;
  /** Host order. */
  readonly localPort: number;
  readonly remotePort: number;
  /** 16 bytes in network order, IPv4 in the last four, also where it is mapped into IPv6. */
  readonly local: Uint8Array;
  readonly remote: Uint8Array;
  /** Index of the interface that it is bound to, or 0. */
  readonly boundDevice: number;
  /** User id of its owner as the initial user namespace has it. */
  readonly uid: number;
  /** Zero for one that no process has any more. */
  readonly inode: number;
  /** The cgroup that it was made in; of an accepted one, its listener's. Undefined before Linux 5.9. */
  readonly cgroupId: bigint | undefined;
  /** As the kernel finds it again. */
  readonly id: Uint8Array;
}

export interface TcpSockets extends Disposable {
  /** Those in these states. @throws CgrouteError `ESOCKDIAG` */
  list(states: readonly TcpState[]): TcpSocket[];
  /**
   * Resets a connection: both ends get an error. False when it is gone already.
   * @throws CgrouteError `ESOCKDIAG`
   */
  destroy(tcp: TcpSocket): boolean;
}

/**
 * Enters the namespace for as long as it takes to make a socket, on this thread
 * alone: nothing else runs on it meanwhile.
 * @param netns an open network namespace
 * @throws CgrouteError `ESYSCALL`, errno `EPERM` without CAP_SYS_ADMIN
 */
export function openTcpSockets(netns: number): TcpSockets {
  const fd = insideNetns(netns, () =>
    socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_SOCK_DIAG, 'the sockets of a pod'),
  );
  const answer = Buffer.alloc(64 * 1024);
  let sequence = 0;

  /** Calls for each message of the answer. */
  const ask = (
    type: number,
    flags: number,
    request: Uint8Array,
    onMessage: (type: number, body: Buffer) => void,
  ): void => {
    const message = Buffer.alloc(HEADER + REQUEST);
    message.writeUInt32LE(message.length, 0);
    message.writeUInt16LE(type, 4);
    message.writeUInt16LE(NLM_F_REQUEST | flags, 6);
    message.writeUInt32LE(++sequence, 8);
    message.set(request, HEADER);
    send(fd, message, 'the sockets of a pod');
    for (;;) {
      // The kernel has answered by the time that send() returns, and goes on inside recv().
      const length = recv(fd, answer);
      if (length <= 0) throw failed('recv()', -length);
      for (let at = 0; at + HEADER <= length; ) {
        const size = answer.readUInt32LE(at);
        const kind = answer.readUInt16LE(at + 4);
        if (size < HEADER || at + size > length) break;
        if (answer.readUInt32LE(at + 8) === sequence) {
          if (kind === NLMSG_DONE) return;
          const body = answer.subarray(at + HEADER, at + size);
          onMessage(kind, body);
          if (kind === NLMSG_ERROR) return;
        }
        at += (size + 3) & ~3;
      }
    }
  };

  return {
    list(states) {
      const mask = states.reduce((all, state) => all | (1 << STATES[state]), 0);
      const found: TcpSocket[] = [];
      for (const family of [AF_INET, AF_INET6]) {
        const request = Buffer.alloc(REQUEST);
        request[0] = family;
        request[1] = IPPROTO_TCP;
        request.writeUInt32LE(mask, 4);
        ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request, (kind, body) => {
          if (kind === NLMSG_ERROR) throw failed('SOCK_DIAG_BY_FAMILY', -body.readInt32LE(0));
          const tcp = socketOf(body);
          if (tcp !== undefined) found.push(tcp);
        });
      }
      return found;
    },
    destroy({ family, id }) {
      const request = Buffer.alloc(REQUEST);
      request[0] = family === 4 ? AF_INET : AF_INET6;
      request[1] = IPPROTO_TCP;
      request.writeUInt32LE(0xffffffff, 4);
      request.set(id, REQUEST_ID);
      let error = 0;
      ask(SOCK_DESTROY, NLM_F_ACK, request, (_, body) => void (error = -body.readInt32LE(0)));
      if (error === 0) return true;
      if (['ENOENT', 'ESTALE'].includes(errnoName(error))) return false;
      throw failed('SOCK_DESTROY', error);
    },
    [Symbol.dispose]: () => close(fd),
  };
}

function failed(what: string, errno: number): CgrouteError {
  const name = errnoName(errno);
  const hint =
    name === 'EOPNOTSUPP'
      ? ': the kernel was built without CONFIG_INET_DIAG_DESTROY'
      : name === 'ENOENT'
        ? ': the kernel has no tcp_diag, or its module could not be loaded'
        : name === 'EPERM'
          ? ": it takes CAP_NET_ADMIN in the namespace's user namespace"
          : '';
  return new CgrouteError('ESOCKDIAG', `${what} of NETLINK_SOCK_DIAG failed with ${name}${hint}`, {
    syscall: what,
    errno: name,
  });
}

/** A `struct inet_diag_msg` with its attributes; undefined for what is none of the states above. */
function socketOf(message: Buffer): TcpSocket | undefined {
  const state = Object.entries(STATES).find(([, value]) => value === message[1])?.[0] as TcpState | undefined;
  if (state === undefined || message.length < MESSAGE) return undefined;
  const isIp6 = message[0] === AF_INET6;
  const id = Uint8Array.from(message.subarray(MESSAGE_ID, MESSAGE_ID + ID));
  const word = message.subarray(MESSAGE_ID, MESSAGE_ID + ID);
  return {
    family: isIp6 ? 6 : 4,
    state,
    id,
    cookie: word.readBigUInt64LE(40),
    localPort: word.readUInt16BE(0),
    remotePort: word.readUInt16BE(2),
    local: normalised(word.subarray(4, 20), isIp6),
    remote: normalised(word.subarray(20, 36), isIp6),
    boundDevice: word.readUInt32LE(36),
    uid: message.readUInt32LE(64),
    inode: message.readUInt32LE(68),
    cgroupId: cgroupOf(message),
  };
}

function cgroupOf(message: Buffer): bigint | undefined {
  for (let at = MESSAGE; at + 4 <= message.length; ) {
    const size = message.readUInt16LE(at);
    if (size < 4) return undefined;
    if (message.readUInt16LE(at + 2) === INET_DIAG_CGROUP_ID && size >= 12)
      return message.readBigUInt64LE(at + 4);
    at += (size + 3) & ~3;
  }
  return undefined;
}

function normalised(address: Uint8Array, isIp6: boolean): Uint8Array {
  const bytes = new Uint8Array(16);
  if (!isIp6) {
    bytes.set(address.subarray(0, 4), 12);
    return bytes;
  }
  const isMapped =
    address.subarray(0, 10).every((byte) => byte === 0) && address[10] === 0xff && address[11] === 0xff;
  bytes.set(isMapped ? address.subarray(12) : address, isMapped ? 12 : 0);
  return bytes;
}

/**
 * A ztunnel as far as ZDS goes, without a proxy: it dials, says hello, and acknowledges
 * or refuses what it is told, or does what none does. It knows nothing of the agent's
 * own messages and sockets: these come from a protobuf library and from libc.
 */
import { closeSync, fstatSync } from 'node:fs';
import koffi from 'koffi';
import { zds } from './zds-schema.ts';

const request = zds.lookupType('Request');

interface Request {
  readonly add?: {
    readonly uid: string;
    readonly names?: { readonly name: string; readonly namespace: string; readonly serviceAccount: string };
  };
  readonly del?: { readonly uid: string };
  readonly snapshotSent?: object;
  readonly keep?: { readonly uid: string };
}

export const helloOf = (version: number): Uint8Array => zds.lookupType('Hello').encode({ version }).finish();
export const answerOf = (error: string): Uint8Array =>
  zds.lookupType('Response').encode({ ack: { error } }).finish();

/** <sys/socket.h> */
const [AF_UNIX, SOCK_SEQPACKET, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SCM_RIGHTS] = [
  1, 5, 0o4000, 0o2000000, 1, 1,
];
const [MSG_DONTWAIT, MSG_NOSIGNAL, MSG_CMSG_CLOEXEC] = [0x40, 0x4000, 0x40000000];
/** What a ztunnel reads of a message. */
const MOST_BYTES = 1024;

const libc = koffi.load(null);
const c = {
  socket: libc.func('int socket(int domain, int type, int protocol)') as (
    domain: number,
    type: number,
    protocol: number,
  ) => number,
  connect: libc.func('int connect(int fd, void *addr, uint32_t len)') as (
    fd: number,
    addr: Buffer,
    len: number,
  ) => number,
  sendmsg: libc.func('int64_t sendmsg(int fd, void *msg, int flags)') as (
    fd: number,
    msg: Buffer,
    flags: number,
  ) => number,
  recvmsg: libc.func('int64_t recvmsg(int fd, void *msg, int flags)') as (
    fd: number,
    msg: Buffer,
    flags: number,
  ) => number,
  close: libc.func('int close(int fd)') as (fd: number) => number,
};

const errno = (): string =>
  Object.entries(koffi.os.errno).find(([, value]) => value === koffi.errno())?.[0] ?? 'an error';

/** `struct msghdr` of one buffer and room for control messages; all are to be kept while it is used. */
function headerOf(bytes: Buffer, control: Buffer): { readonly header: Buffer; readonly vector: Buffer } {
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(koffi.address(bytes), 0);
  vector.writeBigUInt64LE(BigInt(bytes.length), 8);
  const header = Buffer.alloc(56);
  header.writeBigUInt64LE(koffi.address(vector), 16);
  header.writeBigUInt64LE(1n, 24);
  if (control.length > 0) {
    header.writeBigUInt64LE(koffi.address(control), 32);
    header.writeBigUInt64LE(BigInt(control.length), 40);
  }
  return { header, vector };
}

export interface ZdsClientOptions {
  /** What it says first; default a hello of version 1. Null: nothing. */
  readonly hello?: Uint8Array | null;
  /** Its answer to what it is told of a pod: empty for an ack, else a nack. Default acks. Null: none, see {@link ZdsClient.answer}. */
  readonly answer?: ((uid: string) => string) | null;
  /** Pods that it has from an earlier connection, with their networks. */
  readonly pods?: Iterable<readonly [uid: string, pod: Pod]>;
  /** False: it does not read, until {@link ZdsClient.read}. */
  readonly reads?: boolean;
}

interface Pod {
  readonly names: string;
  /** Inode. */
  readonly network: number;
}

export interface ZdsClient extends Disposable {
  /** What it was told, in short: `add UID`, `del UID`, `keep UID`, `snapshot`. */
  readonly told: readonly string[];
  /** What would end a ztunnel. */
  readonly faults: readonly string[];
  /** What it serves now. */
  readonly pods: ReadonlyMap<string, Pod>;
  /** It has seen the end of the snapshot. */
  readonly hasSnapshot: boolean;
  /** The server has closed the connection. */
  readonly isClosed: boolean;
  /** Empty, or the errno's name. */
  send(bytes: Uint8Array, descriptors?: readonly number[]): string;
  /** Answers the oldest message that waits for that. */
  answer(error?: string): void;
  read(): void;
  stopReading(): void;
}

/** Dials the server. Throws with the errno's name. */
export function dialZds(path: string, options: ZdsClientOptions = {}): ZdsClient {
  const { hello = helloOf(1), answer = () => '', pods: before = [], reads = true } = options;
  const fd = c.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const address = Buffer.concat([Buffer.from([AF_UNIX, 0]), Buffer.from(path), Buffer.alloc(1)]);
  if (c.connect(fd, address, address.length) < 0) {
    const why = errno();
    c.close(fd);
    throw new Error(why);
  }
  const told: string[] = [];
  const faults: string[] = [];
  const unanswered: string[] = [];
  const answers: Uint8Array[] = [];
  const pods = new Map(before);
  const named = new Set<string>();
  const state = { hasSnapshot: false, isClosed: false, isReading: false };
  // koffi's poll calls back outside of Node's own scope.
  const handle = koffi.node.poll(fd, () => setImmediate(receive));
  handle.stop();

  function receive(): void {
    while (state.isReading && !state.isClosed) {
      const bytes = Buffer.alloc(MOST_BYTES + 1);
      const control = Buffer.alloc(16 + 4 * 8);
      const { header, vector } = headerOf(bytes, control);
      const length = Number(c.recvmsg(fd, header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
      if (vector.length === 0 || (length < 0 && errno() === 'EAGAIN')) return;
      if (length <= 0) return close();
      take(bytes.subarray(0, length), descriptorsOf(header, control));
    }
  }

  function take(bytes: Buffer, descriptors: readonly number[]): void {
    const inodes = descriptors.map((each) => fstatSync(each).ino);
    for (const each of descriptors) closeSync(each);
    if (bytes.length > MOST_BYTES) faults.push('a message that is too long');
    const { add, del, keep, snapshotSent } = request.decode(bytes) as unknown as Request;
    if (descriptors.length !== (add ? 1 : 0)) faults.push(`${descriptors.length} descriptors`);
    if (add) {
      const { name = '', namespace = '', serviceAccount = '' } = add.names ?? {};
      if (name === '' || namespace === '' || serviceAccount === '') faults.push('an Add without names');
      pods.set(add.uid, { names: `${namespace}/${name}/${serviceAccount}`, network: inodes[0] ?? 0 });
    }
    if (keep && state.hasSnapshot) faults.push('Keep after SnapshotSent');
    if (del && !state.hasSnapshot) faults.push('Del before SnapshotSent');
    if (del) pods.delete(del.uid);
    if (add || keep) named.add((add ?? keep)?.uid ?? '');
    if (snapshotSent) {
      if (state.hasSnapshot) faults.push('a second SnapshotSent');
      state.hasSnapshot = true;
      for (const uid of pods.keys()) if (!named.has(uid)) pods.delete(uid);
    }
    const uid = (add ?? del ?? keep)?.uid ?? '';
    told.push(snapshotSent ? 'snapshot' : `${add ? 'add' : del ? 'del' : 'keep'} ${uid}`);
    unanswered.push(uid);
    if (answer !== null) reply(add ? answer(uid) : '');
  }

  function reply(error = ''): void {
    unanswered.shift();
    answers.push(answerOf(error));
    if (answers.length === 1) flush();
  }

  /** The server may be behind, too. */
  function flush(): void {
    for (let next = answers[0]; next !== undefined && !state.isClosed; next = answers[0]) {
      if (send(next) === 'EAGAIN') return void setTimeout(flush, 5);
      answers.shift();
    }
  }

  function send(bytes: Uint8Array, descriptors: readonly number[] = []): string {
    const message = Buffer.from(bytes);
    const control = descriptors.length === 0 ? Buffer.alloc(0) : rights(descriptors);
    const { header, vector } = headerOf(message, control);
    const sent = c.sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL);
    return vector.length > 0 && sent < 0 ? errno() : '';
  }

  function close(): void {
    if (state.isClosed) return;
    state.isClosed = true;
    handle.close();
    c.close(fd);
  }

  function read(): void {
    if (state.isReading || state.isClosed) return;
    state.isReading = true;
    handle.start(() => setImmediate(receive));
  }

  if (hello !== null) send(hello);
  if (reads) read();
  return {
    told,
    faults,
    pods,
    get hasSnapshot() {
      return state.hasSnapshot;
    },
    get isClosed() {
      return state.isClosed;
    },
    send,
    answer: reply,
    read,
    stopReading() {
      state.isReading = false;
      handle.stop();
    },
    [Symbol.dispose]: close,
  };
}

/** `struct cmsghdr` with descriptors. */
function rights(descriptors: readonly number[]): Buffer {
  const control = Buffer.alloc(16 + 8 * Math.ceil(descriptors.length / 2));
  control.writeBigUInt64LE(BigInt(16 + 4 * descriptors.length), 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  descriptors.forEach((each, at) => control.writeInt32LE(each, 16 + 4 * at));
  return control;
}

function descriptorsOf(header: Buffer, control: Buffer): number[] {
  if (header.readBigUInt64LE(40) < 16n || control.readInt32LE(12) !== SCM_RIGHTS) return [];
  const count = (Number(control.readBigUInt64LE(0)) - 16) / 4;
  return Array.from({ length: count }, (_, at) => control.readInt32LE(16 + 4 * at));
}

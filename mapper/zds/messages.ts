/**
 * The messages of ZDS, by which a ztunnel is told of pods: the few bytes of protobuf
 * that they are, written and read by hand.
 *
 *     to the ztunnel     1 { 1: uid, 2: { 1: name, 2: namespace, 3: service account } }   Add
 *                        2 { 2: uid }                                                     Del
 *                        3 { }                                                            SnapshotSent
 *                        5 { 1: uid }                                                     Keep
 *     from the ztunnel   1: version                                                       hello, the first
 *                        1 { 1: error }                                                   ack, or nack with an error
 */

/** A ztunnel reads no more of a message, and ends the connection over a longer one. */
const MOST_BYTES = 1024;

/** The only version of the protocol that there is. */
export const ZDS_VERSION = 1;

/** A pod as a ztunnel knows it: it finds the pod's identity by these names, which all have to be there. */
export interface WorkloadNames {
  readonly uid: string;
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
}

/** What could not be read, in words that follow "sent". */
export interface Unreadable {
  readonly unreadable: string;
}

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Goes with exactly one descriptor, of the pod's network namespace. */
export function addMessage({ uid, name, namespace, serviceAccount }: WorkloadNames): Uint8Array {
  const names = [field(1, text(name)), field(2, text(namespace)), field(3, text(serviceAccount))].flat();
  return Uint8Array.from(field(1, [...field(1, text(uid)), ...field(2, names)]));
}

/** Goes without a descriptor, like all but Add. */
export const delMessage = (uid: string): Uint8Array => Uint8Array.from(field(2, field(2, text(uid))));

export const keepMessage = (uid: string): Uint8Array => Uint8Array.from(field(5, field(1, text(uid))));

export const snapshotSentMessage = (): Uint8Array => Uint8Array.from(field(3, []));

/** Why no ztunnel can be told of a pod, as a sentence; undefined where it can. */
export function whyUnfit(workload: WorkloadNames): string | undefined {
  const { uid, name, namespace, serviceAccount } = workload;
  const all = { uid, name, namespace, serviceAccount };
  const missing = Object.entries(all).find(([, value]) => value === '')?.[0];
  if (missing !== undefined)
    return `a pod without a ${missing} cannot be told to ztunnel: expected all of ${Object.keys(all).join(', ')}, got ${JSON.stringify(all)}`;
  const { length } = addMessage(workload);
  if (length <= MOST_BYTES) return undefined;
  return `the names of this pod are too long for ztunnel, which reads ${MOST_BYTES} bytes: with its uid, name, namespace and serviceAccount the message has ${length}`;
}

/** The version that a ztunnel speaks. Never throws. */
export function readHello(bytes: Uint8Array): number | Unreadable {
  let version = 0;
  const problem = eachField(bytes, (number, value) => {
    if (number !== 1) return undefined;
    if (typeof value !== 'number') return 'a hello whose version is no number';
    version = value;
    return undefined;
  });
  return problem === undefined ? version : { unreadable: problem };
}

/** The error of a nack; empty of an ack. Never throws. */
export function readAnswer(bytes: Uint8Array): string | Unreadable {
  let error: string | undefined;
  const problem = eachField(bytes, (number, value) => {
    if (number !== 1) return undefined;
    if (typeof value === 'number') return 'a number where an ack was expected';
    error ??= '';
    return eachField(value, (inner, text) => {
      if (inner !== 1) return undefined;
      if (typeof text === 'number') return 'an ack whose error is no text';
      error = decoder.decode(text);
      return undefined;
    });
  });
  if (problem !== undefined) return { unreadable: problem };
  return error ?? { unreadable: `${bytes.length} bytes that are no ack` };
}

/** Of a reason as an Event and a log line have it; ztunnel's has the places in its code below the first line. */
const REASON_LENGTH = 300;

/** The first line of a nack's error, never empty. */
export function reasonOf(error: string): string {
  const lines = error.split(/[\r\n]/).map((line) => line.replaceAll(/\p{Cc}+/gu, ' ').trim());
  const first = lines.find((line) => line !== '') ?? 'without a reason';
  return first.length > REASON_LENGTH ? `${first.slice(0, REASON_LENGTH)} ...` : first;
}

export const isUnreadable = (read: number | string | Unreadable): read is Unreadable =>
  typeof read === 'object';

const text = (value: string): Uint8Array => encoder.encode(value);

function field(number: number, content: ArrayLike<number>): number[] {
  return [(number << 3) | BYTES, ...lengthOf(content.length), ...Array.from(content)];
}

function lengthOf(length: number): number[] {
  const bytes: number[] = [];
  for (let rest = length; ; rest >>>= 7) {
    if (rest < 0x80) return [...bytes, rest];
    bytes.push((rest & 0x7f) | 0x80);
  }
}

/** Gets the value of a field: the low 32 bits of a number, signed, or bytes. Returns what is wrong with it. */
type Take = (number: number, value: number | Uint8Array) => string | undefined;

/** Goes through the fields of a message; those that nobody takes are passed over. Returns what is wrong with it. */
function eachField(bytes: Uint8Array, take: Take): string | undefined {
  const cut = `${bytes.length} bytes that are no message of ZDS`;
  let at = 0;

  /** The low 32 bits; undefined where the number has no end, or none of 64 bits. */
  function varint(): { readonly low: number; readonly isLarge: boolean } | undefined {
    let low = 0;
    let isLarge = false;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = bytes[at++];
      if (byte === undefined) return undefined;
      const bits = byte & 0x7f;
      if (shift < 32) low |= bits << shift;
      if (shift > 28 ? bits !== 0 : shift === 28 && bits > 0x0f) isLarge = true;
      if (byte < 0x80) return { low, isLarge };
    }
    return undefined;
  }

  while (at < bytes.length) {
    const tag = varint();
    if (tag === undefined || tag.isLarge) return cut;
    const number = tag.low >>> 3;
    if (number === 0) return cut;
    switch (tag.low & 7) {
      case VARINT: {
        const value = varint();
        if (value === undefined) return cut;
        const problem = take(number, value.low);
        if (problem !== undefined) return problem;
        break;
      }
      case BYTES: {
        const length = varint();
        if (length === undefined || length.isLarge) return cut;
        const end = at + (length.low >>> 0);
        if (end > bytes.length) return cut;
        const problem = take(number, bytes.subarray(at, end));
        if (problem !== undefined) return problem;
        at = end;
        break;
      }
      case FIXED64:
        at += 8;
        break;
      case FIXED32:
        at += 4;
        break;
      default:
        return cut;
    }
  }
  return at === bytes.length ? undefined : cut;
}

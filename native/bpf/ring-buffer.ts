/** What a BPF program puts into a ring buffer, read from the event loop. */
import { watchReadable } from '../boundary/libc.ts';
import { openRing } from '../boundary/ring-records.ts';
import type { Codec } from '../layout/codec.ts';

/**
 * Calls `onSample` for each record, in their order, on the main thread. What it
 * throws is passed to `onError`.
 * @param fd of a map of type BPF_MAP_TYPE_RINGBUF, which may be closed afterwards
 * @throws CgrouteError `EBPF`
 */
export function watchRingBuffer<T>(
  fd: number,
  record: Codec<T>,
  onSample: (sample: T) => void,
  onError: (error: unknown) => void,
): Disposable {
  const ring = openRing(fd, record.size, (bytes) => onSample(record.decode(bytes)), onError);
  const readable = watchReadable(ring.epollFd, ring.consume);
  return {
    [Symbol.dispose]() {
      readable[Symbol.dispose]();
      ring[Symbol.dispose]();
    },
  };
}

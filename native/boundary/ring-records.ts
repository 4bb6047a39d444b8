/** libbpf's consumer of a ring buffer, which calls back into JavaScript. */
import koffi from 'koffi';
import { CgrouteError } from '../error.ts';
import { libbpf } from './libbpf.ts';

/** `ring_buffer_sample_fn`, <bpf/libbpf.h>. */
const sampleProto = koffi.proto('int cgroute_sample(void *ctx, void *data, size_t size)');

export interface RingRecords extends Disposable {
  /** Becomes readable when there are records. */
  readonly epollFd: number;
  /** Calls back for each record that is there, in their order, before it returns. */
  consume(): void;
}

/**
 * Opens a ring buffer. libbpf calls back while it is asked to consume, and at no
 * other time. What `onRecord` throws must not get into C: it is passed to `onError`.
 * @param fd of a map of type BPF_MAP_TYPE_RINGBUF, which may be closed afterwards
 * @param size bytes of a record; shorter ones are passed over, of longer ones these come first
 * @param onRecord gets the kernel's own memory, which is the record's until it returns
 * @throws CgrouteError `EBPF`
 */
export function openRing(
  fd: number,
  size: number,
  onRecord: (record: Buffer) => void,
  onError: (error: unknown) => void,
): RingRecords {
  const lib = libbpf();
  const callback = koffi.register((_: bigint, data: bigint, length: number | bigint) => {
    try {
      if (Number(length) >= size) onRecord(Buffer.from(koffi.view(data, size)));
    } catch (error) {
      onError(error);
    }
    return 0;
  }, koffi.pointer(sampleProto));
  const ring = lib.ringBufferNew(fd, callback, null, null);
  if (ring === null) {
    koffi.unregister(callback);
    throw new CgrouteError('EBPF', 'the ring buffer of cgroup events could not be mapped', {
      syscall: 'ring_buffer__new',
    });
  }
  return {
    epollFd: lib.ringBufferEpollFd(ring),
    consume: () => void lib.ringBufferConsume(ring),
    [Symbol.dispose]() {
      lib.ringBufferFree(ring);
      koffi.unregister(callback);
    },
  };
}

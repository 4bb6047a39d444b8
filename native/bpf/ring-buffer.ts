/** What a BPF program puts into a ring buffer, read from the event loop. */
import koffi from 'koffi';
import { CgrouteError } from '../error.ts';
import type { Layout } from '../layout/layout.ts';
import { libbpf } from '../boundary/libbpf.ts';
import { watchReadable } from '../boundary/libc.ts';

/** `ring_buffer_sample_fn`, <bpf/libbpf.h>. */
const sampleProto = koffi.proto('int cgroute_sample(void *ctx, void *data, size_t size)');

/**
 * Calls `onSample` for each record, in their order, on the main thread; libbpf
 * calls back while it is asked to consume, and at no other time. What the handler
 * throws must not get into C: it is passed to `onError`.
 * @param fd of a map of type BPF_MAP_TYPE_RINGBUF, which may be closed afterwards
 * @throws CgrouteError `EBPF`
 */
export function watchRingBuffer<T>(
  fd: number,
  layout: Layout<T>,
  onSample: (sample: T) => void,
  onError: (error: unknown) => void,
): Disposable {
  const lib = libbpf();
  const callback = koffi.register((_: bigint, data: bigint, size: number | bigint) => {
    try {
      if (Number(size) >= layout.size) onSample(layout.decode(Buffer.from(koffi.view(data, layout.size))));
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
  const readable = watchReadable(lib.ringBufferEpollFd(ring), () => void lib.ringBufferConsume(ring));
  return {
    [Symbol.dispose]() {
      readable[Symbol.dispose]();
      lib.ringBufferFree(ring);
      koffi.unregister(callback);
    },
  };
}

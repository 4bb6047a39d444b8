/**
 * Lets go of memory that was needed for a moment only. On a node every megabyte
 * counts as often as there are nodes.
 */
import { readFileSync, realpathSync } from 'node:fs';
import koffi from 'koffi';

/** <linux/mman.h> */
const MADV_DONTNEED = 4;

const libc = koffi.load(null);
const madvise = libc.func('int madvise(uint64_t address, size_t length, int advice)') as (
  address: bigint,
  length: number,
  advice: number,
) => number;

/**
 * Gives back what start-up and bursts of work have left: free blocks of the C
 * heap (loading BPF objects takes megabytes), and those pages of Node's own
 * binary that are mapped in. What is used again is mapped again from the page
 * cache. Never throws; where something is not possible, it stays.
 */
export function trimMemory(): void {
  try {
    const trim = libc.func('int malloc_trim(size_t pad)') as (pad: number) => number;
    trim(0);
  } catch {
    // musl has no such call, and keeps less.
  }
  try {
    for (const { start, length } of cleanMappings(
      readFileSync('/proc/self/smaps', 'utf8'),
      realpathSync('/proc/self/exe'),
    )) {
      madvise(start, length, MADV_DONTNEED);
    }
  } catch {
    // No /proc, or one that hides it.
  }
}

/**
 * As {@link trimMemory}, and what JavaScript has let go of first. Nothing else is
 * done meanwhile, for some 30 ms. Where Node was not started with `--expose-gc`,
 * the garbage stays until Node comes to it.
 */
export function releaseMemory(): void {
  // The last resort also gives back pages that are only half used, and code that has not run for long.
  void globalThis.gc?.({ type: 'major', execution: 'sync', flavor: 'last-resort' });
  trimMemory();
}

/**
 * The mappings of `file` in the text of a smaps file, proc_pid_smaps(5), that can
 * be dropped without loss: not writable, and no page of them is a private copy.
 */
export function cleanMappings(
  smaps: string,
  file: string,
): { readonly start: bigint; readonly length: number }[] {
  return smaps.split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/).flatMap((mapping) => {
    const [, from, to, path] = /^([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ \d+ +(.*)$/m.exec(mapping) ?? [];
    if (path !== file || !/^Anonymous: +0 kB$/m.test(mapping)) return [];
    const start = BigInt(`0x${from}`);
    return [{ start, length: Number(BigInt(`0x${to}`) - start) }];
  });
}

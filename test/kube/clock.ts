/** The clocks of one program, to be moved while it runs (clock.c); the machine's are left alone. */
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

export interface Clock {
  /** For the environment of the program. */
  readonly env: Readonly<Record<string, string>>;
  /** How far the two are ahead of the machine's from now on, milliseconds. */
  set(ahead: { readonly wall?: number; readonly monotonic?: number }): void;
}

/** Built from clock.c. */
const LIBRARY = resolve(import.meta.dirname, '../../dist/test/clock.so');

/** Makes a clock that is right. */
export function makeClock(sandbox: Sandbox, name = 'clock'): Clock {
  const offsets = sandbox.file(`${name}.offsets`);
  writeFileSync(offsets, Buffer.alloc(16));
  return {
    env: { LD_PRELOAD: LIBRARY, CLOCK_OFFSETS: offsets },
    set({ wall = 0, monotonic = 0 }) {
      const file = openSync(offsets, 'r+');
      writeSync(file, BigInt64Array.of(BigInt(wall) * 1_000_000n, BigInt(monotonic) * 1_000_000n));
      closeSync(file);
    },
  };
}

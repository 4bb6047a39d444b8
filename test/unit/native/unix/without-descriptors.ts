/**
 * `node without-descriptors.ts PATH`: listens there, has no descriptor left when
 * somebody connects, and prints what came of it.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { listenForPackets } from '../../../../native/unix/packet-listener.ts';
import { eventually } from '../../../../deploy/stage/process.ts';
import { dialZds } from '../../../harness/zds-client.ts';

/** Takes all descriptors that this process may have; returns the way back. */
function exhaustDescriptors(): () => void {
  const limit = (soft: string): void =>
    void execFileSync('prlimit', [`--pid=${process.pid}`, `--nofile=${soft}:`]);
  const before = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? '';
  limit('300');
  const taken: number[] = [];
  try {
    for (;;) taken.push(openSync('/dev/null', 'r'));
  } catch {
    // There is none left.
  }
  return () => {
    for (const fd of taken) closeSync(fd);
    limit(before);
  };
}

const path = process.argv[2] ?? '';
const trouble = Promise.withResolvers<void>();
const troubles: string[] = [];
const met: Disposable[] = [];
const listener = listenForPackets({
  path,
  purpose: 'a.setting',
  onConnection: (caller) => void met.push(caller),
  onTrouble: (errno) => {
    troubles.push(errno);
    trouble.resolve();
  },
});
const client = dialZds(path, { hello: null });
const back = exhaustDescriptors();
await trouble.promise;
for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate);
const [without, metWithout] = [[...troubles], met.length];
back();
await eventually('it is accepted', () => met.length === 1);
console.log(
  JSON.stringify({ troubles: without, metWithout, metAfter: met.length, isClosed: client.isClosed }),
);
client[Symbol.dispose]();
for (const each of met) each[Symbol.dispose]();
listener[Symbol.dispose]();

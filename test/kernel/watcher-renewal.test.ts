/** What a watch that is made again and again leaves behind. */
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { pino } from 'pino';
import { watchCgroups } from '../../watcher/cgroup-watch.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';

const WATCHES = 20;

const openFiles = (): number => readdirSync('/proc/self/fd').length;
const children = (): string[] =>
  readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').split(' ').filter(Boolean);

test('watches of the cgroup tree that have ended leave no open file and no child process', async () => {
  await using sandbox = await makeSandbox('renewal');
  const watchOnce = async (): Promise<void> => {
    let subscribed = false;
    await using watch = watchCgroups({
      cgroupRoot: sandbox.cgroupRoot,
      logger: pino({ level: 'silent' }),
      onHints: async () => {},
      onSubscribed: () => void (subscribed = true),
    });
    await eventually('the watch stands', () => subscribed);
    assert.equal(watch.state().state, 'ok');
  };
  await watchOnce();
  const before = { files: openFiles(), children: children() };
  for (let n = 0; n < WATCHES; n++) await watchOnce();
  await eventually('no more files are open than before', () => openFiles() <= before.files).catch(() => {});
  assert.deepEqual(
    { files: openFiles() - before.files, children: children() },
    { files: 0, children: before.children },
  );
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import { CgrouteError } from '../../../native/error.ts';
import type { ProcConnectorOptions } from '../../../native/netlink/proc-connector.ts';
import { watchProcesses } from '../../../watcher/process-watch.ts';
import { eventually } from '../../../deploy/stage/process.ts';

/** A socket that fails when the test says so: a live one cannot be made to. */
function setUp() {
  const opened: ProcConnectorOptions[] = [];
  const counts = { disposed: 0, lost: 0 };
  const seen: number[] = [];
  const watch = watchProcesses({
    proc: { cgroupOfPid: () => '/kubepods' } as unknown as Parameters<typeof watchProcesses>[0]['proc'],
    logger: pino({ level: 'silent' }),
    onExec: (pid) => void seen.push(pid),
    onLost: () => void counts.lost++,
    open: async (options) => {
      opened.push(options);
      return { fd: -1, [Symbol.dispose]: () => void counts.disposed++ };
    },
    retryMs: 5,
  });
  return { watch, opened, counts, seen };
}

test('a socket that fails after it worked is said, replaced, and followed by a sweep', async () => {
  const { watch, opened, counts, seen } = setUp();
  using _ = watch;
  await watch.started;
  assert.equal(watch.state().state, 'ok');
  opened[0]?.onBroken(new CgrouteError('EPROCEVENTS', 'process events were refused with ENOTCONN'));
  assert.equal(watch.state().state, 'failed');
  assert.match(watch.state().detail, /ENOTCONN.*cgroup watch and the sweep/);
  await eventually('it is replaced', () => watch.state().state === 'ok');
  assert.deepEqual([watch.state().state, opened.length, counts.disposed, counts.lost], ['ok', 2, 1, 1]);
  opened[1]?.onExec(7);
  assert.deepEqual(seen, [7]);
});

test('a watch that is closed tries no more', async () => {
  const { watch, opened, counts } = setUp();
  await watch.started;
  opened[0]?.onBroken(new CgrouteError('EPROCEVENTS', 'gone'));
  watch[Symbol.dispose]();
  await delay(30);
  assert.deepEqual([opened.length, counts.disposed, counts.lost], [1, 1, 0]);
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { leave, takeMarksOff, withdraw, type Departing } from '../../../../mapper/agent/departure.ts';

/** An agent that notes its end. */
function departing(given: { thrown?: unknown[]; left?: string[] } = {}) {
  const steps: string[] = [];
  const { thrown = [], left = [] } = given;
  const noted = <T>(step: string, result: T): T => {
    steps.push(step);
    return result;
  };
  const agent: Departing = {
    walk: {
      leave: () => noted('leave', thrown),
      withdraw: async () => noted('withdraw', thrown),
      clear: async () => noted('clear', left),
    },
    dataPlane: {
      stopRedirecting: () => void steps.push('stop redirecting'),
      detach: (keepsFilter) => void steps.push(`detach, keeps the filter: ${keepsFilter}`),
    },
    logger: pino({ level: 'error' }, { write: (line: string) => void steps.push(JSON.parse(line).msg) }),
  };
  return { agent, steps };
}

test('parts withdraw, what redirects goes, what is left in pods goes, and the pins last', async () => {
  const { agent, steps } = departing();
  await withdraw(agent);
  assert.deepEqual(steps, ['withdraw', 'stop redirecting', 'clear', 'detach, keeps the filter: false']);
});

test('where rules may be left the filter that they name stays, and the log says what to do', async () => {
  const { agent, steps } = departing({ left: ['rules may be left in x'] });
  await withdraw(agent);
  assert.deepEqual(steps.slice(3), [
    'rules may be left in x; run `cgroute cleanup`',
    'detach, keeps the filter: true',
  ]);
});

test('what a part has thrown keeps nothing from going, and is thrown at the end', async () => {
  const { agent, steps } = departing({ thrown: [new Error('one'), new Error('two')] });
  await assert.rejects(withdraw(agent), /one/);
  assert.equal(steps.at(-1), 'detach, keeps the filter: false');
  assert.throws(() => leave(agent), /one/);
});

test('the annotations have some time to go, and no more', { timeout: 10_000 }, async () => {
  let isAsked = false;
  const never = {
    takeOff() {
      isAsked = true;
      return new Promise<void>(() => {});
    },
  };
  const alive = setTimeout(() => {}, 10_000);
  await takeMarksOff(never, 5);
  clearTimeout(alive);
  assert.equal(isAsked, true);
});

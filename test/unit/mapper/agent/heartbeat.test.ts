import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { Heartbeat, type HeartbeatOptions } from '../../../../mapper/agent/heartbeat.ts';

function setUp(given: { entries?: number; links?: string[]; lost?: boolean } = {}) {
  const steps: string[] = [];
  const options: HeartbeatOptions = {
    everyMs: 1000,
    walk: {
      look: () => void steps.push('look'),
      repair() {
        steps.push('repair');
        return given.entries ?? 0;
      },
    },
    dataPlane: {
      repairLinks() {
        steps.push('links');
        return given.links ?? [];
      },
    },
    lock: {
      renew() {
        steps.push('lock');
        if (given.lost === true) throw new Error('another agent has it');
      },
    },
    logger: pino({ level: 'warn' }, { write: (line: string) => void steps.push(JSON.parse(line).msg) }),
    failed: (error, what) => void steps.push(`${what}: ${(error as Error).message}`),
  };
  return { heartbeat: new Heartbeat(options), steps };
}

test('a beat looks, then repairs, then sees to the links of programs', () => {
  const { heartbeat, steps } = setUp();
  heartbeat.beat();
  assert.deepEqual(steps, ['look', 'repair', 'lock', 'links']);
  assert.equal(heartbeat.driftRepaired, 0);
});

test('what had to be put back is counted and said', () => {
  const { heartbeat, steps } = setUp({ entries: 2, links: ['a'] });
  heartbeat.beat();
  heartbeat.beat();
  assert.equal(heartbeat.driftRepaired, 6);
  assert.match(steps[2] ?? '', /^entries of the maps had been altered/);
  assert.match(steps[5] ?? '', /^programs had been detached/);
});

test('links of pins that another agent has are left alone', () => {
  const { heartbeat, steps } = setUp({ links: ['a'], lost: true });
  heartbeat.beat();
  assert.equal(heartbeat.driftRepaired, 0);
  assert.deepEqual(steps.slice(3), ['the periodic check failed: another agent has it']);
});

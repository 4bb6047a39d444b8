/** Golden examples: what the rules make of pods one by one, written by hand. The agent and the oracle must both say so. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Decision } from '../../../../mapper/decisions/decision.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import { DEFAULT_SETTINGS, expected, REASONS } from '../../../harness/verdict-oracle.ts';
import { podWith } from '../pod-with.ts';
import { configured } from './verdict-input.ts';
import { APART_ROWS } from './verdict-rows-apart.ts';
import { MODE_ROWS } from './verdict-rows-modes.ts';

const ROWS = [...APART_ROWS, ...MODE_ROWS];

describe('the verdict', () => {
  for (const { name, pod: changes = {}, namespace, settings = {}, runsOn, is, also = {} } of ROWS) {
    test(name, () => {
      const pod = podWith(changes);
      const decision = decide(
        pod,
        namespace,
        configured(settings),
        undefined,
        runsOn && { isRunning: true, last: undefined },
      );
      assert.deepEqual([decision.verdict, decision.reason], is);
      for (const [key, value] of Object.entries(also))
        assert.equal(decision[key as keyof Decision], value, key);
      const { verdict, reason } = expected(runsOn ? { ...pod, runsOn } : pod, namespace?.labels, {
        ...DEFAULT_SETTINGS,
        ...settings,
      });
      assert.deepEqual([verdict, reason], is, 'the oracle');
    });
  }

  test('has an example for every reason', () => {
    const shown = new Set<string>(ROWS.map(({ is: [, reason] }) => reason));
    assert.deepEqual([...shown].toSorted(), REASONS.toSorted());
  });
});

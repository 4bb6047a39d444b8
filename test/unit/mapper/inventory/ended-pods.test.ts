/** Of pods that have ended by their phase: what stands while their processes run, and when that is over. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { defaultConfig } from '../../../../mapper/config/config.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import { EndedPods, type Life } from '../../../../mapper/inventory/ended-pods.ts';
import { MODE } from '../../../harness/label-names.ts';
import { podWith } from '../pod-with.ts';

const FAILED = podWith({ phase: 'Failed', labels: { [MODE]: 'ambient' } });
const BEFORE = decide(podWith({ labels: { [MODE]: 'kmesh' } }), undefined, defaultConfig('manifest'));
const RECALLED = decide(podWith({ labels: { [MODE]: 'none' } }), undefined, defaultConfig('manifest'));
const ANEW = decide(podWith({ labels: { [MODE]: 'ambient' } }), undefined, defaultConfig('manifest'));

function setUp(life: Life, isComplete = true) {
  const host = { life, isComplete };
  const ended = new EndedPods({ lifeOf: () => host.life, isComplete: () => host.isComplete });
  const last = (recalled = undefined as typeof RECALLED | undefined) => {
    const { isRunning, last: stands } = ended.of(
      FAILED,
      () => recalled,
      () => ANEW,
    );
    return isRunning ? stands : undefined;
  };
  return { host, ended, last };
}

describe('of a pod that has ended by its phase', () => {
  test('what was decided before stands while a process runs, and never again after that', () => {
    const { host, ended, last } = setUp('running');
    ended.ended(FAILED, BEFORE);
    assert.equal(last(RECALLED), BEFORE);
    assert.deepEqual(ended.look(), []);
    host.life = 'empty';
    assert.deepEqual(ended.look(), [FAILED.uid]);
    assert.deepEqual(ended.look(), []);
    assert.equal(last(), undefined);
    host.life = 'running';
    assert.equal(last(), undefined);
    assert.deepEqual(ended.look(), []);
    // Under way again, and another end.
    ended.forget(FAILED.uid);
    assert.equal(last(), ANEW);
  });

  test('what an earlier agent had decided stands, and for want of that what is decided first', () => {
    const known = setUp('running');
    assert.equal(known.last(RECALLED), RECALLED);
    const { last } = setUp('running');
    assert.equal(last(), ANEW);
    assert.equal(last(RECALLED), ANEW, 'asked once');
  });

  test('nothing is over before its cgroups have been seen', () => {
    const { host, ended, last } = setUp('unseen', false);
    assert.equal(last(RECALLED), RECALLED);
    host.isComplete = true;
    assert.equal(last(), undefined);
    assert.deepEqual(ended.look(), [FAILED.uid]);
    host.life = 'running';
    assert.equal(last(), RECALLED, 'they were late');
    host.life = 'unseen';
    assert.equal(last(), undefined);
    const { last: unknown } = setUp('unseen', false);
    assert.equal(unknown(), undefined);
  });

  test('one that was asked about meanwhile is still told', () => {
    const { host, ended, last } = setUp('running');
    ended.ended(FAILED, BEFORE);
    last();
    host.life = 'empty';
    last();
    assert.deepEqual(ended.look(), [FAILED.uid]);
  });
});

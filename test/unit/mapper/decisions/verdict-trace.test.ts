/** What `explain` prints of a decision: the rules that were tried, and notes. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { defaultConfig } from '../../../../mapper/config/config.ts';
import type { Ending } from '../../../../mapper/decisions/decision.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import type { Namespace } from '../../../../mapper/objects/namespace.ts';
import type { Pod } from '../../../../mapper/objects/pod.ts';
import { BYPASS, KMESH_REDIRECTION, MODE, REDIRECTION } from '../../../harness/label-names.ts';
import type { Settings } from '../../../harness/verdict-oracle.ts';
import { AMBIENT, configured, shop } from './verdict-input.ts';
import { podWith } from '../pod-with.ts';

describe('the trace of a verdict', () => {
  test('has every rule that was tried, in order, and none after the one that decides', () => {
    const { trace } = decide(
      podWith({ labels: { [BYPASS]: 'enabled' } }),
      AMBIENT,
      defaultConfig('manifest'),
    );
    assert.deepEqual(
      trace.map(({ rule, outcome }) => [rule, outcome]),
      [
        [1, 'no'],
        [2, 'no'],
        [3, 'no'],
        [4, 'no'],
        [5, 'no'],
        [6, 'no'],
        [7, 'no'],
        [8, 'no'],
        [9, 'no'],
        [10, 'yes'],
        [11, 'no'],
        [12, 'decides'],
      ],
    );
    assert.deepEqual(
      decide(podWith({ phase: 'Failed' }), AMBIENT, defaultConfig('manifest')).trace.map(({ rule }) => rule),
      [1, 2],
    );
  });

  test("gives the deciding mark to the label's rule when nothing after it applies", () => {
    const { trace } = decide(podWith({ labels: { [MODE]: 'kmesh' } }), undefined, defaultConfig('manifest'));
    assert.deepEqual(trace.map(({ rule, outcome }) => [rule, outcome]).slice(5), [
      [6, 'no'],
      [7, 'no'],
      [8, 'no'],
      [9, 'decides'],
      [11, 'no'],
      [12, 'no'],
    ]);
  });

  test('says of a pod that has ended whether it runs on, and what stands', () => {
    const failed = podWith({ phase: 'Failed', terminating: true });
    const saw = (ending?: Ending): string => {
      const { trace } = decide(failed, AMBIENT, defaultConfig('manifest'), undefined, ending);
      return `${trace[1]?.outcome}: ${trace[1]?.saw}`;
    };
    const last = decide(podWith({ labels: { [MODE]: 'none' } }), AMBIENT, defaultConfig('manifest'));
    assert.equal(saw(), 'decides: phase Failed, terminating, and no process is left in its cgroups');
    assert.equal(
      saw({ isRunning: true, last: undefined }),
      'no: phase Failed, terminating, but processes are left in its cgroups',
    );
    assert.equal(
      saw({ isRunning: true, last }),
      'decides: phase Failed, terminating, but processes are left in its cgroups: out, because of pod-opt-out, stands',
    );
  });

  test('quotes the values that decided', () => {
    const { trace } = decide(podWith({ labels: { [MODE]: 'NoNe' } }), AMBIENT, defaultConfig('manifest'));
    assert.match(
      trace.at(-1)?.saw ?? '',
      /annotation ambient\.istio\.io\/redirection absent, .*istio\.io\/dataplane-mode = "NoNe"/,
    );
    const runtime = decide(podWith({ runtimeClass: 'kata-fc' }), AMBIENT, defaultConfig('manifest')).trace.at(
      -1,
    );
    assert.match(runtime?.condition ?? '', /kata, kata-\*, gvisor/);
    assert.equal(runtime?.saw, 'spec.runtimeClassName: kata-fc');
  });
});

describe('the notes of a verdict', () => {
  const notesOf = (
    pod: Partial<Pod>,
    namespace?: Namespace,
    settings: Partial<Settings> = {},
  ): readonly string[] =>
    decide(podWith(pod), namespace, configured(settings)).notes.map(
      ({ code, message }) => `${code}: ${message}`,
    );

  test('quote an unknown mode, of the pod and of the namespace', () => {
    const notes = notesOf({ labels: { [MODE]: 'sidecarless' } }, shop({ [MODE]: 'ambiant' }));
    assert.equal(notes.length, 2);
    assert.match(notes[0] ?? '', /^unknown-mode: pod shop\/web .*"sidecarless"/);
    assert.match(notes[1] ?? '', /^unknown-mode: namespace shop .*"ambiant"/);
  });

  test('quote an unknown and a refused bypass', () => {
    assert.match(
      notesOf({ labels: { [BYPASS]: 'true' } }, AMBIENT).join(),
      /^unknown-bypass: pod shop\/web .*"true"/,
    );
    assert.match(
      notesOf({ labels: { [BYPASS]: 'enabled' } }, AMBIENT, { allowed: 'never' }).join(),
      /^bypass-refused: .*bypass\.allowed is never/,
    );
    assert.match(
      notesOf({ labels: { [BYPASS]: 'enabled' } }, AMBIENT, { allowed: 'namespace' }).join(),
      /^bypass-refused: .*namespace shop does not carry cgroute\.io\/allow-bypass=true/,
    );
  });

  test('name the annotation of another mesh, where labels ask for cgroute as well', () => {
    const theirs: Partial<Pod> = {
      annotations: { [REDIRECTION]: 'enabled', [KMESH_REDIRECTION]: 'enabled' },
      writers: { [REDIRECTION]: 'istio-cni' },
    };
    assert.equal(
      notesOf(theirs, AMBIENT).join(),
      'other-mesh: pod shop/web has the annotation ambient.istio.io/redirection="enabled", written by istio-cni and kmesh.net/redirection="enabled", written by nobody knows whom: another mesh redirects it, and cgroute leaves it alone (takeOver: false)',
    );
    assert.deepEqual(notesOf(theirs, shop()), []);
    assert.deepEqual(notesOf({ ...theirs, labels: { [MODE]: 'none' } }, AMBIENT), []);
    assert.deepEqual(notesOf(theirs, AMBIENT, { takeOver: true }), []);
    const { trace } = decide(podWith(theirs), AMBIENT, defaultConfig('manifest'));
    assert.equal(
      trace.at(-1)?.saw,
      'annotation ambient.istio.io/redirection = "enabled" by istio-cni, annotation kmesh.net/redirection = "enabled", takeOver: false',
    );
  });

  test('are absent when all is plain', () => {
    assert.deepEqual(notesOf({ labels: { [MODE]: 'none', app: 'web' } }, AMBIENT), []);
    assert.deepEqual(notesOf({ labels: { [BYPASS]: 'enabled' } }, AMBIENT), []);
    assert.deepEqual(notesOf({ labels: { [MODE]: '' } }, shop({ [MODE]: 'None' })), []);
  });
});

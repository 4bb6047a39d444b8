/** The kernel matrix's own parts: what is chosen, what a guest's lines say, what becomes of the document. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { test } from 'node:test';
import { coveredDifferences, isThere, namedFiles } from '../../matrix/covered.ts';
import { documentDifferences, documentText } from '../../matrix/document.ts';
import { parseReport } from '../../matrix/report.ts';
import { isGood, type KernelResult, renewed, resultLines, take } from '../../matrix/result.ts';
import { ONLY_WITH_ALL, guestScript, selectFiles } from '../../matrix/selection.ts';

const FEATURE = { name: 'bpf_x in sockops', kind: 'helper', since: '5.15' } as const;

function result(changes: Partial<KernelResult> = {}): KernelResult {
  return {
    name: '5.10',
    suite: 'bullseye',
    release: '5.10.0-32-cloud-amd64',
    version: '5.10.223-1',
    ended: true,
    seconds: 300,
    features: [{ ...FEATURE, support: 'no', without: 'it is slower' }],
    files: [
      {
        file: 'kernel/a.test.ts',
        passed: 3,
        failures: [],
        skips: [{ name: 'one', why: 'no MPTCP' }],
        seconds: 4,
      },
    ],
    ...changes,
  };
}

const failed = {
  file: 'kernel/a.test.ts',
  passed: 2,
  failures: [{ name: 'two', message: 'Error: no' }],
  skips: [],
  seconds: 4,
};

test('every file of test/kernel runs in the guests, or is left out with a reason', () => {
  const { files, leftOut, leak } = selectFiles(undefined, true);
  assert.ok(files.length > 20 && leak);
  assert.ok(leftOut.every(({ file, why }) => !files.includes(file) && why.length > 20));
  assert.ok(leftOut.length > 0);
  const some = selectFiles(['connect'], false);
  assert.deepEqual([some.leak, some.leftOut], [false, []]);
  assert.ok(some.files.includes('kernel/connect.test.ts') && !some.files.includes('kernel/pins.test.ts'));
  assert.match(
    guestScript(['kernel/a.test.ts'], 7),
    /^exec node test\/matrix\/inside\.ts --leak 7 kernel\/a\.test\.ts$/m,
  );
});

test('without --all the files about programs run, and what is left to --all has a reason and is there', () => {
  const [all, some] = [selectFiles(undefined, true), selectFiles(undefined, false)];
  assert.ok(!some.leak);
  assert.deepEqual(some.leftOut, all.leftOut);
  assert.ok(some.files.every((file) => all.files.includes(file)));
  for (const name of ['connect', 'programs', 'identity', 'cgroups', 'original-dst'])
    assert.ok(some.files.includes(`kernel/${name}.test.ts`), name);
  const rest = all.files.filter((file) => !some.files.includes(file));
  assert.deepEqual(
    rest.map((file) => basename(file)),
    Object.keys(ONLY_WITH_ALL).toSorted(),
    'each name in the list is that of a file',
  );
  assert.ok(selectFiles(['watcher'], false).files.length > 1, 'whoever names a file gets it');
});

test("a guest's lines are told from what its firmware and its kernel write", () => {
  assert.deepEqual(parseReport('\x1bc{"type":"begin","file":"x"}'), { type: 'begin', file: 'x' });
  assert.equal(parseReport('[    1.0] random: crng init done'), undefined);
  assert.equal(parseReport('{"type":"file","result":{"fi'), undefined);
});

test('a kernel is good only when it came to its end and nothing failed, and the leak test is clean', () => {
  const figures = {
    clean: true,
    connects: 9,
    escaped: 0,
    caught_wrongly: 0,
    failed: 0,
    denied_wrongly: 0,
    disagreements: 0,
    new_cgroups: 9,
    agent: { starts: 1, kills: 1, upgrades: 1 },
  };
  assert.ok(isGood(result()));
  assert.ok(isGood(result({ leak: { figures, tail: '', seconds: 1 } })));
  assert.ok(!isGood(result({ leak: { figures: { ...figures, clean: false }, tail: '', seconds: 1 } })));
  assert.ok(!isGood(result({ leak: { figures: undefined, tail: '', seconds: 1 } })));
  assert.ok(!isGood(result({ files: [failed] })));
  assert.ok(!isGood(result({ files: [{ ...failed, passed: 0, failures: [] }] })), 'a file without tests');
  assert.ok(!isGood(result({ files: [] })));
  assert.ok(!isGood(result({ ended: false })));
  const running = result({ files: [] });
  take(running, { type: 'begin', file: 'kernel/a.test.ts' });
  assert.equal(running.running, 'kernel/a.test.ts');
  assert.match(
    take(running, { type: 'file', result: { ...failed, failures: [], before: failed.failures } }) ?? '',
    /at the second try[^]*two/,
  );
  assert.match(
    resultLines([result({ files: [failed] })])[0] ?? '',
    /^✗ 5\.10 .* 2 passed, 1 failed, 0 skipped/,
  );
  assert.match(resultLines([result()]).at(-1) ?? '', /5\.10 kernel\/a\.test\.ts: one \(no MPTCP\)/);
});

test('files that are run again take the place of what they were, and nothing else does', () => {
  const other = { ...failed, file: 'kernel/b.test.ts', failures: [] };
  const earlier = result({ files: [failed, other] });
  const good = result({ files: [{ ...failed, passed: 3, failures: [] }], seconds: 9 });
  const now = renewed(earlier, good);
  assert.deepEqual(now.files, [good.files[0], other]);
  assert.ok(isGood(now) && now.seconds === earlier.seconds);
  assert.ok(!isGood(renewed(good, result({ files: [failed] }))), 'a failure counts, whenever it came');
  assert.ok(!isGood(renewed({ ...earlier, ended: false }, good)), 'the rest never came to its end');
  assert.ok(!isGood(renewed({ ...earlier, problem: 'killed' }, good)));
});

test('the document is out of date when a feature, a test or a reason has changed, not when the day has', () => {
  const text = documentText([result()], []);
  assert.match(text, /`bpf_x` in `sockops` \| 5\.15 \| 5\.10 \| it is slower/);
  assert.deepEqual(documentDifferences(text, [result()], []), []);
  assert.deepEqual(
    documentDifferences(
      text,
      [result({ version: '5.10.224-1', release: '5.10.0-33-cloud-amd64', seconds: 500 })],
      [],
    ),
    [],
  );
  for (const changes of [
    { features: [{ ...FEATURE, support: 'yes' as const }] },
    { files: [failed] },
    { files: [] },
    { suite: 'sid' },
  ]) {
    assert.notDeepEqual(documentDifferences(text, [result(changes)], []), [], JSON.stringify(changes));
  }
  assert.notDeepEqual(
    documentDifferences(text, [result()], [{ file: 'kernel/b.test.ts', why: 'it is not of a kernel' }]),
    [],
  );
  assert.notDeepEqual(documentDifferences('', [result()], []), []);
});

test('of a document only what was run is looked at: kernels, their features, files and skips', () => {
  const other = { ...failed, file: 'kernel/b.test.ts', failures: [], skips: [{ name: 'three', why: 'no' }] };
  const here = result();
  const more = { name: '6.12', suite: 'trixie', files: [...here.files, other] };
  const there = result({ ...more, features: [{ ...FEATURE, support: 'yes' }] });
  const text = documentText([result({ files: [...here.files, other] }), there], []);
  const isFile = (): boolean => true;
  const differences = (results: readonly KernelResult[]): string[] =>
    coveredDifferences(text, results, isFile);
  assert.deepEqual(differences([here, there]), []);
  assert.deepEqual(differences([here]), [], 'neither the other kernel nor the other file');
  const changed = (changes: Partial<KernelResult>): string[] => differences([result(changes)]);
  assert.deepEqual(
    coveredDifferences(text, [here], (file) => !file.includes('b.test.ts')),
    ['- 5.10: `kernel/b.test.ts` | 2, 1 skipped', '- 5.10: `kernel/b.test.ts` | three | no'],
    'a file that is gone',
  );
  assert.deepEqual(changed({ features: [{ ...FEATURE, support: 'yes' as const }] }), [
    '- 5.10: `bpf_x` in `sockops` | 5.15 | **no**',
    '+ 5.10: `bpf_x` in `sockops` | 5.15 | yes',
    '- 5.10: `bpf_x` in `sockops` | 5.15 | it is slower',
  ]);
  assert.equal(
    changed({ features: [{ ...FEATURE, support: 'no', without: 'it is slow' }] }).length,
    2,
    'what follows from it',
  );
  assert.deepEqual(changed({ files: [{ ...here.files[0], passed: 4 } as (typeof here.files)[0]] }), [
    '- 5.10: `kernel/a.test.ts` | 3, 1 skipped',
    '+ 5.10: `kernel/a.test.ts` | 4, 1 skipped',
  ]);
  assert.deepEqual(
    changed({
      files: [{ ...here.files[0], skips: [{ name: 'one', why: 'no UDP' }] } as (typeof here.files)[0]],
    }),
    ['- 5.10: `kernel/a.test.ts` | one | no MPTCP', '+ 5.10: `kernel/a.test.ts` | one | no UDP'],
  );
  assert.deepEqual(changed({ files: [{ ...other, file: 'kernel/new.test.ts', skips: [] }] }), [
    '+ 5.10: `kernel/new.test.ts` | 2',
  ]);
  assert.deepEqual(differences([result({ name: '7.2' })]).length > 0, true, 'a kernel without a column');
});

test('docs/kernels.md tells of files that are there, and no reason in it is of one release', () => {
  const text = readFileSync(resolve(import.meta.dirname, '../../../docs/kernels.md'), 'utf8');
  const files = namedFiles(text);
  assert.ok(files.length > 20 && !isThere('`kernel/none.test.ts`'));
  assert.deepEqual(
    files.filter((file) => !isThere(file)),
    [],
  );
  // Debian's next would make the document say something else.
  const OF_A_RELEASE = /\d+\.\d+\.\d+-\S+/;
  const skipped = text.slice(text.indexOf('\nSkipped:\n'), text.indexOf('\n## Leak test'));
  assert.doesNotMatch(skipped, OF_A_RELEASE);
});

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';

import { parseLabelSelector } from '../../../../mapper/objects/label-selector.ts';

const LABELS = { app: 'ztunnel', tier: 'mesh', 'example.com/role': 'a', empty: '' };

describe('a label selector', () => {
  const matching = [
    'app=ztunnel',
    'app==ztunnel',
    'app = ztunnel',
    'app=ztunnel,tier=mesh',
    'app in (x, ztunnel)',
    'app',
    '!gone',
    'gone!=x',
    'app!=x',
    'app notin (x,y)',
    'gone notin (x)',
    'example.com/role=a',
    'empty=',
    ' app=ztunnel , tier in (mesh,x) , !gone ',
  ];
  const other = [
    'app=x',
    'app!=ztunnel',
    'gone',
    '!app',
    'app in (x)',
    'app notin (ztunnel)',
    'gone=',
    'app=ztunnel,tier=x',
    'constructor',
    'toString',
  ];
  const wrong = [
    '',
    ' ',
    ',',
    'app=ztunnel,',
    'app=a b',
    'app in ztunnel',
    'app in',
    'app in (a',
    '=x',
    '!',
    'app>3',
    'a/b/c=d',
    'app=(x)',
    'app=-x',
    'app in (a) tier',
  ];

  for (const text of matching)
    test(`matches: ${text}`, () => assert.equal(parseLabelSelector(text)?.matches(LABELS), true));
  for (const text of other)
    test(`does not match: ${text}`, () => assert.equal(parseLabelSelector(text)?.matches(LABELS), false));
  for (const text of wrong)
    test(`is refused: ${JSON.stringify(text)}`, () => assert.equal(parseLabelSelector(text), undefined));

  test('is read or refused, never an exception', () => {
    const pieces = fc.constantFrom('app', '=', '!', ' in ', ' notin ', '(', ')', ',', 'a', '/', ' ');
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.array(pieces).map((all) => all.join('')),
        ),
        (text) => {
          parseLabelSelector(text)?.matches(LABELS);
        },
      ),
    );
  });
});

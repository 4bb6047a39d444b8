import assert from 'node:assert/strict';
import { test } from 'node:test';
import { helpText, oneOf, parseCommandLine, valueOf } from '../../../../mapper/cli/command-line.ts';

const refuses = (args: readonly string[], sentence: RegExp): void =>
  assert.throws(() => parseCommandLine(args), { code: 'EUSAGE', message: sentence });

test('a verb, its flags and its argument, in any order', () => {
  assert.deepEqual(parseCommandLine(['explain', '-o', 'json', 'shop/web', '--bpffs-root', '/x']), {
    verb: 'explain',
    flags: { output: 'json', 'bpffs-root': '/x' },
    argument: 'shop/web',
  });
});

test('paths are of the directory where it was started', () => {
  const { flags } = parseCommandLine(['status', '--bpffs-root', 'here', '--config', 'there']);
  assert.deepEqual(flags, { 'bpffs-root': `${process.cwd()}/here`, config: 'there' });
});

test('a flag that is not given has its default, or none', () => {
  const { flags } = parseCommandLine(['status']);
  assert.equal(valueOf(flags, 'proc-root'), '/proc');
  assert.equal(valueOf(flags, 'cgroup-root'), '');
  assert.equal(oneOf(flags, 'output', ['table', 'json']), 'table');
  assert.throws(
    () => oneOf({ output: 'xml' }, 'output', ['table', 'json']),
    /--output expects table or json/,
  );
});

test('help and version are asked for as flags, too', () => {
  assert.equal(parseCommandLine(['--help']).verb, 'help');
  assert.equal(parseCommandLine(['status', '-h']).verb, 'help');
  assert.equal(parseCommandLine(['--version']).verb, 'version');
  assert.match(helpText(), /^usage: cgroute VERB/);
});

test('a flag that takes no value takes none', () => {
  const { flags } = parseCommandLine(['run', '--wait-for-lock', '--node', 'a']);
  assert.deepEqual(flags, { 'wait-for-lock': 'true', node: 'a' });
  refuses(['run', '--wait-for-lock=yes'], /^--wait-for-lock takes no value, got "yes"$/);
  refuses(['run', '--wait-for-lock', 'yes'], /^cgroute run takes flags only, got "yes"$/);
  refuses(['run', '--wait-for-lock', '--wait-for-lock'], /--wait-for-lock is given twice/);
  refuses(['status', '--wait-for-lock'], /status has no flag --wait-for-lock/);
});

test('a probe is of one thing', () => {
  const { argument, flags } = parseCommandLine(['probe', 'ready', '--probe-socket', '/x.sock']);
  assert.deepEqual([argument, flags], ['ready', { 'probe-socket': '/x.sock' }]);
  refuses(['probe'], /^cgroute probe expects live or ready, got none$/);
  refuses(['probe', 'live', 'ready'], /got "live" and "ready"/);
});

test('what cannot be meant is refused with what was expected', () => {
  refuses([], /^a verb is missing: expected one of run, status/);
  refuses(['constructor'], /^"constructor" is no verb/);
  refuses(['status', '--foo'], /status has no flag --foo: expected --cgroup-root/);
  refuses(['status', '--source', 'kube'], /status has no flag --source/);
  refuses(['version', '-o', 'json'], /version has no flag -o: expected none/);
  refuses(['status', '-o'], /^-o expects a value, got none$/);
  refuses(['status', '-o', 'json', '--output', 'yaml'], /--output is given twice: "json" and "yaml"/);
  refuses(['status', 'web'], /takes flags only, got "web"/);
  refuses(['explain'], /expects a pod as NAMESPACE\/NAME or NAME, got none/);
  refuses(['explain', 'a', 'b'], /got "a" and "b"/);
});

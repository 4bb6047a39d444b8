/** What the kernel holds is, byte for byte, what this program and BEHAVIOUR section 3 say. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { BpfMap } from '../../native/bpf/bpf-map.ts';
import { u32, u64 } from '../../native/layout/codec.ts';
import { readObjectTypes, type StructLayout } from '../../native/layout/btf.ts';
import { CgrouteError } from '../../native/error.ts';
import { checkLayouts } from '../../native/layout/layout.ts';
import { infoFlag, layouts } from '../../native/layout/layouts.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { libbpf } from '../../native/boundary/libbpf.ts';
import { must, run } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { openTestPlane } from './data-plane.ts';

const root = resolve(import.meta.dirname, '../..');
const OBJECTS = join(root, 'dist/bpf');
const objects = readdirSync(OBJECTS)
  .filter((name) => name.endsWith('.bpf.o'))
  .map((name) => join(OBJECTS, name));

const sandbox = await makeSandbox('layouts');
const plane = openTestPlane(sandbox);
const pin = (map: string): string => `${plane.bpffsRoot}/${PIN_VERSION}/maps/${map}`;

after(async () => {
  plane[Symbol.dispose]();
  await sandbox[Symbol.asyncDispose]();
});

/** A map's value as bpftool reads it: another reader than the one under test. */
async function bytesInMap(map: string, key: Buffer): Promise<Buffer> {
  const hex = (bytes: Buffer): string[] => [...bytes].map((byte) => byte.toString(16).padStart(2, '0'));
  const text = await must({
    cmd: 'bpftool',
    args: ['-j', 'map', 'lookup', 'pinned', pin(map), 'key', 'hex', ...hex(key)],
  });
  const { value } = JSON.parse(text) as { value: readonly string[] };
  return Buffer.from(value.map((byte) => Number.parseInt(byte, 16)));
}

function refused(code: string, text: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof CgrouteError && error.code === code && text.test(error.message);
}

test('every struct of the shared header has the layout that the compiled objects have', () => {
  const missing = new Set<string>(layouts.map((layout) => layout.name));
  for (const file of objects) {
    const types = readObjectTypes(readFileSync(file), file);
    checkLayouts(layouts, types, file);
    for (const name of types.structs.keys()) missing.delete(name);
  }
  assert.deepEqual([...missing], [], 'no object has these, so nobody has checked them');
});

test('the generated file is what the generator writes today', async () => {
  const { code, stderr } = await run({
    cmd: process.execPath,
    args: [join(root, 'native/layout/layouts-gen.ts'), '--check', ...objects],
  });
  assert.equal(code, 0, stderr);
});

test('a layout that differs in size, offset, kind, count or name is refused', () => {
  const file = objects.find((name) => name.endsWith('connect.bpf.o')) ?? '';
  const types = readObjectTypes(readFileSync(file), file);
  const info = layouts.find((layout) => layout.name === 'cgroup_info') as StructLayout;
  const change = (name: string, to: object): StructLayout => ({
    ...info,
    fields: info.fields.map((field) => (field.name === name ? { ...field, ...to } : field)),
  });
  for (const [wrong, text] of [
    [{ ...info, size: info.size + 8 }, /struct cgroup_info with 72 bytes, found 64 bytes/],
    [change('flags', { offset: 30 }), /u16 flags\[1\] at 30, found u16 flags\[1\] at 28/],
    [change('slot', { kind: 'u16' }), /u16 slot/],
    [change('cgroup_ip', { count: 4 }), /cgroup_ip\[4\]/],
    [change('id', { name: 'cgroup_id' }), /cgroup_id/],
    [{ ...info, fields: info.fields.slice(0, -1) }, /no more fields/],
  ] as const) {
    assert.throws(() => checkLayouts([wrong], types, file), refused('ELAYOUT', text));
  }
});

test('a map whose key or value has another size is refused', () => {
  const open = (key: typeof u32 | typeof u64): unknown =>
    new BpfMap('cgroup_info_map', libbpf().objGet(pin('cgroup_info_map')), key as typeof u64, u64);
  assert.throws(() => open(u64), refused('ELAYOUT', /values of 64 bytes, expected 8 \(u64\) and 8 \(u64\)/));
  assert.throws(() => open(u32), refused('ELAYOUT', /keys of 8/));
});

test('cgroup_info_map begins as its readers expect it', async () => {
  const cgroup = sandbox.cgroup('kubepods/pod1');
  plane.enrol(cgroup, {
    slot: 7,
    ip4: '10.244.1.9',
    ip6: 'fd00::9',
    flags: infoFlag.ambient | infoFlag.bypassInbound,
    detectedFlags: 0x01fd,
  });
  const expected = Buffer.alloc(32);
  expected.writeBigUInt64LE(cgroup.id, 0); // id
  expected.writeUInt32LE(1, 8); // is_in_mesh
  expected.set([10, 244, 1, 9], 12 + 12); // cgroup_ip: an IPv4 address in the last four bytes
  expected.writeUInt16LE(0b1_0001, 28); // flags: ambient is bit 0, bypass inbound bit 4
  expected.writeUInt16LE(0x01fd, 30); // detected_flags
  const key = Buffer.alloc(8);
  key.writeBigUInt64LE(cgroup.id);
  const bytes = await bytesInMap('cgroup_info_map', key);
  assert.equal(bytes.subarray(0, 32).toString('hex'), expected.toString('hex'));
  assert.equal(bytes.length, 64);
  assert.equal(bytes.readUInt32LE(32), 7, 'slot');
  assert.equal(bytes.readUInt32LE(36), 0, 'proxy_mode and what is reserved');
  assert.equal(bytes.subarray(40, 56).toString('hex'), 'fd000000000000000000000000000009', 'cgroup_ip6');
  assert.equal(bytes.readBigUInt64LE(56), 0n, 'netns');
});

test('flags have the bits that BEHAVIOUR gives them', () => {
  assert.deepEqual(infoFlag, {
    ambient: 1 << 0,
    dnsCapture: 1 << 1,
    proxy: 1 << 2,
    bypassOutbound: 1 << 3,
    bypassInbound: 1 << 4,
    sidecar: 1 << 5,
    hostNetwork: 1 << 6,
    unknownPod: 1 << 7,
    options: 1 << 8,
    noHandoff: 1 << 9,
    addresses: 1 << 10,
  });
});

test("settings has the proxy's IPv4 address under key 1, and no key without a proxy", async () => {
  const key = Buffer.from([1, 0, 0, 0]);
  plane.setProxy({ ip4: '10.244.1.2' });
  assert.equal((await bytesInMap('settings', key)).toString('hex'), '0000000000000000000000000af40102');
  plane.setProxy(undefined);
  await assert.rejects(bytesInMap('settings', key), /exited with/);
});

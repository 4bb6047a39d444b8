/** Size of each struct that the kernel and the agent share, and where each of its fields lies. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { FieldKind, StructLayout } from '../../../../native/layout/btf.ts';
import { branch, layouts, podCounters } from '../../../../native/layout/layouts.ts';

/**
 * Maps outlive the agent, so a line here changes with `PIN_VERSION` alone. The first
 * 32 bytes of cgroup_info and the 16 of a setting are those of BEHAVIOUR section 3.
 */
const TABLE = `
cgroup_info 64
    0 u64 id
    8 u32 is_in_mesh
   12 u8[16] cgroup_ip
   28 u16 flags
   30 u16 detected_flags
   32 u32 slot
   36 u16 proxy_mode
   38 u16 reserved
   40 u8[16] cgroup_ip6
   56 u64 netns
setting_value 16
    0 u8[16] bytes
proxy_ports 16
    0 u16 outbound
    2 u16 inbound
    4 u32[3] reserved
policies 16
    0 u32 unknown_pods
    4 u32 when_proxy_down
    8 u16 proxy_mode
   10 u16 reserved
   12 u16 nested_networks
   14 u16 other_networks
proxy_network 16
    0 u64 netns
    8 u64 reserved
address 16
    0 u32[4] word_be
pod_address 8
    0 u32 slot
    4 u32 has_options
pod_options 8
    0 u32 flags
    4 u32 exempt_user
port_key 8
    0 u32 slot
    4 u16 list
    6 u16 port
range_key 28
    0 u32 prefix_length
    4 u32 slot
    8 u32 list
   12 address address
local_key 20
    0 u32 slot
    4 address address
pod_devices 8
    0 u32 ip4
    4 u32 ip6
pod_counters 256
    0 u64[32] count
pod_trees 72
    0 u32 count
    4 u32 reserved
    8 u64[8] id
pod_key 40
    0 char[40] text
cgroup_event 152
    0 u64 id
    8 u64 parent
   16 u32 change
   20 u32 reserved
   24 char[128] name
pod_info 720
    0 u32 slot
    4 u16 flags
    6 u16 detected_flags
    8 u32 is_in_mesh
   12 u32 namespace_mode
   16 u8[16] ip4
   32 u8[16] ip6
   48 u64 netns
   56 u16 proxy_mode
   58 u16 reserved
   60 u32 reserved2
   64 char[40] uid
  104 char[8] verdict
  112 char[32] reason
  144 char[64] pod_namespace
  208 char[256] pod_name
  464 char[256] service_account
agent_info 392
    0 u64 started_ms
    8 u64 beat_ms
   16 u32 pid
   20 u32 root_level
   24 u64 root_id
   32 u64 netns
   40 char[32] version
   72 char[256] node
  328 char[64] http
pod_share 16
    0 u64 connections
    8 u64 originals
tuple 32
    0 u64 netns
    8 address client
   24 u16 client_port_be
   26 u16 reserved
   28 u32 isn
original_dst 40
    0 address address
   16 u16 port_be
   18 u16 reserved
   20 u32 slot
   24 u64 at_ns
   32 u32 service
   36 u32 waypoint
connection 96
    0 original_dst original
   40 tuple tuple
   72 address proxy
   88 u16 proxy_port_be
   90 u16 reserved
   92 u32 reserved2
`;

const SIZES = { u8: 1, u16: 2, u32: 4, u64: 8, char: 1 } as const;
const all: readonly StructLayout[] = layouts;

const nameOf = (kind: FieldKind): string =>
  typeof kind === 'string' ? kind : 'struct' in kind ? kind.struct : kind.enum;

function sizeOf(kind: FieldKind): number {
  if (typeof kind === 'string') return SIZES[kind];
  return 'struct' in kind ? (all.find(({ name }) => name === kind.struct)?.size ?? NaN) : 4;
}

const lineOf = ({ name, offset, kind, count }: StructLayout['fields'][number]): string =>
  `${String(offset).padStart(5)} ${nameOf(kind)}${count === 1 ? '' : `[${count}]`} ${name}`;

test('each struct of the maps has its size, and each field its place', () => {
  const lines = all.flatMap(({ name, size, fields }) => [`${name} ${size}`, ...fields.map(lineOf)]);
  assert.deepEqual(lines, TABLE.trim().split('\n'));
});

test('nothing lies between two fields, or behind the last, that has no name', () => {
  for (const { name, size, fields } of all) {
    const ends = fields.map(({ offset, kind, count }) => offset + sizeOf(kind) * count);
    const starts = [...fields.slice(1).map(({ offset }) => offset), size];
    assert.deepEqual(ends, starts, name);
  }
});

test('each number lies where its size asks for', () => {
  for (const { name, fields } of all)
    for (const field of fields.filter(({ kind }) => typeof kind === 'string'))
      assert.equal(field.offset % sizeOf(field.kind), 0, `${name}: ${lineOf(field)}`);
});

test('there are counters for each branch, and some more', () => {
  const [{ count: room } = { count: 0 }] = podCounters.fields;
  assert.equal(room, 32);
  const { count: branches, ...places } = branch;
  assert.deepEqual(
    Object.values(places),
    Array.from({ length: branches }, (_, i) => i),
  );
  assert.ok(branches <= room);
});

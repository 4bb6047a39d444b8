/**
 * The layouts of maps that released versions have pinned, for an agent that may not
 * ask the kernel for them, which takes CAP_SYS_ADMIN. Written by
 * deploy/build/former-layouts.ts.
 */
import type { Leaf, Shape } from './btf-shape.ts';

/** Bytes, and for each leaf `PATH OFFSET SIZE COUNT`, with `text` behind it where it is one. */
export type FormerShape = readonly [number, ...(readonly string[])];
export interface FormerMap {
  readonly key: FormerShape;
  readonly value: FormerShape;
}
/** By the pins' version, and by the map's name. */
type FormerLayouts = Readonly<Record<string, Readonly<Record<string, FormerMap>>>>;

export const formerLayouts: FormerLayouts = {
  v1: {
    accepted_map: {
      key: [4, ' 0 4 1'],
      value: [
        32,
        'address.word_be 0 4 4',
        'port_be 16 2 1',
        'reserved 18 2 1',
        'slot 20 4 1',
        'at_ns 24 8 1',
      ],
    },
    agent_map: {
      key: [4, ' 0 4 1'],
      value: [
        392,
        'started_ms 0 8 1',
        'beat_ms 8 8 1',
        'pid 16 4 1',
        'root_level 20 4 1',
        'root_id 24 8 1',
        'netns 32 8 1',
        'version 40 1 32 text',
        'node 72 1 256 text',
        'http 328 1 64 text',
      ],
    },
    bypass_filter6_map: {
      key: [16, 'word_be 0 4 4'],
      value: [1, ' 0 1 1'],
    },
    bypass_filter_map: {
      key: [4, ' 0 4 1'],
      value: [1, ' 0 1 1'],
    },
    cgroup_info_map: {
      key: [8, ' 0 8 1'],
      value: [
        56,
        'id 0 8 1',
        'is_in_mesh 8 4 1',
        'cgroup_ip 12 1 16',
        'flags 28 2 1',
        'detected_flags 30 2 1',
        'slot 32 4 1',
        'reserved 36 4 1',
        'cgroup_ip6 40 1 16',
      ],
    },
    connection_map: {
      key: [8, ' 0 8 1'],
      value: [
        88,
        'original.address.word_be 0 4 4',
        'original.port_be 16 2 1',
        'original.reserved 18 2 1',
        'original.slot 20 4 1',
        'original.at_ns 24 8 1',
        'tuple.netns 32 8 1',
        'tuple.client.word_be 40 4 4',
        'tuple.client_port_be 56 2 1',
        'tuple.reserved 58 2 1',
        'tuple.isn 60 4 1',
        'proxy.word_be 64 4 4',
        'proxy_port_be 80 2 1',
        'reserved 82 2 1',
        'reserved2 84 4 1',
      ],
    },
    connection_overflow_map: {
      key: [8, ' 0 8 1'],
      value: [
        88,
        'original.address.word_be 0 4 4',
        'original.port_be 16 2 1',
        'original.reserved 18 2 1',
        'original.slot 20 4 1',
        'original.at_ns 24 8 1',
        'tuple.netns 32 8 1',
        'tuple.client.word_be 40 4 4',
        'tuple.client_port_be 56 2 1',
        'tuple.reserved 58 2 1',
        'tuple.isn 60 4 1',
        'proxy.word_be 64 4 4',
        'proxy_port_be 80 2 1',
        'reserved 82 2 1',
        'reserved2 84 4 1',
      ],
    },
    handled_map: {
      key: [4, ' 0 4 1'],
      value: [8, ' 0 8 1'],
    },
    handoff_map: {
      key: [8, ' 0 8 1'],
      value: [4, ' 0 4 1'],
    },
    original_dst_map: {
      key: [
        32,
        'netns 0 8 1',
        'client.word_be 8 4 4',
        'client_port_be 24 2 1',
        'reserved 26 2 1',
        'isn 28 4 1',
      ],
      value: [
        32,
        'address.word_be 0 4 4',
        'port_be 16 2 1',
        'reserved 18 2 1',
        'slot 20 4 1',
        'at_ns 24 8 1',
      ],
    },
    overflow_count_map: {
      key: [4, ' 0 4 1'],
      value: [8, ' 0 8 1'],
    },
    pod_counters_map: {
      key: [4, ' 0 4 1'],
      value: [128, 'count 0 8 16'],
    },
    pod_info_map: {
      key: [40, 'text 0 1 40 text'],
      value: [
        448,
        'slot 0 4 1',
        'flags 4 2 1',
        'detected_flags 6 2 1',
        'is_in_mesh 8 4 1',
        'namespace_mode 12 4 1',
        'ip4 16 1 16',
        'ip6 32 1 16',
        'uid 48 1 40 text',
        'verdict 88 1 8 text',
        'reason 96 1 32 text',
        'pod_namespace 128 1 64 text',
        'pod_name 192 1 256 text',
      ],
    },
    pod_ip_map: {
      key: [16, 'word_be 0 4 4'],
      value: [8, 'slot 0 4 1', 'has_options 4 4 1'],
    },
    pod_options_map: {
      key: [4, ' 0 4 1'],
      value: [8, 'flags 0 4 1', 'exempt_user 4 4 1'],
    },
    pod_port_map: {
      key: [8, 'slot 0 4 1', 'list 4 2 1', 'port 6 2 1'],
      value: [4, ' 0 4 1'],
    },
    pod_range_map: {
      key: [28, 'prefix_length 0 4 1', 'slot 4 4 1', 'list 8 4 1', 'address.word_be 12 4 4'],
      value: [4, ' 0 4 1'],
    },
    pod_share_map: {
      key: [4, ' 0 4 1'],
      value: [16, 'connections 0 8 1', 'originals 8 8 1'],
    },
    pod_trees_map: {
      key: [4, ' 0 4 1'],
      value: [72, 'count 0 4 1', 'reserved 4 4 1', 'id 8 8 8'],
    },
    seen_branch_map: {
      key: [8, ' 0 8 1'],
      value: [1, ' 0 1 1'],
    },
    settings: {
      key: [4, ' 0 4 1'],
      value: [16, 'bytes 0 1 16'],
    },
  },
};

/** Undefined for a version, or a map, that is not in the table. */
export function formerShape(
  version: string,
  map: string,
): { readonly key: Shape; readonly value: Shape } | undefined {
  const found = formerLayouts[version]?.[map];
  return found && { key: shape(found.key), value: shape(found.value) };
}

function shape([size, ...leaves]: FormerShape): Shape {
  return {
    size,
    leaves: leaves.map((leaf): Leaf => {
      const [, path = '', offset, bytes, count, text] = /^(\S*) (\d+) (\d+) (\d+)( text)?$/.exec(leaf) ?? [];
      return {
        path,
        offset: Number(offset),
        size: Number(bytes),
        count: Number(count),
        isText: text !== undefined,
      };
    }),
  };
}

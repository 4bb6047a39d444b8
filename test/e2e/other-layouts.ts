/** What another version may have changed in its structs: each of them here is longer, shorter or in another order. */
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import type { Changes } from '../harness/other-build.ts';

/** How that other version calls itself: the next one. */
export const OTHER_VERSION = `v${Number(PIN_VERSION.slice(1)) + 1}`;

const swap = (header: RegExp, body: string): readonly [RegExp, string] => [header, body];

export const LAYOUTS: Changes = {
  'native/pins/pin-directory.ts': [[`PIN_VERSION = '${PIN_VERSION}'`, `PIN_VERSION = '${OTHER_VERSION}'`]],
  'bpf/cgroute.h': [
    swap(
      /\t__u64 id;\n\t__u32 is_in_mesh;\n/,
      '\t__u32 reserved_new;\n\t__u32 is_in_mesh;\n\t__u64 id;\n\t__u32 reserved_more;\n',
    ),
    // What this version promises of its own.
    swap(/_Static_assert\(sizeof\(struct cgroup_info\)[^]*?are Merbridge's"\);\n/, ''),
    swap(
      /struct pod_address \{\n\t__u32 slot;\n/,
      'struct pod_address {\n\t__u64 reserved_new;\n\t__u32 slot;\n',
    ),
    swap(/#define CGROUTE_MAX_BRANCHES 32\n/, '#define CGROUTE_MAX_BRANCHES 24\n'),
    swap(
      /\tchar reason\[32\];\n\tchar pod_namespace\[64\];\n\tchar pod_name\[256\];\n/,
      '\tchar pod_name[260];\n\tchar reason[36];\n\tchar pod_namespace[64];\n',
    ),
    swap(/\t__u64 started_ms;/, '\t__u64 reserved_new[4];\n\t__u64 started_ms;'),
  ],
  'bpf/connection.h': [
    swap(
      /\t__u64 netns;\n\tstruct address client;\n\t__u16 client_port_be;\n\t__u16 reserved;\n\t__u32 isn;\n/,
      '\t__u32 isn;\n\t__u16 reserved;\n\t__u16 client_port_be;\n\tstruct address client;\n\t__u64 netns;\n\t__u64 reserved_new;\n',
    ),
    swap(
      /\tstruct address address;\n\t__u16 port_be;\n\t__u16 reserved;\n\t__u32 slot;\n/,
      '\t__u32 slot;\n\t__u16 reserved;\n\t__u16 port_be;\n\tstruct address address;\n\t__u64 reserved_new;\n',
    ),
    swap(
      /\tstruct original_dst original;\n\tstruct tuple tuple;/,
      '\t__u64 reserved_new;\n\tstruct tuple tuple;',
    ),
    swap(
      /\tstruct address proxy;\n\t__u16 proxy_port_be;/,
      '\tstruct original_dst original;\n\tstruct address proxy;\n\t__u16 proxy_port_be;',
    ),
  ],
};

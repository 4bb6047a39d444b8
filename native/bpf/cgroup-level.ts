/**
 * Where the current process is in the kernel's own cgroup hierarchy, which no
 * file tells from inside a cgroup namespace: those begin at its root.
 *
 * A program of type BPF_PROG_TYPE_SYSCALL runs in the process that asks for the
 * run, and may ask for the ids of its ancestors, by the same helper as the
 * programs at the hooks. It takes CAP_BPF, writes nothing, and is attached nowhere.
 */
import { closeSync } from 'node:fs';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { addressOf } from '../boundary/libc.ts';

const BPF_PROG_TYPE_SYSCALL = 31;
const BPF_F_SLEEPABLE = 1 << 4;
const WHAT = "the program that looks for this process's level in the cgroup hierarchy";

/** `struct bpf_insn`, <linux/bpf.h>, all with offset 0: opcode, destination and source register, immediate. */
const INSTRUCTIONS: readonly (readonly [code: number, to: number, from: number, immediate: number])[] = [
  [0xbf, 6, 1, 0], // r6 = r1, the context
  [0x61, 1, 6, 0], // r1 = *(u32 *)(r6 + 0), a level
  [0x85, 0, 0, 123], // r0 = bpf_get_current_ancestor_cgroup_id(r1)
  [0x7b, 6, 0, 0], // *(u64 *)(r6 + 0) = r0
  [0xb7, 0, 0, 0], // r0 = 0
  [0x95, 0, 0, 0], // exit
];

/** The kernel allows a depth of INT_MAX; nobody nests like this. */
const MOST_LEVELS = 1024;

/**
 * The ids of the cgroup of the current process and of all above it, the
 * kernel's root first: at index 3 is the one of level 3, and the last is its own.
 * Needs CAP_BPF and Linux 5.15, which let such programs call the helper
 * (commit 95b861a7935b).
 *
 * @throws CgrouteError `EBPF`, `ELIBBPF`
 */
export function ownCgroups(): bigint[] {
  const fd = load();
  try {
    const ids: bigint[] = [];
    while (ids.length < MOST_LEVELS) {
      const id = ancestorAt(fd, ids.length);
      if (id === 0n) break; // below the process's own
      ids.push(id);
    }
    return ids;
  } finally {
    closeSync(fd);
  }
}

function load(): number {
  const code = Buffer.alloc(8 * INSTRUCTIONS.length);
  for (const [index, [opcode, to, from, immediate]] of INSTRUCTIONS.entries()) {
    code[8 * index] = opcode;
    code[8 * index + 1] = (from << 4) | to;
    code.writeInt32LE(immediate, 8 * index + 4);
  }
  const options = Buffer.alloc(104); // struct bpf_prog_load_opts, <bpf/bpf.h> of libbpf 1.0
  options.writeBigUInt64LE(BigInt(options.length), 0);
  options.writeUInt32LE(BPF_F_SLEEPABLE, 20); // prog_flags
  return checked(
    libbpf().progLoad(BPF_PROG_TYPE_SYSCALL, null, 'Dual BSD/GPL', code, INSTRUCTIONS.length, options),
    'bpf_prog_load',
    WHAT,
  );
}

function ancestorAt(fd: number, level: number): bigint {
  const context = Buffer.alloc(8); // the kernel copies it back
  context.writeUInt32LE(level);
  const options = Buffer.alloc(80); // struct bpf_test_run_opts, <bpf/bpf.h> of libbpf 1.0
  options.writeBigUInt64LE(BigInt(options.length), 0);
  options.writeBigUInt64LE(addressOf(context), 32); // ctx_in
  options.writeUInt32LE(context.length, 48); // ctx_size_in
  checked(libbpf().progTestRun(fd, options), 'bpf_prog_test_run_opts', WHAT);
  return context.readBigUInt64LE();
}

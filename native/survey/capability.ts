/**
 * What this kernel can do for cgroute's programs, found out by trying.
 *
 * Programs of two or three instructions are loaded and dropped at once; nothing
 * is attached. libbpf's own probe of helpers is not used: that of libbpf 1.1 does
 * not know how later kernels word a refusal, and reports every helper as there.
 */
import { closeSync } from 'node:fs';
import { release } from 'node:os';
import { libbpf } from '../boundary/libbpf.ts';
import { addressOf, errnoValue } from '../boundary/libc.ts';
import { effectiveCapabilities } from '../boundary/privilege.ts';
import { helperIds, type Helper, type Since } from '../programs/kernel-functions.ts';
import { cgroupHooks, hooks, type Hook, type HookName } from '../programs/hooks.ts';
import { allMaps, mapTypes, type MapTypeName } from '../programs/maps.ts';
import { lossOf, lossOfAll, programs } from '../programs/programs.ts';

/** `unknown`: this process lacks the privileges that the trial takes. */
export type Support = 'yes' | 'no' | 'unknown';

export interface Feature {
  /** `cgroup/connect4`, `bpf_get_netns_cookie in sockops`, `map sk_storage`, `cgroup link`. */
  readonly name: string;
  readonly kind: 'program' | 'helper' | 'map' | 'link';
  /** The first kernel version that has it, `5.15`. */
  readonly since: string;
  /** What is lost without it; absent where cgroute does not work without it, or nothing is lost. */
  readonly without?: string;
  /** What cgroute does in its place, so that nothing is lost. */
  readonly instead?: string;
}

export interface ProbedFeature extends Feature {
  readonly support: Support;
}

/** For `status` and for the agent's first log line. */
export interface CapabilityReport {
  /** The kernel's release, `6.18.44`. */
  readonly kernel: string;
  /** Null where this process lacks the privileges to find out. */
  readonly features: Readonly<Record<string, boolean | null>>;
}

/** The kernel says the first, and a security module the second. */
const REFUSED: readonly number[] = [-errnoValue('EPERM'), -errnoValue('EACCES')];
const EBADF = errnoValue('EBADF');
const LOG_BYTES = 16 * 1024;
/** How the verifier refuses a helper: an id beyond its table; one that is not for this type, as older and as newer kernels say it. */
const NO_HELPER = /invalid func |unknown func |program of this type cannot use helper /;

/** `struct bpf_insn`, <linux/bpf.h>: the opcode, then the immediate from byte 4 on. */
function instruction(code: number, immediate = 0): Buffer {
  const bytes = Buffer.alloc(8);
  bytes[0] = code;
  bytes.writeInt32LE(immediate, 4);
  return bytes;
}
const RETURN_1 = instruction(0xb7, 1); // r0 = 1
const EXIT = instruction(0x95);
const call = (helper: number): Buffer => instruction(0x85, helper);

/** Loads a program and drops it: zero or a negative errno, and the verifier's log. */
function tryLoad(
  { type, attach, tracepoint, flags = 0 }: Pick<Hook, 'type' | 'attach' | 'tracepoint' | 'flags'>,
  instructions: readonly Buffer[],
): { readonly result: number; readonly log: string } {
  const log = Buffer.alloc(LOG_BYTES);
  const options = Buffer.alloc(104); // struct bpf_prog_load_opts, <bpf/bpf.h> of libbpf 1.0
  options.writeBigUInt64LE(BigInt(options.length), 0);
  options.writeUInt32LE(attach, 12);
  options.writeUInt32LE(flags, 20);
  if (tracepoint !== undefined)
    options.writeUInt32LE(Math.max(0, libbpf().findVmlinuxBtfId(tracepoint, attach)), 32);
  options.writeUInt32LE(1, 88); // log_level
  options.writeUInt32LE(log.length, 92);
  options.writeBigUInt64LE(addressOf(log), 96);
  const code = Buffer.concat(instructions);
  const fd = libbpf().progLoad(type, null, 'Dual BSD/GPL', code, instructions.length, options);
  if (fd >= 0) closeSync(fd);
  return { result: Math.min(fd, 0), log: log.toString('latin1', 0, Math.max(0, log.indexOf(0))) };
}

function supportOf(hook: Hook): Support {
  const { result } = tryLoad(hook, [RETURN_1, EXIT]);
  return result === 0 ? 'yes' : REFUSED.includes(result) ? 'unknown' : 'no';
}

/** A call without arguments is refused for them, if for nothing else; only other words mean that the helper isn't there. */
function helperSupport(hook: Hook, helper: Helper): Support {
  const { result, log } = tryLoad(hook, [call(helperIds[helper]), RETURN_1, EXIT]);
  if (NO_HELPER.test(log)) {
    // Without CAP_PERFMON some are refused in the same words; which ones, differs from kernel to kernel.
    return effectiveCapabilities().has('CAP_PERFMON') ? 'no' : 'unknown';
  }
  if (result === 0 || log !== '') return 'yes';
  return REFUSED.includes(result) ? 'unknown' : 'no';
}

/** Without a program, a kernel that has links complains of the descriptor, and one without them of the command. */
function linkSupport(): Support {
  const result = libbpf().linkCreate(-1, -1, cgroupHooks.connect4.attach, null);
  return result === -EBADF ? 'yes' : REFUSED.includes(result) ? 'unknown' : 'no';
}

/** What is asked of a hook: what the programs there call, each with the version that lets them. */
interface Need {
  readonly hook: Hook;
  readonly without: string | undefined;
  readonly helpers: ReadonlyMap<Helper, { readonly since: Since; readonly without: string | undefined }>;
}

/** By hook, in the order of the programs. */
function needs(): Need[] {
  return [...new Set(programs.map(({ hook }) => hook))].map((name: HookName) => {
    const there = programs.filter(({ hook }) => hook === name);
    const helpers = new Map<Helper, { since: Since; without: string | undefined }>();
    for (const program of there) {
      for (const [helper, since] of Object.entries(program.helpers) as [Helper, Since][]) {
        const before = helpers.get(helper);
        const loss = lossWithout(since) ?? program.without;
        const without = before === undefined ? loss : lossOfAll([before.without, loss]);
        helpers.set(helper, { since, without });
      }
    }
    return { hook: hooks[name], without: lossOfAll(there.map(({ without }) => without)), helpers };
  });
}

/** What is lost where only this helper is missing. */
const lossWithout = (since: Since): string | undefined =>
  typeof since !== 'string' && 'without' in since ? since.without : undefined;

/** The types of maps that are used, in the order of {@link mapTypes}. */
function mapNeeds(): { readonly name: string; readonly id: number; since: string; without?: string }[] {
  return (Object.keys(mapTypes) as MapTypeName[]).flatMap((name) => {
    const used = allMaps.filter(({ type }) => type === name);
    if (used.length === 0) return [];
    const without = lossOfAll(used.map(({ only }) => (only === undefined ? undefined : lossOf(only))));
    return [{ name, ...mapTypes[name], ...optional(without) }];
  });
}

function sinceOf(since: Since): Pick<Feature, 'since' | 'instead'> {
  if (typeof since === 'string') return { since };
  return 'instead' in since ? since : { since: since.since };
}

const optional = (without: string | undefined): { readonly without?: string } =>
  without === undefined ? {} : { without };

let probed: readonly ProbedFeature[] | undefined;

/**
 * Everything that cgroute asks of the kernel, tried once for each process; some
 * 30 trials, a few milliseconds.
 * @throws CgrouteError `ELIBBPF` when the host has no libbpf
 */
export function probeFeatures(): readonly ProbedFeature[] {
  if (probed !== undefined) return probed;
  const features: ProbedFeature[] = [];
  let mayLoad = false;
  for (const { hook, without, helpers } of needs()) {
    const support = supportOf(hook);
    mayLoad ||= support === 'yes';
    features.push({
      name: hook.section,
      kind: 'program',
      since: hook.since,
      ...optional(without),
      support,
    });
    for (const [helper, need] of helpers) {
      features.push({
        name: `${helper} in ${hook.section}`,
        kind: 'helper',
        ...sinceOf(need.since),
        ...optional(need.without),
        support: support === 'yes' ? helperSupport(hook, helper) : support,
      });
    }
  }
  for (const { name, id, since, without } of mapNeeds()) {
    const there = libbpf().probeMapType(id, null) === 1;
    features.push({
      name: `map ${name}`,
      kind: 'map',
      since,
      ...optional(without),
      support: there ? 'yes' : mayLoad ? 'no' : 'unknown',
    });
  }
  features.push({ name: 'cgroup link', kind: 'link', since: '5.7', support: linkSupport() });
  return (probed = features);
}

/** Whether the kernel lets a program of this type and attach type call a helper, all by their numbers in <linux/bpf.h>. */
export function mayCall(type: number, attach: number, helper: number): boolean {
  const { log } = tryLoad({ type, attach }, [call(helper), RETURN_1, EXIT]);
  return !NO_HELPER.test(log);
}

/** The first version that has all that cgroute cannot do without. */
export function leastKernel(): string {
  const versions = [
    ...needs().flatMap(({ hook, without, helpers }) => [
      ...(without === undefined ? [hook.since] : []),
      ...[...helpers.values()]
        .filter((helper) => helper.without === undefined)
        .map(({ since }) => since)
        .filter((since) => typeof since === 'string'),
    ]),
    ...mapNeeds()
      .filter(({ without }) => without === undefined)
      .map(({ since }) => since),
  ];
  return versions.reduce((least, version) => (isOlder(least, version) ? version : least));
}

/** Compares the first two numbers of kernel releases. */
export function isOlder(version: string, than: string): boolean {
  const [major = 0, minor = 0] = numbers(version);
  const [thanMajor = 0, thanMinor = 0] = numbers(than);
  return major < thanMajor || (major === thanMajor && minor < thanMinor);
}

const numbers = (version: string): number[] => version.split('.').map((part) => Number.parseInt(part, 10));

const ANSWERS = { yes: true, no: false, unknown: null } as const;

/** The same trials in short. @throws CgrouteError `ELIBBPF` */
export const capabilityReport = (): CapabilityReport => ({
  kernel: release(),
  features: Object.fromEntries(probeFeatures().map(({ name, support }) => [name, ANSWERS[support]])),
});

/** Doctor's look at BPF: privileges, the kernel's features, and who else is on the hooks. */
import { readdirSync } from 'node:fs';
import { dirname } from 'node:path';
import type { ProbedFeature } from '../../native/survey/capability.ts';
import { cgroupHooks, type CgroupHook, type Hook } from '../../native/programs/hooks.ts';
import { isHookOf } from '../../native/programs/programs.ts';
import {
  programsAlong,
  type HookOrder,
  type PinnedPrograms,
  type PlacedProgram,
} from '../../native/survey/cgroup-query.ts';
import { isThere } from '../../native/boundary/presence.ts';
import type { Capability } from '../../native/boundary/privilege.ts';
import { isForbidden } from '../../native/error.ts';
import { isPodTree, ownerOf } from '../decisions/cgroup-path.ts';
import { fail, ok, warn, type DoctorLine } from './doctor-line.ts';

/** What was seen when it was tried, to tell a capability that isn't held from one that is of no use here. */
export interface Trials {
  /** Loading a program for a cgroup hook. */
  readonly load: boolean;
  /** Reading the network namespace of a process of the host. */
  readonly namespaces: boolean;
}

interface Need {
  readonly capability: Capability;
  /** The calls that take it. */
  readonly calls: string;
  /** What is lost without it; absent where nothing works then. */
  readonly lost?: string;
  readonly works: (trials: Trials) => boolean;
  /** Without it the trial tells nothing of this one. */
  readonly with?: Capability;
}

const NEEDS: readonly Need[] = [
  { capability: 'CAP_BPF', calls: 'bpf(2): loading programs, making maps', works: ({ load }) => load },
  {
    capability: 'CAP_NET_ADMIN',
    calls: 'bpf(2): programs of cgroup hooks, their attachment and listing; process events, on older kernels',
    works: ({ load }) => load,
    with: 'CAP_BPF',
  },
  {
    capability: 'CAP_PERFMON',
    calls: "bpf(2): helpers that read the process's name, or turn a socket into another type",
    works: () => true,
  },
  {
    capability: 'CAP_SYS_PTRACE',
    calls: "readlink(2) of /proc/PID/ns/net, which tells a pod's network from the host's",
    lost: 'addresses that the API server does not tell yet are not found',
    works: ({ namespaces }) => namespaces,
  },
  {
    capability: 'CAP_SYS_ADMIN',
    calls: "bpf(2): programs and maps by their ids, and their types; setns(2) into pods' network namespaces",
    lost: "doctor shows ids of others' programs, neither a missing pin's map nor another version's pins can be taken over, and sidecars stay in the path of their pods (in the chart, sidecars: true)",
    works: () => true,
  },
];

/** One line for each capability, with the calls that need it. */
export function capabilityLines(held: ReadonlySet<Capability>, trials: Trials): DoctorLine[] {
  return NEEDS.map(({ capability, calls, lost, works, with: other }) => {
    const has = held.has(capability);
    const name = capability.slice('CAP_'.length);
    const isTold = other === undefined || held.has(other);
    if (has && (!isTold || works(trials))) return ok(capability, calls);
    if (has) {
      const text = `held, yet refused: ${calls}`;
      const remedy =
        "run in the host's user namespace, and look for a security module or a seccomp filter that refuses it";
      return lost === undefined
        ? fail(capability, text, remedy)
        : warn(capability, `${text}; ${lost}`, remedy);
    }
    if (capability === 'CAP_SYS_ADMIN') return ok(capability, `not held, and not needed: ${lost}`);
    const remedy = `run as root, or add ${name} to the container's capabilities`;
    return lost === undefined
      ? fail(capability, `not held: ${calls}`, remedy)
      : warn(capability, `not held: ${calls}; ${lost}`, remedy);
  });
}

const KINDS = { program: 'BPF programs', helper: 'BPF helpers', map: 'BPF maps', link: 'BPF links' } as const;

/** What is there in one line for each kind; what is missing in a line of its own. */
export function featureLines(features: readonly ProbedFeature[]): DoctorLine[] {
  return (Object.keys(KINDS) as (keyof typeof KINDS)[]).flatMap((kind) => {
    const ofKind = features.filter((feature) => feature.kind === kind);
    const there = ofKind.filter(({ support }) => support === 'yes');
    const unknown = ofKind.filter(({ support }) => support === 'unknown');
    const lines: DoctorLine[] = [];
    if (there.length > 0)
      lines.push(ok(KINDS[kind], kind === 'helper' ? `${there.length} of ${ofKind.length}` : names(there)));
    if (unknown.length > 0)
      lines.push(
        fail(
          KINDS[kind],
          `cannot be tried without more privileges: ${unknown.length === ofKind.length ? 'all of them' : names(unknown)}`,
          'run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON',
        ),
      );
    for (const { name, since, support, without, instead } of ofKind) {
      if (support !== 'no') continue;
      const text = `${name} is not in this kernel`;
      if (instead !== undefined) {
        lines.push(ok(KINDS[kind], `${text}, and not needed: ${instead}`));
        continue;
      }
      const remedy = `Linux ${since} has it`;
      lines.push(
        without === undefined
          ? fail(KINDS[kind], text, remedy)
          : warn(KINDS[kind], `${text}: ${without}`, remedy),
      );
    }
    return lines;
  });
}

const names = (features: readonly ProbedFeature[]): string =>
  features.map(({ name }) => name.replace(/^map /, '')).join(', ');

/** Kubelets' pod trees below a cgroup directory, as paths from it, and directories that may not be listed. */
export function findPodTrees(cgroupRoot: string): {
  readonly trees: readonly string[];
  readonly unseen: readonly string[];
} {
  const MOST_LEVELS = 6;
  const trees: string[] = [];
  const unseen: string[] = [];
  const look = (path: string, levels: number): void => {
    if (isPodTree(path)) {
      trees.push(path);
      return;
    }
    if (levels === 0 || ownerOf(path).kind !== 'none') return;
    try {
      for (const name of subdirectories(`${cgroupRoot}${path}`)) look(`${path}/${name}`, levels - 1);
    } catch (error) {
      // Else it went away meanwhile.
      if (isForbidden(error)) unseen.push(`${cgroupRoot}${path}`);
    }
  };
  look('', MOST_LEVELS);
  return { trees: trees.sort(), unseen };
}

const subdirectories = (directory: string): string[] =>
  readdirSync(directory, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name);

export interface HookPlaces {
  readonly cgroupRoot: string;
  /** Where cgroup2 is mounted, at or above the root. */
  readonly mountPoint: string;
  /** From the root, see {@link findPodTrees}. */
  readonly podTrees: readonly string[];
}

/**
 * The programs on cgroute's hooks, in the order in which they run, for each pod
 * tree and for host processes.
 * @throws CgrouteError `EBPF`, `ELIBBPF`, `ECGROUPROOT`
 */
export function hookLines(
  { cgroupRoot, mountPoint, podTrees }: HookPlaces,
  pinned: PinnedPrograms,
): DoctorLine[] {
  const chains = [...podTrees, ''].flatMap((tree) => {
    const path = `${cgroupRoot}${tree}`;
    try {
      return [programsAlong(pathsUp(path, mountPoint), pinned)];
    } catch (error) {
      if (tree !== '' && !isThere(path)) return []; // It went away meanwhile.
      throw error;
    }
  });
  return describeHooks(chains, { cgroupRoot, podTrees });
}

function pathsUp(path: string, mountPoint: string): string[] {
  const paths = [path];
  for (let at = path; at !== mountPoint && dirname(at) !== at; ) paths.push((at = dirname(at)));
  return paths;
}

/** The lines for orders that were asked for: one for each different order of a hook, and one for all hooks that are free. */
export function describeHooks(
  chains: readonly (readonly HookOrder[])[],
  places: Pick<HookPlaces, 'cgroupRoot' | 'podTrees'>,
): DoctorLine[] {
  const lines = new Map<string, DoctorLine>();
  const free = new Set<CgroupHook>(chains.flat().map(({ hook }) => hook));
  for (const order of [...chains.flat()].sort(
    (a, b) => hookRank(a.hook, chains) - hookRank(b.hook, chains),
  )) {
    if (order.runs.length === 0 && order.hidden.length === 0) continue;
    free.delete(order.hook);
    const line = judge(order, places);
    lines.set(`${line.check} ${line.detail}`, line);
  }
  return [
    ...lines.values(),
    ...(free.size === 0 ? [] : [ok('hooks', `no program on ${[...free].join(', ')}`)]),
  ];
}

const hookRank = (hook: CgroupHook, chains: readonly (readonly HookOrder[])[]): number =>
  (chains[0] ?? []).findIndex((order) => order.hook === hook);

function judge(
  { hook, runs, hidden }: HookOrder,
  places: Pick<HookPlaces, 'cgroupRoot' | 'podTrees'>,
): DoctorLine {
  const all = [...runs, ...hidden];
  const detail = [
    orderText(runs, places),
    ...(hidden.length === 0 ? [] : [`replaced there: ${orderText(hidden, places)}`]),
  ].join('; ');
  const inTheWay = all.find(
    (program) =>
      program.owner === 'other' &&
      (program.mode === 'exclusive' || (program.mode === 'override' && isOurPlace(hook, program, places))),
  );
  if (inTheWay !== undefined) {
    return fail(
      hook,
      `${detail}; ${title(inTheWay)} was attached without BPF_F_ALLOW_MULTI, so the kernel refuses any other beside it`,
      `${detachCommand(hook, inTheWay)}, or have its owner attach it with BPF_F_ALLOW_MULTI`,
    );
  }
  const replaced = hidden.find((program) => program.owner === 'other');
  if (replaced !== undefined) {
    return warn(
      hook,
      `${detail}; ${title(replaced)} lets itself be replaced by programs further down`,
      'have its owner attach it with BPF_F_ALLOW_MULTI, so that both run',
    );
  }
  const before = rewritesBefore(hook, runs, places);
  if (before !== undefined) {
    return warn(
      hook,
      `${detail}; ${title(before)} runs first, and cgroute sees what it made of the destination`,
      `detach it before cgroute starts, so that it comes second: ${detachCommand(hook, before)}, or bpftool link detach where a link holds it`,
    );
  }
  return ok(hook, detail);
}

/** A program of others at a pod tree that runs before ours there, or will, as it came first. */
function rewritesBefore(
  hook: CgroupHook,
  runs: readonly PlacedProgram[],
  places: Pick<HookPlaces, 'cgroupRoot' | 'podTrees'>,
): PlacedProgram | undefined {
  if (!isHookOf(hook, 'podTree')) return undefined;
  const inTrees = runs.filter((program) =>
    places.podTrees.some((tree) => program.place === `${places.cgroupRoot}${tree}`),
  );
  const first = inTrees.findIndex((program) => program.owner !== 'other');
  return inTrees.slice(0, first < 0 ? undefined : first).find((program) => program.owner === 'other');
}

/** Whether cgroute attaches a program to this hook in the very same cgroup; the proxy's isn't known here. */
function isOurPlace(
  hook: CgroupHook,
  { place }: PlacedProgram,
  { cgroupRoot, podTrees }: Pick<HookPlaces, 'cgroupRoot' | 'podTrees'>,
): boolean {
  if (place === cgroupRoot) return isHookOf(hook, 'root', 'sockets', 'handoff');
  return isHookOf(hook, 'podTree') && podTrees.some((tree) => place === `${cgroupRoot}${tree}`);
}

function detachCommand(hook: CgroupHook, { place, id }: PlacedProgram): string {
  const { bpftool = hook }: Hook = cgroupHooks[hook];
  return `bpftool cgroup detach ${place} ${bpftool} id ${id}`;
}

const OWNERS = { cgroute: 'cgroute', unpinned: 'cgroute, not of these pins', other: 'other' } as const;

const title = ({ name, id }: PlacedProgram): string => name ?? `program ${id}`;

/** `pod tree /kubepods: pod_connect4 (cgroute), root: lb (other), root_connect4 (cgroute)`. */
function orderText(
  programs: readonly PlacedProgram[],
  { cgroupRoot, podTrees }: Pick<HookPlaces, 'cgroupRoot' | 'podTrees'>,
): string {
  let place: string | undefined;
  return programs
    .map((program) => {
      const where = program.place === place ? '' : `${placeText(program.place)}: `;
      place = program.place;
      return `${where}${title(program)} (${OWNERS[program.owner]})`;
    })
    .join(', ');

  function placeText(path: string): string {
    if (path === cgroupRoot) return 'root';
    const tree = podTrees.find((each) => path === `${cgroupRoot}${each}`);
    return tree === undefined ? path : `pod tree ${tree}`;
  }
}

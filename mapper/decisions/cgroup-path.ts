/**
 * Whose cgroup is it? A pure function from a cgroup's path to the pod that owns it.
 *
 * The formats are those of kubelet's two cgroup drivers (cgroupfs and systemd),
 * of the runtimes below them (containerd, CRI-O, cri-dockerd), and of both once
 * more inside a kind node.
 */

export type QosClass = 'guaranteed' | 'burstable' | 'besteffort';

/** `unknown`: the path doesn't say. With the cgroupfs driver a container is its bare id. */
export type Runtime = 'containerd' | 'crio' | 'docker' | 'podman' | 'unknown';

export interface PodCgroup {
  readonly kind: 'pod';
  /** Lower case with dashes; for a static pod the 32 hex digits of its configuration's hash. */
  readonly uid: string;
  /** `uid` is the annotation `kubernetes.io/config.hash`, not the API object's UID. */
  readonly isConfigHash: boolean;
  /** 64 hex digits in lower case; undefined for the pod's own cgroup, a monitor's, or a name that isn't a container's. */
  readonly container: string | undefined;
  readonly runtime: Runtime;
  /** CRI-O's `crio-conmon`: in the pod's slice, but in the host's network, so never redirected. */
  readonly monitor: boolean;
  /** Undefined where the path starts below the place that says it. */
  readonly qos: QosClass | undefined;
  /** The path ended in ` (deleted)`: the cgroup is removed, a process is still in it. */
  readonly gone: boolean;
  /**
   * Number of path components up to and including the pod's own cgroup. A name
   * such as `...-pod<UID>.slice:cri-containerd:<C>` is pod and container in one:
   * such a pod has no cgroup of its own, and this counts that one component.
   */
  readonly podDepth: number;
  /** Below the container's cgroup, or below the pod's in a place that is no container's. */
  readonly nested: boolean;
}

/**
 * `none`: not a pod's. `ambiguous`: a pod's, or maybe a pod's, but the path does
 * not say whose; nobody's verdict may be applied to it. That is so for
 *
 * - a name in kubelet's place for a pod whose UID has no known form (a static
 *   pod may choose any), so that nothing below it can pass for another pod;
 * - `..` after a name: no kernel writes that, and it can be read in two ways;
 * - a container directly behind leading `..`: the part that names its pod lies
 *   above the reader's cgroup namespace.
 */
export type CgroupOwner =
  | PodCgroup
  | { readonly kind: 'none' }
  | { readonly kind: 'ambiguous'; readonly why: string };

/** systemd's slice for the sessions of users, who get cgroups of their own in it. */
const USERS = 'user.slice';
const NONE: CgroupOwner = { kind: 'none' };
const GONE = ' (deleted)';

const HEX = '[0-9a-fA-F]';
const UID = `${HEX}{8}-${HEX}{4}-${HEX}{4}-${HEX}{4}-${HEX}{12}`;
const HASH = `${HEX}{32}`;
/** systemd reads a dash in a slice's name as nesting, so kubelet writes underscores. */
const SLICE_UID = UID.replaceAll('}-', '}_');
/** `kubelet-kubepods-...` in kind, `<custom root>-kubepods-...` with `--cgroup-root`. */
const SLICE_HEAD = '^(?:.*-)?kubepods(?:-(burstable|besteffort))?-pod';

const POD_DIRECTORY = new RegExp(`^pod(${UID}|${HASH})$`);
const POD_SLICE = new RegExp(`${SLICE_HEAD}(${SLICE_UID}|${HASH})\\.slice(?::([^:]+):([^:]+))?$`);
const POD_SLICE_PLACE = new RegExp(`${SLICE_HEAD}.*\\.slice(?::|$)`);
const POD_TREE = /^(?:kubepods|(?:.*-)?kubepods\.slice)$/;
const CONTAINER = new RegExp(`^(?:([a-z][a-z0-9-]*)-)?(${HEX}{64})(?:\\.scope)?$`);

const RUNTIMES: Readonly<Record<string, Runtime>> = {
  'cri-containerd': 'containerd',
  containerd: 'containerd',
  crio: 'crio',
  'crio-conmon': 'crio',
  docker: 'docker',
  'cri-dockerd': 'docker',
  libpod: 'podman',
  'libpod-conmon': 'podman',
};

/**
 * Tells whose cgroup a path names.
 *
 * The **first** pod on the way down owns everything below it: what a container
 * makes inside its own cgroup never grants another pod's identity. A container
 * of the host above the pod (a kind node) is no part of the answer.
 *
 * @param path as in the `0::` line of `/proc/<pid>/cgroup`, or relative to the watched root.
 *   Any string; never throws.
 */
export function ownerOf(path: string): CgroupOwner {
  // The kernel refuses these two in names, so this is no path of its making.
  if (path.includes('\n') || path.includes('\0')) return NONE;
  const gone = path.endsWith(GONE);
  const names = componentsOf(gone ? path.slice(0, -GONE.length) : path);
  const first = names.findIndex((name) => name !== '..');
  if (first < 0) return NONE;
  // Users name cgroups below as they like.
  if (names[first] === USERS) return NONE;
  const climbs = names.includes('..', first);

  for (let at = first; at < names.length; at++) {
    const pod = podAt(names, at);
    if (pod === undefined) continue;
    if (pod === 'unreadable') {
      return {
        kind: 'ambiguous',
        why: `"${names[at]}" stands where kubelet puts a pod, but its UID has no known form`,
      };
    }
    if (climbs) return { kind: 'ambiguous', why: 'the path climbs with ".." after a name' };
    return { ...pod, ...containerBelow(names, at, pod), kind: 'pod', gone, podDepth: at + 1 };
  }
  if (first > 0 && !climbs && CONTAINER.test(names[first] ?? '')) {
    return { kind: 'ambiguous', why: "the container's pod lies above the reader's cgroup namespace" };
  }
  return NONE;
}

/**
 * Whether a cgroup is the root of a kubelet's pods: `kubepods`, `kubepods.slice`,
 * `kubelet-kubepods.slice` as the last component, and outside any pod. Programs
 * attached there run for every pod of that kubelet and for nothing else.
 */
export function isPodTree(path: string): boolean {
  const names = componentsOf(path);
  return (
    POD_TREE.test(names.at(-1) ?? '') &&
    names[0] !== USERS &&
    ownerOf(path).kind === 'none' &&
    !path.includes('\n') &&
    !path.includes('\0')
  );
}

function componentsOf(path: string): string[] {
  return path.split('/').filter((name) => name !== '' && name !== '.');
}

interface PodName {
  readonly uid: string;
  readonly isConfigHash: boolean;
  readonly qos: QosClass | undefined;
  /** Runtime and container, where the pod's own name carries them. */
  readonly joined: { readonly prefix: string; readonly id: string } | undefined;
}

function podAt(names: readonly string[], at: number): PodName | 'unreadable' | undefined {
  const name = names[at] ?? '';
  const directory = POD_DIRECTORY.exec(name);
  if (directory) {
    const { 1: uid = '' } = directory;
    return { ...identityOf(uid), qos: qosAbove(names, at), joined: undefined };
  }
  const slice = POD_SLICE.exec(name);
  if (slice) {
    const { 1: qos, 2: uid = '', 3: prefix, 4: id } = slice;
    const joined = prefix === undefined || id === undefined ? undefined : { prefix, id };
    return { ...identityOf(uid), qos: qosOf(qos), joined };
  }
  if (POD_SLICE_PLACE.test(name)) return 'unreadable';
  if (name.startsWith('pod') && qosAbove(names, at) !== undefined) return 'unreadable';
  return undefined;
}

/** A slice's name says it; a guaranteed pod's says nothing. */
function qosOf(text: string | undefined): QosClass {
  return text === 'burstable' || text === 'besteffort' ? text : 'guaranteed';
}

function identityOf(text: string): { uid: string; isConfigHash: boolean } {
  const uid = text.toLowerCase().replaceAll('_', '-');
  return { uid, isConfigHash: !uid.includes('-') };
}

/** With the cgroupfs driver the parent says it: `kubepods` itself holds the guaranteed pods. */
function qosAbove(names: readonly string[], at: number): QosClass | undefined {
  const parent = names[at - 1];
  if (parent === 'kubepods') return 'guaranteed';
  if ((parent === 'burstable' || parent === 'besteffort') && names[at - 2] === 'kubepods') return parent;
  return undefined;
}

type Below = Pick<PodCgroup, 'container' | 'runtime' | 'monitor' | 'nested'>;

function containerBelow(names: readonly string[], at: number, pod: PodName): Below {
  const match = pod.joined
    ? CONTAINER.exec(`${pod.joined.prefix}-${pod.joined.id}`)
    : CONTAINER.exec(names[at + 1] ?? '');
  const depth = pod.joined ? at + 1 : at + 2;
  if (!match) {
    return { container: undefined, runtime: 'unknown', monitor: false, nested: names.length > at + 1 };
  }
  const { 1: prefix = '', 2: id = '' } = match;
  const known = Object.hasOwn(RUNTIMES, prefix) ? RUNTIMES[prefix] : undefined;
  const monitor = prefix.endsWith('-conmon');
  return {
    // A monitor watches the container from outside; it is no part of it.
    container: monitor ? undefined : id.toLowerCase(),
    runtime: known ?? 'unknown',
    monitor,
    nested: names.length > depth,
  };
}

/**
 * The rooms of cgroute, from top to bottom: what each holds, and what it must not
 * know. A file imports from its own room and from rooms further down, types too.
 *
 * The rules of the house (test/unit/house) and docs/rooms.md read this list, so a
 * new room is one entry here.
 */
export interface Room {
  /** The folder, or the one file, from the project's root. */
  readonly path: string;
  readonly holds: string;
  /** What it must not know; absent where the order says all. */
  readonly knowsNot?: string;
  /** Rules alone: it imports nothing of native/ but the error class, nothing of watcher/, and does no I/O. */
  readonly isPure?: true;
}

const NO_IO = 'whatever lies outside its arguments: no I/O, no clock';

export const ROOMS: readonly Room[] = [
  { path: 'cgroute.ts', holds: 'the one entry: wires the rooms, handles signals', knowsNot: 'any rule' },
  {
    path: 'mapper/agent',
    holds: 'the agent of one node: its parts, start, heartbeat, leave; the reconciler',
    knowsNot: 'labels, rule numbers, bytes',
  },
  {
    path: 'mapper/cli',
    holds: 'the command line and its verbs: `status`, `explain`, `doctor`',
    knowsNot: 'how to change anything',
  },
  {
    path: 'mapper/reports',
    holds: 'what people are told: the annotation, Events, metrics, the log of decisions',
    knowsNot: 'how to decide or delay anything',
  },
  {
    path: 'mapper/ztunnel',
    holds: 'the ZDS server, by which every ztunnel of the node is told of its pods',
    knowsNot: 'socket calls, why a pod is in the mesh',
  },
  {
    path: 'mapper/connections',
    holds: 'open connections: reset on a flip, room in the maps',
    knowsNot: 'why a verdict flipped',
  },
  {
    path: 'mapper/sidecars',
    holds: 'which rules a pod with a sidecar should have',
    knowsNot: "iptables' words",
  },
  {
    path: 'mapper/placement',
    holds: 'where programs must be attached: trees of pods, hand-off places, the proxy',
    knowsNot: 'how to attach, the rules of the verdict',
  },
  {
    path: 'mapper/maps',
    holds: "what the kernel's maps should hold; alone in writing them",
    knowsNot: 'the API server, the cgroup file system',
  },
  {
    path: 'mapper/inventory',
    holds: 'pods, namespaces and addresses, as they are known now',
    knowsNot: 'how they came',
  },
  {
    path: 'mapper/object-sources',
    holds: 'the contract of a source of objects; the API server and a manifest file as such',
    knowsNot: 'what follows from an object',
  },
  {
    path: 'mapper/decisions',
    holds: "rules: a cgroup's path to its pod, a pod to its verdict, annotations to traffic options",
    knowsNot: NO_IO,
    isPure: true,
  },
  {
    path: 'mapper/kube',
    holds: 'HTTP to the API server: requests, lists, watches, errors, credentials',
    knowsNot: 'what a pod means',
  },
  {
    path: 'mapper/zds',
    holds: 'the ZDS protocol: its messages as bytes, and their order with one ztunnel',
    knowsNot: NO_IO,
    isPure: true,
  },
  { path: 'mapper/config', holds: 'settings', knowsNot: 'who uses them', isPure: true },
  {
    path: 'mapper/objects',
    holds: 'the shapes of pods, namespaces, labels and addresses',
    knowsNot: 'everything else',
    isPure: true,
  },
  {
    path: 'mapper/pacing',
    holds: 'how often: backoff, the queue per pod, the token bucket',
    knowsNot: 'what is paced',
    isPure: true,
  },
  {
    path: 'watcher',
    holds:
      'what is running on this host: the cgroup tree, process creation, `/proc`; facts keyed by cgroup id',
    knowsNot: 'Kubernetes, pods, maps',
  },
  {
    path: 'native/data-plane',
    holds:
      "what opens and attaches cgroute's own programs and maps: attachments, shares, the handover between versions",
    knowsNot: 'pods, verdicts',
  },
  {
    path: 'native/survey',
    holds: 'looks at the host: what the kernel can do, programs on hooks, iptables backends',
    knowsNot: 'how to change anything',
  },
  {
    path: 'native/programs',
    holds: "cgroute's programs and maps as tables: names, hooks, places, needs, sizes, codecs, migration",
    knowsNot: 'how anything is done',
  },
  { path: 'native/netlink', holds: 'netlink messages: process events, closing sockets' },
  {
    path: 'native/unix',
    holds: 'Unix sockets that carry whole messages and descriptors: the listener at its path, connections',
    knowsNot: 'what a message says',
  },
  { path: 'native/netns', holds: "a pod's network namespace, and the rules in it" },
  { path: 'native/bpf', holds: 'any object, map, ring buffer or link', knowsNot: "cgroute's own programs" },
  { path: 'native/pins', holds: 'what lies at a pin' },
  { path: 'native/layout', holds: 'ELF, BTF, struct layouts, codecs' },
  {
    path: 'native/boundary',
    holds: 'libbpf, libc, memory, locks, privileges, what is at a path: alone in importing koffi',
    knowsNot: 'BPF programs, files of cgroute',
  },
  { path: 'native/error.ts', holds: 'the one error class; every room may import it' },
];

/** The programs in C; no TypeScript imports them. */
export const BPF_ROOMS: readonly Room[] = [
  { path: 'bpf', holds: 'the programs, one file for each object, and the headers that the agent shares' },
  { path: 'bpf/lib', holds: 'headers that several programs use' },
];

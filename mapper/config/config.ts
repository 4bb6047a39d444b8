/**
 * The configuration file (`--config FILE`, YAML).
 *
 * One table holds every setting: parsing, defaults, types and the reference in
 * the documentation all come from it.
 */

import { isAlias, isMap, isScalar, isSeq, LineCounter, parseAllDocuments } from 'yaml';
import type { Document, Node, YAMLMap } from 'yaml';

import { CgrouteError, messageOf } from '../../native/error.ts';
import { choice, integer, onOrOff, selector, text, texts } from './config-field.ts';
import type { Field } from './config-field.ts';
import { shown } from '../objects/shown.ts';

const LABEL_VALUE = /^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$/;
const RUNTIME_CLASS = /^[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$|^[a-z0-9][a-z0-9.-]*\*$/;
/** A qualified name of the API: a DNS name before the slash. */
const TAINT_KEY =
  /^(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*\/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/;
const NAMESPACE_NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const NAMESPACE_OR_ANY = /^(?:\*|[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/;

/** In `proxy.namespaces`. */
export const ANY_NAMESPACE = '*';

/** Who says which pods there are: the API server, or a manifest file, which nobody but its owner writes. */
export type ObjectsFrom = 'kube' | 'manifest';

const TABLE = {
  meshModes: texts(
    ['ambient', 'kmesh'],
    {
      item: 'a label value',
      form: LABEL_VALUE,
      lowerCase: true,
      reserved: { none: 'which always means "not in the mesh"' },
    },
    'Values of the label `istio.io/dataplane-mode` that put a pod into the mesh, compared without regard to case.',
  ),
  excludedNamespaces: texts(
    ['kube-system', 'istio-system'],
    { item: "a namespace's name", form: NAMESPACE_NAME, mayBeEmpty: true },
    'Namespaces whose pods are never in the mesh, whatever their labels.',
  ),
  gatewayControllers: texts(
    ['istio.io-mesh-controller', 'istio.io-gateway-controller', 'istio.io-eastwest-controller'],
    { item: 'a label value', form: LABEL_VALUE, lowerCase: true, mayBeEmpty: true },
    'Values of the label `gateway.istio.io/managed` that make a pod a waypoint or a gateway, which is never redirected. Compared without regard to case. The defaults are what Istio and Kmesh write for waypoints, ingress gateways and east-west gateways.',
  ),
  runtimeClasses: texts(
    ['kata', 'kata-*', 'gvisor', 'gvisor-*', 'runsc', 'runsc-*'],
    { item: 'a runtime class\'s name, which may end in "*"', form: RUNTIME_CLASS, mayBeEmpty: true },
    'Values of `spec.runtimeClassName` whose pods have a kernel of their own, which makes their sockets out of reach of this one: they are never redirected. A name that ends in `*` stands for all that begin like it. The defaults are what the installers of Kata Containers (`kata-qemu`, `kata-clh`, `kata-fc`, `kata-dragonball`, `kata-remote`, `kata-cc-isolation`, ...) and of gVisor create.',
  ),
  takeOver: onOrOff(
    false,
    'Whether pods that another mesh redirects, which it says by the annotation `ambient.istio.io/redirection` or `kmesh.net/redirection`, are enrolled all the same. For what a mesh has left behind that is gone: on pods that it still has, each connection would be redirected twice.',
  ),
  proxy: {
    selector: selector('app=ztunnel', "Label selector of the node's ztunnel pod."),
    namespaces: texts(
      ['istio-system'],
      {
        item: `a namespace's name, or "${ANY_NAMESPACE}" for any`,
        form: NAMESPACE_OR_ANY,
        withManifest: [ANY_NAMESPACE],
        ratherThanEmpty: `for any namespace write ["${ANY_NAMESPACE}"]`,
      },
      `Namespaces in which the selector counts: for Kmesh \`[kmesh-system]\`, else that of your proxy. \`["${ANY_NAMESPACE}"]\` is any: whoever may make a pod on the node, in whatever namespace, can then have the traffic of all its enrolled pods, by a label. An empty list is refused, as it could mean either.`,
    ),
    outboundPort: integer(1, 65535, 15001, 'Port of the proxy for what pods send.'),
    inboundPort: integer(1, 65535, 15006, 'Port of the proxy for what the host sends to enrolled pods.'),
  },
  enrollment: choice(
    ['live', 'new-pods'],
    'live',
    "When the label of a namespace takes effect. `live`: on running pods too, for every connection opened afterwards. `new-pods`: only on pods that are made after the change; each keeps what it had. A pod's own label always takes effect at once.",
  ),
  existingConnections: choice(
    ['keep', 'reset'],
    'keep',
    'What becomes of the connections that a pod has open when its verdict changes. `keep`: they stay as they are. `reset`: those that would go the other way now are reset: what the pod opened, and what processes of the host opened to it; that takes CAP_SYS_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY.',
  ),
  unknownPods: choice(
    ['deny', 'allow'],
    'deny',
    'Connections of a pod that has no verdict yet: `deny` refuses them with ECONNREFUSED, on which clients try again (EPERM before Linux 6.1), `allow` lets them pass untouched, outside the mesh. Loopback, and what is in the network namespace of the host, is never refused.',
  ),
  whenProxyDown: choice(
    ['deny', 'allow'],
    'deny',
    'Connections of enrolled pods while no proxy is ready: `deny` refuses them with ECONNREFUSED (EPERM before Linux 6.1), `allow` lets them pass untouched, outside the mesh.',
  ),
  firstStart: choice(
    ['wait', 'deny'],
    'wait',
    'What a start does where nothing of cgroute redirects yet and the API server does not answer within three seconds, so that nobody knows a pod. `wait`: nothing is attached, connections pass as without cgroute, and the agent is not ready until it has the first list. `deny`: the programs are attached at once, and connections of pods are treated by `unknownPods` until then.',
  ),
  bypass: {
    allowed: choice(
      ['any', 'namespace', 'never'],
      'any',
      "Whose label `kmesh.net/bypass` counts: `any` pod's, only where the `namespace` carries `cgroute.io/allow-bypass=true`, or `never`.",
    ),
  },
  sidecarUser: integer(
    0,
    4_294_967_294,
    1337,
    'User id of sidecars: in a pod that has one, its own connections are left alone.',
  ),
  sidecars: onOrOff(
    true,
    'Whether rules are put into the network namespaces of pods with a sidecar, to bypass or to short-circuit it. `false`: sidecars stay in the path, and pods that have one stay out of the mesh.',
  ),
  sweepSeconds: integer(
    1,
    86_400,
    30,
    'Seconds between two sweeps of the whole cgroup tree, which find what every other source missed.',
  ),
  relistSeconds: integer(
    10,
    86_400,
    600,
    'Seconds between two full lists of pods and namespaces, beside the watch that tells of each change at once. Up to a fifth is added at random.',
  ),
  maxPods: integer(
    16,
    1_048_576,
    4096,
    'Room for this many pods in the maps of the kernel, of those that have a cgroup or may get one: what has ended takes none. The proxy comes first, then pods that run; a pod without room is treated as unknown (`unknownPods`).',
  ),
  maxConnections: integer(
    1024,
    16_777_216,
    262_144,
    'Room for this many redirected connections that are open at one time.',
  ),
  maxTrafficEntries: integer(
    1024,
    16_777_216,
    65_536,
    "Room for this many ports, and as many ranges, of all pods' traffic annotations together.",
  ),
  maxConnectionsPerPod: integer(
    1,
    16_777_216,
    32_768,
    'How many of these one pod may have, so that none takes the room of the others; nor does it get more than a quarter of what is free. The first 4,096 of the node are not counted. A pod has no more ports than 28,232 for one address of its own, unless it was given more.',
  ),
  annotate: onOrOff(
    true,
    'With `--source kube`: pods whose connections are redirected carry the annotation `ambient.istio.io/redirection: enabled`.',
  ),
  events: onOrOff(
    true,
    'With `--source kube`: what becomes of a pod is said in Events on it, few and each once in ten minutes.',
  ),
  startupTaint: text(
    { item: 'the key of a taint such as "cgroute.io/agent-not-ready"', form: TAINT_KEY },
    'With `--source kube`: the key of a taint that new nodes come with, so that no pod is put there before the agent; the agent takes it off its node when it is ready, with whatever value and effect it has, and again where somebody puts it back. Empty: none.',
  ),
  log: {
    level: choice(
      ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'],
      'info',
      'The least important level that is logged.',
    ),
  },
} as const;

type ConfigOf<T> = { readonly [K in keyof T]: T[K] extends Field<infer V> ? V : ConfigOf<T[K]> };

export type Config = ConfigOf<typeof TABLE>;

interface Table {
  readonly [key: string]: Field<unknown> | Table;
}

/** Where nothing is said: some defaults depend on who may write pods. */
export function defaultConfig(from: ObjectsFrom): Config {
  return defaultsOf(TABLE, from) as Config;
}

/**
 * Reads a configuration file's text. An empty text is the default configuration.
 *
 * @param file for messages only
 * @throws CgrouteError `ECONFIG`, one sentence with file, line, key, what was expected and what came
 */
export function parseConfig(text: string, file: string, from: ObjectsFrom = 'kube'): Config {
  const lines = new LineCounter();
  const documents = parseAllDocuments(text, { lineCounter: lines, prettyErrors: false });
  const lineAt = (offset: number | undefined): number => lines.linePos(offset ?? 0).line || 1;
  const refuse: Refuse = (offset, sentence) => {
    throw new CgrouteError('ECONFIG', `${file}:${lineAt(offset)}: ${sentence}`);
  };

  if (!Array.isArray(documents)) return defaultConfig(from);
  const [document, second] = documents;
  if (document === undefined) return defaultConfig(from);
  const error = document.errors[0] ?? second?.errors[0];
  if (error !== undefined) return refuse(error.pos[0], `this is not YAML: ${error.message}`);
  if (second !== undefined) return refuse(second.range?.[0], 'expected one YAML document, got a second one');
  const root: Node | null = document.contents;
  if (root === null || (isScalar(root) && root.value === null)) return defaultConfig(from);
  if (!isMap(root)) return refuse(root.range?.[0], 'expected settings as "key: value", got something else');
  return readTable(root, TABLE, defaultsOf(TABLE, from), [], document, refuse) as Config;
}

type Refuse = (offset: number | undefined, sentence: string) => never;

function readTable(
  map: YAMLMap,
  table: Table,
  defaults: Readonly<Record<string, unknown>>,
  above: readonly string[],
  document: Document,
  refuse: Refuse,
): unknown {
  const values = { ...defaults };
  for (const pair of map.items) {
    const keyNode = pair.key as Node;
    const valueNode = resolved(pair.value as Node | null, document);
    const offset = keyNode.range?.[0];
    const key = isScalar(keyNode) ? String(keyNode.value) : 'a mapping or list';
    const path = [...above, key].join('.');
    const entry = Object.hasOwn(table, key) ? table[key] : undefined;
    if (entry === undefined) return refuse(offset, `unknown key ${JSON.stringify(path)}${suggestion(path)}`);

    const raw = plain(pair.value as Node | null, document, (sentence) =>
      refuse(offset, `${path}: ${sentence}`),
    );
    // `proxy:` with everything below it commented out means nothing is set.
    if (raw === null) continue;
    if (isField(entry)) {
      const result = entry.read(raw);
      if ('wrong' in result) {
        const item =
          isSeq(valueNode) && result.index !== undefined
            ? (valueNode.items[result.index] as Node)
            : undefined;
        return refuse((item ?? valueNode)?.range?.[0] ?? offset, `${path}: ${result.wrong}`);
      }
      values[key] = result.value;
    } else if (isMap(valueNode)) {
      const below = values[key] as Readonly<Record<string, unknown>>;
      values[key] = readTable(valueNode, entry, below, [...above, key], document, refuse);
    } else {
      const inner = Object.keys(entry).join(', ');
      return refuse(
        valueNode?.range?.[0] ?? offset,
        `${path}: expected settings below it (${inner}), got ${shown(raw)}`,
      );
    }
  }
  return values;
}

/** A node as plain values. Aliases are resolved here, which fails on unknown ones and on those that unfold without end. */
function plain(node: Node | null, document: Document, refuse: (sentence: string) => never): unknown {
  try {
    return node === null ? null : (node.toJS(document, { maxAliasCount: 100 }) as unknown);
  } catch (error) {
    return refuse(messageOf(error));
  }
}

function resolved(node: Node | null, document: Document): Node | null {
  return isAlias(node) ? (node.resolve(document) ?? null) : node;
}

function isField(entry: Field<unknown> | Table): entry is Field<unknown> {
  return entry['kind'] === 'field';
}

function defaultsOf(table: Table, from: ObjectsFrom): Record<string, unknown> {
  const defaultOf = (entry: Field<unknown> | Table): unknown => {
    if (!isField(entry)) return defaultsOf(entry, from);
    return from === 'manifest' ? (entry.withManifest ?? entry).fallback : entry.fallback;
  };
  return Object.fromEntries(Object.entries(table).map(([key, entry]) => [key, defaultOf(entry)]));
}

function* fieldsOf(table: Table, above = ''): Generator<readonly [string, Field<unknown>]> {
  for (const [key, entry] of Object.entries(table)) {
    if (isField(entry)) yield [above + key, entry];
    else yield* fieldsOf(entry, `${above}${key}.`);
  }
}

/** Names the nearest known key, when one is near enough to be a slip of the pen. */
function suggestion(path: string): string {
  const keys = [...fieldsOf(TABLE)].map(([key]) => key);
  if (keys.includes(path)) {
    const [section = '', key = ''] = path.split('.');
    return `; write it as "${key}:" on a line of its own, indented below "${section}:"`;
  }
  const last = path.slice(path.lastIndexOf('.') + 1);
  const scored = [...new Set([...Object.keys(TABLE), ...keys])]
    .map((key) => {
      const end = key.slice(key.lastIndexOf('.') + 1);
      return { key, distance: Math.min(distance(path, key), distance(last, end)), length: end.length };
    })
    .sort((a, b) => a.distance - b.distance);
  const nearest = scored[0];
  return nearest !== undefined && nearest.distance <= Math.max(2, nearest.length / 3)
    ? `; did you mean "${nearest.key}"?`
    : `; known keys are ${keys.join(', ')}`;
}

/** Levenshtein's, without regard to case. */
function distance(left: string, right: string): number {
  const [a, b] = [left.slice(0, 80).toLowerCase(), right.toLowerCase()];
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

function defaultText({ fallbackText, withManifest }: Field<unknown>): string {
  const manifest = withManifest && `; with a manifest file \`${withManifest.fallbackText}\``;
  return `\`${fallbackText}\`${manifest ?? ''}`;
}

/** The reference of every setting, as a Markdown table for the documentation. */
export function configReference(): string {
  const rows = [...fieldsOf(TABLE)].map(
    ([key, field]) =>
      `| \`${key}\` | ${defaultText(field)} | ${field.expects.replaceAll('|', '\\|')} | ${field.about.replaceAll('|', '\\|')} |`,
  );
  return ['| key | default | accepts | meaning |', '|---|---|---|---|', ...rows, ''].join('\n');
}

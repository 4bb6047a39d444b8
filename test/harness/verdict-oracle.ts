/**
 * The rules of a verdict, stated a second time: what the tests hold the agent to.
 *
 * Shares no code with the agent, and not its form either. The agent tries rules in
 * order until one applies; here every claim on a pod is looked at, from the
 * weakest to the strongest, and each that holds takes the pod from the one before.
 */
import type { Pod, Texts } from './kube-objects.ts';
import {
  ALLOW_BYPASS,
  BYPASS,
  GATEWAY,
  KMESH_REDIRECTION,
  MODE,
  REDIRECTION,
  SIDECAR_STATUS,
} from './label-names.ts';

export type Verdict = 'in' | 'out' | 'bypass';

/** Every reason: its verdict, and the number of its rule as `explain` prints it. */
const REASON = {
  'host-network': { verdict: 'out', rule: 1 },
  terminal: { verdict: 'out', rule: 2 },
  proxy: { verdict: 'out', rule: 3 },
  'excluded-namespace': { verdict: 'out', rule: 4 },
  gateway: { verdict: 'out', rule: 5 },
  runtime: { verdict: 'out', rule: 6 },
  'other-mesh': { verdict: 'out', rule: 7 },
  'pod-opt-out': { verdict: 'out', rule: 8 },
  'pod-label': { verdict: 'in', rule: 9 },
  'namespace-label': { verdict: 'in', rule: 10 },
  'not-enrolled': { verdict: 'out', rule: 10 },
  sidecar: { verdict: 'out', rule: 11 },
  'sidecar-short-circuited': { verdict: 'in', rule: 11 },
  bypass: { verdict: 'bypass', rule: 12 },
  'bypass-outbound': { verdict: 'bypass', rule: 12 },
  'bypass-inbound': { verdict: 'bypass', rule: 12 },
} as const satisfies Readonly<Record<string, { readonly verdict: Verdict; readonly rule: number }>>;

export type Reason = keyof typeof REASON;
export const REASONS = Object.keys(REASON) as readonly Reason[];

/** Their pods are no business of the mesh, so that a bypass label means nothing there. */
const APART: readonly Reason[] = [
  'host-network',
  'terminal',
  'proxy',
  'excluded-namespace',
  'gateway',
  'runtime',
  'other-mesh',
];
/** No mesh mode counts. */
const MODELESS: readonly Reason[] = [...APART, 'pod-opt-out', 'not-enrolled'];

/** What of a pod decides. */
export interface PodTraits {
  readonly namespace: string;
  readonly labels?: Texts;
  readonly annotations?: Texts;
  /** Field managers by the annotation that they own. */
  readonly writers?: Texts;
  readonly hostNetwork?: boolean;
  readonly runtimeClass?: string;
  readonly phase?: string;
  /** Of one that has ended by its phase: processes of it are left, and what was true of it before, if anybody knows. */
  readonly runsOn?: true | Expected;
}

/** `bypass.allowed` */
export type Allowed = 'any' | 'namespace' | 'never';

/** What of the configuration decides. */
export interface Settings {
  readonly allowed: Allowed;
  /** In lower case. */
  readonly meshModes: readonly string[];
  readonly excludedNamespaces: readonly string[];
  /** In lower case. */
  readonly gatewayControllers: readonly string[];
  /** `name-*` is all that begin like it. */
  readonly runtimeClasses: readonly string[];
  readonly takeOver: boolean;
  /** The label of the node's proxy, and its namespaces; `*` is all. */
  readonly proxy: {
    readonly label: readonly [key: string, value: string];
    readonly namespaces: readonly string[];
  };
}

export const DEFAULT_SETTINGS: Settings = {
  allowed: 'any',
  meshModes: ['ambient', 'kmesh'],
  excludedNamespaces: ['kube-system', 'istio-system'],
  gatewayControllers: [
    'istio.io-mesh-controller',
    'istio.io-gateway-controller',
    'istio.io-eastwest-controller',
  ],
  runtimeClasses: ['kata', 'kata-*', 'gvisor', 'gvisor-*', 'runsc', 'runsc-*'],
  takeOver: false,
  proxy: { label: ['app', 'ztunnel'], namespaces: ['*'] },
};

/** Labels by the name of their namespace. */
export type NamespaceLabels = ReadonlyMap<string, Texts>;

export interface Expected {
  readonly verdict: Verdict;
  readonly reason: Reason;
  /** The rule that decides. */
  readonly rule: number;
  /** The mesh mode that counts, in lower case. */
  readonly mode: string | undefined;
  /** It runs and is one of the node's proxies. */
  readonly proxy: boolean;
  readonly sidecar: boolean;
  /** The bypass label asks for it, may, and means something; of a pod that is out, to its sidecar. */
  readonly bypassOutbound: boolean;
  readonly bypassInbound: boolean;
  /** `flags` of the pod's entries in the maps. */
  readonly flags: number;
  /** What becomes of a connection that the pod opens, and of one that a host process opens to it. */
  readonly outbound: 'redirected' | 'direct';
  readonly inbound: 'inbound' | 'direct';
  /** The counter of a connection that the pod opens. */
  readonly counter: 'redirected' | 'bypassed' | 'out';
}

const FLAG = {
  inMesh: 1,
  proxy: 4,
  bypassOutbound: 8,
  bypassInbound: 16,
  sidecar: 32,
  hostNetwork: 64,
  options: 256,
} as const;

const BYPASSES: ReadonlyMap<string, Reason> = new Map([
  ['enabled', 'bypass'],
  ['outbound', 'bypass-outbound'],
  ['inbound', 'bypass-inbound'],
]);

/** A label's value as far as its case does not matter. */
function word(labels: Texts, key: string): string {
  return (labels[key] ?? '').toLowerCase();
}

/** What is true of a pod without traffic annotations. An unknown namespace has no labels. */
export function expected(
  pod: PodTraits,
  theirs: Texts = {},
  settings: Settings = DEFAULT_SETTINGS,
): Expected {
  const { namespace, labels = {}, annotations = {}, hostNetwork = false, phase = 'Running' } = pod;
  const { allowed, meshModes, excludedNamespaces, gatewayControllers, runtimeClasses, proxy } = settings;
  const { runtimeClass = '', writers = {} } = pod;
  /** What cgroute writes itself is its own, unless another is known to have written it. */
  const isTheirs = (key: string, mine: string | undefined): boolean =>
    ['enabled', 'pending'].includes(word(annotations, key)) &&
    (writers[key] ?? (word(annotations, key) === mine ? 'cgroute' : '')) !== 'cgroute';
  const modeIn = (of: Texts): string | undefined => meshModes.find((mode) => mode === word(of, MODE));
  const mode = modeIn(labels) ?? modeIn(theirs);
  const mayBypass = allowed === 'any' || (allowed === 'namespace' && theirs[ALLOW_BYPASS] === 'true');
  const bypass = mayBypass ? BYPASSES.get(word(labels, BYPASS)) : undefined;
  const sidecar = annotations[SIDECAR_STATUS] !== undefined;
  const [key, value] = proxy.label;
  const isProxy = labels[key] === value && ['*', namespace].some((name) => proxy.namespaces.includes(name));
  const hasEnded = phase === 'Succeeded' || phase === 'Failed';
  const { runsOn } = pod;
  if (hasEnded && typeof runsOn === 'object' && !hostNetwork) return { ...runsOn, rule: 2 };
  const isOver = hasEnded && runsOn === undefined;

  let reason: Reason = 'not-enrolled';
  if (mode !== undefined) {
    reason = modeIn(labels) === undefined ? 'namespace-label' : 'pod-label';
    reason = bypass ?? reason;
    if (sidecar) reason = mode === 'kmesh' ? 'sidecar-short-circuited' : 'sidecar';
  }
  if (word(labels, MODE) === 'none' || word(annotations, REDIRECTION) === 'disabled') reason = 'pod-opt-out';
  if (!settings.takeOver && (isTheirs(REDIRECTION, 'enabled') || isTheirs(KMESH_REDIRECTION, undefined)))
    reason = 'other-mesh';
  const classes = new RegExp(`^(${runtimeClasses.join('|').replaceAll('*', '.*')})$`);
  if (runtimeClass !== '' && classes.test(runtimeClass)) reason = 'runtime';
  if (gatewayControllers.includes(word(labels, GATEWAY))) reason = 'gateway';
  if (excludedNamespaces.includes(namespace)) reason = 'excluded-namespace';
  if (isProxy) reason = 'proxy';
  if (isOver) reason = 'terminal';
  if (hostNetwork) reason = 'host-network';

  const { verdict, rule } = REASON[reason];
  const inMesh = verdict !== 'out';
  const means = bypass !== undefined && !APART.includes(reason);
  const bypassOutbound = means && bypass !== 'bypass-inbound';
  const bypassInbound = means && bypass !== 'bypass-outbound';
  const outbound = inMesh && !bypassOutbound ? 'redirected' : 'direct';
  return {
    verdict,
    reason,
    rule,
    mode: MODELESS.includes(reason) ? undefined : mode,
    proxy: isProxy && !isOver,
    sidecar,
    bypassOutbound,
    bypassInbound,
    flags:
      (inMesh ? FLAG.inMesh : 0) |
      (isProxy && !isOver ? FLAG.proxy : 0) |
      (inMesh && bypassOutbound ? FLAG.bypassOutbound : 0) |
      (inMesh && bypassInbound ? FLAG.bypassInbound : 0) |
      (sidecar ? FLAG.sidecar : 0) |
      // A sidecar's own user is left alone, so its pod's connections are looked at one by one.
      (reason === 'sidecar-short-circuited' ? FLAG.options : 0) |
      (hostNetwork ? FLAG.hostNetwork : 0),
    outbound,
    inbound: inMesh && !bypassInbound ? 'inbound' : 'direct',
    counter: outbound === 'redirected' ? 'redirected' : inMesh ? 'bypassed' : 'out',
  };
}

/** Of several that own one annotation, one that is not cgroute. */
function writersOf({ managedFields = [] }: Pod['metadata']): Texts {
  const owners = (key: string): string[] =>
    managedFields
      .filter((entry) => JSON.stringify(entry.fieldsV1 ?? {}).includes(`"f:${key}"`))
      .map(({ manager }) => manager)
      .sort((a, b) => Number(a === 'cgroute') - Number(b === 'cgroute'));
  return Object.fromEntries(
    [REDIRECTION, KMESH_REDIRECTION].flatMap((key) =>
      owners(key)
        .slice(0, 1)
        .map((name) => [key, name]),
    ),
  );
}

/** What is true of a pod by what the API says of it and of its namespace. */
export function expectedOf(
  { metadata, spec, status }: Pod,
  namespaces: NamespaceLabels,
  allowed: Allowed = 'any',
): Expected {
  const { namespace = '', labels = {}, annotations = {} } = metadata;
  const { hostNetwork = false, runtimeClassName } = spec;
  const { phase = 'Pending' } = status ?? {};
  const traits = {
    namespace,
    labels,
    annotations,
    writers: writersOf(metadata),
    hostNetwork,
    phase,
    ...(runtimeClassName === undefined ? {} : { runtimeClass: runtimeClassName }),
  };
  return expected(traits, namespaces.get(namespace), { ...DEFAULT_SETTINGS, allowed });
}

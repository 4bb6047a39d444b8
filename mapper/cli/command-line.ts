/** The command line: which verbs and flags there are, and what somebody has typed. */
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { CgrouteError } from '../../native/error.ts';

/** Where the chart's pods have it. */
export const PROBE_SOCKET = '/run/cgroute/probe.sock';

const FLAGS = {
  source: {
    type: 'string',
    default: 'kube',
    help: 'where pods come from: kube, or file:PATH',
    verbs: ['run'],
  },
  node: {
    type: 'string',
    help: "this node's name (default: $NODE_NAME, then the host name)",
    verbs: ['run'],
  },
  'cgroup-root': {
    type: 'string',
    help: 'the watched root (default: where cgroup2 is mounted)',
    verbs: ['run', 'status', 'explain', 'doctor', 'cleanup'],
  },
  'proc-root': {
    type: 'string',
    default: '/proc',
    help: 'the proc filesystem',
    verbs: ['run', 'status', 'explain', 'doctor', 'cleanup'],
  },
  'bpffs-root': {
    type: 'string',
    default: '/sys/fs/bpf/cgroute',
    help: 'where maps and links are pinned',
    verbs: ['run', 'status', 'explain', 'doctor', 'cleanup'],
  },
  http: {
    type: 'string',
    default: '127.0.0.1:15270',
    help: 'ADDR:PORT of /healthz, /readyz, /status, /metrics and /explain',
    verbs: ['run'],
  },
  'probe-socket': {
    type: 'string',
    help: `Unix socket on which run answers probes (default: none), and probe asks (default: ${PROBE_SOCKET})`,
    verbs: ['run', 'probe'],
  },
  'wait-for-lock': {
    type: 'boolean',
    help: 'where another agent runs, load everything beside it and take over when it has gone, in place of being refused',
    verbs: ['run'],
  },
  config: {
    type: 'string',
    help: 'configuration file (YAML)',
    verbs: ['run', 'status', 'explain', 'doctor', 'cleanup'],
  },
  'on-exit': {
    type: 'string',
    default: 'keep',
    help: 'keep: redirection goes on after SIGTERM; detach: links and maps are removed; daemonset:NAMESPACE/NAME: detach when that is deleted, else keep',
    verbs: ['run'],
  },
  output: {
    type: 'string',
    short: 'o',
    default: 'table',
    help: 'table, json or yaml',
    verbs: ['status', 'explain', 'doctor'],
  },
} as const;

type FlagName = keyof typeof FLAGS;
/** Relative ones are of the directory where cgroute was started. */
const PATHS: ReadonlySet<FlagName> = new Set(['cgroup-root', 'proc-root', 'bpffs-root', 'probe-socket']);
/** As given: defaults are not filled in, see {@link valueOf}; one that takes no value is `true`. */
export type Flags = { readonly [Name in FlagName]?: string };

interface Verb {
  readonly help: string;
  /** What follows the verb, where something must. */
  readonly argument?: string;
}

const VERBS = {
  run: { help: 'the agent' },
  status: { help: 'this node: its proxy, each pod with verdict and reason, counters' },
  explain: {
    help: 'why a pod of this node is redirected or not: explain NAMESPACE/NAME',
    argument: 'a pod as NAMESPACE/NAME or NAME',
  },
  doctor: { help: 'is this host fit: kernel, mounts, privileges, other programs on the same hooks' },
  cleanup: { help: 'detach and remove everything that cgroute put on this host' },
  uninstall: {
    help: 'delete the DaemonSet of the agents and wait until they have left: uninstall NAMESPACE/NAME',
    argument: 'a DaemonSet as NAMESPACE/NAME',
  },
  probe: {
    help: 'how the agent of this pod is, for the kubelet: probe live, or probe ready',
    argument: 'live or ready',
  },
  version: { help: 'print the version' },
  help: { help: 'print this' },
} as const satisfies Readonly<Record<string, Verb>>;

export type VerbName = keyof typeof VERBS;

const isVerb = (text: string): text is VerbName => Object.hasOwn(VERBS, text);

export interface CommandLine {
  readonly verb: VerbName;
  readonly flags: Flags;
  /** What follows the verb; empty for one that takes nothing. */
  readonly argument: string;
}

/** What exits with the code for a wrong command line. */
export function usage(sentence: string): CgrouteError {
  return new CgrouteError('EUSAGE', sentence);
}

/** @param args without the program's own. @throws CgrouteError `EUSAGE` with what was expected */
export function parseCommandLine(args: readonly string[]): CommandLine {
  const [first, ...rest] = args;
  if (first === undefined) throw usage(`a verb is missing: expected one of ${Object.keys(VERBS).join(', ')}`);
  const verb = first === '--help' || first === '-h' ? 'help' : first === '--version' ? 'version' : first;
  if (!isVerb(verb)) throw usage(`"${verb}" is no verb: expected one of ${Object.keys(VERBS).join(', ')}`);
  const { tokens } = parseArgs({ args: rest, options: FLAGS, strict: false, tokens: true });
  const flags: { [Name in FlagName]?: string } = {};
  const { argument: wanted }: Verb = VERBS[verb];
  let argument = '';
  for (const token of tokens) {
    if (token.kind === 'option-terminator') continue;
    if (token.kind === 'positional') {
      if (wanted === undefined) throw usage(`cgroute ${verb} takes flags only, got "${token.value}"`);
      if (argument !== '')
        throw usage(`cgroute ${verb} expects ${wanted}, got "${argument}" and "${token.value}"`);
      argument = token.value;
      continue;
    }
    if (token.rawName === '--help' || token.rawName === '-h') return { verb: 'help', flags, argument };
    const name = token.name as FlagName;
    if (!Object.hasOwn(FLAGS, name) || !(FLAGS[name].verbs as readonly string[]).includes(verb)) {
      const known = Object.entries(FLAGS)
        .filter(([, flag]) => (flag.verbs as readonly string[]).includes(verb))
        .map(([flag]) => `--${flag}`);
      throw usage(`cgroute ${verb} has no flag ${token.rawName}: expected ${known.join(', ') || 'none'}`);
    }
    const value = FLAGS[name].type === 'boolean' ? withoutValue(token) : token.value;
    if (value === undefined || value === '') throw usage(`${token.rawName} expects a value, got none`);
    if (flags[name] !== undefined)
      throw usage(`${token.rawName} is given twice: "${flags[name]}" and "${value}"`);
    flags[name] = PATHS.has(name) ? resolve(value) : value;
  }
  if (wanted !== undefined && argument === '') throw usage(`cgroute ${verb} expects ${wanted}, got none`);
  return { verb, flags, argument };
}

function withoutValue({
  rawName,
  value,
}: {
  readonly rawName: string;
  readonly value?: string | undefined;
}): string {
  if (value !== undefined) throw usage(`${rawName} takes no value, got "${value}"`);
  return 'true';
}

/** The flag's value or its default. */
export function valueOf<Name extends FlagName>(flags: Flags, name: Name): string {
  const flag = FLAGS[name];
  return flags[name] ?? ('default' in flag ? flag.default : '');
}

/** As {@link valueOf}. @throws CgrouteError `EUSAGE` for any other than `values` */
export function oneOf(flags: Flags, name: FlagName, values: readonly string[]): string {
  const value = valueOf(flags, name);
  if (!values.includes(value)) throw usage(`--${name} expects ${values.join(' or ')}, got "${value}"`);
  return value;
}

/** What `cgroute help` prints; docs/configuration.md is made of it. */
export function helpText(): string {
  const verbs = Object.entries(VERBS).map(([name, { help }]) => `  ${name.padEnd(9)} ${help}`);
  const flags = Object.entries(FLAGS).map(([name, flag]) => {
    const dashed = `${'short' in flag ? `-${flag.short}, ` : ''}--${name}`;
    return `  ${dashed.padEnd(16)} ${flag.help}${'default' in flag ? ` (default: ${flag.default})` : ''}; ${flag.verbs.join(', ')}`;
  });
  return [
    'usage: cgroute VERB [FLAGS]',
    '',
    ...verbs,
    '',
    ...flags,
    '',
    'exit codes: 0 fine, 1 failed, 2 usage, 3 it works, but not as wanted',
    '',
  ].join('\n');
}

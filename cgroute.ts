/** The one entry: parses the command line, wires the rooms, handles signals. */
import { existsSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { pino } from 'pino';
import { stringify } from 'yaml';
import { endAgents, isEnding, parseAgentSet } from './mapper/agent/agent-set.ts';
import { defaultConfig, parseConfig, type Config } from './mapper/config/config.ts';
import { isFull } from './mapper/connections/connection-room.ts';
import { doctorExitCode, doctorText, runDoctor } from './mapper/cli/doctor.ts';
import { askExplanation, parsePodName } from './mapper/cli/explain.ts';
import { explanationText } from './mapper/cli/explain-text.ts';
import { parseListenAddress, serveHttp } from './mapper/agent/http-server.ts';
import { kubeAccess } from './mapper/kube/kube-access.ts';
import { openKubeClient } from './mapper/kube/kube-client.ts';
import { startNodeAgent } from './mapper/agent/node-agent.ts';
import { objectSource } from './mapper/object-sources/object-source.ts';
import { readStatus } from './mapper/cli/status.ts';
import { statusText } from './mapper/cli/status-text.ts';
import { removeSidecarRules } from './mapper/sidecars/sidecar-cleanup.ts';
import { removePins, stopRedirecting } from './native/data-plane/pin-removal.ts';
import { CgrouteError, messageOf } from './native/error.ts';
import { lockDirectory } from './native/boundary/lock.ts';

declare const __CGROUTE_VERSION__: string | undefined;
const VERSION = typeof __CGROUTE_VERSION__ === 'string' ? __CGROUTE_VERSION__ : 'development';

/** Exit codes; 3 is "it works, but not as wanted". */
const EXIT = { fine: 0, failed: 1, usage: 2, notAsWanted: 3 } as const;

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
const PATHS: ReadonlySet<FlagName> = new Set(['cgroup-root', 'proc-root', 'bpffs-root']);
type Flags = { readonly [Name in FlagName]?: string };

interface Verb {
  readonly help: string;
  /** What follows the verb, where something must. */
  readonly argument?: string;
  readonly run: (flags: Flags, argument: string) => Promise<number>;
}

const VERBS: Readonly<Record<string, Verb>> = {
  run: { help: 'the agent', run },
  status: { help: 'this node: its proxy, each pod with verdict and reason, counters', run: status },
  explain: {
    help: 'why a pod of this node is redirected or not: explain NAMESPACE/NAME',
    argument: 'a pod as NAMESPACE/NAME or NAME',
    run: explain,
  },
  doctor: {
    help: 'is this host fit: kernel, mounts, privileges, other programs on the same hooks',
    run: doctor,
  },
  cleanup: { help: 'detach and remove everything that cgroute put on this host', run: cleanup },
  uninstall: {
    help: 'delete the DaemonSet of the agents and wait until they have left: uninstall NAMESPACE/NAME',
    argument: 'a DaemonSet as NAMESPACE/NAME',
    run: uninstall,
  },
  version: { help: 'print the version', run: async () => print(`cgroute ${VERSION}\n`) },
  help: { help: 'print this', run: async () => print(helpText()) },
};

function print(text: string): number {
  process.stdout.write(text);
  return EXIT.fine;
}

function helpText(): string {
  const verbs = Object.entries(VERBS).map(([name, { help }]) => `  ${name.padEnd(9)} ${help}`);
  const flags = Object.entries(FLAGS).map(([name, flag]) => {
    const dashed = `${'short' in flag ? `-${flag.short}, ` : ''}--${name}`;
    return `  ${dashed.padEnd(15)} ${flag.help}${'default' in flag ? ` (default: ${flag.default})` : ''}; ${flag.verbs.join(', ')}`;
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

function usage(sentence: string): CgrouteError {
  return new CgrouteError('EUSAGE', sentence);
}

function parseCommandLine(args: readonly string[]): {
  readonly verb: string;
  readonly flags: Flags;
  readonly argument: string;
} {
  const [first, ...rest] = args;
  if (first === undefined) throw usage(`a verb is missing: expected one of ${Object.keys(VERBS).join(', ')}`);
  const verb = first === '--help' || first === '-h' ? 'help' : first === '--version' ? 'version' : first;
  if (!Object.hasOwn(VERBS, verb))
    throw usage(`"${verb}" is no verb: expected one of ${Object.keys(VERBS).join(', ')}`);
  const { tokens } = parseArgs({ args: rest, options: FLAGS, strict: false, tokens: true });
  const flags: { [Name in FlagName]?: string } = {};
  const wanted = VERBS[verb]?.argument;
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
    if (token.value === undefined || token.value === '')
      throw usage(`${token.rawName} expects a value, got none`);
    if (flags[name] !== undefined)
      throw usage(`${token.rawName} is given twice: "${flags[name]}" and "${token.value}"`);
    flags[name] = PATHS.has(name) ? resolve(token.value) : token.value;
  }
  if (wanted !== undefined && argument === '') throw usage(`cgroute ${verb} expects ${wanted}, got none`);
  return { verb, flags, argument };
}

/** The flag's value or its default. */
function valueOf<Name extends FlagName>(flags: Flags, name: Name): string {
  const flag = FLAGS[name];
  return flags[name] ?? ('default' in flag ? flag.default : '');
}

function oneOf(flags: Flags, name: FlagName, values: readonly string[]): string {
  const value = valueOf(flags, name);
  if (!values.includes(value)) throw usage(`--${name} expects ${values.join(' or ')}, got "${value}"`);
  return value;
}

function readConfig(flags: Flags): Config {
  if (flags.config === undefined) return defaultConfig;
  let text: string;
  try {
    text = readFileSync(flags.config, 'utf8');
  } catch (cause) {
    throw new CgrouteError(
      'ECONFIG',
      `--config ${flags.config} cannot be read: expected a YAML file, got ${messageOf(cause)}`,
      { cause },
    );
  }
  return parseConfig(text, flags.config);
}

function nodeName(flags: Flags): string {
  const name = flags.node ?? process.env['NODE_NAME'] ?? '';
  return name === '' ? hostname() : name;
}

async function run(flags: Flags): Promise<number> {
  const config = readConfig(flags);
  const node = nodeName(flags);
  const onExit = valueOf(flags, 'on-exit');
  const agentSet = onExit.startsWith('daemonset:')
    ? parseAgentSet(onExit.slice('daemonset:'.length), '--on-exit daemonset:')
    : undefined;
  if (agentSet === undefined) oneOf(flags, 'on-exit', ['keep', 'detach', 'daemonset:NAMESPACE/NAME']);
  const http = valueOf(flags, 'http');
  parseListenAddress(http);
  const logger = pino({
    level: config.log.level,
    base: { node },
    formatters: { level: (label) => ({ level: label }) },
    timestamp: pino.stdTimeFunctions.isoTime,
  });
  const source = objectSource(valueOf(flags, 'source'), {
    node,
    version: VERSION,
    config,
    logger: logger.child({ component: 'source' }),
  });

  if (agentSet !== undefined && source.client === undefined)
    throw usage(`--on-exit ${onExit} asks the API server: expected --source kube with it`);

  const signal = new Promise<NodeJS.Signals>((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, resolve);
  });
  let agent: Awaited<ReturnType<typeof startNodeAgent>> | undefined;
  await using server = await serveHttp(http, () => ({
    ready: agent?.isReady ?? false,
    sources: agent?.sources() ?? [],
    agent,
  }));
  agent = await startNodeAgent({
    node,
    config,
    source,
    logger,
    version: VERSION,
    cgroupRoot: flags['cgroup-root'],
    procRoot: valueOf(flags, 'proc-root'),
    bpffsRoot: valueOf(flags, 'bpffs-root'),
  });
  agent.listening(server.address);
  logger.info({ http: server.address, version: VERSION }, 'serving');
  const received = await signal;
  const asked =
    agentSet === undefined || source.client === undefined
      ? undefined
      : await isEnding(source.client, agentSet);
  const detach = asked?.ends ?? onExit === 'detach';
  logger.info(
    { signal: received, onExit, why: asked?.why },
    detach ? 'leaving: links and maps are removed' : 'leaving: links and maps stay, redirection goes on',
  );
  await agent.stop(detach);
  return EXIT.fine;
}

const paths = (flags: Flags) => ({
  cgroupRoot: flags['cgroup-root'],
  procRoot: valueOf(flags, 'proc-root'),
  bpffsRoot: valueOf(flags, 'bpffs-root'),
});

function show(flags: Flags, value: unknown, text: () => string): void {
  switch (oneOf(flags, 'output', ['table', 'json', 'yaml'])) {
    case 'json':
      print(`${JSON.stringify(value, null, 2)}\n`);
      break;
    case 'yaml':
      print(stringify(value));
      break;
    default:
      print(text());
  }
}

async function status(flags: Flags): Promise<number> {
  oneOf(flags, 'output', ['table', 'json', 'yaml']);
  readConfig(flags);
  const now = await readStatus(paths(flags));
  show(flags, now, () => statusText(now));
  return now.agent.running && now.agent.ready && !now.maps.some(isFull) ? EXIT.fine : EXIT.notAsWanted;
}

async function explain(flags: Flags, pod: string): Promise<number> {
  oneOf(flags, 'output', ['table', 'json', 'yaml']);
  readConfig(flags);
  parsePodName(pod);
  const explanation = await askExplanation(valueOf(flags, 'bpffs-root'), pod);
  show(flags, explanation, () => explanationText(explanation));
  return EXIT.fine;
}

async function doctor(flags: Flags): Promise<number> {
  oneOf(flags, 'output', ['table', 'json', 'yaml']);
  readConfig(flags);
  const lines = await runDoctor(paths(flags));
  show(flags, lines, () => doctorText(lines));
  return doctorExitCode(lines);
}

function lockForCleanup(root: string): Disposable {
  try {
    const lock = lockDirectory(root, '--bpffs-root');
    // An agent need not be root's; nobody else gets at this directory.
    if (lock.note === undefined) return lock;
    lock[Symbol.dispose]();
    throw new CgrouteError('ELOCKED', lock.note);
  } catch (cause) {
    if (!(cause instanceof CgrouteError) || cause.code !== 'ELOCKED') throw cause;
    throw new CgrouteError(
      'ERUNNING',
      `an agent runs with --bpffs-root ${root} and would put everything back: stop it first`,
      { cause },
    );
  }
}

async function cleanup(flags: Flags): Promise<number> {
  readConfig(flags);
  const root = valueOf(flags, 'bpffs-root');
  // Held to the end, so that no agent starts on what is being removed.
  using _lock = existsSync(root) ? lockForCleanup(root) : undefined;
  // Rules in pods name what is pinned, so they go before it; what redirects goes before them.
  const redirecting = stopRedirecting(root);
  const { rules, problems } = await removeSidecarRules(paths(flags));
  const removed = redirecting + removePins(root, problems.length > 0);
  print(
    removed === 0
      ? `nothing of cgroute is pinned below ${root}\n`
      : `removed ${removed} pins below ${root}\n`,
  );
  if (rules > 0) print(`removed ${rules} rules from the network namespaces of pods\n`);
  if (problems.length > 0)
    throw new CgrouteError(
      'ERULES',
      `rules for a sidecar may be left in ${problems.length} places, and the filter that they name stays: ${problems.join('; ')}`,
    );
  return EXIT.fine;
}

async function uninstall(_flags: Flags, argument: string): Promise<number> {
  const agentSet = parseAgentSet(argument, 'cgroute uninstall');
  using client = openKubeClient({ access: kubeAccess(), userAgent: `cgroute/${VERSION}` });
  const isGone = await endAgents(client, agentSet);
  return print(
    isGone
      ? `the agents of ${argument} have left\n`
      : `DaemonSet ${argument} is deleted, and some of its pods are still there: on nodes that come back, \`cgroute cleanup\` does the rest\n`,
  );
}

async function main(): Promise<number> {
  try {
    const { verb, flags, argument } = parseCommandLine(process.argv.slice(2));
    return (await VERBS[verb]?.run(flags, argument)) ?? EXIT.usage;
  } catch (error) {
    process.stderr.write(`cgroute: ${messageOf(error)}\n`);
    if (!(error instanceof CgrouteError)) {
      // The system's own word, such as EACCES with a path, is a sentence; anything else is a fault of ours.
      if (error instanceof Error && 'syscall' in error) return EXIT.failed;
      throw error;
    }
    return ['EUSAGE', 'ECONFIG', 'EMANIFEST', 'EKUBECONFIG'].includes(error.code) ? EXIT.usage : EXIT.failed;
  }
}

process.exitCode = await main();

/** The one entry: parses the command line, wires the rooms, handles signals. */
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { pino } from 'pino';
import { stringify } from 'yaml';
import { endAgents, isEnding, parseAgentSet } from './mapper/agent/agent-set.ts';
import { defaultConfig, parseConfig, type Config } from './mapper/config/config.ts';
import {
  helpText,
  oneOf,
  parseCommandLine,
  usage,
  valueOf,
  type Flags,
  type VerbName,
} from './mapper/cli/command-line.ts';
import { doctorExitCode, doctorText, runDoctor } from './mapper/cli/doctor.ts';
import { askExplanation, parsePodName } from './mapper/cli/explain.ts';
import { explanationText } from './mapper/cli/explain-text.ts';
import { probe } from './mapper/cli/probe.ts';
import {
  parseListenAddress,
  serveHttp,
  serveHttpWhenFree,
  serveProbes,
  type AgentState,
} from './mapper/agent/http-server.ts';
import { kubeAccess } from './mapper/kube/kube-access.ts';
import { openKubeClient } from './mapper/kube/kube-client.ts';
import { startNodeAgent, type NodeAgent } from './mapper/agent/node-agent.ts';
import type { Standby } from './mapper/agent/standby.ts';
import { objectSource } from './mapper/object-sources/source-flag.ts';
import { readStatus } from './mapper/cli/status.ts';
import { isAsWanted } from './mapper/cli/status-conditions.ts';
import { statusText } from './mapper/cli/status-text.ts';
import { removeSidecarRules } from './mapper/sidecars/sidecar-cleanup.ts';
import { removePins, stopRedirecting } from './native/data-plane/pin-removal.ts';
import { hasPinDirectory } from './native/pins/pin-directory.ts';
import { CgrouteError, refusalOf } from './native/error.ts';
import { lockDirectory } from './native/boundary/lock.ts';

declare const __CGROUTE_VERSION__: string | undefined;
const VERSION = typeof __CGROUTE_VERSION__ === 'string' ? __CGROUTE_VERSION__ : 'development';

/** Exit codes; 3 is "it works, but not as wanted". */
const EXIT = { fine: 0, failed: 1, usage: 2, notAsWanted: 3 } as const;

const VERBS: Readonly<Record<VerbName, (flags: Flags, argument: string) => Promise<number>>> = {
  run,
  probe: probed,
  status,
  explain,
  doctor,
  cleanup,
  uninstall,
  version: async () => print(`cgroute ${VERSION}\n`),
  help: async () => print(helpText()),
};

function print(text: string): number {
  process.stdout.write(text);
  return EXIT.fine;
}

function readConfig(flags: Flags): Config {
  const from = valueOf(flags, 'source').startsWith('file:') ? 'manifest' : 'kube';
  if (flags.config === undefined) return defaultConfig(from);
  let text: string;
  try {
    text = readFileSync(flags.config, 'utf8');
  } catch (cause) {
    throw new CgrouteError(
      'ECONFIG',
      `--config ${flags.config} cannot be read: expected a YAML file, got ${refusalOf(cause)}`,
      { cause },
    );
  }
  return parseConfig(text, flags.config, from);
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
  const leaving = new AbortController();
  void signal.then(() => leaving.abort());
  let agent: NodeAgent | undefined;
  let waits: AgentState['waits'];
  const state = (): AgentState => ({
    ready: agent?.isReady ?? false,
    waits,
    waitsFor: agent?.waitsFor,
    agent,
  });
  await using servers = new AsyncDisposableStack();
  if (flags['probe-socket'] !== undefined) servers.use(await serveProbes(flags['probe-socket'], state));
  let address: string | undefined;
  const announce = (): void => {
    if (address === undefined || agent === undefined) return;
    agent.listening(address);
    logger.info({ http: address, version: VERSION }, 'serving');
  };
  const standby: Standby = {
    signal: leaving.signal,
    onWaiting: () => void (waits = 'loading'),
    onPrepared() {
      if (waits !== undefined) waits = 'loaded';
    },
    onTurn() {
      waits = undefined;
      const onServing = (taken: string): void => {
        address = taken;
        announce();
      };
      servers.use(serveHttpWhenFree(http, state, onServing, (sentence) => logger.warn(sentence)));
    },
  };
  const isPatient = flags['wait-for-lock'] !== undefined;
  if (!isPatient) ({ address } = servers.use(await serveHttp(http, state)));
  agent = await startNodeAgent(
    {
      node,
      config,
      source,
      logger,
      version: VERSION,
      cgroupRoot: flags['cgroup-root'],
      procRoot: valueOf(flags, 'proc-root'),
      bpffsRoot: valueOf(flags, 'bpffs-root'),
    },
    isPatient ? standby : undefined,
  );
  if (agent === undefined) {
    logger.info({ signal: await signal }, 'leaving: another agent runs, and goes on');
    return EXIT.fine;
  }
  announce();
  const received = await signal;
  const asked =
    agentSet === undefined || source.client === undefined
      ? undefined
      : await isEnding(source.client, agentSet, {
          isPodGone: () => agent?.knowsPod(process.env['POD_UID'] ?? '') === false,
        });
  const detach = asked?.ends ?? onExit === 'detach';
  logger.info(
    { signal: received, onExit, why: asked?.why },
    detach ? 'leaving: links and maps are removed' : 'leaving: links and maps stay, redirection goes on',
  );
  // Who follows wants the address.
  if (!detach) await servers.disposeAsync();
  await agent.stop(detach);
  return EXIT.fine;
}

async function probed(flags: Flags, argument: string): Promise<number> {
  const { isFine, sentence } = await probe(flags, argument);
  (isFine ? process.stdout : process.stderr).write(`${sentence}\n`);
  return isFine ? EXIT.fine : EXIT.failed;
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
  return isAsWanted(now.conditions) ? EXIT.fine : EXIT.notAsWanted;
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
  using _lock = hasPinDirectory(root) ? lockForCleanup(root) : undefined;
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
    return await VERBS[verb](flags, argument);
  } catch (error) {
    process.stderr.write(`cgroute: ${refusalOf(error)}\n`);
    if (!(error instanceof CgrouteError)) {
      // The system's own word, such as EACCES with a path, is a sentence; anything else is a fault of ours.
      if (error instanceof Error && 'syscall' in error) return EXIT.failed;
      throw error;
    }
    return ['EUSAGE', 'ECONFIG', 'EMANIFEST', 'EKUBECONFIG'].includes(error.code) ? EXIT.usage : EXIT.failed;
  }
}

process.exitCode = await main();

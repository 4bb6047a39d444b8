/** etcd and kube-apiserver as processes in a sandbox: command lines, readiness, logs that outlive a failure. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beginWait } from '../../deploy/stage/deadline.ts';
import type { KeyPair } from './kube-certificates.ts';
import type { KubeTools } from './kube-tools.ts';
import type { Running } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

const LOGS = resolve(import.meta.dirname, '../../dist/test/logs');
const LOG_LINES = 5000;

export interface ServerOptions {
  /**
   * False: watches go straight to etcd, so that a compaction alone expires them.
   * Default true, as in clusters: the API server answers old watches from memory.
   */
  readonly watchCache?: boolean;
  /** True: every request is recorded, see requestsIn. */
  readonly audit?: boolean;
  /** More flags of kube-apiserver. */
  readonly flags?: readonly string[];
}

export interface ServerFiles {
  readonly ca: string;
  readonly server: KeyPair;
  readonly signing: { readonly publicFile: string; readonly privateFile: string };
  /** Where the audit log and its policy are. */
  readonly directory: string;
}

/** One request that the API server took; a watch counts when it begins. */
export interface RecordedRequest {
  readonly user: string;
  /** `get`, `list`, `watch`, `patch`, ... */
  readonly verb: string;
  /** Path and query. */
  readonly uri: string;
  readonly userAgent: string;
}

/** audit.k8s.io/v1: one event for each request, when it comes. */
const AUDIT_POLICY = {
  apiVersion: 'audit.k8s.io/v1',
  kind: 'Policy',
  omitStages: ['ResponseStarted', 'ResponseComplete', 'Panic'],
  rules: [{ level: 'Metadata' }],
};

/** The requests so far, from the audit log. */
export function requestsIn(directory: string): RecordedRequest[] {
  const lines = readFileSync(join(directory, 'audit.log'), 'utf8').split('\n').slice(0, -1);
  return lines.map((line) => {
    const event = JSON.parse(line) as {
      user: { username: string };
      verb: string;
      requestURI: string;
      userAgent?: string;
    };
    return {
      user: event.user.username,
      verb: event.verb,
      uri: event.requestURI,
      userAgent: event.userAgent ?? '',
    };
  });
}

/** Processes whose output is written to dist/test/logs when the test process fails. */
const kept: { readonly name: string; readonly running: Running }[] = [];

function writeLogs(code: number): void {
  if (code === 0) return;
  mkdirSync(LOGS, { recursive: true });
  for (const [at, { name, running }] of kept.entries()) {
    writeFileSync(
      join(LOGS, `${process.pid}-${at + 1}-${name}.log`),
      `${running.stderr.slice(-LOG_LINES).join('\n')}\n`,
    );
  }
  console.error(`logs of etcd, kube-apiserver and who works for it: ${LOGS}/${process.pid}-*.log`);
}

/** Keeps what a process has said until this process ends; files are written only when it ends badly. */
export function keepLog(name: string, running: Running): void {
  if (kept.length === 0) process.once('exit', writeLogs);
  kept.push({ name, running });
}

/**
 * A free port on loopback below those that the kernel gives to clients: while a
 * server is down, a client that retries on one of these could connect to itself.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries++) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    const server = createServer();
    const free = await new Promise<boolean>((done) => {
      server.once('error', () => done(false));
      server.listen(port, '127.0.0.1', () => server.close(() => done(true)));
    });
    if (free) return port;
  }
  throw new Error('no free port between 20000 and 32000 on 127.0.0.1');
}

/** Waits until `check` is true; an exit of the process before that is an error with its last lines. */
async function untilReady(what: string, running: Running, check: () => Promise<boolean>): Promise<void> {
  let exited = false;
  void running.exit.then(() => (exited = true));
  for (const wait = beginWait(60_000); ; await delay(25)) {
    if (!exited && (await check().catch(() => false))) return;
    if (!exited && !wait.isOver()) continue;
    const why = exited ? 'exited' : `is not ready: ${wait.passed()}`;
    await running[Symbol.asyncDispose]();
    throw new Error(`${what} ${why}\n${running.stderr.slice(-15).join('\n')}`);
  }
}

/** Starts etcd with an empty store, without fsync; returns its address for clients. */
export async function startEtcd(
  sandbox: Sandbox,
  tools: KubeTools,
): Promise<{ readonly running: Running; readonly url: string }> {
  const url = `http://127.0.0.1:${await freePort()}`;
  const running = sandbox.spawn({
    cmd: tools.etcd,
    cgroup: sandbox.cgroup('cluster'),
    args: [
      '--data-dir',
      sandbox.file('etcd'),
      '--listen-client-urls',
      url,
      '--advertise-client-urls',
      url,
      '--listen-peer-urls',
      'http://127.0.0.1:0',
      '--unsafe-no-fsync',
      '--log-level',
      'warn',
    ],
  });
  keepLog('etcd', running);
  await untilReady('etcd', running, async () => (await fetch(`${url}/health`)).ok);
  return { running, url };
}

/** The command line of kube-apiserver. */
function flagsOf(port: number, etcd: string, files: ServerFiles, options: ServerOptions): string[] {
  return [
    `--etcd-servers=${etcd}`,
    '--bind-address=127.0.0.1',
    `--secure-port=${port}`,
    `--tls-cert-file=${files.server.certFile}`,
    `--tls-private-key-file=${files.server.keyFile}`,
    `--client-ca-file=${files.ca}`,
    '--authorization-mode=Node,RBAC',
    '--enable-admission-plugins=NodeRestriction',
    // Nobody makes the default service account that it asks for.
    '--disable-admission-plugins=ServiceAccount',
    '--service-account-issuer=https://kubernetes.default.svc',
    `--service-account-key-file=${files.signing.publicFile}`,
    `--service-account-signing-key-file=${files.signing.privateFile}`,
    '--service-cluster-ip-range=10.96.0.0/24',
    '--endpoint-reconciler-type=none',
    '--allow-privileged=true',
    '--profiling=false',
    // Without it, SIGTERM waits a minute for each watch over HTTP/1.1.
    '--shutdown-watch-termination-grace-period=2s',
    `--watch-cache=${options.watchCache ?? true}`,
    ...(options.audit === true
      ? [
          `--audit-log-path=${join(files.directory, 'audit.log')}`,
          `--audit-policy-file=${join(files.directory, 'audit-policy.yaml')}`,
        ]
      : []),
    ...(options.flags ?? []),
  ];
}

export interface ApiServerProcess {
  readonly port: number;
  /** Starts it, or does nothing when it runs; settles when it is ready. */
  start(): Promise<void>;
  /** SIGTERM by default: it says goodbye to its clients. SIGKILL: it does not. */
  stop(signal?: NodeJS.Signals): Promise<void>;
  /** The last lines of its log, over all its lives. */
  log(lines?: number): string;
}

/** kube-apiserver on a port that stays its own when it is stopped and started. */
export async function makeApiServer(
  sandbox: Sandbox,
  tools: KubeTools,
  etcd: string,
  files: ServerFiles,
  options: ServerOptions,
  isReady: () => Promise<boolean>,
): Promise<ApiServerProcess> {
  const port = await freePort();
  writeFileSync(join(files.directory, 'audit-policy.yaml'), JSON.stringify(AUDIT_POLICY));
  const lives: Running[] = [];
  let running: Running | undefined;
  return {
    port,
    async start() {
      if (running !== undefined) return;
      running = sandbox.spawn({
        cmd: tools.apiServer,
        args: flagsOf(port, etcd, files, options),
        cgroup: sandbox.cgroup('cluster'),
      });
      lives.push(running);
      keepLog('kube-apiserver', running);
      await untilReady('kube-apiserver', running, isReady);
    },
    async stop(signal = 'SIGTERM') {
      await running?.stop(signal);
      running = undefined;
    },
    log: (lines = 50) =>
      lives
        .flatMap(({ stderr }) => stderr)
        .slice(-lines)
        .join('\n'),
  };
}

/**
 * A real node under emulation, with either cgroup driver in one boot.
 *
 *     node test/matrix/node/run.ts
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import type { CgroupDriver } from '../../harness/kubelet-cgroups.ts';
import { installPackages } from '../packages.ts';
import { CHECKS, NODE_FILES } from './checks.ts';
import { startMesh, switchDriver } from './mesh.ts';
import { startNode } from './node.ts';

/** Among the kernels of the matrix. */
export const NODE_NAME = 'node';

export interface NodeRow {
  readonly check: string;
  readonly driver: CgroupDriver;
  readonly passed: boolean;
  readonly seconds: number;
  /** Why it has not passed. */
  readonly message?: string;
}

export interface NodeResult {
  readonly name: typeof NODE_NAME;
  /** `uname -r` */
  readonly kernel: string;
  /** Of Debian's packages, and `kubelet`. */
  readonly versions: Readonly<Record<string, string>>;
  readonly rows: readonly NodeRow[];
  readonly seconds: number;
}

export const isNodeGood = ({ rows }: NodeResult): boolean =>
  rows.length > CHECKS.length && rows.every(({ passed }) => passed);

/** For the table at the end of a run. */
export function nodeLines(result: NodeResult): string[] {
  const { kernel, versions, rows, seconds } = result;
  const failed = rows.filter(({ passed }) => !passed);
  const sums = `${rows.length - failed.length} passed, ${failed.length} failed`;
  return [
    `${isNodeGood(result) ? '✓' : '✗'} ${NODE_NAME.padEnd(7)} Linux ${kernel.padEnd(28)} ${sums}  ${Math.round(seconds)} s; kubelet ${versions['kubelet']}, containerd ${versions['containerd']}, runc ${versions['runc']}, systemd ${versions['systemd']}`,
    ...failed.map(({ check, driver }) => `          ✗ ${driver}: ${check}`),
  ];
}

export interface NodeRunOptions {
  readonly cache?: string;
  /** Of the guest's life. */
  readonly limitMs?: number;
  readonly drivers?: readonly CgroupDriver[];
  readonly say?: (line: string) => void;
}

const SWITCH = 'the node changes over to this driver';
/** For the node's root file system, and for the agent's image. */
const PACKAGES = { mmdebstrap: 'mmdebstrap', buildah: 'buildah', iproute2: 'ip', openssl: 'openssl' };
const START = 'the agent of deploy/cgroute.yaml starts, and is ready';
const LOGS = resolve(import.meta.dirname, '../../../dist/test/logs');
const LIMIT_MS = 20 * 60_000;
const DRIVERS: readonly CgroupDriver[] = ['systemd', 'cgroupfs'];

/** Where the kernel matrix keeps its kernels too. */
export const NODE_CACHE = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'cgroute/kernels');

/** Boots the node and tries everything; a check that fails is a row. */
export async function runNode({
  cache = NODE_CACHE,
  limitMs = LIMIT_MS,
  drivers = DRIVERS,
  say = console.log,
}: NodeRunOptions = {}): Promise<NodeResult> {
  const [first = 'systemd'] = drivers;
  await installPackages(say, PACKAGES);
  const began = performance.now();
  await using node = await startNode({ driver: first, cache, limitMs, files: NODE_FILES, say });
  say(`ready after ${Math.round((performance.now() - began) / 1000)} s`);
  const rows: NodeRow[] = [];
  /** What it gives, or undefined and a row that has failed. */
  async function attempt<T>(
    check: string,
    driver: CgroupDriver,
    work: () => Promise<T>,
  ): Promise<T | undefined> {
    const from = performance.now();
    const row = (failure: { message?: string }): void => {
      const seconds = (performance.now() - from) / 1000;
      if (check !== SWITCH || failure.message !== undefined)
        rows.push({ check, driver, passed: failure.message === undefined, seconds, ...failure });
      say(`${driver}, ${seconds.toFixed(1)} s: ${failure.message === undefined ? 'ok' : 'FAILED'}: ${check}`);
      if (failure.message !== undefined) say(failure.message);
    };
    try {
      const value = await work();
      row({});
      return value;
    } catch (error) {
      row({
        message:
          error instanceof Error
            ? `${error.message}${error.cause instanceof Error ? `\n${error.cause.message}` : ''}`
            : String(error),
      });
      return undefined;
    }
  }
  for (const driver of drivers) {
    const mesh = await attempt(START, driver, () => startMesh(node));
    if (mesh === undefined) break;
    for (const { name, run } of CHECKS) {
      if ((await attempt(name, driver, () => run(mesh, driver).then(() => true))) === undefined)
        say(await mesh.lastWords());
    }
    const next = drivers[drivers.indexOf(driver) + 1];
    if (
      next !== undefined &&
      (await attempt(SWITCH, next, () => switchDriver(mesh, next).then(() => true))) === undefined
    )
      break;
  }
  if (rows.some(({ passed }) => !passed)) {
    mkdirSync(LOGS, { recursive: true });
    writeFileSync(join(LOGS, 'real-node.log'), node.journal(Infinity));
    say(`the node's journal is ${LOGS}/real-node.log`);
  }
  return {
    name: NODE_NAME,
    kernel: node.kernel.release,
    versions: node.versions,
    rows,
    seconds: (performance.now() - began) / 1000,
  };
}

if (import.meta.main) {
  // So that what is to be done at the exit of a process is done.
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)
    process.once(signal, () => process.exit(code));
  const result = await runNode();
  console.log(nodeLines(result).join('\n'));
  process.exitCode = isNodeGood(result) ? 0 : 1;
}

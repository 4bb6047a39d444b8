/**
 * The demo, `npm run demo`: the main job on this machine's kernel, without a
 * cluster. Exits with 0 only if all was as it should be, else with 1.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { cgroup2Mount } from '../stage/cgroup.ts';
import { type Sandbox, makeSandbox } from '../stage/sandbox.ts';
import { playAmbient } from './demo-ambient.ts';
import { type Report, makeReport } from './demo-report.ts';
import { playSidecar } from './demo-sidecar.ts';

interface Scene {
  /** One line for somebody who asks which there are. */
  readonly what: string;
  readonly play: (sandbox: Sandbox, report: Report) => Promise<void>;
}

/** `npm run demo -- NAME`; without a name it is the first. */
const SCENES: Readonly<Record<string, Scene>> = {
  ambient: { what: 'pods without a sidecar join the mesh, and leave it, by a label', play: playAmbient },
  sidecar: { what: 'a sidecar is taken out of the path, or replaced, by a label', play: playSidecar },
};

const root = resolve(import.meta.dirname, '../..');

/** Why the demo cannot be shown here, in one sentence; undefined when nothing is known to be missing. */
function missing(): string | undefined {
  if (process.platform !== 'linux') return `it needs Linux, and this is ${process.platform}`;
  if (process.getuid?.() !== 0)
    return 'it needs root, as it makes cgroups, network namespaces and BPF programs: run it as root';
  try {
    cgroup2Mount();
  } catch {
    return 'it needs cgroup v2, and none is mounted: try `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd.unified_cgroup_hierarchy=1';
  }
  if (!readFileSync('/proc/filesystems', 'utf8').includes('\tbpf\n'))
    return 'it needs BPF, and this kernel has no bpf filesystem: CONFIG_BPF_SYSCALL=y and CONFIG_CGROUP_BPF=y are needed';
  const unbuilt = ['dist/cgroute.mjs', 'dist/test/sock'].find((file) => !existsSync(resolve(root, file)));
  return unbuilt === undefined ? undefined : `${unbuilt} has not been built: run \`npm run setup\``;
}

/** What is still there of a sandbox that has been removed. */
function leftovers({ token, cgroupRoot, directory }: Sandbox): string[] {
  const netns = existsSync('/run/netns')
    ? readdirSync('/run/netns').filter((name) => name.endsWith(token))
    : [];
  const mounted = readFileSync('/proc/self/mountinfo', 'utf8').includes(token) ? ['a mount'] : [];
  return [...[cgroupRoot, directory].filter((path) => existsSync(path)), ...netns, ...mounted];
}

/** What was given as the reason, down to the innermost, line by line and without the stack. */
function reasonsOf(error: unknown): string[] {
  if (!(error instanceof Error)) return [String(error)];
  const { message, cause } = error;
  return [...message.split('\n'), ...(cause === undefined ? [] : reasonsOf(cause))].filter(
    (line) => line.trim() !== '',
  );
}

/** Says why a scene broke off, with what the doctor finds wrong with this host. */
async function showFailure(report: Report, { cgroupRoot, bpffs }: Sandbox, error: unknown): Promise<void> {
  const [reason = '', ...more] = reasonsOf(error);
  report.check(false, `the demo could not go on: ${reason}`);
  for (const line of more) report.text(line);
  const { runDoctor } = await import('../../mapper/cli/doctor.ts'); // it loads native code, which may be what is wrong
  const lines = await runDoctor({ cgroupRoot, bpffsRoot: `${bpffs}/cgroute`, procRoot: '/proc' });
  for (const { check, state, detail, remedy } of lines) {
    if (state === 'fail')
      report.text(`doctor: ${check}: ${detail}${remedy === undefined ? '' : `; ${remedy}`}`);
  }
}

/** Removes the sandbox; what could not be removed, {@link leftovers} finds. */
async function remove(sandbox: Sandbox): Promise<void> {
  try {
    await sandbox[Symbol.asyncDispose]();
  } catch {
    // Looked at next.
  }
}

function refuse(sentence: string): number {
  process.stderr.write(`demo: ${sentence}\n`);
  return 1;
}

async function main(args: readonly string[]): Promise<number> {
  const names = Object.keys(SCENES);
  const [name = names[0] ?? '', ...more] = args;
  const scene = Object.hasOwn(SCENES, name) ? SCENES[name] : undefined;
  if (scene === undefined || more.length > 0) {
    const list = Object.entries(SCENES)
      .map(([known, { what }]) => `${known} (${what})`)
      .join(', ');
    return refuse(`expected the name of one scene, ${list}; got "${args.join(' ')}"`);
  }
  const why = missing();
  if (why !== undefined) return refuse(`the demo cannot be shown here: ${why}`);

  // The sandbox removes itself on these; it only needs to be said.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () =>
      process.stdout.write('\ninterrupted: everything that the demo made is removed\n'),
    );
  }
  process.stdout.on('error', () => process.exit(1)); // nobody reads any more

  const started = performance.now();
  const report = makeReport();
  let sandbox: Sandbox;
  try {
    sandbox = await makeSandbox(`demo-${name}`);
  } catch (error) {
    return refuse(
      `the demo cannot be shown here: it could not make its cgroup, directory and bpffs mount: ${reasonsOf(error)[0]}`,
    );
  }
  try {
    await scene.play(sandbox, report);
  } catch (error) {
    await showFailure(report, sandbox, error);
  } finally {
    await remove(sandbox);
  }
  const left = leftovers(sandbox);
  report.check(
    left.length === 0,
    left.length === 0
      ? 'everything that the demo made on this machine is removed'
      : `left behind: ${left.join(', ')}`,
  );
  report.sum((performance.now() - started) / 1000);
  process.stdout.write(
    report.isGood ? 'Next: `npm test` runs all tests on this machine; README.md says how it works.\n' : '',
  );
  return report.isGood ? 0 : 1;
}

process.exitCode = await main(process.argv.slice(2));

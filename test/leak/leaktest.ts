/**
 * `npm run leaktest`: new containers and pods by the thousand, whose first act is
 * connect(), while labels flip and the agent is killed and started again. Exits
 * with 0 when each connection went where it ought to, with 3 when one did not, or
 * when client, proxy and server do not agree; with 1 when it could not run.
 */
import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { parseArgs } from 'node:util';
import { messageOf } from '../../native/error.ts';
import { isClean } from './account.ts';
import { BREAKS, type Break, churnAgent, NEXT_VERSION } from './agent-churn.ts';
import { CASE_NAMES, type CaseName } from './connection.ts';
import { startLeakNode } from './node.ts';
import { anySeed, makeRandom } from '../harness/random.ts';
import { figures, type Run, tableText, verdictText } from './report.ts';
import { resumeWhileDialled, runRound } from './round.ts';

/** New cgroups: in CI, and in the long form. */
const [SHORT, ALL] = [3000, 10_000];
const USAGE = `usage: npm run leaktest -- [--all | --count N] [--only CASE,...] [--seed N] [--json FILE] [--break PART]
  --all        ${ALL} new cgroups, the long form
  --count N    new cgroups, at least (default ${SHORT})
  --only       some of the cases: ${CASE_NAMES.join(', ')}
  --seed N     for the order of things and the agent's deaths (default: another each time)
  --json FILE  the figures as JSON too
  --break      takes a part of the data plane away whenever the agent has started, or starts, to
               see that the test notices: ${Object.keys(BREAKS).join(', ')}`;

/** What a round of size 1 makes, of all cases, and at least of one of the larger ones. */
const FRESH_PER_ROUND = { all: 900, some: 100 };
const HOMES = 12;

interface Options {
  readonly count: number;
  readonly only: ReadonlySet<CaseName>;
  readonly seed: number;
  readonly json: string | undefined;
  readonly breaks: Break | undefined;
}

class UsageError extends Error {}

function whole(flag: string, text: string, least: number): number {
  const number = Number(text);
  if (!Number.isInteger(number) || number < least)
    throw new UsageError(`${flag} must be a whole number from ${least}, not "${text}"`);
  return number;
}

function parseOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      all: { type: 'boolean', default: false },
      count: { type: 'string' },
      only: { type: 'string' },
      seed: { type: 'string' },
      json: { type: 'string' },
      break: { type: 'string' },
    },
  });
  const only =
    values.only === undefined
      ? CASE_NAMES
      : values.only.split(',').map((name) => {
          const known = CASE_NAMES.find((one) => one === name);
          if (known === undefined)
            throw new UsageError(`--only must name cases (${CASE_NAMES.join(', ')}), not "${name}"`);
          return known;
        });
  const breaks = Object.keys(BREAKS).find((name): name is Break => name === values.break);
  if (values.break !== undefined && breaks === undefined)
    throw new UsageError(`--break must be one of ${Object.keys(BREAKS).join(', ')}, not "${values.break}"`);
  return {
    breaks,
    only: new Set(only),
    count: whole('--count', values.count ?? String(values.all ? ALL : SHORT), 1),
    seed: whole('--seed', values.seed ?? String(anySeed()), 0),
    json: values.json,
  };
}

async function run({ count, only, seed, breaks }: Options): Promise<Run> {
  const started = performance.now();
  const random = makeRandom(seed);
  let fresh = 0;
  await using node = await startLeakNode(only, () => void fresh++);
  const homes = Array.from({ length: HOMES }, () => node.pods.make());
  for (const { object } of homes) node.manifest.pod(object);
  node.manifest.write();
  await using churn = churnAgent({ sandbox: node.sandbox, manifest: node.manifest.path, random, breaks });
  await churn.resume();
  await node.known(homes, 'in');
  for (const home of homes) node.sandbox.cgroup(home.newContainer().slice(node.sandbox.cgroupRoot.length));
  await node.known(homes, 'in');

  // Two rounds at least, as halfway something happens.
  const size = Math.min(
    1,
    count / 2 / (only.size === CASE_NAMES.length ? FRESH_PER_ROUND.all : FRESH_PER_ROUND.some),
  );
  const progress = process.stderr.isTTY;
  let rounds = 0;
  for (let before = -1; fresh < count && fresh > before; rounds++) {
    before = fresh;
    // Halfway the other bundle.
    if (churn.upgrades === 0 && fresh >= count / 2) {
      await churn.pause();
      churn.upgrade();
      await resumeWhileDialled({ node, churn, random, homes });
    }
    await Promise.race([runRound({ node, churn, random, size, homes, number: rounds }), churn.failed]);
    if (progress) process.stderr.write(`\r${fresh} of ${count}`);
  }
  if (progress) process.stderr.write('\r\x1b[K');
  if (fresh < count)
    throw new Error(`of these cases, a round makes no new cgroup: --only ${[...only].join(',')}`);
  await churn.pause();
  if (churn.upgrades > 0 && node.agentVersion?.endsWith(NEXT_VERSION) !== true)
    throw new Error(`the agent was upgraded, and says to be ${node.agentVersion}`);
  return {
    account: await node.account(),
    agent: { starts: churn.starts, kills: churn.kills, upgrades: churn.upgrades },
    fresh,
    rounds,
    seed,
    seconds: Math.round((performance.now() - started) / 1000),
  };
}

async function main(options: Options): Promise<void> {
  const machine = { kernel: release(), cpus: cpus().length, node: process.version };
  console.log(`cgroute on Linux ${machine.kernel}, ${machine.cpus} CPUs\n`);
  const result = await run(options);
  console.log(`${tableText(result)}\n\n${verdictText(result)}`);
  if (options.json !== undefined)
    writeFileSync(options.json, `${JSON.stringify({ ...figures(result), machine }, null, 2)}\n`);
  process.exitCode = isClean(result.account) ? 0 : 3;
}

try {
  await main(parseOptions(process.argv.slice(2)));
} catch (error) {
  const isUsage =
    error instanceof UsageError ||
    (error as NodeJS.ErrnoException).code?.startsWith('ERR_PARSE_ARGS') === true;
  console.error(
    isUsage ? `leaktest: ${messageOf(error)}\n${USAGE}` : `leaktest: it could not run: ${messageOf(error)}`,
  );
  if (!isUsage && error instanceof Error && error.stack !== undefined) console.error(error.stack);
  process.exitCode = isUsage ? 2 : 1;
}

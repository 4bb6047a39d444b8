/**
 * The two rules that take a sidecar out of a pod's path, in the `nat` table of
 * that pod's network namespace, and nothing else of what is there.
 */
import { readIfThere } from '../boundary/presence.ts';
import { CgrouteError, errnoOf } from '../error.ts';
import { findProgram, runInNetns, type PodNetns, type Ran } from './pod-netns.ts';

/** `bypass`: packets that the pinned program picks. `short-circuit`: all. */
export type RuleKind = 'bypass' | 'short-circuit';

/** One of iptables' tools; its name with `-save` is the one that lists. */
export type Tool = `${'iptables' | 'ip6tables'}-${'nft' | 'legacy'}`;

/** The socket filter, by its pin, and something that tells its map from one of an earlier time. */
export interface FilterPin {
  readonly path: string;
  readonly mapId: number;
}

/** A rule that carries our comment. */
export interface OwnRule {
  readonly chain: Chain;
  /** From 1, within its chain. */
  readonly place: number;
  readonly kind: RuleKind;
  /** What follows `-A CHAIN`, made anew of what was understood. */
  readonly text: string;
}

export interface NatTable {
  readonly tool: Tool;
  /** The sidecar's chains are there. */
  readonly hasSidecar: boolean;
  readonly own: readonly OwnRule[];
}

export interface NatTables {
  readonly tables: readonly NatTable[];
  /** Tools that should have been asked and are not installed. */
  readonly missing: readonly Tool[];
}

const CHAINS = ['OUTPUT', 'PREROUTING'] as const;
type Chain = (typeof CHAINS)[number];

const COMMENT = 'cgroute';
/** Chains of Istio's init container and of its CNI plugin. */
const SIDECAR_CHAIN = /^:ISTIO_[A-Z_]+ /m;
const FAMILIES = [
  ['iptables', 'ip_tables_names'],
  ['ip6tables', 'ip6_tables_names'],
] as const;
/** Seconds that iptables waits for its lock. */
const WAIT = '5';
/** Tries to find the descriptor that a rule was made with, see {@link remove}. */
const MOST_DESCRIPTORS = 24;

/** The rule, as iptables-save writes it but for quotes. */
export function ruleText(kind: RuleKind, filter: FilterPin): string {
  return kind === 'bypass'
    ? bypassText(filter.path, String(filter.mapId))
    : `-m comment --comment ${COMMENT}:short-circuit -j RETURN`;
}

const bypassText = (path: string, mapId: string): string =>
  `-m bpf --object-pinned ${path} -m comment --comment ${COMMENT}:bypass:${mapId} -j RETURN`;

/** Reads what iptables-save printed. What a pod wrote there is never copied: a rule of ours is recognised whole or not at all. */
export function parseNat(tool: Tool, text: string): NatTable {
  const places = { OUTPUT: 0, PREROUTING: 0 };
  const own: OwnRule[] = [];
  for (const line of text.split('\n')) {
    const chain = CHAINS.find((name) => line.startsWith(`-A ${name} `));
    if (chain === undefined) continue;
    const place = ++places[chain];
    const rest = line.slice(`-A ${chain} `.length).trimEnd();
    const [, path, mapId] =
      /^-m bpf --object-pinned ([\w./-]+) -m comment --comment "?cgroute:bypass:(\d+)"? -j RETURN$/.exec(
        rest,
      ) ?? [];
    if (path !== undefined && mapId !== undefined)
      own.push({ chain, place, kind: 'bypass', text: bypassText(path, mapId) });
    else if (/^-m comment --comment "?cgroute:short-circuit"? -j RETURN$/.test(rest))
      own.push({
        chain,
        place,
        kind: 'short-circuit',
        text: `-m comment --comment ${COMMENT}:short-circuit -j RETURN`,
      });
  }
  return { tool, hasSidecar: SIDECAR_CHAIN.test(text), own };
}

/**
 * Both backends and both families, as far as they are in use.
 * @param pid a process in that namespace
 * @throws CgrouteError `EIPTABLES` with the tool's own words
 */
export async function readNat(netns: PodNetns, pid: number, procRoot = '/proc'): Promise<NatTables> {
  const tables: NatTable[] = [];
  const missing: Tool[] = [];
  for (const [family, names] of FAMILIES) {
    for (const backend of ['nft', 'legacy'] as const) {
      const tool: Tool = `${family}-${backend}`;
      // Listing a legacy table that isn't there would make it, with its hooks.
      if (backend === 'legacy' && !legacyTables(`${procRoot}/${pid}/net/${names}`).includes('nat')) continue;
      if (findProgram(`${tool}-save`) === undefined) missing.push(tool);
      else tables.push(parseNat(tool, await listed(netns, tool)));
    }
  }
  return { tables, missing };
}

async function listed(netns: PodNetns, tool: Tool): Promise<string> {
  const { code, stdout, stderr } = await runInNetns(netns, `${tool}-save`, ['-t', 'nat']);
  if (code === 0) return stdout;
  // A kernel without IPv6, say, has nothing to list.
  if (/table .*does not exist|not supported/i.test(stderr)) return '';
  throw failure(`${tool}-save`, code, stderr);
}

/** None where the module is not loaded, or the process has ended. @throws CgrouteError `EUNSEEN`: it is root's, in a user namespace that one's */
function legacyTables(file: string): string[] {
  try {
    return readIfThere(file)?.split('\n') ?? [];
  } catch (error) {
    if (errnoOf(error) === 'EINVAL') return []; // A process that has ended has no network any more.
    throw error;
  }
}

/**
 * Whether our rules are where they should be: first in both chains where a sidecar
 * is, and nowhere else.
 * @param text of {@link ruleText}; undefined for none
 */
export function isAsWanted({ hasSidecar, own }: NatTable, text: string | undefined): boolean {
  if (text === undefined || !hasSidecar) return own.length === 0;
  return (
    own.length === CHAINS.length &&
    CHAINS.every((chain) =>
      own.some((rule) => rule.chain === chain && rule.place === 1 && rule.text === text),
    )
  );
}

/**
 * Makes it so. Rules of another kind go when those wanted stand, so there is no
 * moment without any.
 * @throws CgrouteError `EIPTABLES`, and others of {@link runInNetns}
 */
export async function writeNat(netns: PodNetns, table: NatTable, wanted: string | undefined): Promise<void> {
  const text = table.hasSidecar ? wanted : undefined;
  // One that stands elsewhere goes first: iptables removes the first that is equal.
  const misplaced = CHAINS.flatMap((chain) => {
    const same = table.own.filter((rule) => rule.chain === chain && rule.text === text);
    return same.length === 1 && same[0]?.place === 1 ? [] : same;
  });
  for (const rule of misplaced) await remove(netns, table.tool, rule);
  const right = table.own.filter((rule) => rule.text === text && !misplaced.includes(rule));
  for (const chain of text === undefined ? [] : CHAINS) {
    if (right.some((rule) => rule.chain === chain)) continue;
    const { code, stderr } = await change(netns, table.tool, ['-I', chain, '1'], text ?? '');
    if (code !== 0) throw failure(table.tool, code, stderr);
  }
  for (const rule of table.own)
    if (!right.includes(rule) && !misplaced.includes(rule)) await remove(netns, table.tool, rule);
}

/** Takes all rules of ours out of a namespace, as far as that can be done. Never rejects. */
export async function removeNat(netns: PodNetns, pid: number, procRoot = '/proc'): Promise<void> {
  const { tables } = await readNat(netns, pid, procRoot).catch(() => ({ tables: [] }));
  for (const table of tables)
    if (!isAsWanted(table, undefined)) await writeNat(netns, table, undefined).catch(() => undefined);
}

/**
 * By what the rule says, so that it can be no other; a place may be another rule's
 * by now. The bpf match compares also the number of the descriptor that iptables
 * got for the program when the rule was made, which it never shows; by ours it is
 * the first that is tried.
 */
async function remove(netns: PodNetns, tool: Tool, { chain, kind, text }: OwnRule): Promise<void> {
  let last = '';
  for (let moreDescriptors = 0; moreDescriptors < MOST_DESCRIPTORS; moreDescriptors++) {
    const { code, stderr } = await change(netns, tool, ['-D', chain], text, moreDescriptors);
    if (code === 0) return;
    last = stderr;
    // Anything but "there is no such rule" has nothing to do with the number.
    if (kind !== 'bypass' || code !== 1) throw failure(tool, code, stderr);
  }
  throw failure(tool, 1, last);
}

function change(
  netns: PodNetns,
  tool: Tool,
  what: readonly string[],
  text: string,
  moreDescriptors = 0,
): Promise<Ran> {
  return runInNetns(netns, tool, ['-w', WAIT, '-t', 'nat', ...what, ...text.split(' ')], moreDescriptors);
}

function failure(program: string, code: number, stderr: string): CgrouteError {
  const [first = ''] = stderr.trim().split('\n');
  const hint =
    /permission denied|not permitted/i.test(first) && program.includes('-legacy')
      ? '; legacy tables take CAP_NET_RAW, too'
      : '';
  const why = /lock file/.test(first)
    ? `${first.slice(0, 200)}; the agent needs a lock file that it can write, in the place of /run/xtables.lock another by XTABLES_LOCKFILE`
    : /xtables lock/.test(stderr)
      ? `another program has held its lock for ${WAIT} s`
      : `${first.slice(0, 200) || 'it did not say why'}${hint}`;
  return new CgrouteError('EIPTABLES', `${program} failed with exit code ${code}: ${why}`);
}

/** The two iptables backends of this host, and which of them hold rules. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { readIfThere } from '../boundary/presence.ts';
import { CgrouteError } from '../error.ts';

export interface IptablesBackend {
  /** The tool: `iptables-nft`, `ip6tables-legacy`. */
  readonly tool: string;
  /** Rules in its `nat` table, in this process's network namespace; or why they cannot be counted. */
  readonly rules: number | 'missing' | { readonly failed: string };
}

const TIMEOUT_MS = 2_000;
const run = promisify(execFile);

/** Counts the rules; nothing is changed, and no kernel module is loaded for it. Never rejects. */
export async function iptablesBackends(procRoot = '/proc'): Promise<IptablesBackend[]> {
  return Promise.all(
    ['iptables', 'ip6tables'].flatMap((family) => [
      countRules(`${family}-nft`, procRoot),
      countRules(`${family}-legacy`, procRoot),
    ]),
  );
}

async function countRules(tool: string, procRoot: string): Promise<IptablesBackend> {
  try {
    // Listing a legacy table that isn't there would make it, with its hooks.
    if (tool.endsWith('-legacy') && !legacyTables(tool, procRoot).includes('nat')) {
      await run(tool, ['--version'], options());
      return { tool, rules: 0 };
    }
    const { stdout } = await run(tool, ['-t', 'nat', '-S'], options());
    return { tool, rules: stdout.split('\n').filter((line) => line.startsWith('-A')).length };
  } catch (error) {
    if (error instanceof CgrouteError) return { tool, rules: { failed: error.message } };
    const { code, killed, stderr } = error as { code?: unknown; killed?: boolean; stderr?: string };
    if (code === 'ENOENT') return { tool, rules: 'missing' };
    const why = killed === true ? `no answer within ${TIMEOUT_MS / 1000} s` : stderr?.trim().split('\n')[0];
    return { tool, rules: { failed: why || `exit code ${String(code)}` } };
  }
}

/** The tools often are where a plain user's PATH doesn't lead. */
const options = () =>
  ({
    timeout: TIMEOUT_MS,
    encoding: 'utf8',
    env: { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` },
  }) as const;

/** Tables in use, one name a line; the file is there when the module is. @throws CgrouteError `EUNSEEN`: not everybody may read it */
function legacyTables(tool: string, procRoot: string): string[] {
  const file = `${procRoot}/self/net/${tool.startsWith('ip6') ? 'ip6' : 'ip'}_tables_names`;
  return readIfThere(file)?.split('\n') ?? [];
}

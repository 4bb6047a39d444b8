/** Where programs of any cgroute are attached on this host, its own and another's. */
import { closeSync, readFileSync, readdirSync, type Dirent } from 'node:fs';
import { libbpf } from '../boundary/libbpf.ts';
import { errnoValue } from '../boundary/libc.ts';
import { parseLinkPin } from '../pins/link-pin.ts';
import { linkFacts, programFacts, withPin } from '../pins/pinned-object.ts';
import { isOurName } from '../programs/programs.ts';

/** A link that holds a program at a cgroup. */
export interface CgrouteLink {
  readonly programId: number;
  readonly cgroupId: bigint;
}

/** So deep in a BPF file system a cgroute's `v1/links` is looked for. */
const DEEPEST = 6;

/**
 * All of them, by the kernel's own list, which it shows to CAP_SYS_ADMIN, whatever
 * cgroup and mount namespace they belong to. Without that capability, those whose
 * pins are in a BPF file system that is mounted here.
 */
export function cgrouteLinks(procRoot: string): CgrouteLink[] {
  return listedLinks() ?? pinnedLinksOf(bpffsMounts(procRoot));
}

/** Undefined without the privilege. */
function listedLinks(): CgrouteLink[] | undefined {
  const lib = libbpf();
  const links: CgrouteLink[] = [];
  const next = Buffer.alloc(4);
  let result = lib.linkNextId(0, next);
  for (; result === 0; result = lib.linkNextId(next.readUInt32LE(), next)) {
    const fd = lib.linkFdById(next.readUInt32LE());
    if (fd < 0) continue; // gone meanwhile
    try {
      const link = linkFacts(fd);
      const name =
        link.type === 'cgroup' && link.cgroupId !== 0n ? programFacts(link.programId)?.name : undefined;
      if (name !== undefined && isOurName(name)) links.push(link);
    } finally {
      closeSync(fd);
    }
  }
  return result === -errnoValue('ENOENT') ? links : undefined;
}

function pinnedLinksOf(mounts: readonly string[]): CgrouteLink[] {
  const links = mounts
    .flatMap((mount) => linkDirectoriesIn(mount, 0))
    .flatMap((directory) =>
      readdirSync(directory)
        .filter((pin) => isOurName(parseLinkPin(pin)?.program ?? ''))
        .map((pin) =>
          withPin(`${directory}/${pin}`, (kind, fd) => (kind === 'link' ? linkFacts(fd) : undefined)),
        ),
    );
  return links.filter((link) => link !== undefined).filter(({ cgroupId }) => cgroupId !== 0n);
}

/** Directories `v1/links` of any version; what may not be looked into has none. */
function linkDirectoriesIn(directory: string, depth: number): string[] {
  let entries: Dirent[];
  try {
    entries = readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  } catch {
    return [];
  }
  return entries.flatMap(({ name }) => {
    const path = `${directory}/${name}`;
    if (name === 'links' && /\/v\d+$/.test(directory)) return [path];
    return depth < DEEPEST ? linkDirectoriesIn(path, depth + 1) : [];
  });
}

/** Mount points of type bpf, by proc_pid_mountinfo(5). */
function bpffsMounts(procRoot: string): string[] {
  let text: string;
  try {
    text = readFileSync(`${procRoot}/self/mountinfo`, 'utf8');
  } catch {
    return [];
  }
  return text.split('\n').flatMap((line) => {
    const [left = '', right = ''] = line.split(' - ', 2);
    const mountPoint = left.split(' ')[4];
    return right.startsWith('bpf ') && mountPoint !== undefined ? [mountPoint] : [];
  });
}

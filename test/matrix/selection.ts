/**
 * What runs in a guest: all test files of test/kernel, but for those that say
 * nothing of a kernel; without `--all` those alone that are about what the programs
 * do. The agent itself is started in no guest then.
 */
import { readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { GUEST_PROJECT } from './image.ts';

const directory = resolve(import.meta.dirname, '../kernel');

export interface LeftOut {
  readonly file: string;
  readonly why: string;
}

/** File to the reason, for people. */
const LEFT_OUT: Readonly<Record<string, string>> = {
  'image.test.ts': "it builds a container image, of Debian's packages; no kernel has a part in it",
  'image-sidecar.test.ts':
    'it builds that image, too; what the image calls is tried by bypass.test.ts and pod-netns.test.ts',
  'harness.test.ts': 'it tests the tools of the tests, which the others use here, too',
  'old-release.test.ts': 'it builds release 0.1 out of the history, which a guest has not',
};

/**
 * File to the reason why only `--all` runs it. A file that is not named here is one
 * about what the programs do, on which a kernel's version has a say.
 */
export const ONLY_WITH_ALL: Readonly<Record<string, string>> = {
  'capabilities.test.ts': 'it starts the agent in a container seventeen times, which takes long in emulation',
  'capacity.test.ts': 'it fills maps, which is the same on every kernel',
  'entry-reuse.test.ts': 'it is a race of millions of connections, for a machine that is fast',
  'counter-handover.test.ts': 'it is about what the agent does with pins',
  'flood.test.ts': 'it floods the maps with connections, which takes very long in emulation',
  'harness-haproxy.test.ts': 'it tests a tool of the tests',
  'harness-inpod-proxy.test.ts': 'it tests a tool of the tests',
  'harness-inpod-zds.test.ts': 'it tests a tool of the tests',
  'harness-runc.test.ts': 'it tests a tool of the tests',
  'kernel-threads.test.ts': 'it is about MPTCP, as mptcp.test.ts is',
  'listeners.test.ts': 'it is about /proc',
  'map-count.test.ts': 'it is about what the agent reads of maps',
  'mptcp.test.ts': 'it did not end in eight minutes of emulation on 7.2, and nobody knows why yet',
  'pid-reuse.test.ts': 'it is about /proc',
  'pins.test.ts': 'it is about what the agent does with pins',
  'pod-netns.test.ts': 'it is about network namespaces and iptables',
  'proxy-moved.test.ts': 'it is about what the agent writes into maps',
  'quota.test.ts': 'it fills maps, which is the same on every kernel',
  'sock-destroy.test.ts': 'it is about netlink',
  'watcher-host.test.ts': 'it is about the watchers in user space',
  'watcher-namespaces.test.ts': 'it is about the watchers in user space',
  'watcher-proc-connector.test.ts': 'it is about netlink',
  'watcher-renewal.test.ts': 'it is about inotify',
  'watcher-tree.test.ts': 'it is about cgroupfs',
  'zds-server.test.ts': 'it is about Unix sockets',
};

/** So many new cgroups the short leak test makes, at least. */
export const LEAK_CGROUPS = 150;

/** An emulated machine beside another on two processors. */
const SLOWDOWN = 20;

export interface Selection {
  /** From test/: `kernel/connect.test.ts`. */
  readonly files: readonly string[];
  readonly leftOut: readonly LeftOut[];
  /** Whether the leak test is to run. */
  readonly leak: boolean;
}

/**
 * @param words parts of files' names, or `leak`; undefined for all, or without
 *   `isAll` for those about programs
 */
export function selectFiles(words: readonly string[] | undefined, isAll: boolean): Selection {
  const all = readdirSync(directory)
    .filter((name) => name.endsWith('.test.ts'))
    .sort();
  const wanted = all.filter(
    (name) => words?.some((word) => name.includes(word)) ?? (isAll || ONLY_WITH_ALL[name] === undefined),
  );
  const leftOut = wanted.flatMap((file) => {
    const why = LEFT_OUT[file];
    return why === undefined ? [] : [{ file: `kernel/${file}`, why }];
  });
  return {
    files: wanted.filter((name) => LEFT_OUT[name] === undefined).map((name) => `kernel/${name}`),
    leftOut,
    leak: words?.includes('leak') ?? isAll,
  };
}

/** What the guest's init runs. */
export function guestScript(files: readonly string[], leakCgroups: number | undefined): string {
  return `export TERM=dumb CGROUTE_TEST_SLOWDOWN=${SLOWDOWN} NODE_OPTIONS=--import=/guest/ready-made.mjs PATH=${GUEST_PROJECT}/node_modules/.bin:$PATH
cd ${GUEST_PROJECT}
exec node test/matrix/inside.ts ${leakCgroups === undefined ? '' : `--leak ${leakCgroups} `}${files.join(' ')}
`;
}

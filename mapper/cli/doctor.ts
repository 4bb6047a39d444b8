/** The verb doctor: is this host fit for cgroute, and what to do where it isn't. */
import { probeFeatures, type ProbedFeature } from '../../native/survey/capability.ts';
import { ownPrograms, type PinnedPrograms } from '../../native/survey/cgroup-query.ts';
import { messageOf } from '../../native/error.ts';
import { iptablesBackends } from '../../native/survey/iptables.ts';
import { libbpf } from '../../native/boundary/libbpf.ts';
import { cgroupHooks } from '../../native/programs/hooks.ts';
import { hasPinDirectory, PIN_VERSION, pinnedVersions } from '../../native/pins/pin-directory.ts';
import { openProcConnector } from '../../native/netlink/proc-connector.ts';
import { effectiveCapabilities, hostNamespaces } from '../../native/boundary/privilege.ts';
import { findCgroupMount, realCgroupRoot } from '../../watcher/host.ts';
import { capabilityLines, featureLines, findPodTrees, hookLines } from './doctor-bpf.ts';
import {
  bpffsLine,
  cgroupLine,
  iptablesLines,
  kernelLine,
  lockedMemoryLines,
  memoryLine,
  namespaceLines,
  settingLines,
} from './doctor-host.ts';
import { fail, ok, warn, type DoctorLine, type DoctorPlaces } from './doctor-line.ts';

export type { DoctorLine, DoctorPlaces } from './doctor-line.ts';

/**
 * Looks at everything, changes nothing, never rejects; a check that goes wrong
 * is a line that says so. Works without privileges and without libbpf.
 */
export async function runDoctor(places: DoctorPlaces): Promise<DoctorLine[]> {
  const { procRoot } = places;
  const namespaces = hostNamespaces(procRoot);
  const [events, backends] = await Promise.all([
    guarded('process events', processEvents),
    guarded('iptables', async () => iptablesLines(await iptablesBackends(procRoot))),
  ]);
  const cgroup = await guarded('cgroup2', () => [cgroupLine(places)]);
  const library = libraryLine();
  const mayAskHooks = library.state === 'ok' && cgroup.every(({ state }) => state === 'ok');
  const features = library.state === 'ok' ? featuresOrNone() : [];
  const load = features.some(
    ({ name, support }) => name === cgroupHooks.connect4.section && support !== 'unknown',
  );
  return [
    ...(await guarded('kernel', () => [kernelLine()])),
    ...cgroup,
    ...(await guarded('bpffs', () => [bpffsLine(places), ...pinLines(places)])),
    ...(await guarded('settings', () => settingLines(places))),
    ...(await guarded('memory', () => [
      memoryLine(places),
      ...lockedMemoryLines(places, effectiveCapabilities(procRoot)),
    ])),
    ...(await guarded('capabilities', () =>
      capabilityLines(effectiveCapabilities(procRoot), {
        load: load || features.length === 0,
        namespaces: namespaces.net !== undefined,
      }),
    )),
    ...(await guarded('namespaces', () => namespaceLines(namespaces))),
    ...events,
    library,
    ...(await guarded('BPF features', () => featureLines(features))),
    ...(mayAskHooks ? await guarded('hooks', () => hooks(places)) : []),
    ...backends,
  ];
}

async function guarded(
  check: string,
  look: () => readonly DoctorLine[] | Promise<readonly DoctorLine[]>,
): Promise<readonly DoctorLine[]> {
  try {
    return await look();
  } catch (error) {
    return [fail(check, `cannot be looked at: ${messageOf(error)}`, 'run doctor as root')];
  }
}

function libraryLine(): DoctorLine {
  try {
    return ok('libbpf', libbpf().versionString().replace(/^v/, ''));
  } catch (error) {
    return fail('libbpf', messageOf(error), 'install the package libbpf1 (Debian) or libbpf (Fedora)');
  }
}

function featuresOrNone(): readonly ProbedFeature[] {
  try {
    return probeFeatures();
  } catch {
    return []; // The line about libbpf says why.
  }
}

async function processEvents(): Promise<DoctorLine[]> {
  try {
    const connector = await openProcConnector({ onExec: () => {}, onLost: () => {}, onBroken: () => {} });
    connector[Symbol.dispose]();
    return [ok('process events', 'the kernel tells of every program that is started')];
  } catch (error) {
    const [what, remedy] = messageOf(error).split('; ', 2);
    return [
      warn(
        'process events',
        `${what ?? ''}: new processes are found by the cgroup watch and the sweep, later`,
        remedy ?? 'run as root',
      ),
    ];
  }
}

function hooks(places: DoctorPlaces): readonly DoctorLine[] {
  const mount = findCgroupMount(places.procRoot, places.cgroupRoot);
  const cgroupRoot = realCgroupRoot(places.cgroupRoot ?? mount.mountPoint);
  const { trees: podTrees, unseen } = findPodTrees(cgroupRoot);
  return [
    ...unseen.map((directory) =>
      warn(
        'hooks',
        `${directory} may not be listed, so programs further down are not looked for`,
        'run doctor as root',
      ),
    ),
    ...hookLines({ cgroupRoot, mountPoint: mount.mountPoint, podTrees }, ownOrNone(places)),
  ];
}

function ownOrNone({ bpffsRoot }: DoctorPlaces): PinnedPrograms {
  try {
    return ownPrograms(bpffsRoot);
  } catch {
    return new Map(); // The line about bpffs says why.
  }
}

/** Another version's pins, which the next start takes over; nothing to say of this version's own. */
function pinLines({ bpffsRoot }: DoctorPlaces): readonly DoctorLine[] {
  let versions: readonly string[];
  try {
    versions = hasPinDirectory(bpffsRoot) ? pinnedVersions(bpffsRoot) : [];
  } catch {
    return []; // The line about bpffs says why.
  }
  const others = versions.filter((version) => version !== PIN_VERSION);
  if (others.length === 0) return [];
  if (versions.length === 1)
    return [
      ok(
        'pins',
        `version ${others.join()} of the pins is there; an agent of this version, ${PIN_VERSION}, takes over from it`,
      ),
    ];
  return [
    warn(
      'pins',
      `versions ${versions.join(' and ')} of the pins are there: taking over has not come to its end`,
      'start the agent',
    ),
  ];
}

/** 0 when all is fine or there are warnings only, 3 when something fails. */
export function doctorExitCode(lines: readonly DoctorLine[]): 0 | 3 {
  return lines.some(({ state }) => state === 'fail') ? 3 : 0;
}

const MARKS = { ok: '✓', warn: '!', fail: '✗' } as const;

/** For people: a mark, the check, what was found, and the remedy in a line below. */
export function doctorText(lines: readonly DoctorLine[]): string {
  const width = Math.max(0, ...lines.map(({ check }) => check.length));
  const count = (state: DoctorLine['state']): number => lines.filter((line) => line.state === state).length;
  const failed = count('fail');
  const warnings = count('warn');
  const rows = lines.flatMap(({ check, state, detail, remedy }) => [
    `${MARKS[state]} ${check.padEnd(width)}  ${detail}`,
    ...(remedy === undefined ? [] : [`  ${' '.repeat(width)}  -> ${remedy}`]),
  ]);
  const tail = warnings === 0 ? '' : `, ${warnings} ${warnings === 1 ? 'warning' : 'warnings'}`;
  const verdict =
    failed === 0
      ? `this host is fit for cgroute${tail}`
      : `this host is not fit for cgroute: ${failed} ${failed === 1 ? 'check fails' : 'checks fail'}${tail}`;
  return [...rows, '', verdict, ''].join('\n');
}

/** What the kernel's programs add to mkdir() and rmdir() of a cgroup, by its own statistics. */
import { mkdirSync, rmdirSync } from 'node:fs';
import { newUid } from '../../deploy/stage/pod-cgroup.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { openTestPlane } from '../kernel/data-plane.ts';
import { attachedPrograms, difference, enableStatistics } from './program-statistics.ts';
import { median } from './statistics.ts';

/** Nanoseconds a call. */
export interface IdentityFigures {
  /** A pod's cgroup where kubelets put it, whose pod is known. */
  readonly podNs: number;
  /** The same of a pod that is not. */
  readonly unknownNs: number;
  /** A container's below it. */
  readonly containerNs: number;
  /** A service's, right below the root's branches. */
  readonly hostNs: number;
  readonly rmdirNs: number;
}

const SLICE = '/kubepods.slice/kubepods-burstable.slice';
const podPath = (uid: string): string => `${SLICE}/kubepods-burstable-pod${uid.replaceAll('-', '_')}.slice`;

/** No agent runs, so that nothing but the programs is measured. */
export async function benchIdentity(rounds: number, count: number): Promise<IdentityFigures> {
  await using sandbox = await makeSandbox('bench-mkdir');
  using plane = openTestPlane(sandbox);
  if (!plane.plane.attachIdentity())
    throw new Error(`this kernel refuses the programs: ${plane.plane.notes.join('; ')}`);
  using _statistics = enableStatistics();
  using programs = attachedPrograms(plane.bpffsRoot);
  mkdirSync(`${sandbox.cgroupRoot}${SLICE}`, { recursive: true });
  mkdirSync(`${sandbox.cgroupRoot}/system.slice`);

  const removed: number[] = [];
  function once(paths: readonly string[]): number {
    const before = programs.runTimes();
    for (const path of paths) mkdirSync(`${sandbox.cgroupRoot}${path}`);
    const made = difference(before, programs.runTimes()).get('cgroup_mkdir');
    // Others on this machine may make cgroups, too; the program is called for each.
    if (made === undefined || made.count < paths.length)
      throw new Error('the program cgroup_mkdir was not called for each mkdir()');
    return made.ns / made.count;
  }
  function remove(paths: readonly string[]): void {
    const before = programs.runTimes();
    for (const path of paths) rmdirSync(`${sandbox.cgroupRoot}${path}`);
    const gone = difference(before, programs.runTimes()).get('cgroup_rmdir');
    if (gone === undefined) throw new Error('the program cgroup_rmdir was not called');
    removed.push(gone.ns / gone.count);
  }

  const figures = {
    pod: [] as number[],
    unknown: [] as number[],
    container: [] as number[],
    host: [] as number[],
  };
  for (let round = 0; round < rounds; round++) {
    const uids = Array.from({ length: count }, newUid);
    for (const uid of uids) {
      plane.plane.maps.pods.set(
        { text: uid },
        {
          slot: 1,
          isInMesh: 1,
          namespaceMode: 0,
          flags: 1,
          detectedFlags: 0xfd,
          ip4: new Uint8Array(16),
          ip6: new Uint8Array(16),
          proxyMode: 0,
          netns: 0n,
          uid,
          verdict: 'in',
          reason: 'namespace-label',
          podNamespace: 'bench',
          podName: 'pod',
          serviceAccount: '',
        },
      );
    }
    const known = uids.map(podPath);
    const containers = known.map((path) => `${path}/cri-containerd-${'c'.repeat(64)}.scope`);
    const unknown = uids.map(() => podPath(newUid()));
    const services = uids.map((_, n) => `/system.slice/service-${n}.service`);
    figures.pod.push(once(known));
    figures.container.push(once(containers));
    figures.unknown.push(once(unknown));
    figures.host.push(once(services));
    for (const paths of [services, unknown, containers, known]) remove(paths);
    for (const uid of uids) plane.plane.maps.pods.delete({ text: uid });
  }
  return {
    podNs: median(figures.pod),
    unknownNs: median(figures.unknown),
    containerNs: median(figures.container),
    hostNs: median(figures.host),
    rmdirNs: median(removed),
  };
}

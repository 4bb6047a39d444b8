/** Metrics of pods and their cgroups: what should be so, and what the kernel's maps say. */
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import type { Verdict } from '../decisions/decision.ts';
import { SHARED_SLOT } from '../maps/pod-slots.ts';
import { by, one, type MetricOf, type Sample } from './metric-source.ts';

/** A pod that the source knows, and what it should have now. */
export interface IntendedPod {
  readonly uid: string;
  readonly verdict: Verdict;
  /** By its phase. */
  readonly isRunning: boolean;
}

export interface PodFigures {
  readonly maps: Pick<PinnedMaps, 'cgroups' | 'pods'>;
  intended(): Iterable<IntendedPod>;
  /** Pods whose entries could not be written. */
  failedPods(): number;
}

const VERDICTS: readonly string[] = ['in', 'out', 'bypass'] satisfies Verdict[];

function byVerdict(verdicts: Iterable<string>): Sample[] {
  const counts = new Map(VERDICTS.map((verdict) => [verdict, 0]));
  for (const verdict of verdicts) counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
  return by('verdict', counts);
}

/** Pods with an entry, and with a cgroup's entry that leads to it: the programs act on their connections. Verdict by UID. */
function mappedVerdicts({ maps }: PodFigures): Map<string, string> {
  const slots = new Set(maps.cgroups.entries().map(([, { slot }]) => slot));
  const infos = maps.pods.entries().filter(([, { slot }]) => slot !== SHARED_SLOT && slots.has(slot));
  return new Map(infos.map(([, { uid, verdict }]) => [uid, verdict]));
}

function unmappedVerdicts(pods: PodFigures): Verdict[] {
  const mapped = mappedVerdicts(pods);
  return [...pods.intended()]
    .filter(({ uid, verdict, isRunning }) => isRunning && mapped.get(uid) !== verdict)
    .map(({ verdict }) => verdict);
}

export const podMetrics: readonly MetricOf<PodFigures>[] = [
  {
    name: 'cgroute_pods_intended',
    type: 'gauge',
    labels: ['verdict'],
    help: 'Pods of this node by the verdict that they should have.',
    samples: ({ intended }) => byVerdict([...intended()].map(({ verdict }) => verdict)),
  },
  {
    name: 'cgroute_pods_mapped',
    type: 'gauge',
    labels: ['verdict'],
    help: 'Pods with a cgroup in the maps of the kernel, by the verdict that stands there. Fewer than intended: pods that do not run yet, or that could not be written.',
    samples: (pods) => byVerdict(mappedVerdicts(pods).values()),
  },
  {
    name: 'cgroute_pods_unmapped',
    type: 'gauge',
    labels: ['verdict'],
    help: 'Pods in phase Running, by the verdict that they should have, without a cgroup in the maps of the kernel or with another verdict there.',
    samples: (pods) => byVerdict(unmappedVerdicts(pods)),
  },
  {
    name: 'cgroute_pods_failed',
    type: 'gauge',
    labels: [],
    help: 'Pods of which something could not be written to the maps of the kernel; it is tried again at each sweep.',
    samples: ({ failedPods }) => one(failedPods()),
  },
];

export interface CgroupFigures {
  /** Cgroups of pods. */
  readonly tracked: number;
  /** When each of those that belong to pods that nobody knows was seen, of `performance.now()`. */
  readonly unresolvedSince: readonly number[];
}

export const cgroupMetrics: readonly MetricOf<CgroupFigures>[] = [
  {
    name: 'cgroute_cgroups_tracked',
    type: 'gauge',
    labels: [],
    help: 'Cgroups of pods below the watched root.',
    samples: ({ tracked }) => one(tracked),
  },
  {
    name: 'cgroute_cgroups_unresolved',
    type: 'gauge',
    labels: [],
    help: 'Those among them whose pod nobody knows.',
    samples: ({ unresolvedSince }) => one(unresolvedSince.length),
  },
  {
    name: 'cgroute_cgroups_unresolved_age_seconds',
    type: 'gauge',
    labels: [],
    help: 'Seconds since the agent saw the oldest of those; 0 without any.',
    samples: ({ unresolvedSince }) => {
      const now = performance.now();
      return one(unresolvedSince.reduce((age, at) => Math.max(age, (now - at) / 1000), 0));
    },
  },
];

/** Metrics of the kernel's maps: how full they are, and what could not be written. */
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { overflowEntries } from '../connections/connection-room.ts';
import { by, OTHER_ERRNO, type MetricOf } from './metric-source.ts';

/** Arrays are always full, so these are the others. */
const COUNTED_MAPS = [
  'cgroups',
  'pods',
  'podAddresses',
  'connections',
  'overflowConnections',
  'originals',
] as const;

export type CountedMaps = Pick<PinnedMaps, (typeof COUNTED_MAPS)[number] | 'overflowCount'>;

/** The kernel keeps count of what the large map holds, and the others are counted in a few calls, so a scrape costs little when they are full. */
function entryCount(maps: CountedMaps, key: (typeof COUNTED_MAPS)[number]): number {
  return key === 'overflowConnections' ? overflowEntries(maps) : maps[key].count();
}

export const mapMetrics: readonly MetricOf<CountedMaps>[] = [
  {
    name: 'cgroute_map_entries',
    type: 'gauge',
    labels: ['map'],
    help: 'Entries of a map of the kernel. `connection_map` is small and may be full: what finds no room there goes to `connection_overflow_map`.',
    samples: (maps) =>
      by(
        'map',
        COUNTED_MAPS.map((key) => [maps[key].name, entryCount(maps, key)] as const),
      ),
  },
  {
    name: 'cgroute_map_capacity',
    type: 'gauge',
    labels: ['map'],
    help: 'Entries that a map of the kernel has room for.',
    samples: (maps) =>
      by(
        'map',
        COUNTED_MAPS.map((key) => [maps[key].name, maps[key].info.maxEntries] as const),
      ),
  },
];

// A counter that is first seen at 1 has not increased, as Prometheus reads it: what is to be expected is there from the start, at zero.
const NO_ERRORS = ['E2BIG', 'ENOMEM', 'EPERM', OTHER_ERRNO].map((errno) => [errno, 0] as const);

/** Failures by errno, since the agent's start. */
export const mapErrorMetrics: readonly MetricOf<ReadonlyMap<string, number>>[] = [
  {
    name: 'cgroute_map_errors_total',
    type: 'counter',
    labels: ['errno'],
    help: 'Failures to bring maps and programs up to date, by errno; `other` for one without.',
    samples: (errors) => by('errno', new Map([...NO_ERRORS, ...errors])),
  },
];

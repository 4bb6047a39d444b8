/** The pinned maps of this version or another, opened with the types that the table of maps has. */
import { checked, libbpf } from '../boundary/libbpf.ts';
import { BpfMap } from '../bpf/bpf-map.ts';
import { isThere } from '../boundary/presence.ts';
import { CgrouteError } from '../error.ts';
import type { Codec } from '../layout/codec.ts';
import { foreignCodec } from '../layout/foreign-codec.ts';
import { hasPinDirectory, PIN_VERSION, pinDirectories, type PinDirectory } from '../pins/pin-directory.ts';
import { mapFacts } from '../pins/pinned-object.ts';
import { maps, mapTypes, type EntryMap, type KeyOf, type OwnMap, type ValueOf } from '../programs/maps.ts';
import { OVERFLOW_BIAS } from './map-migration.ts';
import { shapeAt } from './map-shapes.ts';
import { isServing } from './version-handover.ts';

/** Typed handles on the pinned maps, by their names in the table of maps; the agent may be down. */
export type PinnedMaps = { readonly [H in EntryMap]: BpfMap<KeyOf<H>, ValueOf<H>> } & Disposable;

export interface MapShares {
  /** Of `connection_overflow_map`. */
  readonly connections: number;
  /** Of `original_dst_map`. */
  readonly originals: number;
}

/** In the place of one that another version had not. */
function emptyMap<K, V>(name: string, key: Codec<K>, value: Codec<V>): BpfMap<K, V> {
  return new BpfMap(
    name,
    checked(
      libbpf().mapCreate(mapTypes.hash.id, null, key.size, value.size, 1, null),
      'bpf_map_create',
      name,
    ),
    key,
    value,
  );
}

/** @throws CgrouteError `EBPF`, `ELAYOUT`, `EPINLAYOUT` */
export function openMaps({ maps: directory, version }: PinDirectory): PinnedMaps {
  const open = <K, V>(name: string, key: Codec<K>, value: Codec<V>): BpfMap<K, V> => {
    const path = `${directory}/${name}`;
    if (version !== PIN_VERSION && !isThere(path)) return emptyMap(name, key, value);
    const fd = checked(libbpf().objGet(path), 'bpf_obj_get', path);
    if (version === PIN_VERSION) return new BpfMap(name, fd, key, value);
    const shape = shapeAt(path, mapFacts(fd, name));
    if (shape === undefined)
      throw new CgrouteError(
        'EPINLAYOUT',
        `the layout of ${path}, which is another version's, cannot be read: expected CAP_SYS_ADMIN; run as root`,
      );
    return new BpfMap(name, fd, foreignCodec(key, shape.key), foreignCodec(value, shape.value));
  };
  const opened = (Object.entries(maps) as [string, OwnMap][]).flatMap(([handle, { name, key, value }]) =>
    key === undefined || value === undefined ? [] : [[handle, open(name, key, value)] as const],
  );
  return {
    // Each by the codecs of its row, which the type says once more.
    ...(Object.fromEntries(opened) as unknown as Omit<PinnedMaps, typeof Symbol.dispose>),
    [Symbol.dispose]() {
      for (const [, map] of opened) map[Symbol.dispose]();
    },
  };
}

/**
 * This version's or, where none is pinned, another's, read by the layouts that the
 * kernel knows of them. Undefined when nothing of cgroute is pinned below `bpffsRoot`.
 * @throws CgrouteError when they cannot be read; `EPINS`, `EBPFFS` when it cannot be told whether they are there
 */
export function openPinnedMaps(bpffsRoot: string): PinnedMaps | undefined {
  if (!hasPinDirectory(bpffsRoot)) return undefined;
  const found = pinDirectories(bpffsRoot).find(({ maps: directory }) =>
    isThere(`${directory}/${maps.agent.name}`),
  );
  return found === undefined ? undefined : openMaps(found);
}

/** Whether anything that is pinned, of whichever version, redirects. */
export const isRedirecting = (bpffsRoot: string): boolean => pinDirectories(bpffsRoot).some(isServing);

/** After a handover the count is too high; it is made exact when nothing is counted, and the kernel is far from doing so. */
export function settleOverflow({
  connections,
  overflowConnections,
  overflowCount,
}: Pick<PinnedMaps, 'connections' | 'overflowConnections' | 'overflowCount'>): void {
  const isOff = (overflowCount.get(0) ?? 0n) >= OVERFLOW_BIAS / 2n;
  if (!isOff || !overflowConnections.isEmpty || connections.keys().length > connections.info.maxEntries / 2)
    return;
  overflowCount.set(0, 0n);
}

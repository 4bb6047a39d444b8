/** The end of what is pinned: first what redirects, then what brings connections to the proxy. */
import { closeSync, readdirSync, rmdirSync, unlinkSync } from 'node:fs';
import { basename } from 'node:path';
import { mapInfo } from '../bpf/bpf-map.ts';
import { findBypassFilter, unpinBypassFilter } from './bypass-filter.ts';
import type { FilterPin } from '../netns/iptables-rules.ts';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { isThere } from '../boundary/presence.ts';
import {
  hasPinDirectory,
  IN_FLIGHT_MS,
  PIN_VERSION,
  pinDirectories,
  pinDirectory,
  pinsIn,
  removeVersion,
} from '../pins/pin-directory.ts';
import { maps } from '../programs/maps.ts';
import { redirects } from '../programs/programs.ts';

/** What the filter of sidecars reads; it is known by the first. */
const FILTER_MAP = maps.bypass4.name;
const FILTER_MAPS: readonly string[] = [maps.bypass4.name, maps.bypass6.name];

/**
 * Removes what redirects, of any version, and waits until the connections that are
 * under way have arrived. Returns the number of pins removed.
 * @throws CgrouteError `EBPFFS` when the directory is not on a BPF filesystem, `EPINS` when it cannot be looked into
 */
export function stopRedirecting(bpffsRoot: string): number {
  if (!hasPinDirectory(bpffsRoot)) return 0;
  const redirecting = pinDirectories(bpffsRoot).flatMap(({ links }) => pinsIn(links).filter(redirects));
  for (const pin of redirecting) unlinkSync(pin);
  if (redirecting.length > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, IN_FLIGHT_MS);
  return redirecting.length;
}

/**
 * Removes all that cgroute pinned, of any version: {@link stopRedirecting}, then the
 * rest. What others keep beside it stays. Returns the number of pins removed.
 * @param keepsFilter leaves the filter of sidecars, which rules still name
 * @throws CgrouteError `EBPFFS` when the directory is not on a BPF filesystem, `EPINS` when it cannot be looked into
 */
export function removePins(bpffsRoot: string, keepsFilter = false): number {
  if (!hasPinDirectory(bpffsRoot)) return 0;
  let removed = stopRedirecting(bpffsRoot);
  for (const directory of pinDirectories(bpffsRoot)) {
    const filter = `${directory.maps}/${FILTER_MAP}`;
    if (!keepsFilter && isThere(filter)) removed += unpinBypassFilter(bpffsRoot, pinnedMapId(filter));
    removed += removeVersion(directory, (pin) => keepsFilter && FILTER_MAPS.includes(basename(pin)));
  }
  if (readdirSync(bpffsRoot).length === 0) rmdirSync(bpffsRoot);
  return removed;
}

/**
 * After a start that failed: what it made goes, what was there before stays.
 * @param before what `pinnedVersions` said at its beginning
 */
export function undoPins(bpffsRoot: string, before: readonly string[]): void {
  if (before.includes(PIN_VERSION)) return;
  const own = pinDirectory(bpffsRoot);
  if (before.length === 0) removePins(bpffsRoot);
  // Once it redirects in the place of another version, there is no way back but by that version's own start.
  else if (!pinsIn(own.links).some(redirects)) removeVersion(own);
}

/** The filter that rules in pods name, of whichever version, also when no agent runs. */
export function pinnedBypass(bpffsRoot: string): FilterPin | undefined {
  for (const { maps } of pinDirectories(bpffsRoot)) {
    const map = `${maps}/${FILTER_MAP}`;
    const found = isThere(map) ? findBypassFilter(bpffsRoot, pinnedMapId(map)) : undefined;
    if (found !== undefined) return found;
  }
  return undefined;
}

function pinnedMapId(pin: string): number {
  const fd = checked(libbpf().objGet(pin), 'bpf_obj_get', pin);
  try {
    return mapInfo(fd, pin).id;
  } finally {
    closeSync(fd);
  }
}

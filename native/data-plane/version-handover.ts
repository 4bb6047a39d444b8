/**
 * From the pins of another version, older or newer, to this one's, with no
 * connection lost or let through. At each moment one version redirects:
 *
 * 1. its maps of verdicts are copied; a map of connections whose layout is the
 *    same is shared by both;
 * 2. this version's programs that look after redirected sockets are attached
 *    beside its own, each with the maps of its version;
 * 3. the connect programs are replaced in their links, and the links' pins renamed;
 * 4. the open connections are copied, and its links and maps removed.
 *
 * The process may be killed at any point: the next start, of whichever version,
 * goes on from what it finds.
 */
import { renameSync, unlinkSync } from 'node:fs';
import { basename } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { isThere } from '../boundary/presence.ts';
import {
  addCounters,
  copyCounters,
  copyConnections,
  requireCopyable,
  requireKnown,
  dropTaken,
  mapIdAt,
  replaceEntries,
  sameMap,
  type Counters,
} from './map-migration.ts';
import { isSameLayout } from './map-shapes.ts';
import { parseLinkPin } from '../pins/link-pin.ts';
import {
  IN_FLIGHT_MS,
  pinDirectories,
  pinDirectory,
  pinsIn,
  removeVersion,
  type PinDirectory,
} from '../pins/pin-directory.ts';
import type { WantedMap } from '../pins/pinned-map.ts';
import { isLiveLink, linkFacts, mapFacts, withPin } from '../pins/pinned-object.ts';
import { handedOver, mapNamed } from '../programs/maps.ts';
import { isProgramOf, keepsConnections, redirects } from '../programs/programs.ts';

/** One map for both versions, where its layout is the same. */
const SHARED = handedOver('shared', 'counted', 'connections', 'answers');
/** What processes that dial are judged by stays as it is in the other version until that redirects no more. */
const COPIED = handedOver('copied', 'counted');
const COUNTED = handedOver('counted');
/** What a proxy's accepted sockets need to be answered. */
const ANSWERS = handedOver('answers');
/** More of one proxy's are not kept: the kernel allows 64 programs at a cgroup's hook. */
const MAX_FORMER = 8;

export interface Handover {
  /** Changes nothing. @throws CgrouteError `EPINLAYOUT` when it could not be done */
  check(): void;
  /** Link directories of the other versions. */
  readonly links: readonly string[];
  /**
   * The other version's map, where it can serve both; the caller closes it.
   * @param idOf this version's maps by name, those that are settled. @default as they are pinned
   */
  adopt(wanted: WantedMap, idOf?: (name: string) => number | undefined): number | undefined;
  /** When this version's maps are there and nothing uses them yet. Returns sentences about what was lost. @throws CgrouteError `EPINLAYOUT` */
  copyDecisions(): string[];
  /** When this version's programs redirect. Returns a sentence about what was done. */
  complete(): Promise<string>;
}

/** Whether connect programs of that version are attached by links that are pinned there. */
export const isServing = ({ links }: PinDirectory): boolean =>
  pinsIn(links).some((pin) => {
    const { program = '', cgroupId = 0n } = parseLinkPin(pin) ?? {};
    return redirects(pin) && isLiveLink(pin, program, cgroupId);
  });

/** Undefined where no other version has left anything. Changes nothing. */
export function beginHandover(bpffsRoot: string): Handover | undefined {
  const own = pinDirectory(bpffsRoot);
  const all = pinDirectories(bpffsRoot).filter(
    ({ version, links, maps }) => version !== own.version && pinsIn(links).length + pinsIn(maps).length > 0,
  );
  // The one that serves comes first.
  const others = [...all.filter(isServing), ...all.filter((other) => !isServing(other))];
  const [source] = others;
  if (source === undefined) return undefined;
  return handover(own, source, others);
}

function handover(own: PinDirectory, source: PinDirectory, others: readonly PinDirectory[]): Handover {
  const counted = new Map<string, Counters>();
  return {
    links: others.map(({ links }) => links),
    check() {
      for (const { maps } of others) requireKnown(maps, isServing(own) ? [] : COPIED);
    },
    adopt(wanted, idOf = (name) => mapIdAt(`${own.maps}/${name}`)) {
      if (!SHARED.includes(wanted.name)) return undefined;
      // It counts what is in the map before it, which was settled just before it.
      const counts = mapNamed(wanted.name)?.counts;
      if (counts !== undefined) {
        const theirs = mapIdAt(`${source.maps}/${counts}`);
        if (theirs === undefined || theirs !== idOf(counts)) return undefined;
      }
      const path = `${source.maps}/${wanted.name}`;
      const isFit =
        withPin(path, (kind, fd) => {
          const facts = kind === 'map' ? mapFacts(fd, wanted.name) : undefined;
          return facts !== undefined && isSameLayout(wanted, path, facts);
        }) ?? false;
      return isFit ? checked(libbpf().objGet(path), 'bpf_obj_get', path) : undefined;
    },
    copyDecisions() {
      for (const { maps } of others) requireCopyable(maps, own.maps);
      if (isServing(own)) return [];
      if (isServing(source)) dropTaken(own.maps, source.maps);
      return COPIED.flatMap((name) => {
        const [from, to] = [`${source.maps}/${name}`, `${own.maps}/${name}`];
        const base = COUNTED.includes(name) ? copyCounters(from, to) : undefined;
        if (base !== undefined) counted.set(name, base.counters);
        const count = base?.left ?? replaceEntries(from, to);
        return count === 0
          ? []
          : [`${count} entries of version ${source.version}'s ${name} found no room in this version's`];
      });
    },
    async complete() {
      // Of places where this version has none: two versions at one socket would take each other's redirection for a loop.
      for (const { links } of others) for (const pin of pinsIn(links).filter(redirects)) unlinkSync(pin);
      const pause = (): Promise<void> => delay(IN_FLIGHT_MS);
      await pause(); // for a connect program that was running while it was replaced
      let connections = 0;
      for (const other of others) {
        connections += await copyConnections(other.maps, own.maps, pause);
        for (const [name, base] of other === source ? counted : [])
          addCounters(`${other.maps}/${name}`, `${own.maps}/${name}`, base);
        retire(other, own);
      }
      return `version ${others.map(({ version }) => version).join(' and ')} of the pins has been replaced by ${own.version}, with ${connections} open connections`;
    },
  };
}

/**
 * Removes a version that redirects no more. Its connections go first, and what
 * keeps them true last of its links: at no time can they be found when they are not.
 */
function retire(other: PinDirectory, own: PinDirectory): void {
  const answersElsewhere = ANSWERS.some((name) => !sameMap(`${other.maps}/${name}`, `${own.maps}/${name}`));
  for (const name of handedOver('connections')) {
    const pin = `${other.maps}/${name}`;
    if (isThere(pin)) unlinkSync(pin);
  }
  const isLast = (pin: string): number => (keepsConnections(pin) ? 1 : 0);
  for (const pin of pinsIn(other.links).sort((a, b) => isLast(a) - isLast(b))) {
    const place = formerPlace(pin, other.version);
    if (place !== undefined && (answersElsewhere || place.isFormer))
      keepFormer(pin, `${own.links}/${place.name}`, own.links);
    else unlinkSync(pin);
  }
  removeVersion(other);
}

/** A program at a proxy: `NAME@4711` of version v1 becomes `NAME@4711_v1`. */
function formerPlace(
  pin: string,
  version: string,
): { readonly name: string; readonly isFormer: boolean } | undefined {
  const link = parseLinkPin(pin);
  if (link === undefined || !isProgramOf(link.program, 'proxy')) return undefined;
  const name = basename(pin);
  return link.suffix === '' ? { name: `${name}_${version}`, isFormer: false } : { name, isFormer: true };
}

const programOf = (pin: string): number =>
  withPin(pin, (kind, fd) => (kind === 'link' ? linkFacts(fd).programId : 0)) ?? 0;

/** The sockets that a proxy has accepted find their original destination there, as long as they live. */
function keepFormer(pin: string, to: string, links: string): void {
  const [base = ''] = basename(to).split('_v');
  const siblings = pinsIn(links).filter((path) => basename(path).startsWith(`${base}_`));
  if (siblings.length >= MAX_FORMER) {
    // The kernel numbers programs one after another; names tell nothing of their age.
    const oldest = [pin, ...siblings].reduce((a, b) => (programOf(b) < programOf(a) ? b : a));
    unlinkSync(oldest);
    if (oldest === pin) return;
  }
  let free = to;
  for (let n = 2; isThere(free); n++) free = `${to}_${n}`;
  renameSync(pin, free);
}

/**
 * Programs of former versions, kept for connections that a proxy had accepted
 * before; they go with the proxy's cgroup. Returns how many were dropped.
 */
export function dropFormer(links: string, isProxy: (cgroupId: bigint) => boolean): number {
  let dropped = 0;
  for (const pin of pinsIn(links)) {
    const link = parseLinkPin(pin);
    if (link === undefined || link.suffix === '' || !isProgramOf(link.program, 'proxy')) continue;
    if (isProxy(link.cgroupId) && isLiveLink(pin, link.program, link.cgroupId)) continue;
    unlinkSync(pin);
    dropped++;
  }
  return dropped;
}

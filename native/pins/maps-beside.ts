/**
 * The maps of objects that are loaded while an agent is at work: those that it has,
 * found without touching a pin, and new ones that nobody sees. When that agent has
 * gone they are pinned, if the pins would lead to the same maps still.
 */
import { closeSync } from 'node:fs';
import { checked, libbpf } from '../boundary/libbpf.ts';
import { findStanding, settlePin, type PinnedMapOptions, type WantedMap } from './pinned-map.ts';
import { mapFacts } from './pinned-object.ts';

interface BesideMap {
  readonly wanted: WantedMap;
  /** Open as long as this is, or as long as the object that has made it. */
  readonly fd: number;
  readonly id: number;
  readonly isNew: boolean;
}

export class MapsBeside implements Disposable {
  readonly #maps = new Map<string, BesideMap>();

  /**
   * The map that an object is to use; undefined where it is to make one, and to say so by {@link made}.
   * @throws CgrouteError `EPINLAYOUT`
   */
  find(wanted: WantedMap, options: PinnedMapOptions): number | undefined {
    const known = this.#maps.get(wanted.name);
    if (known !== undefined) return known.fd;
    const fd = findStanding(wanted, options, (name) => this.#maps.get(name)?.id);
    if (fd !== undefined) this.#note(wanted, fd, false);
    return fd;
  }

  made(wanted: WantedMap, fd: number): void {
    if (!this.#maps.has(wanted.name)) this.#note(wanted, fd, true);
  }

  #note(wanted: WantedMap, fd: number, isNew: boolean): void {
    this.#maps.set(wanted.name, { wanted, fd, id: mapFacts(fd, wanted.name).id, isNew });
  }

  /**
   * Pins each where it belongs. Undefined at the first for which there is another by
   * now: those pinned before it are right, and the objects have to be loaded anew.
   * Else sentences about what was not as it should be.
   * @throws CgrouteError as {@link settlePin}
   */
  settle(options: PinnedMapOptions): string[] | undefined {
    const notes: string[] = [];
    for (const { wanted, fd, id, isNew } of this.#maps.values()) {
      if (standingId(wanted, options) !== (isNew ? undefined : id)) return undefined;
      notes.push(...settlePin(wanted, options));
      const path = `${options.mapDirectory}/${wanted.name}`;
      if (isNew) checked(libbpf().objPin(fd, path), 'bpf_obj_pin', path);
    }
    return notes;
  }

  [Symbol.dispose](): void {
    for (const { fd, isNew } of this.#maps.values()) if (!isNew) closeSync(fd);
    this.#maps.clear();
  }
}

function standingId(wanted: WantedMap, options: PinnedMapOptions): number | undefined {
  const fd = findStanding(wanted, options);
  if (fd === undefined) return undefined;
  try {
    return mapFacts(fd, wanted.name).id;
  } finally {
    closeSync(fd);
  }
}

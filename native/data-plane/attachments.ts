/**
 * The programs that are attached, by links that are pinned: what should be where,
 * and the way back there when somebody has removed a pin or put another program in.
 */
import { closeSync } from 'node:fs';
import { basename } from 'node:path';
import { checked, libbpf } from '../boundary/libbpf.ts';
import type { Program } from '../bpf/bpf-object.ts';
import {
  dropLink,
  dropLinkAt,
  ensureLink,
  isLive,
  isStill,
  pinnedLinks,
  type CgroupPlace,
  type LinkPins,
} from '../bpf/cgroup-link.ts';
import { hasTraceLink, replaceTraceLink, tracePin } from '../bpf/trace-link.ts';
import { CgrouteError } from '../error.ts';
import { linkPin } from '../pins/link-pin.ts';
import { isLinked, programsOf, redirects, type Place } from '../programs/programs.ts';
import { dropFormer } from './version-handover.ts';

export interface AttachmentOptions {
  /** Those of the loaded objects, by name; an object that the kernel has refused is not among them. */
  readonly programs: ReadonlyMap<string, Program>;
  readonly bpffsRoot: string;
  /** Where this version's links are pinned. */
  readonly directory: string;
  /** Where another version's are, as long as there is one to take over from. */
  readonly others: () => readonly string[];
  /** Is told in a sentence of what lay at a pin's place and is kept elsewhere. */
  readonly warn: (sentence: string) => void;
}

/** @throws CgrouteError `ENOOBJECT` when the objects are of another build */
export function programNamed(programs: ReadonlyMap<string, Program>, name: string): Program {
  const program = programs.get(name);
  if (program === undefined)
    throw new CgrouteError(
      'ENOOBJECT',
      `the compiled BPF objects have no program ${name}: run \`npm run setup\``,
    );
  return program;
}

export class Attachments implements Disposable {
  readonly #options: AttachmentOptions;
  /** What should be attached at cgroups, by pin name. */
  readonly #attached = new Map<string, { readonly program: Program; readonly place: CgroupPlace }>();
  /** The same at tracepoints. */
  readonly #traced = new Map<string, Program>();
  /** Descriptors of the links, so that who removes a pin takes no program away. */
  readonly #held = new Map<string, number>();

  constructor(options: AttachmentOptions) {
    this.#options = options;
  }

  /**
   * Attaches the programs of a kind of place there. Idempotent.
   * @throws CgrouteError `EBPF`, `EPINFOREIGN`, `ENOOBJECT`
   */
  attach(kind: Place, place: CgroupPlace): void {
    for (const name of programsOf(kind)) this.#attach(name, place);
  }

  detach(kind: Place, cgroupId: bigint): void {
    for (const program of programsOf(kind)) this.#forget(linkPin(program, cgroupId), program, cgroupId);
  }

  /** The programs at tracepoints. False where the kernel has refused their object. @throws CgrouteError `EBPF`, `EPINFOREIGN` */
  trace(): boolean {
    const tracing = programsOf('tracepoint').flatMap((name) => this.#options.programs.get(name) ?? []);
    for (const program of tracing) {
      replaceTraceLink(this.#pins(), program);
      this.#traced.set(tracePin(program.name), program);
      this.#hold(tracePin(program.name));
    }
    return tracing.length > 0;
  }

  /** Drops the links of this version at places that are not among those attached by now. Returns their number. */
  dropOthers(): number {
    const others = pinnedLinks(this.#pins()).filter(
      ({ pin }) => !this.#attached.has(basename(pin)) && !this.#traced.has(basename(pin)),
    );
    for (const link of others) dropLink(link);
    const isProxy = (id: bigint): boolean =>
      programsOf('proxy').some((program) => this.#attached.has(linkPin(program, id)));
    return others.length + dropFormer(this.#options.directory, isProxy);
  }

  /**
   * Puts back links, and their pins, that somebody removed or replaced; what was at
   * a cgroup that is gone is forgotten.
   * @param attempt does the work for one link, which returns the names of what it put back, or throws
   */
  repair(attempt: (work: () => readonly string[]) => void): void {
    for (const [pin, program] of this.#traced) attempt(() => this.#repairTrace(pin, program));
    for (const [pin, { program, place }] of [...this.#attached])
      attempt(() => this.#repairLink(pin, program, place));
  }

  /** What redirects is not put back, as `stopRedirecting` of pin-removal.ts takes it away, of any version. */
  forgetRedirecting(): void {
    for (const pin of this.#attached.keys()) if (redirects(pin)) this.#attached.delete(pin);
    this.#release(redirects);
  }

  /** No program of this version runs any more. */
  detachAll(): void {
    this.#attached.clear();
    this.#traced.clear();
    this.#release(() => true);
    for (const link of pinnedLinks(this.#pins())) dropLink(link);
  }

  /** The links stay, by their pins. */
  [Symbol.dispose](): void {
    this.#release(() => true);
  }

  #pins(): LinkPins {
    const { bpffsRoot, directory, others, warn } = this.#options;
    return { bpffsRoot, directory, others: others(), isOurs: isLinked, warn };
  }

  #attach(name: string, place: CgroupPlace): void {
    const program = programNamed(this.#options.programs, name);
    const pin = linkPin(name, place.id);
    ensureLink(this.#pins(), program, place, redirects(pin), this.#held.get(pin));
    this.#attached.set(pin, { program, place });
    this.#hold(pin);
  }

  #forget(pin: string, program: string, cgroupId: bigint): void {
    this.#attached.delete(pin);
    this.#release((other) => other === pin);
    dropLinkAt(this.#pins(), program, cgroupId);
  }

  #repairTrace(pin: string, program: Program): readonly string[] {
    if (hasTraceLink(this.#options.directory, program.name)) return [];
    replaceTraceLink(this.#pins(), program, this.#held.get(pin));
    this.#hold(pin);
    return [pin];
  }

  #repairLink(pin: string, program: Program, place: CgroupPlace): readonly string[] {
    if (isLive(this.#options.directory, program.name, place.id)) return [];
    if (isStill(place)) {
      this.#attach(program.name, place);
      return [pin];
    }
    this.#forget(pin, program.name, place.id);
    return [];
  }

  #hold(pin: string): void {
    const path = `${this.#options.directory}/${pin}`;
    const fd = checked(libbpf().objGet(path), 'bpf_obj_get', path);
    this.#release((other) => other === pin);
    this.#held.set(pin, fd);
  }

  #release(isMeant: (pin: string) => boolean): void {
    for (const [pin, fd] of this.#held) {
      if (!isMeant(pin)) continue;
      this.#held.delete(pin);
      closeSync(fd);
    }
  }
}

/**
 * The turn of an agent: at once where none runs, else refused, or waited for. Who
 * waits gets ready beside the one that runs, without touching what is its own, so
 * that hardly anything is left to do when that one has gone.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { isLocked, lockDirectory, type DirectoryLock } from '../../native/boundary/lock.ts';
import { isThere } from '../../native/boundary/presence.ts';
import {
  prepareObjects,
  type DataPlaneOptions,
  type PreparedObjects,
} from '../../native/data-plane/data-plane.ts';
import { CgrouteError } from '../../native/error.ts';
import { lockPinDirectory } from '../../native/pins/pin-directory.ts';
import { capabilityReport } from '../../native/survey/capability.ts';
import { followAhead } from '../object-sources/followed-ahead.ts';
import type { ObjectSource } from '../object-sources/object-source.ts';
import { refuseOthers, type WatchedPlace } from './rival-programs.ts';

/** So often who waits looks whether the locks are free. */
const LOOK_MS = 10;
/** And so often who holds them: a lock that no agent can hold is passed over. */
const HOLDER_MS = 1000;

/** How an agent waits. */
export interface Standby {
  /** Waiting ends, and nothing has happened. */
  readonly signal: AbortSignal;
  /** Another agent runs. */
  readonly onWaiting: () => void;
  /** It runs still, and all is loaded to take over from it. */
  readonly onPrepared: () => void;
  /** It is this agent's turn. */
  readonly onTurn: () => void;
}

export interface TurnOptions {
  readonly place: WatchedPlace;
  readonly plane: DataPlaneOptions;
  readonly source: ObjectSource;
  readonly logger: Logger;
}

/** The locks, and what was prepared while they were waited for. */
export interface Turn extends AsyncDisposable {
  /** On the pins' directory. */
  readonly lock: DirectoryLock;
  readonly objects: PreparedObjects | undefined;
  readonly source: ObjectSource;
}

/** @throws CgrouteError `ELOCKED` where another agent runs, or programs of another cgroute are; `EBPFFS` */
export async function takeTurn({ place, source, logger }: TurnOptions): Promise<Turn> {
  await using stack = new AsyncDisposableStack();
  noted(stack.use(lockDirectory(place.cgroupRoot, '--cgroup-root')), logger);
  await refuseOthers(place);
  const lock = stack.use(lockPinDirectory(place.bpffsRoot));
  return turn(stack.move(), { lock, source, objects: undefined });
}

/**
 * As {@link takeTurn}, but where an agent runs it is waited for. Undefined when the signal came first.
 * @throws CgrouteError what keeps this agent from ever taking over, while the other runs on
 */
export async function awaitTurn(options: TurnOptions, standby: Standby): Promise<Turn | undefined> {
  const { logger } = options;
  await using stack = new AsyncDisposableStack();
  let locks = await tryLocks(options);
  let preparation: Preparation | undefined;
  if (locks === undefined) {
    logger.info('another agent runs: this one waits for it to go, and loads what it can');
    standby.onWaiting();
    preparation = stack.use(new Preparation(options, standby.onPrepared));
    locks = await untilLocked(options, standby.signal, preparation);
    if (locks === undefined) return undefined;
    logger.info('the other agent has gone: this one takes over');
  }
  stack.use(locks);
  standby.onTurn();
  await preparation?.loaded;
  const { objects, source = options.source } = preparation ?? {};
  return turn(stack.move(), { lock: locks.pins, objects, source });
}

function turn(stack: AsyncDisposableStack, has: Omit<Turn, typeof Symbol.asyncDispose>): Turn {
  return { ...has, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

function noted(lock: DirectoryLock, logger: Logger): void {
  if (lock.note !== undefined) logger.warn(lock.note);
}

interface Locks extends Disposable {
  readonly pins: DirectoryLock;
}

/** Undefined when the signal came first. @throws what the preparation has failed with */
async function untilLocked(
  options: TurnOptions,
  signal: AbortSignal,
  preparation: Preparation,
): Promise<Locks | undefined> {
  const { cgroupRoot, bpffsRoot } = options.place;
  const areFree = (): boolean => !isLocked(cgroupRoot) && !(isThere(bpffsRoot) && isLocked(bpffsRoot));
  for (let lookedAt = performance.now(); !signal.aborted; await delay(LOOK_MS)) {
    if (preparation.failure !== undefined) throw preparation.failure.error;
    const isDue = performance.now() - lookedAt > HOLDER_MS;
    if (!isDue && !areFree()) continue;
    lookedAt = performance.now();
    const locks = await tryLocks(options);
    if (locks !== undefined) return locks;
  }
  return undefined;
}

/** Undefined where another agent has one of them. @throws CgrouteError `ELOCKED` for programs of another cgroute, `EBPFFS` */
async function tryLocks({ place, logger }: TurnOptions): Promise<Locks | undefined> {
  using stack = new DisposableStack();
  const root = unlessLocked(() => lockDirectory(place.cgroupRoot, '--cgroup-root', 1));
  if (root === undefined) return undefined;
  noted(stack.use(root), logger);
  await refuseOthers(place);
  const pins = unlessLocked(() => lockPinDirectory(place.bpffsRoot, 1));
  if (pins === undefined) return undefined;
  stack.use(pins);
  const held = stack.move();
  return { pins, [Symbol.dispose]: () => held[Symbol.dispose]() };
}

function unlessLocked(lock: () => DirectoryLock): DirectoryLock | undefined {
  try {
    return lock();
  } catch (error) {
    if (error instanceof CgrouteError && error.code === 'ELOCKED') return undefined;
    throw error;
  }
}

/** What is done while another agent is at work. */
class Preparation implements AsyncDisposable {
  readonly #options: TurnOptions;
  readonly #stack = new AsyncDisposableStack();
  readonly loaded: Promise<void>;
  failure: { readonly error: unknown } | undefined;
  objects: PreparedObjects | undefined;
  source: ObjectSource | undefined;

  /** @param onPrepared all is loaded, and all objects have been told of */
  constructor(options: TurnOptions, onPrepared: () => void) {
    this.#options = options;
    this.loaded = this.#load(onPrepared);
    this.loaded.catch((error: unknown) => {
      this.failure = { error };
    });
  }

  async #load(onPrepared: () => void): Promise<void> {
    const { place, plane, source } = this.#options;
    await refuseOthers(place);
    const ahead = this.#stack.use(await followAhead(source));
    this.source = ahead.source;
    this.objects = this.#stack.use(prepareObjects(plane));
    capabilityReport();
    void ahead.synced.then(onPrepared);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.loaded.catch(() => undefined);
    await this.#stack.disposeAsync();
  }
}

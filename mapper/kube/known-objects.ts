/**
 * Which objects of one kind the API server has told of. Nothing but their keys is
 * kept; who wants the objects gets them, as projections.
 */
import type { Logger } from 'pino';
import { messageOf } from '../../native/error.ts';
import { isProblem, type Problem } from '../objects/projection.ts';

export interface KnownObjectsOptions<T extends object> {
  /** `pods` */
  readonly name: string;
  readonly logger: Logger;
  /** What tells an object from another that has its name later. */
  readonly keyOf: (metadata: Readonly<Record<string, unknown>>) => string | undefined;
  readonly project: (raw: unknown) => T | Problem;
  readonly onUpsert: (key: string, object: T) => void;
  readonly onRemove: (key: string) => void;
}

export class KnownObjects<T extends object> {
  readonly #options: KnownObjectsOptions<T>;
  readonly #keys = new Set<string>();
  /** What is wrong with objects that don't project, by key: each is told once. */
  readonly #unreadable = new Map<string, string>();

  constructor(options: KnownObjectsOptions<T>) {
    this.#options = options;
  }

  get size(): number {
    return this.#keys.size;
  }

  get unreadable(): number {
    return this.#unreadable.size;
  }

  /** It came, or is another by now. Gives its key; undefined for what has none. */
  upsert(raw: unknown): string | undefined {
    const { name, keyOf, project, logger, onUpsert } = this.#options;
    const metadata = metadataOf(raw);
    const key = keyOf(metadata);
    if (key === undefined) return undefined;
    const object = project(raw);
    if (!isProblem(object)) {
      this.#unreadable.delete(key);
      this.#keys.add(key);
      this.tell(() => onUpsert(key, object));
      return key;
    }
    if (this.#unreadable.get(key) === object.problem) return key;
    this.#unreadable.set(key, object.problem);
    logger.warn(
      { resource: name, namespace: metadata['namespace'], name: metadata['name'], key },
      `an object can't be read and is left as it was known before: ${object.problem}`,
    );
    return key;
  }

  remove(raw: unknown): void {
    const key = this.#options.keyOf(metadataOf(raw));
    if (key !== undefined) this.#remove(key);
  }

  /** These are all that there are. */
  keepOnly(keys: ReadonlySet<string>): void {
    for (const key of new Set([...this.#keys, ...this.#unreadable.keys()]))
      if (!keys.has(key)) this.#remove(key);
  }

  #remove(key: string): void {
    this.#unreadable.delete(key);
    if (this.#keys.delete(key)) this.tell(() => this.#options.onRemove(key));
  }

  /** An object that somebody else trips over must not be met again for ever. */
  tell(act: () => void): void {
    try {
      act();
    } catch (error) {
      this.#options.logger.error(
        { err: error, resource: this.#options.name },
        `a change could not be acted on: ${messageOf(error)}`,
      );
    }
  }
}

export function metadataOf(raw: unknown): Readonly<Record<string, unknown>> {
  const metadata = (raw as { readonly metadata?: unknown } | null)?.metadata;
  return typeof metadata === 'object' && metadata !== null ? (metadata as Record<string, unknown>) : {};
}

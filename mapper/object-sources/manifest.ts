/** Reads a manifest: YAML (or JSON) with Namespace and Pod objects, as `kubectl get -o yaml` writes them. */

import {
  Composer,
  isAlias,
  isCollection,
  isMap,
  isNode,
  isPair,
  isScalar,
  isSeq,
  LineCounter,
  Parser,
} from 'yaml';
import type { Document, Node, YAMLMap } from 'yaml';

import { CgrouteError, messageOf } from '../../native/error.ts';
import { namespaceOf, type Namespace } from '../objects/namespace.ts';
import { podOf, type Objects, type Pod } from '../objects/pod.ts';
import { isProblem, type Problem } from '../objects/projection.ts';
import { shown } from '../objects/shown.ts';

export interface Manifest extends Objects {
  /** One sentence each about what was passed over, with file and line. */
  readonly notes: readonly string[];
}

/**
 * Reads a manifest's text: several documents, and lists (`kind: List`,
 * `PodList`, `NamespaceList`) in them. Other kinds are passed over with a note.
 * A pod's namespace need not be in the manifest; it then has no labels.
 *
 * @param file for messages only
 * @throws CgrouteError `EMANIFEST`, one sentence with file and line, what was expected and what came
 */
export function parseManifest(text: string, file: string): Manifest {
  const lines = new LineCounter();
  // One document at a time: all of them at once take some hundred times the file's size.
  const documents = new Composer({ prettyErrors: false }).compose(
    new Parser(lines.addNewLine).parse(text),
    false,
    text.length,
  );
  const lineAt = (offset: number | undefined): number => lines.linePos(offset ?? 0).line || 1;
  const refuse = (line: number, sentence: string): never => {
    throw new CgrouteError('EMANIFEST', `${file}:${line}: ${sentence}`);
  };

  const pods = new Map<string, Place<Pod>>();
  const uids = new Map<string, Place<Pod>>();
  const namespaces = new Map<string, Place<Namespace>>();
  const notes: string[] = [];

  const take = (node: Node | null, document: Document, kindOfList?: string): void => {
    const line = lineAt(node?.range?.[0]);
    const map = isAlias(node) ? node.resolve(document) : node;
    if (!isMap(map))
      return refuse(
        line,
        `expected an object with a kind, got ${shown(isScalar(map) ? map.value : isSeq(map) ? [] : map)}`,
      );
    const kind = textAt(map, 'kind') ?? kindOfList;
    if (kind === undefined) return refuse(line, 'expected an object with a kind, got one without');
    const version = textAt(map, 'apiVersion') ?? 'v1';
    if (version === 'v1' && kind.endsWith('List')) {
      // A list that is an alias could stand inside itself.
      if (isAlias(node))
        return refuse(line, `expected an object or a list of its own, got an alias of a ${kind}`);
      const items = map.get('items', true);
      if (!isSeq(items))
        return refuse(line, `expected a list below items of this ${kind}, got something else`);
      const inner = kind === 'List' ? undefined : kind.slice(0, -'List'.length);
      for (const item of items.items) take(isNode(item) ? item : null, document, inner);
      return;
    }
    if (version !== 'v1' || (kind !== 'Pod' && kind !== 'Namespace')) {
      notes.push(`${file}:${line}: passed over ${kind} of ${version}; only Namespace and Pod of v1 are read`);
      return;
    }

    const raw = valueOf(map, document, (sentence) => refuse(line, `${kind.toLowerCase()}: ${sentence}`));
    const object = kind === 'Pod' ? podOf(raw, 'manifest') : namespaceOf(raw);
    if (isProblem(object))
      return refuse(lineAt(offsetOf(map, object)), `${named(kind, raw)}: ${object.problem}`);
    if (!isPod(object)) {
      const same = claim(namespaces, object.name, object, line);
      if (same) return refuse(line, `namespace ${object.name} is already at line ${same.line}`);
      return;
    }
    const name = `${object.namespace}/${object.name}`;
    const sameName = claim(pods, name, object, line);
    if (sameName) return refuse(line, `pod ${name} is already at line ${sameName.line}`);
    const sameUid = claim(uids, object.uid, object, line);
    if (sameUid) {
      const { namespace, name: other } = sameUid.object;
      return refuse(
        line,
        `pod ${name} has the UID ${object.uid}, which is that of pod ${namespace}/${other} at line ${sameUid.line}`,
      );
    }
  };

  for (const document of documents) {
    const [error] = document.errors;
    if (error !== undefined) return refuse(lineAt(error.pos[0]), `this is not YAML: ${error.message}`);
    const contents: Node | null = document.contents;
    if (contents === null || (isScalar(contents) && contents.value === null)) continue;
    take(contents, document);
  }
  return { pods: objectsOf(pods), namespaces: objectsOf(namespaces), notes };
}

interface Place<T> {
  readonly object: T;
  readonly line: number;
}

/** Undefined when the key was free, which it now no longer is; else where it stands already. */
function claim<T>(places: Map<string, Place<T>>, key: string, object: T, line: number): Place<T> | undefined {
  const before = places.get(key);
  if (before === undefined) places.set(key, { object, line });
  return before;
}

function objectsOf<T>(places: Map<string, Place<T>>): readonly T[] {
  return [...places.values()].map(({ object }) => object);
}

function isPod(object: Pod | Namespace): object is Pod {
  return 'uid' in object;
}

function textAt(map: YAMLMap, key: string): string | undefined {
  const value = map.get(key);
  return typeof value === 'string' ? value : undefined;
}

function valueOf(node: Node, document: Document, refuse: (sentence: string) => never): unknown {
  try {
    return node.toJS(document, { maxAliasCount: 100 });
  } catch (error) {
    return refuse(messageOf(error));
  }
}

/** Where in the text a problem is: the named value, or the nearest thing around it that is there. */
function offsetOf(map: YAMLMap, { at }: Problem): number | undefined {
  let node: unknown = map;
  let offset = map.range?.[0];
  for (const step of at) {
    if (!isCollection(node)) break;
    const pair = isMap(node)
      ? node.items.find((item) => isPair(item) && isScalar(item.key) && String(item.key.value) === step)
      : undefined;
    node = pair === undefined ? node.get(step, true) : pair.value;
    const nearest = isNode(node) ? node : pair?.key;
    if (!isNode(nearest)) break;
    offset = nearest.range?.[0] ?? offset;
  }
  return offset;
}

/** "pod shop/web" as far as the raw object has a name. */
function named(kind: string, raw: unknown): string {
  const metadata = (raw as { metadata?: { name?: unknown; namespace?: unknown } | null }).metadata;
  const name = metadata?.name;
  if (typeof name !== 'string') return kind.toLowerCase();
  const namespace = typeof metadata?.namespace === 'string' ? metadata.namespace : 'default';
  return kind === 'Pod' ? `pod ${namespace}/${name}` : `namespace ${name}`;
}

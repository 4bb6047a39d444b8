/** What the annotations about redirection say of a pod: that its owner wants none, that another mesh has it, or that cgroute does. */

import { FIELD_MANAGER } from '../objects/field-owners.ts';
import { KMESH_REDIRECTION, REDIRECTION } from '../objects/label-names.ts';
import { labelValue } from '../objects/labels.ts';
import type { Pod } from '../objects/pod.ts';

/** What cgroute writes. */
export const ENABLED = 'enabled';
/** Istio's word while its rules stand in the pod and its ztunnel has not taken it yet. */
const PENDING = 'pending';
const DISABLED = 'disabled';

/** An annotation by which a mesh says that it redirects the pod. */
export interface MeshClaim {
  readonly annotation: string;
  readonly value: string;
  /** Undefined where nobody knows. */
  readonly writer: string | undefined;
}

type Annotated = Pick<Pod, 'annotations' | 'writers'>;

/** Whether somebody has annotated the pod so that it is not redirected. In any case, as with the label. */
export const optsOut = ({ annotations }: Annotated): boolean => wordOf(annotations, REDIRECTION) === DISABLED;

export const isAnnotated = ({ annotations }: Annotated): boolean =>
  labelValue(annotations, REDIRECTION) === ENABLED;

/** What other meshes than cgroute claim. */
export function otherMeshes({ annotations, writers = {} }: Annotated): readonly MeshClaim[] {
  return [REDIRECTION, KMESH_REDIRECTION].flatMap((annotation) => {
    const word = wordOf(annotations, annotation);
    if (word !== ENABLED && word !== PENDING) return [];
    const writer = labelValue(writers, annotation);
    // Of what cgroute writes, too, it takes another's name: the account of writers can be
    // lost, and a pod that is taken for another mesh's goes out, past the proxy and without
    // a word, while two meshes on one pod are a fault that shows.
    const isOurs =
      writer === undefined ? annotation === REDIRECTION && word === ENABLED : writer === FIELD_MANAGER;
    return isOurs ? [] : [{ annotation, value: annotations[annotation] ?? '', writer }];
  });
}

/** Whether cgroute may write its annotation: not where the pod's owner has opted out with it, nor where it is another mesh's. */
export function isOursToWrite(pod: Annotated, takeOver: boolean): boolean {
  return (
    !optsOut(pod) && (takeOver || otherMeshes(pod).every(({ annotation }) => annotation !== REDIRECTION))
  );
}

function wordOf(annotations: Pod['annotations'], key: string): string | undefined {
  return labelValue(annotations, key)?.toLowerCase();
}

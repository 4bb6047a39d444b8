/** A cgroup together with whose it is, so that its path is parsed once. */
import type { Cgroup } from '../../watcher/cgroup-tree.ts';
import type { CgroupOwner, PodCgroup } from '../decisions/cgroup-path.ts';

export interface OwnedCgroup<Owner extends CgroupOwner = CgroupOwner> {
  readonly cgroup: Cgroup;
  readonly owner: Owner;
}

export function isPods(owned: OwnedCgroup): owned is OwnedCgroup<PodCgroup> {
  return owned.owner.kind === 'pod';
}

/** The pod's own cgroup, or a container's that is pod and container in one. */
export function isOutermost({ cgroup, owner }: OwnedCgroup<PodCgroup>): boolean {
  return cgroup.path.split('/').length - 1 === owner.podDepth;
}

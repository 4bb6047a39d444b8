/** The pods of the leak test: names, addresses, and the cgroups that they are going to have. */
import { randomUUID } from 'node:crypto';
import { statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import type { Manifest, PodObject } from '../../deploy/stage/manifest.ts';
import {
  CGROUP_STYLES,
  type CgroupStyle,
  containerId,
  containerPath,
} from '../../deploy/stage/pod-cgroup.ts';
import { CONFIG_HASH, CONFIG_MIRROR } from '../harness/label-names.ts';

export type Verdict = 'in' | 'out' | 'bypass';

/** Namespaces of the test: in the mesh, out of it, and one whose label flips. */
export const NAMESPACES = { mesh: 'shop', plain: 'batch', flipping: 'flipping' } as const;

export interface LeakPod {
  readonly uid: string;
  /** What stands for it in its cgroup's name. */
  readonly key: string;
  readonly ip: string;
  readonly object: PodObject;
  /** Absolute. */
  readonly directory: string;
  /** Of its containers that were asked for and not removed. */
  readonly containers: string[];
  /** The directory of another container of it. */
  newContainer(): string;
}

export interface PodFactory {
  /** Whether pods may have cgroups of their own right below the root; each is a branch, and of many branches the programs know none. */
  hasRootPods: boolean;
  /** A pod that is in the mesh unless told otherwise; in no manifest, and without cgroups. */
  make(
    fields?: Partial<PodObject>,
    options?: { readonly isStatic?: boolean; readonly style?: CgroupStyle; readonly tree?: string },
  ): LeakPod;
}

export function podFactory(cgroupRoot: string): PodFactory {
  let made = 0;
  let hasRootPods = true;
  const nextStyle = (): CgroupStyle => {
    const styles = CGROUP_STYLES.filter((style) => hasRootPods || style !== 'joined');
    return styles[made % styles.length] ?? 'cgroupfs';
  };
  return {
    get hasRootPods() {
      return hasRootPods;
    },
    set hasRootPods(has) {
      hasRootPods = has;
    },
    make(fields = {}, { isStatic = false, tree, style = tree === undefined ? nextStyle() : 'systemd' } = {}) {
      const number = ++made;
      let begun = 0;
      const uid = randomUUID();
      const key = isStatic ? containerId(uid).slice(0, 32) : uid;
      const pathOf = (id: string): string =>
        tree === undefined
          ? containerPath(style, key, id)
          : join(
              tree,
              `${tree.replace(/\.slice$/, '')}-pod${key.replaceAll('-', '_')}.slice`,
              `cri-containerd-${id}.scope`,
            );
      const containers: string[] = [];
      const some = join(cgroupRoot, pathOf(containerId(uid)));
      const directory = style === 'joined' ? some : dirname(some);
      const ip = `10.78.${1 + (Math.floor(number / 250) % 250)}.${1 + (number % 250)}`;
      const annotations = isStatic ? { [CONFIG_HASH]: key, [CONFIG_MIRROR]: key } : undefined;
      return {
        uid,
        key,
        ip,
        containers,
        object: {
          name: `pod-${number}`,
          namespace: NAMESPACES.mesh,
          uid,
          ips: [ip],
          ...(annotations === undefined ? {} : { annotations }),
          ...fields,
        },
        directory,
        newContainer() {
          const id = containerId(`${uid} ${++begun}`);
          // Where pod and container are one, whatever else there is runs below it.
          const at =
            style !== 'joined' ? join(cgroupRoot, pathOf(id)) : begun === 1 ? directory : join(directory, id);
          containers.push(at);
          return at;
        },
      };
    },
  };
}

/** Id of a cgroup, while there is one. */
export function cgroupId(path: string): bigint | undefined {
  return statSync(path, { bigint: true, throwIfNoEntry: false })?.ino;
}

export function removePod(manifest: Manifest, pod: LeakPod): void {
  manifest.remove(pod.uid);
  removeCgroup(pod.directory);
}

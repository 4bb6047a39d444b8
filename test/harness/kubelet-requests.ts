/** What a kubelet asks of the API server, again and again until it is answered. */
import { setTimeout as delay } from 'node:timers/promises';
import { type KubeApi, KubeApiError } from './kube-api.ts';
import type { Pod } from './kube-objects.ts';

export interface KubeletRequests {
  /**
   * Repeats a request until the API server has answered it, be it by an answer in
   * `codes`, which means that it is done too. About a pod that is there such an
   * answer may be wrong: what the server remembers of a name can be a moment old.
   */
  persist<T>(
    what: string,
    codes: readonly number[],
    request: () => Promise<T>,
    about?: Pod,
  ): Promise<T | undefined>;
  /** Only this very pod, and none that has its name by now. */
  patchStatus(pod: Pod, status: Pod['status']): Promise<unknown>;
  /** At once, and as {@link KubeletRequests.patchStatus}. */
  deletePod(pod: Pod): Promise<unknown>;
}

function isStatus(error: unknown, ...codes: readonly number[]): boolean {
  return error instanceof KubeApiError && codes.includes(error.status);
}

const pathOf = ({ metadata }: Pod): string =>
  `/api/v1/namespaces/${metadata.namespace}/pods/${metadata.name}`;

/** @param problem is told what went wrong and is tried again */
export function kubeletRequests(
  api: KubeApi,
  node: string,
  closed: AbortSignal,
  problem: (what: string, error: unknown) => void,
): KubeletRequests {
  /** Whether this node has this very pod no more. Asked by a list: a pod may not be read once its name is another node's, and for a moment none may be when the server has just started. */
  async function isGone({ metadata: { namespace, uid } }: Pod): Promise<boolean> {
    try {
      const { items } = await api.get<{ readonly items: readonly Pod[] }>(
        `/api/v1/namespaces/${namespace}/pods?fieldSelector=spec.nodeName%3D${node}`,
      );
      return !items.some(({ metadata }) => metadata.uid === uid);
    } catch {
      return false;
    }
  }

  async function persist<T>(
    what: string,
    codes: readonly number[],
    request: () => Promise<T>,
    about?: Pod,
  ): Promise<T | undefined> {
    for (let tries = 1; ; tries++) {
      if (closed.aborted) return undefined;
      try {
        return await request();
      } catch (error) {
        if (isStatus(error, ...codes)) {
          if (about === undefined || (tries > 3 && (await isGone(about)))) return undefined;
        } else {
          problem(what, error);
        }
        await delay(about === undefined || tries > 3 ? 500 : 100, undefined, { ref: false });
      }
    }
  }

  return {
    persist,
    patchStatus(pod, status) {
      const body = { metadata: { uid: pod.metadata.uid }, status };
      // 404: deleted meanwhile. The others: another pod of that name, here or on another node.
      return persist(
        `status of ${pod.metadata.name}`,
        [403, 404, 409, 422],
        () => api.patch(`${pathOf(pod)}/status`, 'strategic-merge-patch+json', body),
        pod,
      );
    },
    deletePod(pod) {
      const body = {
        kind: 'DeleteOptions',
        apiVersion: 'v1',
        gracePeriodSeconds: 0,
        preconditions: { uid: pod.metadata.uid },
      };
      return persist(
        `deletion of ${pod.metadata.name}`,
        [403, 404, 409],
        () => api.request('DELETE', pathOf(pod), body),
        pod,
      );
    },
  };
}

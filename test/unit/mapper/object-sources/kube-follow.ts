/** A source that follows a stub of an API server, and what it tells. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';

import { beginWait } from '../../../../deploy/stage/deadline.ts';
import type { KubeAccess } from '../../../../mapper/kube/kube-access.ts';
import { openKubeClient } from '../../../../mapper/kube/kube-client.ts';
import type { KubeTiming } from '../../../../mapper/kube/kube-resource.ts';
import { kubeSource } from '../../../../mapper/object-sources/kube-source.ts';
import type { ObjectSource } from '../../../../mapper/object-sources/object-source.ts';
import { makeKubeStub, namespace, pod, type KubeStub } from './kube-stub.ts';
import { MODE } from '../../../harness/label-names.ts';

export interface Followed extends AsyncDisposable {
  readonly api: KubeStub;
  readonly source: ObjectSource;
  /** What the handlers were told, in order: `all ns | pod`, `+pod`, `-uid`, `+ns {}`, `-ns`. */
  readonly told: string[];
  readonly log: Record<string, unknown>[];
  isSynced: boolean;
  state(name: 'pods' | 'namespaces'): string;
  until(what: string, condition: () => boolean): Promise<void>;
  /** Both watches are open. */
  watching(): Promise<void>;
}

export interface FollowOptions {
  readonly timing?: Partial<KubeTiming>;
  readonly prepare?: (api: KubeStub) => unknown;
  readonly token?: () => string;
  readonly deadlineMs?: number;
  /** False leaves the source before its first list. */
  readonly wait?: boolean;
}

/** Watches are told to last for long, and backoff is short, so that a test sees what it is about. */
const TIMING: Partial<KubeTiming> = { backoffMs: [20, 100], settledMs: 200 };

export async function follow({
  timing,
  prepare,
  token,
  deadlineMs = 2000,
  wait = true,
}: FollowOptions = {}): Promise<Followed> {
  const api = await makeKubeStub();
  api.put('namespaces', namespace('shop', { [MODE]: 'ambient' }));
  api.put('pods', pod('a', 'uid-a'));
  await prepare?.(api);
  const log: Record<string, unknown>[] = [];
  const logger = pino(
    { level: 'debug' },
    { write: (line: string) => void log.push(JSON.parse(line) as Record<string, unknown>) },
  );
  const access: KubeAccess = {
    server: api.url,
    proxyUrl: undefined,
    origin: 'a test',
    credentials: async () => ({ headers: token ? { authorization: `Bearer ${token()}` } : {}, tls: {} }),
    refused: () => {},
  };
  const source = kubeSource({
    client: openKubeClient({ access, deadlineMs }),
    node: 'node-a',
    logger,
    timing: { ...TIMING, ...timing },
  });
  const told: string[] = [];
  const following = await source.follow({
    onObjects: ({ pods, namespaces }) =>
      told.push(
        `all ${namespaces
          .map(({ name }) => name)
          .sort()
          .join(' ')} | ${pods
          .map(({ name }) => name)
          .sort()
          .join(' ')}`,
      ),
    onPod: ({ name, labels }) => told.push(`+${name}${labels['v'] === undefined ? '' : ` v=${labels['v']}`}`),
    onPodGone: (uid) => told.push(`-${uid}`),
    onNamespace: ({ name, labels }) => told.push(`+ns ${name} ${Object.keys(labels).length}`),
    onNamespaceGone: (name) => told.push(`-ns ${name}`),
  });
  const state = (name: string): string => {
    const found = source.states().find((each) => each.name === name);
    return `${found?.state}: ${found?.detail}`;
  };
  const until = async (what: string, condition: () => boolean): Promise<void> => {
    for (const wait = beginWait(); !condition(); await sleep(5))
      if (wait.isOver())
        assert.fail(
          `not ${what}: ${wait.passed()}; told ${JSON.stringify(told)}; ${state('pods')}; ${state('namespaces')}`,
        );
  };
  const followed: Followed = {
    api,
    source,
    told,
    log,
    state,
    until,
    isSynced: false,
    watching: () => until('watching', () => api.watches('pods') === 1 && api.watches('namespaces') === 1),
    async [Symbol.asyncDispose]() {
      await following[Symbol.asyncDispose]();
      await api[Symbol.asyncDispose]();
    },
  };
  void following.synced.then(() => {
    followed.isSynced = true;
  });
  if (wait) {
    await until('synced', () => followed.isSynced);
    await followed.watching();
  }
  return followed;
}

export const restartsOf = ({ source }: Followed, name: string): Readonly<Record<string, number>> =>
  source.figures().restarts[name] ?? {};

/** The chart as its tests see it: values to set, and the objects that come of them. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { chartObjects } from '../../deploy/build/helm.ts';
import type { KubeObject, Pod } from '../harness/kube-objects.ts';

/** A file of the project. */
export const read = (path: string): string =>
  readFileSync(resolve(import.meta.dirname, '../..', path), 'utf8');

interface Container {
  readonly image: string;
  readonly args: readonly string[];
  readonly env: readonly { readonly name: string }[];
  readonly ports?: unknown;
  readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string }[];
  readonly livenessProbe: Probe;
  readonly readinessProbe: Probe;
  readonly resources: { readonly requests: Readonly<Record<string, string>> };
  readonly securityContext: Readonly<Record<string, unknown>>;
}

interface Probe {
  readonly exec: { readonly command: readonly string[] };
}

export interface DaemonSet extends KubeObject {
  readonly spec: {
    readonly updateStrategy: unknown;
    readonly template: {
      readonly metadata: Pod['metadata'];
      readonly spec: Readonly<Record<string, unknown>> & { readonly containers: readonly [Container] };
    };
  };
}

export const isHook = ({ metadata }: KubeObject): boolean =>
  metadata.annotations?.['helm.sh/hook'] !== undefined;
export const daemonSetOf = (objects: readonly KubeObject[]): DaemonSet =>
  objects.find(({ kind }) => kind === 'DaemonSet') as DaemonSet;
export const set = (values: Readonly<Record<string, unknown>>): string[] =>
  Object.entries(values).flatMap(([key, value]) => ['--set-json', `${key}=${JSON.stringify(value)}`]);
export const daemonSet = async (values: Readonly<Record<string, unknown>> = {}): Promise<DaemonSet> =>
  daemonSetOf(await chartObjects(...set(values)));
export const agentOf = ({ spec }: DaemonSet): Container => spec.template.spec.containers[0];

/** Everything that can be switched on. */
export const ALL = {
  'config.startupTaint': 'cgroute.io/agent-not-ready',
  'http.address': 'node',
  'podMonitor.enabled': true,
  'alerts.enabled': true,
  'dashboard.enabled': true,
};

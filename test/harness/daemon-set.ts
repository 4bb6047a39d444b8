/** The agent's DaemonSet as it is shipped, in deploy/cgroute.yaml: what a test of it runs under. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseAllDocuments } from 'yaml';

export interface PodSpec {
  readonly hostPID?: boolean;
  readonly hostNetwork?: boolean;
  readonly containers: readonly Container[];
}

export interface Container {
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  readonly securityContext?: SecurityContext;
  readonly livenessProbe?: Probe;
  readonly readinessProbe?: Probe;
  readonly volumeMounts?: readonly { readonly mountPath: string; readonly readOnly?: boolean }[];
}

interface Probe {
  readonly exec: { readonly command: readonly string[] };
}

export interface SecurityContext {
  readonly privileged?: boolean;
  readonly allowPrivilegeEscalation?: boolean;
  readonly readOnlyRootFilesystem?: boolean;
  readonly seccompProfile?: { readonly type: string };
  readonly capabilities?: { readonly add?: readonly string[]; readonly drop?: readonly string[] };
}

function podSpec(): PodSpec {
  const documents = parseAllDocuments(
    readFileSync(resolve(import.meta.dirname, '../../deploy/cgroute.yaml'), 'utf8'),
  );
  const objects = documents.map(
    (document) =>
      document.toJS() as {
        readonly kind?: string;
        readonly spec: { readonly template: { readonly spec: PodSpec } };
      } | null,
  );
  const daemonSet = objects.find((object) => object?.kind === 'DaemonSet');
  if (daemonSet == null) throw new Error('deploy/cgroute.yaml has no DaemonSet');
  return daemonSet.spec.template.spec;
}

/** Its pods' specification, and the agent's container in it. */
export const POD: PodSpec = podSpec();
export const CONTAINER: Container = POD.containers[0] ?? {};
export const PROBES: readonly Probe[] = [CONTAINER.livenessProbe, CONTAINER.readinessProbe].filter(
  (probe) => probe !== undefined,
);
/** As Kubernetes names them, `NET_ADMIN`. */
export const CAPABILITIES: readonly string[] = CONTAINER.securityContext?.capabilities?.add ?? [];

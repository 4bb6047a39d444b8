/** A service account of a cluster, as a DaemonSet's pods use it: rights by RBAC, a real token, the files of a pod's mount. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Endpoint, Identity, KubeApi } from './kube-api.ts';
import type { KubeObject } from './kube-objects.ts';
import { replaceFile } from '../../deploy/stage/manifest.ts';

export interface PolicyRule {
  readonly apiGroups?: readonly string[];
  readonly resources?: readonly string[];
  readonly nonResourceURLs?: readonly string[];
  readonly resourceNames?: readonly string[];
  readonly verbs: readonly string[];
}

export interface ServiceAccountOptions {
  readonly name: string;
  /** Made when it is not there. Default `kube-system`. */
  readonly namespace?: string;
  /** Of a ClusterRole, which is bound to the account. Without rules the account has what all have. */
  readonly rules?: readonly PolicyRule[];
  /** How long a token is good, seconds; the API server takes no less than 600. Default 3600. */
  readonly tokenSeconds?: number;
  /** The pod that its tokens are for, as a kubelet asks for them: the API server then knows the pod's node, too. */
  readonly pod?: { readonly name: string; readonly uid: string };
}

export interface ServiceAccount {
  /** `system:serviceaccount:<namespace>:<name>` */
  readonly user: string;
  /** Holds `token`, `ca.crt` and `namespace`, as in /var/run/secrets/kubernetes.io/serviceaccount. */
  readonly directory: string;
  readonly identity: Identity;
  /** A kubeconfig file with the path of the token's file in it; `url` in place of the API server's own, for a proxy. */
  kubeconfig(url?: string): string;
  /** Puts a new token in the place of the old one, by rename, as a kubelet does. The old one stays good. */
  renewToken(): Promise<string>;
  /** Takes the rights away: the binding is deleted. */
  revoke(): Promise<void>;
  /** Gives them back. */
  grant(): Promise<void>;
}

/** Writes a kubeconfig file (JSON, which is YAML too) with one context; returns its path. */
export function writeKubeconfig(
  file: string,
  endpoint: Endpoint,
  user: Readonly<Record<string, string>>,
): string {
  const certificate = Buffer.from(endpoint.ca).toString('base64');
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'test',
    contexts: [{ name: 'test', context: { cluster: 'test', user: 'test' } }],
    clusters: [
      { name: 'test', cluster: { server: endpoint.url, 'certificate-authority-data': certificate } },
    ],
    users: [{ name: 'test', user }],
  };
  writeFileSync(file, `${JSON.stringify(config, undefined, 2)}\n`, { mode: 0o600 });
  return file;
}

/** Makes the account, its role and binding, and its first token. `directory` is for its files. */
export async function makeServiceAccount(
  api: KubeApi,
  endpoint: Endpoint,
  directory: string,
  options: ServiceAccountOptions,
): Promise<ServiceAccount> {
  const { name, namespace = 'kube-system', rules, tokenSeconds = 3600, pod } = options;
  const rbac = 'rbac.authorization.k8s.io';
  const role = `test:${namespace}:${name}`;
  const account: KubeObject = { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name, namespace } };
  const binding: KubeObject = {
    apiVersion: `${rbac}/v1`,
    kind: 'ClusterRoleBinding',
    metadata: { name: role },
    roleRef: { apiGroup: rbac, kind: 'ClusterRole', name: role },
    subjects: [{ kind: 'ServiceAccount', name, namespace }],
  };
  const clusterRole: KubeObject = {
    apiVersion: `${rbac}/v1`,
    kind: 'ClusterRole',
    metadata: { name: role },
    rules,
  };
  await api.apply([{ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } }]);
  await api.apply([account, ...(rules === undefined ? [] : [clusterRole, binding])]);

  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'ca.crt'), endpoint.ca);
  writeFileSync(join(directory, 'namespace'), namespace);
  const tokenFile = join(directory, 'token');
  let token = '';
  let kubeconfigs = 0;

  async function renewToken(): Promise<string> {
    const boundObjectRef = pod === undefined ? undefined : { apiVersion: 'v1', kind: 'Pod', ...pod };
    const body = {
      apiVersion: 'authentication.k8s.io/v1',
      kind: 'TokenRequest',
      spec: { expirationSeconds: tokenSeconds, boundObjectRef },
    };
    const path = `/api/v1/namespaces/${namespace}/serviceaccounts/${name}/token`;
    const { status } = await api.request<{ status: { token: string } }>('POST', path, body);
    replaceFile(tokenFile, status.token);
    return (token = status.token);
  }

  await renewToken();
  return {
    user: `system:serviceaccount:${namespace}:${name}`,
    directory,
    get identity() {
      return { token };
    },
    kubeconfig: (url = endpoint.url) =>
      writeKubeconfig(join(directory, `kubeconfig-${++kubeconfigs}`), { ...endpoint, url }, { tokenFile }),
    renewToken,
    revoke: async () => void (await api.request('DELETE', await api.pathOf(binding))),
    grant: () => api.apply([binding]),
  };
}

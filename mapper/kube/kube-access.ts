/**
 * Where the API server is, and as whom the agent speaks to it.
 *
 * Of the Kubernetes client only its reading of a kubeconfig and of credential
 * plugins is used: its `KubeConfig` brings an HTTP stack and the whole API's
 * types along, some 20 MB in every agent, and its watch ends a quiet watch after
 * 30 seconds.
 */
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import {
  newClusters,
  newContexts,
  newUsers,
  type Cluster,
  type Context,
  type User,
} from '@kubernetes/client-node/dist/config_types.js';
import { ExecAuth } from '@kubernetes/client-node/dist/exec_auth.js';
import type { RequestOptions } from 'node:https';
import { parse } from 'yaml';
import { isThere } from '../../native/boundary/presence.ts';
import { CgrouteError, refusalOf } from '../../native/error.ts';

export interface Credentials {
  readonly headers: Readonly<Record<string, string>>;
  readonly tls: {
    readonly ca?: string | Buffer;
    readonly cert?: string | Buffer;
    readonly key?: string | Buffer;
    readonly servername?: string;
    readonly rejectUnauthorized?: boolean;
  };
}

export interface KubeAccess {
  /** Without a slash at the end. */
  readonly server: string;
  /** An HTTP proxy on the way there. */
  readonly proxyUrl: string | undefined;
  /** For people: `the service account` or the kubeconfig's name. */
  readonly origin: string;
  /** Read anew each time: tokens and certificates are replaced while the agent runs. */
  credentials(): Promise<Credentials>;
  /** The server took the credentials for invalid: what is kept of them is dropped. */
  refused(): void;
}

export const SERVICE_ACCOUNT = '/var/run/secrets/kubernetes.io/serviceaccount';

export interface AccessOptions {
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly home?: string;
  readonly serviceAccount?: string;
}

/**
 * `$KUBECONFIG` where it is set, else the pod's service account, else
 * `~/.kube/config`.
 * @throws CgrouteError `EKUBECONFIG` when there is none, or it can't be used
 */
export function kubeAccess({
  env = process.env,
  home = homedir(),
  serviceAccount = SERVICE_ACCOUNT,
}: AccessOptions = {}): KubeAccess {
  const files = (env['KUBECONFIG'] ?? '').split(delimiter).filter((path) => path !== '');
  if (files.length > 0) return fromKubeconfig(files, '$KUBECONFIG');
  const [host, port] = [env['KUBERNETES_SERVICE_HOST'], env['KUBERNETES_SERVICE_PORT']];
  if (host && port) return fromServiceAccount(host, port, serviceAccount);
  const own = join(home, '.kube', 'config');
  if (isAt(own)) return fromKubeconfig([own], '--source kube');
  throw wrong(
    `--source kube finds no way to an API server: expected a pod with a service account ($KUBERNETES_SERVICE_HOST), a file named by $KUBECONFIG, or ${own}, got none of them`,
  );
}

function wrong(sentence: string, cause?: unknown): CgrouteError {
  return new CgrouteError('EKUBECONFIG', sentence, { cause });
}

/** @throws CgrouteError `EKUBECONFIG` where that cannot be told */
function isAt(path: string): boolean {
  try {
    return isThere(path);
  } catch (cause) {
    throw wrong(`--source kube: ${refusalOf(cause)}`, cause);
  }
}

function fromServiceAccount(host: string, port: string, directory: string): KubeAccess {
  const [token, ca] = [join(directory, 'token'), join(directory, 'ca.crt')];
  for (const path of [token, ca]) {
    if (!isAt(path))
      throw wrong(
        `--source kube: $KUBERNETES_SERVICE_HOST says that this is a pod, and it has no ${path}: expected a mounted service account (automountServiceAccountToken)`,
      );
  }
  return {
    server: `https://${host.includes(':') ? `[${host}]` : host}:${port}`,
    proxyUrl: undefined,
    origin: 'the service account',
    credentials: async () => ({
      headers: bearer(readFileSync(token, 'utf8')),
      tls: { ca: readFileSync(ca) },
    }),
    refused: () => {},
  };
}

function bearer(token: string): Record<string, string> {
  return { authorization: `Bearer ${token.trim()}` };
}

/** `tokenFile`, which the Kubernetes client doesn't know by its name. */
type FileUser = User & { readonly tokenFile?: string };

interface Kubeconfig {
  readonly clusters: readonly Cluster[];
  readonly users: readonly FileUser[];
  readonly contexts: readonly Context[];
  readonly current: string;
}

/** Several files are one, in which the first that says something is right. */
function fromKubeconfig(files: readonly string[], flag: string): KubeAccess {
  const configs = files.map((file) => readKubeconfig(file, flag));
  const origin = files.join(delimiter);
  const name = configs.find(({ current }) => current !== '')?.current;
  if (name === undefined) throw wrong(`${flag}: ${origin}: expected a current-context, got none`);
  const context = named(
    configs.flatMap(({ contexts }) => contexts),
    'context',
    name,
    'current-context',
    origin,
  );
  const cluster = named(
    configs.flatMap(({ clusters }) => clusters),
    'cluster',
    context.cluster,
    `context ${name}`,
    origin,
  );
  const user =
    context.user === undefined
      ? undefined
      : named<FileUser>(
          configs.flatMap(({ users }) => users),
          'user',
          context.user,
          `context ${name}`,
          origin,
        );
  if (!/^https?:\/\/[^/]/.test(cluster.server))
    throw wrong(
      `${origin}: server of cluster ${cluster.name}: expected an http or https URL, got "${cluster.server}"`,
    );
  if (user?.authProvider)
    throw wrong(
      `${origin}: user ${user.name} has an auth-provider, which kubectl has given up too: expected a token, a client certificate or exec`,
    );
  let plugin = new ExecAuth();
  return {
    server: cluster.server.replace(/\/+$/, ''),
    proxyUrl: cluster.proxyUrl,
    origin,
    async credentials() {
      const options: RequestOptions = { headers: {} };
      if (user?.exec) await plugin.applyAuthentication(user, options);
      return {
        headers: { ...headersOf(user), ...(options.headers as Record<string, string>) },
        tls: {
          ...tlsOf(cluster, user),
          ...(options.cert && options.key
            ? { cert: options.cert as string, key: options.key as string }
            : {}),
        },
      };
    },
    refused: () => {
      plugin = new ExecAuth();
    },
  };
}

function headersOf(user: FileUser | undefined): Record<string, string> {
  if (user === undefined) return {};
  const token = user.tokenFile === undefined ? user.token : readFileSync(user.tokenFile, 'utf8');
  const basic = user.username
    ? { authorization: `Basic ${Buffer.from(`${user.username}:${user.password ?? ''}`).toString('base64')}` }
    : {};
  return {
    ...(token ? bearer(token) : basic),
    ...(user.impersonateUser ? { 'impersonate-user': user.impersonateUser } : {}),
  };
}

function tlsOf(cluster: Cluster, user: FileUser | undefined): Credentials['tls'] {
  const ca = fileOrData(cluster.caFile, cluster.caData);
  const cert = fileOrData(user?.certFile, user?.certData);
  const key = fileOrData(user?.keyFile, user?.keyData);
  return {
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
    ...(cluster.tlsServerName ? { servername: cluster.tlsServerName } : {}),
    ...(cluster.skipTLSVerify ? { rejectUnauthorized: false } : {}),
  };
}

/** Data goes first, as with kubectl. */
function fileOrData(file: string | undefined, data: string | undefined): Buffer | undefined {
  if (data) return Buffer.from(data, 'base64');
  return file ? readFileSync(file) : undefined;
}

function named<T extends { readonly name: string }>(
  all: readonly T[],
  kind: string,
  name: string,
  by: string,
  origin: string,
): T {
  const found = all.find((each) => each.name === name);
  if (found === undefined)
    throw wrong(
      `${origin}: ${by} names ${kind} "${name}": expected one of ${all.map((each) => each.name).join(', ') || 'none, as the file has no such thing'}`,
    );
  return found;
}

function readKubeconfig(file: string, flag: string): Kubeconfig {
  try {
    const raw = (parse(readFileSync(file, 'utf8')) ?? {}) as Record<string, unknown>;
    const folder = dirname(resolve(file));
    const absolute = <K extends string>(object: Partial<Record<K, string>>, keys: readonly K[]): void => {
      for (const key of keys) if (object[key]) object[key] = resolve(folder, object[key]);
    };
    const clusters = newClusters(raw['clusters']);
    for (const cluster of clusters) absolute(cluster, ['caFile']);
    const users = newUsers(raw['users']).map((user): FileUser => {
      const { tokenFile } =
        (raw['users'] as { name?: unknown; user?: { tokenFile?: string } }[]).find(
          ({ name }) => name === user.name,
        )?.user ?? {};
      const all = { ...user, ...(tokenFile ? { tokenFile } : {}) };
      absolute(all, ['certFile', 'keyFile', 'tokenFile']);
      return all;
    });
    const current = raw['current-context'];
    return {
      clusters,
      users,
      contexts: newContexts(raw['contexts']),
      current: typeof current === 'string' ? current : '',
    };
  } catch (cause) {
    throw wrong(`${flag}: ${file}: expected a kubeconfig that can be read, got ${refusalOf(cause)}`, cause);
  }
}

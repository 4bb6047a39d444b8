import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { kubeAccess, type KubeAccess } from '../../../../mapper/kube/kube-access.ts';
import { openKubeClient } from '../../../../mapper/kube/kube-client.ts';
import { KubeError } from '../../../../mapper/kube/kube-error.ts';
import { CgrouteError } from '../../../../native/error.ts';

interface Folder extends Disposable {
  readonly path: string;
  /** Writes a file, and gives its path. */
  write(name: string, text: string): string;
  access(env: Record<string, string>): KubeAccess;
}

function makeFolder(): Folder {
  const path = mkdtempSync(join(tmpdir(), 'cgroute-test-access-'));
  return {
    path,
    write(name, text) {
      writeFileSync(join(path, name), text);
      return join(path, name);
    },
    access: (env) => kubeAccess({ env, home: path, serviceAccount: join(path, 'account') }),
    [Symbol.dispose]: () => rmSync(path, { recursive: true }),
  };
}

const kubeconfig = (
  user: string,
  cluster = '{server: "https://10.0.0.1:6443/"}',
  more = 'current-context: here',
): string => `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: ${cluster}}]
users: [{name: u, user: ${user}}]
contexts: [{name: here, context: {cluster: c, user: u}}]
${more}
`;

const IN_POD = { KUBERNETES_SERVICE_HOST: '10.96.0.1', KUBERNETES_SERVICE_PORT: '443' };

const refuses = (act: () => unknown, pattern: RegExp): void =>
  assert.throws(
    act,
    (error: unknown) =>
      error instanceof CgrouteError && error.code === 'EKUBECONFIG' && pattern.test(error.message),
  );

describe('the way to the API server', () => {
  test('is refused with what was expected, when nothing tells it', () => {
    using folder = makeFolder();
    refuses(
      () => folder.access({}),
      /^--source kube finds no way to an API server: expected a pod with a service account .*\$KUBECONFIG, or .*\.kube\/config, got none of them$/,
    );
  });

  test('is the service account in a pod, whose token and certificates are read each time', async () => {
    using folder = makeFolder();
    mkdirSync(join(folder.path, 'account'));
    refuses(() => folder.access(IN_POD), /has no .*account\/token: expected a mounted service account/);
    folder.write('account/token', 'one\n');
    folder.write('account/ca.crt', 'CA');
    const access = folder.access(IN_POD);
    assert.equal(access.server, 'https://10.96.0.1:443');
    assert.deepEqual(await access.credentials(), {
      headers: { authorization: 'Bearer one' },
      tls: { ca: Buffer.from('CA') },
    });
    folder.write('account/token', 'two');
    folder.write('account/ca.crt', 'CB');
    assert.deepEqual(await access.credentials(), {
      headers: { authorization: 'Bearer two' },
      tls: { ca: Buffer.from('CB') },
    });
    assert.equal(
      folder.access({ ...IN_POD, KUBERNETES_SERVICE_HOST: 'fd00::1' }).server,
      'https://[fd00::1]:443',
    );
  });

  test('is $KUBECONFIG before the service account, and ~/.kube/config after it', () => {
    using folder = makeFolder();
    for (const name of ['account', '.kube']) mkdirSync(join(folder.path, name));
    folder.write('.kube/config', kubeconfig('{token: t}', '{server: "https://home"}'));
    assert.equal(folder.access({}).server, 'https://home');
    folder.write('account/token', 't');
    folder.write('account/ca.crt', 'CA');
    assert.equal(folder.access(IN_POD).origin, 'the service account');
    const path = folder.write('config', kubeconfig('{token: t}'));
    assert.equal(folder.access({ ...IN_POD, KUBECONFIG: path }).server, 'https://10.0.0.1:6443');
  });

  test('takes token, token file, password, certificate and impersonation from a kubeconfig', async () => {
    using folder = makeFolder();
    folder.write('t', 'from a file\n');
    const data = (text: string): string => Buffer.from(text).toString('base64');
    const cases: readonly [user: string, cluster: string | undefined, expected: object][] = [
      ['{token: t}', undefined, { headers: { authorization: 'Bearer t' }, tls: {} }],
      ['{tokenFile: t}', undefined, { headers: { authorization: 'Bearer from a file' }, tls: {} }],
      [
        '{username: n, password: p}',
        undefined,
        { headers: { authorization: `Basic ${data('n:p')}` }, tls: {} },
      ],
      [
        '{token: t, as: somebody}',
        undefined,
        { headers: { authorization: 'Bearer t', 'impersonate-user': 'somebody' }, tls: {} },
      ],
      [
        `{client-certificate-data: ${data('C')}, client-key: t}`,
        `{server: "https://x", certificate-authority-data: ${data('A')}, tls-server-name: n}`,
        {
          headers: {},
          tls: {
            ca: Buffer.from('A'),
            cert: Buffer.from('C'),
            key: Buffer.from('from a file\n'),
            servername: 'n',
          },
        },
      ],
      [
        '{}',
        '{server: "https://x", insecure-skip-tls-verify: true, certificate-authority: t}',
        { headers: {}, tls: { ca: Buffer.from('from a file\n'), rejectUnauthorized: false } },
      ],
    ];
    for (const [user, cluster, expected] of cases) {
      const path = folder.write('config', kubeconfig(user, cluster));
      assert.deepEqual(await folder.access({ KUBECONFIG: path }).credentials(), expected, user);
    }
  });

  test('asks a credential plugin, keeps what it says, and asks again when that was refused', async () => {
    using folder = makeFolder();
    const plugin = folder.write(
      'plugin',
      '#!/bin/sh\necho x >> "$COUNT"\nprintf \'{"status":{"token":"t%s"}}\' "$(wc -l < "$COUNT")"\n',
    );
    chmodSync(plugin, 0o700);
    const count = join(folder.path, 'count');
    const path = folder.write(
      'config',
      kubeconfig(`{exec: {command: ${plugin}, env: [{name: COUNT, value: ${count}}]}}`),
    );
    const access = folder.access({ KUBECONFIG: path });
    const token = async (): Promise<string | undefined> =>
      (await access.credentials()).headers['Authorization'];
    assert.deepEqual([await token(), await token()], ['Bearer t1', 'Bearer t1']);
    access.refused();
    assert.equal(await token(), 'Bearer t2');
    assert.equal(readFileSync(count, 'utf8'), 'x\nx\n');
  });

  test('reads several files as one, the first of which is right', () => {
    using folder = makeFolder();
    const first = folder.write('first', kubeconfig('{token: t}', '{server: "https://first"}', ''));
    const second = folder.write('second', kubeconfig('{token: t}', '{server: "https://second"}'));
    assert.equal(folder.access({ KUBECONFIG: `${first}:${second}` }).server, 'https://first');
  });

  test('says what is wrong with a kubeconfig', () => {
    using folder = makeFolder();
    const cases: readonly [string, RegExp][] = [
      ['', /expected a current-context, got none/],
      ['{', /config: expected a kubeconfig that can be read/],
      [kubeconfig('{}', '{}'), /clusters\[0\]\.cluster\.server is missing/],
      [
        kubeconfig('{}', '{server: "10.0.0.1:6443"}'),
        /server of cluster c: expected an http or https URL, got "10.0.0.1:6443"/,
      ],
      [
        kubeconfig('{}', undefined, 'current-context: there'),
        /current-context names context "there": expected one of here/,
      ],
      [
        kubeconfig('{auth-provider: {name: gcp}}'),
        /user u has an auth-provider, .*expected a token, a client certificate or exec/,
      ],
    ];
    for (const [text, pattern] of cases) {
      const path = folder.write('config', text);
      refuses(() => folder.access({ KUBECONFIG: path }), pattern);
    }
    refuses(
      () => folder.access({ KUBECONFIG: '/nowhere/config' }),
      /^\$KUBECONFIG: \/nowhere\/config: .*ENOENT/,
    );
  });
});

describe('requests to the API server', () => {
  test('trust its authority only, follow a new one, and repeat what a kept connection lost', async () => {
    using folder = makeFolder();
    const authorities = ['one', 'two'].map((name) => {
      execFileSync(
        'openssl',
        [
          'req',
          '-x509',
          '-newkey',
          'ec',
          '-pkeyopt',
          'ec_paramgen_curve:P-256',
          '-nodes',
          '-days',
          '2',
          '-subj',
          `/CN=${name}`,
          '-addext',
          'subjectAltName=IP:127.0.0.1',
          '-keyout',
          join(folder.path, `${name}.key`),
          '-out',
          join(folder.path, `${name}.crt`),
        ],
        { stdio: 'ignore' },
      );
      return {
        key: readFileSync(join(folder.path, `${name}.key`)),
        cert: readFileSync(join(folder.path, `${name}.crt`)),
      };
    });
    const [one, two] = authorities;
    const server = createServer({ ...one, keepAliveTimeout: 60_000 }, (_, response) =>
      response.end('{"fine":true}'),
    );
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      let ca = two?.cert;
      using client = openKubeClient({
        access: {
          server: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
          proxyUrl: undefined,
          origin: 'a test',
          credentials: async () => ({ headers: {}, tls: ca === undefined ? {} : { ca } }),
          refused: () => {},
        },
      });
      const ask = (): Promise<unknown> => client.json({ path: '/' });
      await assert.rejects(
        ask,
        (error: unknown) =>
          error instanceof KubeError &&
          error.failure === 'unreachable' &&
          /self-signed certificate/.test(error.message),
      );
      ca = one?.cert;
      assert.deepEqual(await ask(), { fine: true });
      server.closeAllConnections();
      assert.deepEqual(await ask(), { fine: true });
      server.setSecureContext({ ...two });
      server.closeAllConnections();
      ca = two?.cert;
      assert.deepEqual(await ask(), { fine: true });
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });
});

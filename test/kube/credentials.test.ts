/** What the agent logs in with, and by what it knows the API server, change, expire and are taken away while it runs. */
import assert from 'node:assert/strict';
import { createPrivateKey, sign } from 'node:crypto';
import { copyFileSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { connect } from 'node:tls';
import { writeKubeconfig } from '../harness/kube-account.ts';
import { type KeyPair, makeAuthority } from '../harness/kube-certificates.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { MODE } from '../harness/label-names.ts';
import { replaceFile } from '../../deploy/stage/manifest.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { agree } from './agreement.ts';
import { type FaultNode, startFaultNode } from './fault-node.ts';

describe("the agent's access to the API server", { skip: KUBE_MISSING }, () => {
  let f: FaultNode;

  before(async () => {
    f = await startFaultNode('credentials');
    await f.start();
    await agree(f.mesh, f.node);
  });
  after(() => f?.[Symbol.asyncDispose]());

  const kube = (file: string): string => f.mesh.sandbox.file(join('kube', file));
  const tokenFile = (): string => join(f.account.directory, 'token');

  /** The account's own token with another time to live, signed as the API server does. RFC 7519. */
  function tokenUntil(secondsFromNow: number): string {
    const [header = '', payload = ''] = readFileSync(tokenFile(), 'utf8').split('.');
    const now = Math.floor(Date.now() / 1000);
    const claims = {
      ...(JSON.parse(Buffer.from(payload, 'base64url').toString()) as object),
      exp: now + secondsFromNow,
      iat: now - 3600,
      nbf: now - 3600,
    };
    const text = `${header}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}`;
    const key = createPrivateKey(readFileSync(kube('service-accounts.key')));
    return `${text}.${sign('sha256', Buffer.from(text), { key, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
  }

  /** The fingerprint of the certificate that the API server shows now. */
  async function shown(): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const socket = connect(
      {
        port: Number(new URL(f.mesh.cluster.endpoint.url).port),
        host: '127.0.0.1',
        rejectUnauthorized: false,
      },
      () => {
        resolve(socket.getPeerCertificate().fingerprint256);
        socket.destroy();
      },
    );
    socket.once('error', reject);
    return promise;
  }

  /** Puts another certificate of the API server in place, and waits until it shows it: it looks at its files from time to time. */
  async function serveWith({ certFile, keyFile }: KeyPair): Promise<void> {
    const before = await shown();
    copyFileSync(keyFile, kube('kube-apiserver.key'));
    copyFileSync(certFile, kube('kube-apiserver.crt'));
    await eventually('the API server shows its new certificate', async () => (await shown()) !== before, {
      ownMs: 60_000,
    });
  }

  test('is taken away by RBAC, and given back', async () => {
    const stands = await f.standing();
    await f.account.revoke();
    try {
      await eventually('it is refused', async () => {
        // The API server learns of it some time later, and lets a watch go on that it once allowed.
        f.proxy.cut();
        await delay(1000);
        return (await f.restarts('refused')) > 0;
      });
      await f.isCutOff(/403.*forbidden.*expected a role/i);
      await stands();
      await f.change();
    } finally {
      await f.account.grant();
    }
    await f.isBack();
  });

  test('has a token that is renewed, and goes on with the new one', async () => {
    const [before, tries] = [await f.restarts('refused'), await f.restarts('access')];
    replaceFile(tokenFile(), tokenUntil(3600)); // made here, and accepted: the next one is refused for its age alone
    f.proxy.cut();
    await f.change();
    await f.isBack();
    await f.account.renewToken();
    f.proxy.cut();
    await f.change();
    await f.isBack();
    assert.deepEqual([await f.restarts('refused'), await f.restarts('access')], [before, tries]);
  });

  test('has a token that has expired, until there is a new one', async () => {
    const stands = await f.standing();
    replaceFile(tokenFile(), tokenUntil(-120)); // a minute's grace is usual
    f.proxy.cut();
    await f.isCutOff(/401.*is its token or certificate still good/i);
    await stands();
    await f.change();
    await f.account.renewToken();
    await f.isBack();
  });

  test('has no token for a while', async () => {
    const stands = await f.standing();
    const token = readFileSync(tokenFile(), 'utf8');
    replaceFile(tokenFile(), '');
    f.proxy.cut();
    await f.isCutOff(/40[13]/);
    await stands();
    replaceFile(tokenFile(), token);
    await f.change();
    await f.isBack();
  });

  test("outlives the API server's certificate: the next one is by the same authority, or by one that is told in time, or too late", async () => {
    const renewed = await f.mesh.cluster.serverCertificate();
    await serveWith(renewed);
    f.proxy.cut();
    await f.change();
    await f.isBack();

    const other = f.mesh.sandbox.file('other-authority');
    mkdirSync(other);
    const authority = await makeAuthority(other);
    const stands = await f.standing();
    await serveWith(await authority.issue('kube-apiserver', '/CN=kube-apiserver', 'IP:127.0.0.1'));
    f.proxy.cut();
    await f.isCutOff(/cannot be reached: .*(certificate|signature)/);
    await stands();

    // As a kubelet projects it while authorities change: both.
    const authorities = join(f.account.directory, 'ca.crt');
    const own = readFileSync(authorities, 'utf8');
    replaceFile(authorities, `${own}\n${authority.cert}`);
    const admin = writeKubeconfig(
      join(other, 'admin'),
      { url: f.mesh.cluster.endpoint.url, ca: authority.cert },
      { 'client-certificate': kube('admin.crt'), 'client-key': kube('admin.key') },
    );
    const { code, stderr } = await f.mesh.cluster.tryKubectl(
      ['label', '-n', 'shop', 'pod', 'flip', '--overwrite', `${MODE}=none`],
      { kubeconfig: admin },
    );
    assert.equal(code, 0, stderr);
    await f.node.until(
      'the label has come',
      ({ pods }) => pods.find(({ name }) => name === 'flip')?.reason === 'pod-opt-out',
      { ownMs: 30_000 },
    );

    await serveWith(renewed);
    f.proxy.cut();
    await f.change();
    await f.isBack();
    replaceFile(authorities, own);
    f.proxy.cut();
    await f.change();
    await f.isBack();
  });

  test("has a client certificate that is nobody's, and then one that is", async () => {
    await f.node.agent.stop();
    const directory = f.mesh.sandbox.file('client-certificate');
    mkdirSync(directory);
    const [file, key] = [join(directory, 'tls.crt'), join(directory, 'tls.key')];
    const put = ({ certFile, keyFile }: KeyPair): void => {
      replaceFile(key, readFileSync(keyFile, 'utf8'));
      replaceFile(file, readFileSync(certFile, 'utf8'));
    };
    const good = await f.mesh.cluster.certificate('agent', 'system:masters');
    put(good);
    const endpoint = { ...f.mesh.cluster.endpoint, url: f.proxy.url };
    await f.start({
      kubeconfig: writeKubeconfig(join(directory, 'kubeconfig'), endpoint, {
        'client-certificate': file,
        'client-key': key,
      }),
    });
    const stands = await f.standing();
    const strange = f.mesh.sandbox.file('strange-authority');
    mkdirSync(strange);
    put(await (await makeAuthority(strange)).issue('agent', '/O=system:masters/CN=agent'));
    f.proxy.cut();
    await f.isCutOff(/401.*is its token or certificate still good/);
    await stands();
    await f.change();
    put(good);
    await f.isBack();
  });
});

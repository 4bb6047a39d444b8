/** An authority of a cluster's own, and the certificates and keys that it makes (openssl, PEM). */
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { must } from '../../deploy/stage/process.ts';

export interface KeyPair {
  readonly cert: string;
  readonly key: string;
  readonly certFile: string;
  readonly keyFile: string;
}

export interface Authority extends KeyPair {
  /**
   * A certificate by this authority. In a client's, Kubernetes reads the common
   * name as the user and the organisation as the group.
   *
   * @param subject `/O=system:masters/CN=admin`
   * @param names `IP:127.0.0.1,DNS:localhost`, of a server
   */
  issue(file: string, subject: string, names?: string): Promise<KeyPair>;
}

/** Ten years, so that a test may turn the clock. */
const DAYS = '3650';

async function makeCertificate(directory: string, file: string, args: readonly string[]): Promise<KeyPair> {
  const [certFile, keyFile] = [join(directory, `${file}.crt`), join(directory, `${file}.key`)];
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', keyFile];
  await must({ cmd: 'openssl', args: ['req', '-x509', ...key, '-days', DAYS, '-out', certFile, ...args] });
  return { certFile, keyFile, cert: readFileSync(certFile, 'utf8'), key: readFileSync(keyFile, 'utf8') };
}

/** Makes an authority whose files are in `directory`. Needs openssl 3. */
export async function makeAuthority(directory: string): Promise<Authority> {
  const authority = await makeCertificate(directory, 'ca', ['-subj', '/CN=test-cluster']);
  return {
    ...authority,
    issue: (file, subject, names) =>
      makeCertificate(directory, file, [
        '-subj',
        subject,
        '-CA',
        authority.certFile,
        '-CAkey',
        authority.keyFile,
        '-addext',
        'basicConstraints=critical,CA:FALSE',
        ...(names === undefined ? [] : ['-addext', `subjectAltName=${names}`]),
      ]),
  };
}

/** The key pair that signs the tokens of service accounts; returns the two files. */
export function makeSigningKey(directory: string): {
  readonly publicFile: string;
  readonly privateFile: string;
} {
  const { publicKey, privateKey } = generateKeyPairSync('ec', {
    namedCurve: 'P-256',
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'sec1', format: 'pem' },
  });
  const [publicFile, privateFile] = [
    join(directory, 'service-accounts.pub'),
    join(directory, 'service-accounts.key'),
  ];
  writeFileSync(publicFile, publicKey);
  writeFileSync(privateFile, privateKey);
  return { publicFile, privateFile };
}

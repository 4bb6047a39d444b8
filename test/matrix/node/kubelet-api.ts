/** The kubelet's own API, as `kubectl logs` and `kubectl exec` have it by way of the API server: plain text over HTTPS. */
import { request } from 'node:https';
import type { KeyPair } from '../../harness/kube-certificates.ts';

const TIMEOUT_MS = 120_000;

export interface KubeletApi {
  /** The answer's text; an answer of failure is an error with it. */
  ask(method: 'GET' | 'POST', path: string): Promise<string>;
}

/** @param ca the authority of its certificate, PEM */
export function makeKubeletApi(port: number, ca: string, { cert, key }: KeyPair): KubeletApi {
  return {
    ask: (method, path) =>
      new Promise((resolve, reject) => {
        const options = {
          host: '127.0.0.1',
          port,
          method,
          path,
          ca,
          cert,
          key,
          agent: false,
          timeout: TIMEOUT_MS,
        } as const;
        const outgoing = request(options, (response) => {
          response.toArray().then((chunks) => {
            const text = Buffer.concat(chunks as Buffer[]).toString();
            if (response.statusCode === 200) resolve(text);
            else
              reject(
                new Error(
                  `the kubelet answered ${method} ${path} with ${response.statusCode}: ${text.trim()}`,
                ),
              );
          }, reject);
        });
        outgoing.once('timeout', () =>
          outgoing.destroy(
            new Error(`no answer from the kubelet to ${method} ${path} within ${TIMEOUT_MS / 1000} s`),
          ),
        );
        outgoing.once('error', reject);
        outgoing.end();
      }),
  };
}

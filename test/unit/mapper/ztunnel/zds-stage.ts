/** A ZDS server in a directory of its own, with what it said; files stand for network namespaces. */
import { mkdtempSync, openSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  openZdsServer,
  type Workload,
  type ZdsServer,
  type ZdsServerOptions,
} from '../../../../mapper/ztunnel/zds-server.ts';
import { dialZds, type ZdsClient, type ZdsClientOptions } from '../../../harness/zds-client.ts';

/** What a test may set of {@link ZdsServerOptions}. */
type Own = Partial<Omit<ZdsServerOptions, 'path' | 'logger'>>;

export class ZdsStage implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'cgroute-test-zds-'));
  readonly path = join(this.directory, 'run', 'ztunnel.sock');
  /** `LEVEL TEXT` */
  readonly logged: string[] = [];
  /** `acknowledged UID`, `refused UID: REASON` */
  readonly told: string[] = [];
  /** UIDs whose networks cannot be had. */
  readonly away = new Set<string>();
  /** How often the network of a pod was opened. */
  opened = 0;
  readonly #disposables: Disposable[] = [];

  open(own: Own = {}): ZdsServer {
    const log =
      (level: string) =>
      (...args: readonly unknown[]): void =>
        void this.logged.push(`${level} ${String(args.at(-1))}`);
    const server = openZdsServer({
      path: this.path,
      logger: { info: log('info'), warn: log('warn'), error: log('error') } as ZdsServerOptions['logger'],
      networkOf: (uid) => {
        if (this.away.has(uid)) return undefined;
        this.opened++;
        return openSync(this.#fileOf(uid), 'r');
      },
      onAcknowledged: (uid) => void this.told.push(`acknowledged ${uid}`),
      onRefused: (uid, reason) => void this.told.push(`refused ${uid}: ${reason}`),
      ...own,
    });
    this.#disposables.push(server);
    return server;
  }

  /** The caller disposes of it. */
  dialOnce = (options: ZdsClientOptions): ZdsClient => dialZds(this.path, options);

  dial(options: ZdsClientOptions = {}): ZdsClient {
    const client = dialZds(this.path, options);
    this.#disposables.push(client);
    return client;
  }

  /** A pod whose network is what it is now. */
  workload(uid: string): Workload {
    const network = BigInt(statSync(this.#fileOf(uid)).ino);
    return { uid, name: `pod-${uid}`, namespace: 'shop', serviceAccount: 'till', network };
  }

  /** What a ztunnel should have of such a pod. */
  served = (uid: string) => ({
    names: `shop/pod-${uid}/till`,
    network: Number(this.workload(uid).network),
  });

  /** The pod gets another network; the old one stays, so that its inode is not used again. */
  changeNetwork(uid: string): void {
    this.#networks.set(uid, `${this.#networkOf(uid)}x`);
  }

  readonly #networks = new Map<string, string>();
  #networkOf = (uid: string): string => this.#networks.get(uid) ?? uid;

  #fileOf(uid: string): string {
    const path = join(this.directory, this.#networkOf(uid));
    writeFileSync(path, '', { flag: 'a' });
    return path;
  }

  [Symbol.dispose](): void {
    for (const each of this.#disposables.reverse()) each[Symbol.dispose]();
    rmSync(this.directory, { recursive: true });
  }
}

/** Descriptors that this process has open. */
export const openDescriptors = (): number => readdirSync('/proc/self/fd').length;

/** Process creation on this host, as exec events of the netlink proc connector. */
import type { Logger } from 'pino';
import { messageOf } from '../native/error.ts';
import {
  openProcConnector,
  type ProcConnector,
  type ProcConnectorOptions,
} from '../native/netlink/proc-connector.ts';
import type { Proc } from './proc.ts';
import type { SourceState } from './source-state.ts';

export interface ProcessWatchOptions {
  readonly proc: Proc;
  readonly logger: Logger;
  /** A process at or below the watched root has begun a program. What it throws is logged. */
  readonly onExec: (pid: number, path: string) => void;
  /** The kernel dropped events: what happened lately is unknown. Must not throw. */
  readonly onLost: () => void;
  /**
   * Puts a better socket filter in place of the classic one, see
   * ProcConnectorOptions. If it throws, that is logged and the classic one stays.
   */
  readonly attachFilter?: (fd: number) => void;
  /** @default openProcConnector of native/ */
  readonly open?: (options: ProcConnectorOptions) => Promise<ProcConnector>;
  /** Pause before a socket that failed is replaced. @default 5,000 ms */
  readonly retryMs?: number;
}

/** After a socket that worked has failed. */
const RETRY_MS = 5_000;

export interface ProcessWatch extends Disposable {
  /** Settles when the kernel has confirmed or refused the subscription; never rejects. */
  readonly started: Promise<void>;
  state(): SourceState;
}

export function watchProcesses(options: ProcessWatchOptions): ProcessWatch {
  const { proc, logger, attachFilter, open = openProcConnector } = options;
  let state: SourceState['state'] = 'degraded';
  let failure = 'waiting for the kernel to confirm';
  let connector: ProcConnector | undefined;
  let closed = false;
  let retry: NodeJS.Timeout | undefined;
  let seen = 0;
  let losses = 0;

  function onExec(pid: number): void {
    if (closed) return;
    const path = proc.cgroupOfPid(pid);
    if (path === undefined) return; // outside the root, or gone already
    seen++;
    try {
      options.onExec(pid, path);
    } catch (err) {
      logger.error({ err, pid }, 'the handler of process events failed; the others go on');
    }
  }

  function onLost(): void {
    if (closed) return;
    losses++;
    options.onLost();
  }

  function filter(fd: number): void {
    try {
      attachFilter?.(fd);
    } catch (err) {
      logger.info(
        { err },
        'the filter program could not be attached; exec events outside the root are sorted out by the agent',
      );
    }
  }

  async function start(): Promise<void> {
    try {
      const opened = await open({ onExec, onLost, onBroken, attachFilter: filter });
      if (closed) return opened[Symbol.dispose]();
      connector = opened;
      state = 'ok';
    } catch (err) {
      fail(err);
    }
  }

  function fail(err: unknown): void {
    if (closed) return;
    state = 'failed';
    failure = `${messageOf(err)}; until then new processes are found by the cgroup watch and the sweep`;
    logger.warn({ err }, failure);
  }

  /** It worked once, so it is worth another try; what happened in between is found by a sweep. */
  function onBroken(err: unknown): void {
    connector?.[Symbol.dispose]();
    connector = undefined;
    fail(err);
    if (!closed) retry = setTimeout(() => void start().then(onLost), options.retryMs ?? RETRY_MS).unref();
  }

  return {
    started: start(),
    state: () => ({
      name: 'process-events',
      state,
      detail:
        state === 'ok'
          ? `netlink proc connector; ${seen} programs begun below the root, ${losses} times events were lost`
          : failure,
    }),
    [Symbol.dispose]() {
      closed = true;
      clearTimeout(retry);
      connector?.[Symbol.dispose]();
      connector = undefined;
      state = 'off';
      failure = 'closed';
    },
  };
}

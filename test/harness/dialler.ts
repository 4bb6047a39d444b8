/** A client that connects again and again, each time from a new socket, and counts who answers. */
import type { Target } from '../../deploy/stage/node.ts';
import type { Running } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import { type Place, SOCK } from '../../deploy/stage/sock.ts';

/** Its connections so far. */
export interface Totals {
  readonly total: number;
  /** Of these a `sock proxy` has answered, a `sock serve`, somebody else. */
  readonly proxy: number;
  readonly server: number;
  readonly other: number;
  readonly failed: number;
  /** Those that failed, by errno. */
  readonly errors: Readonly<Record<string, number>>;
}

export interface Dialler {
  readonly running: Running;
  /** Asks with a signal, which may interrupt a connect(): that counts as EINTR. */
  soFar(): Promise<Totals>;
  end(): Promise<Totals>;
}

/**
 * Starts it.
 * @param everyUs microseconds from the end of a connection to the next
 * @param least so many connections there are before it ends, however slow the machine
 */
export function dial(sandbox: Sandbox, place: Place, to: Target, everyUs = 0, least = 0): Dialler {
  const every = everyUs === 0 ? [] : ['--every', String(everyUs)];
  const enough = least === 0 ? [] : ['--least', String(least)];
  const args = ['loop', ...every, ...enough, to.ip, String(to.port), '0'];
  const running = sandbox.spawn({ ...place, cmd: SOCK, args });
  return {
    running,
    async soFar() {
      running.kill('SIGUSR1');
      const { inTime: _, ...totals } = await running.json<Totals & { inTime: number }>();
      return totals;
    },
    async end() {
      running.end();
      await running.exit;
      const { inTime, ...totals } = JSON.parse(running.stdout.at(-1) ?? '') as Totals & { inTime: number };
      // What is made up for afterwards says nothing of the time that the test is about.
      if (inTime === 0) throw new Error('no connection was made before the end was asked for');
      return totals;
    },
  };
}

/** The totals of a client whose connections have all been answered so. */
export function allBy(who: 'proxy' | 'server', total: number): Totals {
  return { total, proxy: 0, server: 0, other: 0, failed: 0, errors: {}, [who]: total };
}

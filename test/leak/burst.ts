/** The burst tool (test/harness/burst/): processes that are born and connect, and the server that answers them. */
import { resolve } from 'node:path';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';
import type { Place } from '../../deploy/stage/sock.ts';
import type { Attempt, ClientLine, ServerLine } from './connection.ts';
import { linesOf } from './proxy.ts';

const BURST = resolve(import.meta.dirname, '../../dist/test/burst');

export interface Burst {
  /** Begins them at once, and gives their outcomes when the last has ended. */
  run(attempts: readonly Attempt[]): Promise<ClientLine[]>;
}

/** The shell of {@link Place} would give the agent time: the tool is the process that all are born of. */
export async function startBurst(sandbox: Sandbox, place: Place, parallel: number): Promise<Burst> {
  const running = sandbox.spawn({ ...place, cmd: BURST, args: ['run', String(parallel)] });
  await running.json();
  const lineOf = ({ token, isNew, isExec, isMapped, directory, to, comm }: Attempt): string => {
    const flags = `${isNew ? 'm' : ''}${isExec ? 'e' : ''}${isMapped ? '6' : ''}`;
    return `${token} ${flags || '-'} ${directory} ${to.ip} ${to.port} ${comm ?? '-'}\n`;
  };
  /** One batch after the other, as the lines come back in the order in which processes end. */
  let last: Promise<unknown> = Promise.resolve();
  return {
    run(attempts) {
      if (attempts.length === 0) return Promise.resolve([]);
      running.write(attempts.map(lineOf).join(''));
      const result = last.then(() => Promise.all(attempts.map(() => running.json<ClientLine>())));
      last = result.catch(() => {});
      return result;
    },
  };
}

export interface Server {
  lines(): ServerLine[];
}

/** Listens on all IPv4 addresses of its namespace. */
export async function startServer(
  sandbox: Sandbox,
  place: Place,
  name: string,
  ports: readonly number[],
): Promise<Server> {
  const log = sandbox.file(`${name}.log`);
  await sandbox.spawn({ ...place, cmd: BURST, args: ['serve', log, ports.join(',')] }).json();
  return { lines: () => linesOf(log) };
}

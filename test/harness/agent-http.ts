/** The agent's HTTP server as the tests ask it, and the one reader of the text of `/metrics`. */
import { once } from 'node:events';
import { type IncomingMessage, get } from 'node:http';
import type { Agent } from '../../deploy/stage/agent.ts';
import { patienceMs } from '../../deploy/stage/deadline.ts';

export interface Answer {
  readonly status: number;
  /** Header `content-type`; empty without one. */
  readonly type: string;
  readonly text: string;
}

/** Values by name and labels, as they stand in the text: `cgroute_source_state{source="pods",state="ok"}`. */
export type Metrics = ReadonlyMap<string, number>;

/** The address at which an agent that runs says that it serves: `127.0.0.1:40000`. */
export async function addressOf(agent: Pick<Agent, 'logged'>): Promise<string> {
  return String((await agent.logged('serving'))['http']);
}

/** Asks at an address, by a connection of its own: a kept one may end in the moment that it is used. */
export async function ask(address: string, path: string): Promise<Answer> {
  const request = get(`http://${address}/${path}`, { agent: false, timeout: patienceMs() });
  request.once('timeout', () => request.destroy(new Error(`no answer from /${path}`)));
  const [response] = (await once(request, 'response')) as [IncomingMessage];
  return {
    status: response.statusCode ?? 0,
    type: response.headers['content-type'] ?? '',
    text: (await response.toArray()).join(''),
  };
}

/** Asks an agent for `healthz`, `readyz`, `metrics` or `explain?...`. */
export async function askAgent(agent: Pick<Agent, 'logged'>, path: string): Promise<Answer> {
  return ask(await addressOf(agent), path);
}

/**
 * The values in the text of `/metrics`.
 *
 * Format: https://prometheus.io/docs/instrumenting/exposition_formats/
 */
export function parseMetrics(text: string): Metrics {
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => {
      const blank = line.lastIndexOf(' ');
      return [line.slice(0, blank), Number(line.slice(blank + 1))];
    }),
  );
}

/** What an agent says of itself; an error unless it answers as Prometheus wants it to. */
export async function metricsOf(agent: Pick<Agent, 'logged'>): Promise<Metrics> {
  const { status, type, text } = await askAgent(agent, 'metrics');
  if (status !== 200 || !type.startsWith('text/plain; version=0.0.4'))
    throw new Error(`/metrics answers ${status} with ${type}, expected 200 and text of version 0.0.4`);
  return parseMetrics(text);
}

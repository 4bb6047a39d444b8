/**
 * Who tells what became of a connection: the server whom it saw, the proxy which
 * destination the kernel named. Each is compared with what should have been.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Client, DemoNode, Proxy, Visit } from './demo-node.ts';
import type { Report } from './demo-report.ts';

/** Which way a connection should go: straight to the server, or through this proxy. */
export type Route = 'straight' | Proxy;

/** Connections of a pod, by the way that they went. */
export interface Tally {
  straight: number;
  proxied: number;
}

export interface Witness {
  /** All connections by {@link Witness.visit}: what the agent's counters should say. */
  readonly tallies: ReadonlyMap<Client, Tally>;
  /** One connection, counted. */
  visit(client: Client): Promise<Visit>;
  /** Checks one connection, and shows what the server saw. */
  shows(client: Client, route: Route, aside?: string): Promise<Visit>;
  /** The same after a change: connects until it shows. No connection may fail on the way. */
  comesToShow(client: Client, route: Route): Promise<void>;
  /** The other two views of a redirected connection: the proxy's, and the application's. */
  showsOriginal(client: Client, proxy: Proxy, visit: Visit): Promise<void>;
}

/** How long a change may take until connections show it; far more than it should. */
const DEADLINE_MS = 5000;

function wantedAddress(client: Client, route: Route): string {
  return route === 'straight' ? client.host.ip4 : route.host.ip4;
}

export function makeWitness(node: DemoNode, report: Report): Witness {
  const tallies = new Map<Client, Tally>();

  async function visit(client: Client): Promise<Visit> {
    const seen = await client.visit();
    const tally = tallies.get(client) ?? { straight: 0, proxied: 0 };
    tallies.set(client, tally);
    if (seen.saw === client.host.ip4) tally.straight++;
    else if (seen.saw !== undefined) tally.proxied++;
    return seen;
  }

  return {
    tallies,
    visit,
    async shows(client, route, aside) {
      const seen = await visit(client);
      showVisit(report, node, client, route, seen, aside);
      return seen;
    },
    async comesToShow(client, route) {
      const started = performance.now();
      const failed: string[] = [];
      let seen: Visit;
      for (;;) {
        seen = await visit(client);
        if (!seen.connected.ok) failed.push(seen.connected.errno);
        if (seen.saw === wantedAddress(client, route) || performance.now() - started > DEADLINE_MS) break;
        await delay(5);
      }
      showVisit(report, node, client, route, seen, `after ${Math.round(performance.now() - started)} ms`);
      if (failed.length > 0 && seen.connected.ok) {
        report.check(
          false,
          `before that, ${failed.length} of ${client.name}'s connections failed with ${failed[0]}: one should go the old way or the new`,
        );
      }
    },
    async showsOriginal(client, proxy, seen) {
      const told = await proxy.saw(seen).then(
        ({ destination }) => destination,
        () => 'nothing at all',
      );
      report.check(told === node.server, `${proxy.name} asked for SO_ORIGINAL_DST and was told ${told}`);
      const peer = seen.connected.ok ? seen.connected.peer : seen.connected.errno;
      report.check(
        peer === node.server,
        `${client.name} asked for its peer's address and was told ${peer}${peer === node.server ? ', as if there were no proxy' : ''}`,
      );
    },
  };
}

/** One connection: the way it should go, and what the server saw. */
export function showVisit(
  report: Report,
  node: DemoNode,
  client: Client,
  route: Route,
  visit: Visit,
  aside?: string,
): void {
  const { connected, saw } = visit;
  const way = [client.name, ...(route === 'straight' ? [] : [route.name]), 'server'].join(' → ').padEnd(26);
  const wanted = wantedAddress(client, route);
  const who = route === 'straight' ? 'the pod itself' : 'the proxy';
  if (!connected.ok)
    report.check(false, `${way}  expected, but ${connected.step} failed with ${connected.errno}`);
  else if (saw !== wanted)
    report.check(false, `${way}  expected, but the server saw ${saw}, not ${wanted}, ${who}`);
  else if (connected.peer !== node.server)
    report.check(false, `${way}  but getpeername() said ${connected.peer}, not ${node.server}`);
  else
    report.check(
      true,
      `${way}  the server saw ${saw}, ${who}`,
      aside === undefined ? undefined : `(${aside})`,
    );
}

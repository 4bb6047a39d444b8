/** How a connection travelled, as client, proxy and server saw it. */
import type { Haproxy } from '../../deploy/stage/haproxy.ts';
import type { Target } from '../../deploy/stage/node.ts';
import { eventually } from '../../deploy/stage/process.ts';
import type { Connected } from '../../deploy/stage/sock.ts';

/** What became of a connection: through the proxy's 15001 or 15006, untouched, or the errno of connect(). */
export type Travel = 'redirected' | 'inbound' | 'direct' | (string & {});

/** `10.0.0.1:80`, `[fd77::1]:80`. */
export function at(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

/** `[::ffff:10.0.0.1]:80` as `10.0.0.1:80`; the rest as it is. */
export function plain(address: string): string {
  return address.replace(/^\[::ffff:([\d.]+)\]/, '$1');
}

/** Tells how a connection travelled, and refuses one of which client, proxy and server do not say the same. */
export async function travelOf(
  result: Connected,
  to: Target,
  proxy: Pick<Haproxy, 'connections'> | undefined,
): Promise<Travel> {
  if (!result.ok) return result.errno;
  const asked = at(to.ip, to.port);
  const [kind, , peer = ''] = result.reply.split(' ');
  if (kind !== 'server') throw new Error(`expected the server's reply, got "${result.reply}"`);
  if (plain(result.peer) !== asked)
    throw new Error(`getpeername says ${result.peer} for a connection to ${asked}`);
  if (plain(peer) === plain(result.local)) return 'direct';
  // A client's port comes again, so there may be an older connection from it to elsewhere.
  const fromThere = () => (proxy?.connections() ?? []).filter(({ client }) => client === plain(result.local));
  const seen = await eventually(`the proxy has seen ${result.local} on its way to ${asked}`, () =>
    fromThere().findLast(({ destination }) => destination === asked),
  ).catch((error: unknown) => {
    const taken = fromThere().map(({ destination }) => destination);
    throw new Error(`${String(error)}\nit was told of ${taken.join(', ') || 'no connection'} from there`);
  });
  return seen.port === 15006 ? 'inbound' : 'redirected';
}

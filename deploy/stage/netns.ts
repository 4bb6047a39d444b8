/**
 * Networks of a test's own: namespaces joined by veth pairs to a bridge, which
 * has a namespace of its own too. The machine's namespace gets nothing.
 */
import { must } from './process.ts';
import type { Sandbox } from './sandbox.ts';

export interface NetworkOptions {
  /** A /24. Default 10.77.0.0/24; networks don't meet, so they may be equal. */
  readonly subnet4?: string;
  /** A /64. Default fd77::/64. */
  readonly subnet6?: string;
}

export interface NetworkHost {
  readonly name: string;
  /** The namespace's name, as `ip netns` knows it. */
  readonly netns: string;
  readonly ip4: string;
  readonly ip6: string;
}

export interface Network {
  /** The bridge's namespace: the router of the others, which rejects what it has no route for. */
  readonly gateway: NetworkHost;
  /** Makes a namespace with one interface, `eth0`. Addresses default to the next free ones. */
  addHost(name: string, addresses?: { readonly ip4?: string; readonly ip6?: string }): Promise<NetworkHost>;
}

/** Runs `ip` with several commands, one a line, in a namespace or in the machine's. */
export async function ip(netns: string | undefined, ...commands: readonly string[]): Promise<string> {
  const where = netns === undefined ? [] : ['-n', netns];
  return must({ cmd: 'ip', args: [...where, '-batch', '-'], stdin: `${commands.join('\n')}\n` });
}

/** Sets sysctls of a network namespace, `net.` left out: `ipv4.ip_forward=1`. */
export async function sysctl(netns: string, ...settings: readonly string[]): Promise<void> {
  await must({ cmd: 'sysctl', args: ['-qw', ...settings.map((setting) => `net.${setting}`)], netns });
}

function base(subnet: string, length: number, separator: string): string {
  const [address = '', bits] = subnet.split('/');
  if (Number(bits) !== length) throw new Error(`a test's subnet must be a /${length}, not "${subnet}"`);
  return length === 24 ? address.slice(0, address.lastIndexOf('.') + 1) : address.replace(/::$/, separator);
}

let networks = 0;

/** Makes an empty network. All of it goes away with the sandbox. */
export async function makeNetwork(sandbox: Sandbox, options: NetworkOptions = {}): Promise<Network> {
  const prefix4 = base(options.subnet4 ?? '10.77.0.0/24', 24, '.');
  const prefix6 = base(options.subnet6 ?? 'fd77::/64', 64, '::');
  const number = ++networks;
  const netns = sandbox.netnsName(`net${number}`);
  const gateway: NetworkHost = { name: 'gateway', netns, ip4: `${prefix4}1`, ip6: `${prefix6}1` };
  let last = 1;

  await ip(undefined, `netns add ${netns}`);
  await ip(
    netns,
    'link set lo up',
    // Snooping would drop neighbour discovery until it has learnt who listens; without
    // an address of its own it takes that of a port, another one when a host is added.
    'link add br0 address 02:00:00:00:00:01 type bridge stp_state 0 mcast_snooping 0',
    `address add ${gateway.ip4}/24 dev br0`,
    `address add ${gateway.ip6}/64 dev br0 nodad`,
    'link set br0 up',
    'route add unreachable default',
    'route add unreachable ::/0',
  ).catch(explain);
  await sysctl(netns, 'ipv4.ip_forward=1', 'ipv6.conf.all.forwarding=1');

  return {
    gateway,
    async addHost(name, addresses = {}) {
      const index = ++last;
      const host: NetworkHost = {
        name,
        netns: sandbox.netnsName(`${name}-net${number}`),
        ip4: addresses.ip4 ?? `${prefix4}${index}`,
        ip6: addresses.ip6 ?? `${prefix6}${index.toString(16)}`,
      };
      await ip(undefined, `netns add ${host.netns}`);
      await ip(
        netns,
        `link add veth${index} type veth peer name eth0 netns ${host.netns}`,
        `link set veth${index} master br0 up`,
      ).catch(explain);
      await ip(
        host.netns,
        'link set lo up',
        `address add ${host.ip4}/24 dev eth0`,
        `address add ${host.ip6}/64 dev eth0 nodad`,
        'link set eth0 up',
        `route add default via ${gateway.ip4}`,
        `route add default via ${gateway.ip6}`,
      ).catch(explain);
      return host;
    },
  };
}

function explain(error: unknown): never {
  throw new Error('the test network could not be made', { cause: error });
}

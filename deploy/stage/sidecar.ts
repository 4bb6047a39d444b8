/**
 * A sidecar as Istio's injection leaves it in a pod: the rules of its init
 * container, and a proxy that runs as user 1337. Written from the published
 * description, https://istio.io/latest/docs/ops/deployment/application-requirements/
 * and `istio-iptables` as it logs its rules.
 */
import type { NetworkHost } from './netns.ts';
import { type Haproxy, startHaproxy } from './haproxy.ts';
import { must } from './process.ts';
import type { Sandbox } from './sandbox.ts';
import type { Place } from './sock.ts';

export type Backend = 'nft' | 'legacy';

/** User and group of the sidecar. */
export const SIDECAR_USER = 1337;
export const SIDECAR_PORTS = { outbound: 15001, inbound: 15006 } as const;
/** What the sidecar passes to its application comes from there. */
const INBOUND_SOURCE = '127.0.0.6';

/** The nat table of a pod; its output chain has nine rules. */
function rules(loopback: string, source: string): string {
  const { outbound, inbound } = SIDECAR_PORTS;
  const own = [`--uid-owner ${SIDECAR_USER}`, `--gid-owner ${SIDECAR_USER}`];
  return `*nat
-N ISTIO_INBOUND
-N ISTIO_IN_REDIRECT
-N ISTIO_OUTPUT
-N ISTIO_REDIRECT
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
${[15008, 15090, 15021, 15020].map((port) => `-A ISTIO_INBOUND -p tcp --dport ${port} -j RETURN`).join('\n')}
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports ${inbound}
-A ISTIO_OUTPUT -s ${source} -o lo -j RETURN
${own
  .map(
    (owner) => `-A ISTIO_OUTPUT -o lo ! -d ${loopback} -m owner ${owner} -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! ${owner} -j RETURN
-A ISTIO_OUTPUT -m owner ${owner} -j RETURN`,
  )
  .join('\n')}
-A ISTIO_OUTPUT -d ${loopback} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports ${outbound}
COMMIT
`;
}

/** Puts the rules into a pod's namespace, as an init container does: for both families, into one backend. */
export async function installSidecarRules(netns: string, backend: Backend = 'nft'): Promise<void> {
  await must({
    cmd: `iptables-${backend}-restore`,
    args: ['--noflush'],
    stdin: rules('127.0.0.1/32', `${INBOUND_SOURCE}/32`),
    netns,
  });
  await must({
    cmd: `ip6tables-${backend}-restore`,
    args: ['--noflush'],
    stdin: rules('::1/128', '::6/128'),
    netns,
  });
}

/** The rules of one chain of a nat table, without `-A CHAIN`. */
export async function natRules(netns: string, chain: string, tool = 'iptables-nft'): Promise<string[]> {
  const text = await must({ cmd: tool, args: ['-t', 'nat', '-S', chain], netns });
  return text
    .split('\n')
    .filter((line) => line.startsWith(`-A ${chain} `))
    .map((line) => line.slice(`-A ${chain} `.length));
}

/** The comments of all rules of a namespace that name cgroute, in any table, family and backend, with tool and chain. */
export async function ownRules(netns: string): Promise<string[]> {
  const found: string[] = [];
  for (const tool of ['iptables-nft', 'iptables-legacy', 'ip6tables-nft', 'ip6tables-legacy']) {
    const text = await must({ cmd: `${tool}-save`, netns });
    for (const [, chain, comment] of text.matchAll(/^-A (\S+) .*"?(cgroute[^" ]*)"?/gm))
      found.push(`${tool} ${chain} ${comment}`);
  }
  return found;
}

/** A real HAProxy as the sidecar of a pod: it takes what the rules redirect and passes it on. */
export async function startSidecar(
  sandbox: Sandbox,
  host: Pick<NetworkHost, 'name' | 'netns'>,
  place: Place,
): Promise<Haproxy> {
  return startHaproxy(sandbox, {
    ...place,
    name: `sidecar-${host.name}`,
    // It asks for the original destination on IPv4 alone.
    addresses: ['0.0.0.0'],
    user: SIDECAR_USER,
    sources: { [SIDECAR_PORTS.inbound]: INBOUND_SOURCE },
  });
}

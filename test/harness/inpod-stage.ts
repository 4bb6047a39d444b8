/** Pods in network namespaces of their own, and the project's proxy in them, without an agent. */
import { type InpodProxy, type InpodProxyOptions, startInpodProxy } from '../../deploy/stage/inpod-proxy.ts';
import { type Network, type NetworkHost, makeNetwork } from '../../deploy/stage/netns.ts';
import { must } from '../../deploy/stage/process.ts';
import { type Sandbox, makeSandbox } from '../../deploy/stage/sandbox.ts';
import { type ZdsServe, serveZds } from './zds-serve.ts';

export interface InpodStage extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly network: Network;
  readonly zds: ZdsServe;
  /** Where the proxies run: a namespace that is no pod's. */
  readonly node: NetworkHost;
  /** Starts a proxy on the node; without spoofed sources, which take an agent, or a route, in the pod. */
  proxy(options?: Partial<InpodProxyOptions>): InpodProxy;
  /** `add` of a pod whose uid and name are those of the namespace. */
  add(pod: NetworkHost): string;
}

export async function makeInpodStage(name: string): Promise<InpodStage> {
  const sandbox = await makeSandbox(name);
  try {
    const network = await makeNetwork(sandbox);
    const [node, zds] = [await network.addHost('node'), await serveZds(sandbox)];
    return {
      sandbox,
      network,
      zds,
      node,
      proxy: (options = {}) =>
        startInpodProxy(sandbox, { socket: zds.socket, netns: node.netns, spoof: false, ...options }),
      add: ({ name: pod, netns }) => `add ${pod} default ${pod} sa-${pod} /run/netns/${netns}`,
      [Symbol.asyncDispose]: () => sandbox[Symbol.asyncDispose](),
    };
  } catch (error) {
    await sandbox[Symbol.asyncDispose]();
    throw error;
  }
}

/** The marks of the proxy's own packets, which its rules of iptables leave alone. */
const NOT_THE_PROXY = ['-m', 'mark', '!', '--mark', '0x539'];

/** What leaves a pod goes to its 15001, what comes to it to its 15006, by rules as other meshes have them. */
export async function captureByIptables(pod: NetworkHost): Promise<void> {
  for (const cmd of ['iptables', 'ip6tables'] as const) {
    const rule = (chain: string, match: readonly string[], port: number): Promise<string> => {
      const target = ['-p', 'tcp', '-j', 'REDIRECT', '--to-ports', String(port)];
      return must({ cmd, args: ['-t', 'nat', '-A', chain, ...match, ...target], netns: pod.netns });
    };
    await rule('OUTPUT', ['!', '-o', 'lo', ...NOT_THE_PROXY], 15001);
    await must({
      cmd,
      args: ['-t', 'nat', '-A', 'PREROUTING', '-p', 'tcp', '--dport', '15008', '-j', 'ACCEPT'],
      netns: pod.netns,
    });
    await rule('PREROUTING', ['-i', 'eth0'], 15006);
  }
}

/** A redirect by iptables, as other meshes have it, to compare with. */
import { must } from '../../deploy/stage/process.ts';

/** Sends what is dialled at the port, of one destination or of any, to another port of the same namespace. */
export async function redirectByIptables(
  netns: string,
  tool: 'iptables' | 'ip6tables',
  dialled: { readonly port: number; readonly ip?: string },
  to: number,
): Promise<void> {
  const match = [...(dialled.ip === undefined ? [] : ['-d', dialled.ip]), '-p', 'tcp', '--dport'];
  const target = ['-j', 'REDIRECT', '--to-ports', String(to)];
  const args = ['-t', 'nat', '-A', 'OUTPUT', ...match, String(dialled.port), ...target];
  await must({ cmd: tool, args, netns });
}

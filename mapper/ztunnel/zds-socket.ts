/** The socket that ztunnels look for, in the place of istio-cni's. */
import { CgrouteError } from '../../native/error.ts';
import {
  listenForPackets,
  type PacketListener,
  type PacketListenerOptions,
} from '../../native/unix/packet-listener.ts';

/**
 * Listens at the path of the setting `ztunnel.socket`.
 *
 * @throws CgrouteError `EZDSTAKEN` where another server answers there, `ESOCKETPATH`
 * where the path cannot be used
 */
export function openZdsSocket(options: Omit<PacketListenerOptions, 'purpose'>): PacketListener {
  try {
    return listenForPackets({ ...options, purpose: 'ztunnel.socket' });
  } catch (cause) {
    if (!(cause instanceof CgrouteError && cause.code === 'ESOCKETTAKEN')) throw cause;
    throw new CgrouteError(
      'EZDSTAKEN',
      `somebody answers on ztunnel.socket ${options.path} already, istio-cni on most nodes, and a ztunnel serves one of both: expected nobody there; take istio-cni off this node first (a cluster moves node by node), or name another path`,
      { cause },
    );
  }
}

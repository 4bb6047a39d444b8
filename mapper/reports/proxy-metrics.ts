/** Metrics of the node's proxy. */
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { setting } from '../../native/layout/layouts.ts';
import type { ProxyReport } from '../placement/node-proxy.ts';
import { one, type MetricOf } from './metric-source.ts';

interface ProxyFigures extends Pick<PinnedMaps, 'settings'> {
  readonly report: ProxyReport;
}

export const proxyMetrics: readonly MetricOf<ProxyFigures>[] = [
  {
    name: 'cgroute_proxy_known',
    type: 'gauge',
    labels: [],
    help: "1 while the maps hold the address of the node's proxy.",
    samples: ({ settings }) =>
      one(settings.get(setting.proxyIp4) !== undefined || settings.get(setting.proxyIp6) !== undefined),
  },
  {
    name: 'cgroute_proxy_ready',
    type: 'gauge',
    labels: [],
    help: '1 while the pod of that address is Ready. One that is not stays the proxy while it runs and no other is ready.',
    samples: ({ report: { pod, unready } }) => one(pod !== null && unready === null),
  },
  {
    name: 'cgroute_proxy_ports_not_listened',
    type: 'gauge',
    labels: [],
    help: 'Addresses and ports of the proxy to which connections are sent and where nobody listens.',
    samples: ({ report: { notListening } }) => one(notListening?.length ?? 0),
  },
];

/** Metrics of the node's proxy. */
import type { PinnedMaps } from '../../native/data-plane/maps.ts';
import { setting } from '../../native/layout/layouts.ts';
import { one, type MetricOf } from './metric-source.ts';

export const proxyMetrics: readonly MetricOf<Pick<PinnedMaps, 'settings'>>[] = [
  {
    name: 'cgroute_proxy_known',
    type: 'gauge',
    labels: [],
    help: "1 while the maps hold the address of the node's proxy.",
    samples: ({ settings }) =>
      one(settings.get(setting.proxyIp4) !== undefined || settings.get(setting.proxyIp6) !== undefined),
  },
];

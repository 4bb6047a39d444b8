/** How large the kernel's maps are made, and what one pod may have of them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { defaultConfig, type Config } from '../../../../mapper/config/config.ts';
import { mapShares, mapSizes } from '../../../../mapper/maps/map-sizes.ts';

test('sizes follow from the configuration by the rules', () => {
  const config: Config = {
    ...defaultConfig('manifest'),
    maxPods: 100,
    maxConnections: 5000,
    maxTrafficEntries: 70,
  };
  assert.deepEqual(mapSizes(config), {
    cgroup_info_map: 800,
    pod_ip_map: 200,
    pod_info_map: 100,
    pod_counters_map: 101,
    bypass_filter_map: 100,
    bypass_filter6_map: 100,
    pod_options_map: 101,
    pod_port_map: 70,
    pod_range_map: 70,
    pod_share_map: 101,
    connection_overflow_map: 5000,
    original_dst_map: 5000,
  });
  assert.equal(mapSizes({ ...config, maxConnections: 100_000 })['original_dst_map'], 8192);
  assert.equal(mapShares({ ...config, maxConnections: 100_000 }).originals, 4096);
});

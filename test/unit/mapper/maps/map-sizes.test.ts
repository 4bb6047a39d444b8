/** How large the kernel's maps are made, and what one pod may have of them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { defaultConfig, type Config } from '../../../../mapper/config/config.ts';
import { mapShares, mapSizes, mayHave } from '../../../../mapper/maps/map-sizes.ts';

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
    pod_local_map: 400,
    pod_device_map: 101,
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
  assert.equal(mapSizes({ ...config, maxConnections: 100_000 })['original_dst_map'], 32_768);
  assert.equal(mapShares({ ...config, maxConnections: 100_000 }).originals, 4096);
});

test('one pod may have its share, and no more than a part of what is free', () => {
  const shares = { connections: 100, originals: 100 };
  const may = (of: 'connections' | 'originals', entries: number) =>
    mayHave(of, shares, { entries, capacity: 1000 });
  assert.deepEqual([may('connections', 0), may('connections', 600), may('connections', 604)], [100, 100, 99]);
  assert.deepEqual([may('originals', 0), may('originals', 200), may('originals', 300)], [100, 100, 88]);
  assert.deepEqual([may('connections', 999), may('connections', 1000), may('originals', 1001)], [1, 0, 0]);
});

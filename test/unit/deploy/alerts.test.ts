/** The alerts by Prometheus's own checker: what it parses, and when each one fires. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { parse, stringify } from 'yaml';
import { promtool } from '../../harness/promtool.ts';
import { ALERTS_FILE, alerts, queries } from './prometheus-rules.ts';

const program = await promtool().catch((error: unknown) => error as Error);
/** In CI nothing is skipped: it fails instead. */
const skip = program instanceof Error && !process.env['CI'] ? program.message : false;

/** Runs promtool on a file with that content; gives what it said, and throws when it found a fault. */
async function check(args: readonly string[], content: unknown): Promise<string> {
  if (program instanceof Error) throw program;
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-test-'));
  try {
    writeFileSync(join(directory, 'file.yaml'), stringify(content));
    const { stdout } = await promisify(execFile)(program, [...args, join(directory, 'file.yaml')]).catch(
      (error: { stdout: string; stderr: string }) => {
        throw new Error(`${error.stdout}${error.stderr}`);
      },
    );
    return stdout;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test('every expression of the alerts and of the dashboard parses', { skip }, async () => {
  const intervals: Readonly<Record<string, string>> = { $__rate_interval: '5m', $node: '.*' };
  const rules = queries.map((expr, index) => ({
    record: `panel:${index}`,
    expr: expr.replaceAll(/\$\w+/g, (name) => intervals[name] ?? name),
  }));
  const said = await check(['check', 'rules', ALERTS_FILE], { groups: [{ name: 'dashboard', rules }] });
  assert.match(said, new RegExp(`SUCCESS: ${alerts.length} rules found`));
  assert.match(said, new RegExp(`SUCCESS: ${queries.length} rules found`));
  await assert.rejects(
    check(['check', 'rules'], {
      groups: [{ name: 'wrong', rules: [{ record: 'wrong', expr: 'sum(cgroute_ready' }] }],
    }),
    /unclosed left parenthesis/,
  );
});

test('the configuration of Prometheus in deploy/README.md is one', { skip }, async () => {
  const [, block = ''] =
    /```yaml\n(rule_files:[^]*?)```/.exec(
      readFileSync(resolve(import.meta.dirname, '../../../deploy/README.md'), 'utf8'),
    ) ?? [];
  const { scrape_configs: scraped, ...rest } = parse(block) as {
    scrape_configs: readonly Readonly<Record<string, unknown>>[];
  };
  // Debian's promtool is built without Kubernetes.
  const known = scraped.map(({ kubernetes_sd_configs: pods, ...config }) => ({
    ...config,
    static_configs: pods === undefined ? [] : [{ targets: ['192.0.2.1:15270'] }],
  }));
  await check(['check', 'config', '--syntax-only'], { ...rest, scrape_configs: known });
  await assert.rejects(
    check(['check', 'config', '--syntax-only'], { scrape_configs: [{ job_name: 'a', no_such_key: 1 }] }),
    /no_such_key/,
  );
});

const TARGET = 'job="cgroute/cgroute", instance="192.0.2.1:15270", node="node-a"';
/** By the metric with the labels that are its own; a value for each of four hours' minutes. */
const HEALTHY: Readonly<Record<string, string>> = {
  up: '1x240',
  'cgroute_build_info{version="1.0.0"}': '1x240',
  cgroute_ready: '1x240',
  cgroute_proxy_known: '1x240',
  cgroute_proxy_ready: '1x240',
  cgroute_proxy_ports_not_listened: '0x240',
  'cgroute_pods_intended{verdict="in"}': '3x240',
  'cgroute_pods_mapped{verdict="in"}': '2x240',
  'cgroute_pods_unmapped{verdict="in"}': '0x240',
  'cgroute_pods_unmapped{verdict="out"}': '0x240',
  cgroute_pods_failed: '0x240',
  cgroute_cgroups_unresolved_age_seconds: '0x240',
  'cgroute_map_entries{map="connection_map"}': '4096x240',
  'cgroute_map_capacity{map="connection_map"}': '4096x240',
  'cgroute_map_entries{map="pod_info_map"}': '100x240',
  'cgroute_map_capacity{map="pod_info_map"}': '1000x240',
  'cgroute_map_errors_total{errno="E2BIG"}': '0x240',
  'cgroute_connection_reset_failures_total{errno="EPERM"}': '0x240',
  cgroute_drift_repaired_total: '0x240',
  'cgroute_sidecar_pods{state="bypassed"}': '1x240',
  'cgroute_sidecar_pods{state="failing"}': '0x240',
  cgroute_sidecar_failures_total: '0x240',
  cgroute_events_lost_total: '0x240',
  'cgroute_connections_total{branch="redirected"}': '0+100x240',
  'cgroute_connections_total{branch="noProxyDenied"}': '0x240',
  'cgroute_connections_total{branch="unknownAllowed"}': '0x240',
  'cgroute_connections_total{branch="handoffLost"}': '0x240',
  'cgroute_source_state{source="pods", state="ok"}': '1x240',
  'cgroute_source_state{source="pods", state="degraded"}': '0x240',
  'cgroute_source_state{source="process-events", state="failed"}': '0x240',
  'cgroute_source_last_event_age_seconds{source="pods"}': '60x240',
  'cgroute_source_restarts_total{source="pods", reason="timeout"}': '0+1x240',
  'cgroute_source_restarts_total{source="pods", reason="cut"}': '0x240',
  'cgroute_enrolment_latency_seconds_bucket{le="0.01"}': '0+10x240',
  'cgroute_enrolment_latency_seconds_bucket{le="10"}': '0+10x240',
  'cgroute_enrolment_latency_seconds_bucket{le="+Inf"}': '0+10x240',
};
const OTHER_NODE: Readonly<Record<string, string>> = {
  'cgroute_build_info{version="1.0.0", node="node-b", job="cgroute/cgroute", instance="192.0.2.2:15270"}':
    '1x240',
};

interface Scenario {
  readonly name: string;
  /** In place of what is healthy, or beside it. */
  readonly series: Readonly<Record<string, string>>;
  /** All that fire, and no others. */
  readonly fire: readonly string[];
  /** By default when all has been so for long enough. */
  readonly at?: string;
}

const SCENARIOS: readonly Scenario[] = [
  { name: 'all is well', series: {}, fire: [] },
  {
    name: 'an agent does not answer',
    series: { ...OTHER_NODE, up: '1x30 0x210', 'cgroute_build_info{version="1.0.0"}': '1x30' },
    fire: ['CgrouteAgentDown'],
    at: '60m',
  },
  {
    name: 'it is restarted',
    series: { ...OTHER_NODE, up: '1x30 0x4 1x200', 'cgroute_build_info{version="1.0.0"}': '1x30 _x4 1x200' },
    fire: [],
    at: '35m',
  },
  {
    name: 'something else does not answer',
    series: { 'up{job="other", instance="192.0.2.9:80", node="node-a"}': '0x240' },
    fire: [],
  },
  {
    name: 'nobody is scraped',
    series: { 'cgroute_build_info{version="1.0.0"}': '_x240' },
    fire: ['CgrouteAbsent'],
  },
  { name: 'an agent does not become ready', series: { cgroute_ready: '0x240' }, fire: ['CgrouteNotReady'] },
  {
    name: 'pods that should be redirected are not',
    series: { 'cgroute_pods_unmapped{verdict="in"}': '2x240' },
    fire: ['CgroutePodsNotRedirected'],
  },
  {
    name: 'a pod has just been started',
    series: { 'cgroute_pods_unmapped{verdict="in"}': '0x50 2x4 0x200' },
    fire: [],
    at: '54m',
  },
  {
    name: 'pods that should be out are not known',
    series: { 'cgroute_pods_unmapped{verdict="out"}': '1x240' },
    fire: ['CgroutePodsUnmapped'],
  },
  {
    name: 'entries cannot be written, as a map is full',
    series: {
      cgroute_pods_failed: '1x240',
      'cgroute_map_errors_total{errno="E2BIG"}': '0+2x240',
      'cgroute_map_entries{map="pod_info_map"}': '1000x240',
    },
    fire: ['CgrouteMapErrors', 'CgrouteMapFilling', 'CgroutePodsFailed'],
  },
  {
    name: 'no proxy',
    series: {
      cgroute_proxy_known: '0x240',
      cgroute_proxy_ready: '0x240',
      'cgroute_connections_total{branch="noProxyDenied"}': '0+5x240',
    },
    fire: ['CgrouteConnectionsDenied', 'CgrouteProxyUnknown'],
  },
  {
    name: 'no proxy, and nobody who needs one',
    series: {
      cgroute_proxy_known: '0x240',
      cgroute_proxy_ready: '0x240',
      'cgroute_pods_mapped{verdict="in"}': '0x240',
    },
    fire: [],
  },
  {
    name: 'a proxy on which nobody listens',
    series: { cgroute_proxy_ports_not_listened: '0x230 2x10' },
    fire: ['CgrouteProxyNotListening'],
  },
  {
    name: 'a proxy that is slow to listen',
    series: { cgroute_proxy_ports_not_listened: '0x230 2x1 0x9' },
    fire: [],
  },
  {
    name: 'a proxy that stays unready',
    series: { cgroute_proxy_ready: '0x240' },
    fire: ['CgrouteProxyNotReady'],
  },
  {
    name: 'a restart of the kubelet',
    series: { cgroute_proxy_ready: '1x225 0x5 1x10' },
    fire: [],
    at: '230m',
  },
  {
    name: 'destinations are lost',
    series: { 'cgroute_connections_total{branch="handoffLost"}': '0+5x240' },
    fire: ['CgrouteDestinationsLost'],
  },
  {
    name: 'connections pass the mesh by',
    series: { 'cgroute_connections_total{branch="unknownAllowed"}': '0+5x240' },
    fire: ['CgrouteOutsideTheMesh'],
  },
  {
    name: 'connections cannot be reset',
    series: { 'cgroute_connection_reset_failures_total{errno="EPERM"}': '0x220 1x20' },
    fire: ['CgrouteConnectionsNotReset'],
  },
  {
    name: 'somebody detaches programs',
    series: { cgroute_drift_repaired_total: '0x220 1x20' },
    fire: ['CgrouteDrift'],
  },
  { name: 'it was repaired an hour ago', series: { cgroute_drift_repaired_total: '0x150 1x90' }, fire: [] },
  {
    name: 'rules for sidecars cannot be changed',
    series: { 'cgroute_sidecar_pods{state="failing"}': '2x240', cgroute_sidecar_failures_total: '0+1x240' },
    fire: ['CgrouteSidecarStays'],
  },
  {
    name: 'a lock was held for a while',
    series: {
      'cgroute_sidecar_pods{state="failing"}': '0x230 1x4 0x6',
      cgroute_sidecar_failures_total: '0x230 1x10',
    },
    fire: [],
  },
  {
    name: 'cgroups that nobody knows',
    series: { cgroute_cgroups_unresolved_age_seconds: '0+60x240' },
    fire: ['CgrouteCgroupsUnresolved'],
  },
  {
    name: 'labels take seconds',
    series: { 'cgroute_enrolment_latency_seconds_bucket{le="0.01"}': '0x240' },
    fire: ['CgrouteEnrolmentSlow'],
  },
  {
    name: 'the API server is away',
    series: {
      'cgroute_source_state{source="pods", state="ok"}': '0x240',
      'cgroute_source_state{source="pods", state="degraded"}': '1x240',
      'cgroute_source_last_event_age_seconds{source="pods"}': '0+60x240',
    },
    fire: ['CgrouteApiSilent', 'CgrouteSourceFailed'],
  },
  {
    name: 'the API server is away for ten minutes',
    series: {
      'cgroute_source_state{source="pods", state="degraded"}': '0x220 1x20',
      'cgroute_source_last_event_age_seconds{source="pods"}': '0x220 0+60x20',
    },
    fire: [],
    at: '230m',
  },
  {
    name: 'watches do not last',
    series: { 'cgroute_source_restarts_total{source="pods", reason="cut"}': '0+1x240' },
    fire: ['CgrouteSourceRestarts'],
  },
  {
    name: 'no process events',
    series: { 'cgroute_source_state{source="process-events", state="failed"}': '1x240' },
    fire: ['CgrouteWitnessFailed'],
  },
  {
    name: 'process events are lost again and again',
    series: { cgroute_events_lost_total: '0+1x240' },
    fire: ['CgrouteEventsLost'],
  },
  {
    name: 'two versions',
    series: {
      'cgroute_build_info{version="1.1.0", node="node-b", job="cgroute/cgroute", instance="192.0.2.2:15270"}':
        '1x240',
    },
    fire: ['CgrouteVersionsDiffer'],
  },
];

/** With the labels of whoever was scraped, where there are none yet. */
function scraped(series: string): string {
  const [, name = '', labels = ''] = /^(\w+)(?:\{(.*)\})?$/.exec(series) ?? [];
  const own = labels.includes('instance=') ? '' : TARGET;
  return `${name}{${[labels, own].filter((text) => text !== '').join(', ')}}`;
}

function scenarioTest({ name, series, fire, at = '235m' }: Scenario): object {
  return {
    name,
    interval: '1m',
    input_series: Object.entries({ ...HEALTHY, ...series }).map(([key, values]) => ({
      series: scraped(key),
      values,
    })),
    promql_expr_test: [
      {
        expr: 'count by (alertname) (ALERTS{alertstate="firing"})',
        eval_time: at,
        exp_samples: fire.map((alertname) => ({ labels: `{alertname="${alertname}"}`, value: 1 })),
      },
    ],
  };
}

test('each alert fires when it should, and no other does', { skip }, async () => {
  assert.deepEqual(
    [...new Set(SCENARIOS.flatMap(({ fire }) => fire))].sort(),
    alerts.map(({ alert }) => alert).sort(),
  );
  await check(['test', 'rules'], {
    rule_files: [ALERTS_FILE],
    evaluation_interval: '1m',
    tests: SCENARIOS.map(scenarioTest),
  });
});

test('an alert names the node, or the instance where the node is not known, and its value in words', {
  skip,
}, async () => {
  const { annotations } = alerts.find(({ alert }) => alert === 'CgrouteMapFilling') ?? assert.fail();
  const expected = (where: string, labels: Readonly<Record<string, string>>): object => ({
    exp_labels: { severity: 'warning', map: 'pod_info_map', ...labels },
    exp_annotations: { ...annotations, summary: `pod_info_map on ${where} is filled to 90%.` },
  });
  const series = (name: string, labels: string, values: string): object => ({
    series: `${name}{map="pod_info_map", ${labels}}`,
    values,
  });
  await check(['test', 'rules'], {
    rule_files: [ALERTS_FILE],
    tests: [
      {
        interval: '1m',
        input_series: ['instance="a:1", node="node-a"', 'instance="b:1"'].flatMap((labels) => [
          series('cgroute_map_entries', labels, '9x30'),
          series('cgroute_map_capacity', labels, '10x30'),
        ]),
        alert_rule_test: [
          {
            eval_time: '20m',
            alertname: 'CgrouteMapFilling',
            exp_alerts: [
              expected('node-a', { instance: 'a:1', node: 'node-a' }),
              expected('b:1', { instance: 'b:1' }),
            ],
          },
        ],
      },
    ],
  });
});

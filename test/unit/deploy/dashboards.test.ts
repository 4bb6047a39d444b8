/** The dashboard and the alerts ask for what the agent tells, and point to what the documents say. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { metricsReference } from '../../../mapper/reports/metrics.ts';
import { branch } from '../../../native/layout/layouts.ts';
import { anchorsOf } from '../../harness/markdown.ts';
import { alerts, dashboard, queries } from './prometheus-rules.ts';

/** Set by whoever scrapes; `le` belongs to each histogram. */
const SCRAPED = ['node', 'instance', 'job'];
/** Values that the agent gives its labels; a pattern in a query has to meet one of them. */
const VALUES: Readonly<Record<string, readonly string[]>> = {
  branch: Object.keys(branch).filter((name) => name !== 'count'),
  verdict: ['in', 'out', 'bypass'],
  state: ['ok', 'degraded', 'failed', 'off', 'bypassed', 'short_circuited', 'waiting', 'failing'],
  source: ['pods', 'namespaces', 'manifest', 'sweep', 'cgroup-watch', 'process-events'],
  map: [
    'cgroup_info_map',
    'pod_info_map',
    'pod_ip_map',
    'connection_map',
    'connection_overflow_map',
    'original_dst_map',
  ],
  reason: [
    'access',
    'unreachable',
    'cut',
    'idle',
    'refused',
    'server',
    'expired',
    'garbage',
    'ended',
    'internal',
    'timeout',
    'relist',
  ],
};

/** The labels of a metric by the name that a query has for it; undefined for none of the agent's. */
function labelsOf(name: string): readonly string[] | undefined {
  const found = metricsReference.find(
    (metric) =>
      name === metric.name ||
      (metric.type === 'histogram' && name.replace(/_(?:bucket|sum|count)$/, '') === metric.name),
  );
  return found && [...found.labels, ...SCRAPED, ...(found.type === 'histogram' ? ['le'] : [])];
}

/** What is wrong with a query, in sentences. Whether it can be parsed, promtool tells. */
function complaints(query: string): string[] {
  const found: string[] = [];
  const known = new Set<string>();
  for (const [, name = '', selector = ''] of query.matchAll(/\b(cgroute_\w+|up\b)(?:\{([^}]*)\})?/g)) {
    const labels = name === 'up' ? SCRAPED : labelsOf(name);
    if (labels === undefined) found.push(`${name} is no metric`);
    for (const label of labels ?? []) known.add(label);
    for (const [, label = '', value = ''] of selector.matchAll(/(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"/g)) {
      if (labels?.includes(label) === false) found.push(`${name} has no label ${label}`);
      const never = value
        .split('|')
        .filter(
          (each) => VALUES[label]?.some((possible) => new RegExp(`^(?:${each})$`).test(possible)) === false,
        );
      for (const each of never) found.push(`${label} is never ${each}`);
    }
  }
  for (const [, list = ''] of query.matchAll(/\b(?:by|on|ignoring|without)\s*\(([^)]*)\)/g)) {
    for (const label of list.split(',').map((text) => text.trim()))
      if (!known.has(label)) found.push(`nothing has a label ${label}`);
  }
  if (known.size === 0) found.push('no metric at all');
  return found.map((text) => `${text}: ${query}`);
}

test('the check of queries sees what is not there', () => {
  assert.deepEqual(
    complaints('sum by (node) (rate(cgroute_enrolment_latency_seconds_bucket{node=~"$node"}[5m]))'),
    [],
  );
  assert.match(complaints('cgroute_nothing > 0').join(), /cgroute_nothing is no metric/);
  assert.match(complaints('cgroute_ready_bucket').join(), /no metric/);
  assert.match(complaints('cgroute_ready{verdict="in"}').join(), /cgroute_ready has no label verdict/);
  assert.match(complaints('sum by (branch) (cgroute_ready)').join(), /nothing has a label branch/);
  assert.match(
    complaints('cgroute_connections_total{branch=~"redirected|lost"}').join(),
    /branch is never lost/,
  );
  assert.match(complaints('1 > 0').join(), /no metric at all/);
});

test('every metric that an alert or a panel uses exists, with the labels that it is asked for', () => {
  assert.deepEqual([...alerts.map(({ expr }) => expr), ...queries].flatMap(complaints), []);
});

test('every metric is used by an alert or a panel', () => {
  const text = [...alerts.map(({ expr }) => expr), ...queries].join('\n');
  assert.deepEqual(
    metricsReference
      .map(({ name }) => name)
      .filter((name) => !new RegExp(`\\b${name}(?:_bucket|_count|_sum)?\\b`).test(text)),
    [],
  );
});

test('every alert says how bad it is, after how long, what it means, and where it is explained', () => {
  const anchors = anchorsOf(
    readFileSync(resolve(import.meta.dirname, '../../../docs/operations.md'), 'utf8'),
  );
  for (const { alert, for: pause, labels, annotations } of alerts) {
    assert.match(alert, /^Cgroute[A-Z]\w+$/);
    assert.match(pause, /^\d+[mh]$/, alert);
    assert.match(labels['severity'] ?? '', /^(?:critical|warning|info)$/, alert);
    assert.deepEqual(Object.keys(annotations), ['summary', 'description', 'runbook_url'], alert);
    const [, anchor = ''] = /^docs\/operations\.md#([\w-]+)$/.exec(annotations['runbook_url'] ?? '') ?? [];
    assert.ok(anchors.includes(anchor), `${alert}: docs/operations.md has no heading for #${anchor}`);
  }
  assert.equal(new Set(alerts.map(({ alert }) => alert)).size, alerts.length);
});

test('an alert names only labels that its expression leaves', () => {
  for (const { alert, expr, annotations } of alerts) {
    const named = [...JSON.stringify(annotations).matchAll(/\$labels\.(\w+)/g)].map(
      ([, label = '']) => label,
    );
    const kept =
      /^sum by \(([^)]*)\)/.exec(expr)?.[1]?.split(', ') ??
      labelsOf(/cgroute_\w+/.exec(expr)?.[0] ?? '') ??
      [];
    assert.deepEqual(
      named.filter((label) => !kept.includes(label)),
      [],
      alert,
    );
  }
});

test('docs/operations.md has a section for each alert, and none for another', () => {
  const text = readFileSync(resolve(import.meta.dirname, '../../../docs/operations.md'), 'utf8');
  const sections = [...text.matchAll(/^### (Cgroute\w+)$/gm)].map(([, name]) => name);
  const named = [...text.matchAll(/\bCgroute[A-Z]\w+/g)].map(([name]) => name);
  assert.deepEqual(
    sections.filter((name) => !alerts.some(({ alert }) => alert === name)),
    [],
  );
  assert.deepEqual(
    alerts.map(({ alert }) => alert).filter((name) => !named.includes(name)),
    [],
  );
});

test('the dashboard works with any Prometheus and any choice of nodes', () => {
  const { schemaVersion, templating, panels } = dashboard;
  assert.ok(schemaVersion >= 39);
  assert.deepEqual(
    templating.list.map(({ name, type }) => `${name}: ${type}`),
    ['datasource: datasource', 'node: query'],
  );
  const source = { type: 'prometheus', uid: '${datasource}' };
  for (const { type, title, datasource, targets = [] } of panels) {
    if (type === 'row') continue;
    assert.deepEqual(datasource, source, title);
    assert.ok(targets.length > 0, title);
    assert.equal(new Set(targets.map(({ refId }) => refId)).size, targets.length, title);
    for (const target of targets) {
      assert.deepEqual(target.datasource, source, title);
      const metrics = target.expr.match(/\bcgroute_\w+/g) ?? [];
      assert.equal(
        target.expr.split('{node=~"$node"').length - 1,
        metrics.length,
        `each metric is of the chosen nodes: ${target.expr}`,
      );
      const [, grouped] = /\bby \(([^)]*)\)/.exec(target.expr) ?? [];
      for (const [, label = ''] of target.legendFormat.matchAll(/\{\{(\w+)\}\}/g))
        assert.ok(grouped?.split(', ').includes(label), `${title} has no ${label} to show`);
    }
  }
});

test('no two panels of the dashboard are in one place, and each has an id of its own', () => {
  const { panels } = dashboard;
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  for (const {
    title,
    gridPos: { x, y, w, h },
  } of panels) {
    assert.ok(x >= 0 && x + w <= 24 && h > 0, title);
    const others = panels.filter(
      ({ title: other, gridPos: at }) =>
        other !== title && at.x < x + w && x < at.x + at.w && at.y < y + h && y < at.y + at.h,
    );
    assert.deepEqual(
      others.map((panel) => panel.title),
      [],
      title,
    );
  }
});

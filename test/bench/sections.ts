/** Figures as sections of the table, with the goals beside them, and as they stand in the JSON. */
import { EXCLUDED_PORTS, RANGES, type WayName } from './bench-node.ts';
import type { ConnectFigures } from './connect-bench.ts';
import type { LatencyFigures } from './latency-bench.ts';
import { CHURN, type MemoryFigures } from './memory-bench.ts';
import type { ProgramFigure, ProgramFigures } from './program-bench.ts';
import type { Row, Section } from './report.ts';

/** A section, and its keys in the JSON. */
export interface Result {
  readonly section: Section;
  readonly json: Readonly<Record<string, unknown>>;
}

export const rounded = (value: number, digits = 0): number => Number(value.toFixed(digits));

const mapped = <K extends string, V, W>(
  record: Readonly<Record<K, V>>,
  change: (value: V) => W,
): Record<K, W> =>
  Object.fromEntries(Object.entries<V>(record).map(([key, value]) => [key, change(value)])) as Record<K, W>;

const WAY_TEXT: Readonly<Record<WayName, string>> = {
  direct: 'direct: no cgroute on this machine',
  control: 'the same again, to see the noise',
  untouched: 'untouched: from a pod that is out',
  untouched_host: 'untouched: from a host process',
  redirected: 'redirected: from an enrolled pod',
  redirected_options: `the same, ${RANGES} ranges and ${EXCLUDED_PORTS} ports excluded`,
  iptables_redirect: 'by iptables REDIRECT in the pod',
  node_direct: 'direct, over a bridge',
  node_redirected: "redirected to the node's proxy",
};

export function connectResult(figures: ConnectFigures, notes: readonly string[]): Result {
  const row = (name: WayName): Row => {
    const { median, low, high } = figures.ratios[name];
    const isBase = name === 'direct' || name === 'node_direct';
    return {
      name: WAY_TEXT[name],
      value: figures.p50[name],
      ...(isBase ? {} : { beside: `${median.toFixed(3)} x  (${low.toFixed(3)} to ${high.toFixed(3)})` }),
      ...(name === 'redirected_options' && {
        goal: { name: 'redirected_options / redirected', value: median, atMost: 1.1, unit: ' x' },
      }),
      ...(name === 'redirected' && {
        goal: { name: 'redirected / direct', value: median, atMost: 1.08, unit: ' x' },
      }),
    };
  };
  return {
    section: {
      title: 'connect(), median',
      unit: 'ns',
      rows: (Object.keys(WAY_TEXT) as WayName[]).map(row),
      notes: [
        'x: to direct of the same round, with options to redirected; median of all rounds; in brackets the middle half of the rounds',
        ...notes,
      ],
    },
    json: {
      connect_p50_ns: mapped(figures.p50, (value) => rounded(value)),
      connect_ratio: mapped(figures.ratios, ({ median, low, high }) => ({
        median: rounded(median, 3),
        low: rounded(low, 3),
        high: rounded(high, 3),
      })),
    },
  };
}

export interface AllProgramFigures {
  /** What a program that does nothing takes. */
  readonly empty: number;
  readonly ways: Readonly<Record<'redirected' | 'untouched' | 'untouched_host', ProgramFigures>>;
  readonly peerName: ProgramFigure;
}

export function programResult({ empty, ways, peerName }: AllProgramFigures): Result {
  const of = (way: keyof typeof ways, program: string): ProgramFigure => {
    const figure = ways[way][program];
    if (figure === undefined) throw new Error(`the program ${program} did not run along the way ${way}`);
    return figure;
  };
  const redirect = of('redirected', 'pod_connect4');
  const afterPod = of('redirected', 'root_connect4');
  const out = of('untouched', 'pod_connect4');
  const host = of('untouched_host', 'root_connect4');
  const sockOps = of('redirected', 'sock_ops');
  const originalDst = of('redirected', 'original_dst');
  const untouched = Math.max(out.ns, host.ns);
  const row = (name: string, { ns, calls }: ProgramFigure, goal?: Row['goal']): Row => ({
    name,
    value: ns,
    beside: `${calls.toFixed(calls < 1 ? 2 : 0)} ${calls === 1 ? 'call' : 'calls'} a connection`,
    ...(goal && { goal }),
  });
  const goal = (name: string, value: number, atMost: number): Row['goal'] => ({
    name,
    value,
    atMost,
    unit: ' ns',
  });
  const worst = (figure: ProgramFigure): Row['goal'] =>
    figure.ns === untouched ? goal('connect4_untouched', untouched, 120) : undefined;
  return {
    section: {
      title: 'programs, average of a call',
      unit: 'ns',
      rows: [
        { name: 'one that does nothing', value: empty, beside: 'in each figure below too' },
        row('connect4, redirecting', redirect, goal('connect4_redirect', redirect.ns, 600)),
        row('connect4, for a pod that is out', out, worst(out)),
        row('connect4 at the root, for a host process', host, worst(host)),
        row('connect4 at the root, after a pod', afterPod),
        row('sock_ops, redirected', sockOps, goal('sockops', sockOps.ns, 120)),
        {
          name: 'sock_ops, from a pod that is out',
          value: ways.untouched['sock_ops']?.ns ?? 0,
          beside: `${(ways.untouched['sock_ops']?.calls ?? 0).toFixed(0)} calls a connection`,
        },
        row('sock_ops, from a host process', of('untouched_host', 'sock_ops')),
        row('sock_release, redirected', of('redirected', 'sock_release')),
        row('sock_release, from a pod that is out', of('untouched', 'sock_release')),
        row('sock_release, from a host process', of('untouched_host', 'sock_release')),
        row('original_dst, when the proxy asks', originalDst),
        row('getpeername4, from new processes', peerName),
      ],
      notes: [
        "the kernel's own statistics of these programs alone; calls of both ends of a connection and its close, in one namespace",
      ],
    },
    json: {
      program_ns: mapped(
        {
          connect4_redirect: redirect.ns,
          connect4_untouched: untouched,
          connect4_untouched_pod: out.ns,
          connect4_untouched_host: host.ns,
          connect4_after_pod: afterPod.ns,
          sockops: sockOps.ns,
          sockops_untouched_host: of('untouched_host', 'sock_ops').ns,
          sock_release: of('redirected', 'sock_release').ns,
          original_dst: originalDst.ns,
          getpeername: peerName.ns,
          empty,
        },
        (ns) => rounded(ns),
      ),
      calls_per_connection: mapped(ways, (figures) => mapped(figures, ({ calls }) => rounded(calls, 2))),
    },
  };
}

export function latencyResult(figures: LatencyFigures): Result {
  const row = (
    name: string,
    of: 'proc' | 'procBusy' | 'procIdle' | 'tree' | 'treeBusy' | 'treeIdle',
    p: 'p50' | 'p99',
  ): Row => ({
    name,
    value: figures[of][p],
    digits: 1,
    beside: `of ${figures[of].samples}`,
    ...(of === 'proc' &&
      p === 'p99' && { goal: { name: 'proc_p99', value: figures.proc.p99, atMost: 10, unit: ' ms' } }),
  });
  const json = (['proc', 'tree'] as const).flatMap((witness) =>
    (['', 'Busy', 'Idle'] as const).flatMap((load) =>
      (['p50', 'p99'] as const).map(
        (p) =>
          [
            `${witness}${load === '' ? '' : `_${load.toLowerCase()}`}_${p}`,
            rounded(figures[`${witness}${load}`][p], 3),
          ] as const,
      ),
    ),
  );
  return {
    section: {
      title: 'until the map has a new container',
      unit: 'ms',
      rows: [
        row('from the begin of its program, p50', 'proc', 'p50'),
        row('from the begin of its program, p99', 'proc', 'p99'),
        row('  one after the other, p99', 'procBusy', 'p99'),
        row('  with 50 ms between, p99', 'procIdle', 'p99'),
        row('from mkdir(), no program, p50', 'tree', 'p50'),
        row('from mkdir(), no program, p99', 'tree', 'p99'),
        row('  100 a second, p50', 'treeBusy', 'p50'),
        row('  with 600 ms between, p50', 'treeIdle', 'p50'),
      ],
      notes: [
        'the agent as it is shipped, 50 pods known; looked at about each 0.1 ms',
        `cgroups are made just before their program begins; ${figures.procEarly} of ${figures.proc.samples} entries were there before it and count as 0`,
      ],
    },
    json: { map_latency_ms: Object.fromEntries(json), map_latency_early: figures.procEarly },
  };
}

export function memoryResult(figures: MemoryFigures): Result {
  const { readyMb, rssMb, peakMb, startMs, idlePercent, stormPercent, stormPerSecond } = figures;
  return {
    section: {
      title: 'the agent, 250 pods with 1,000 cgroups',
      unit: '',
      rows: [
        { name: 'resident memory when mapped, MB', value: readyMb, digits: 1 },
        {
          name: 'after a minute of churn, MB',
          value: rssMb,
          digits: 1,
          beside: CHURN,
          goal: { name: 'rss_mb', value: rssMb, atMost: 80, unit: ' MB' },
        },
        { name: 'the most it ever was, MB', value: peakMb, digits: 1 },
        { name: 'start to ready, ms', value: startMs },
        { name: 'CPU at rest, %', value: idlePercent, digits: 1 },
        {
          name: 'CPU during a storm of execs, %',
          value: stormPercent,
          digits: 1,
          beside: `${Math.round(stormPerSecond)} a second, host processes`,
        },
      ],
      notes: [
        'MB is 10^6 bytes of VmRSS; the churn is compressed into some seconds; CPU is of one processor',
      ],
    },
    json: {
      rss_mb: rounded(rssMb, 1),
      rss_ready_mb: rounded(readyMb, 1),
      rss_peak_mb: rounded(peakMb, 1),
      start_ms: rounded(startMs),
      idle_cpu_percent: rounded(idlePercent, 1),
      exec_storm_cpu_percent: rounded(stormPercent, 1),
      exec_storm_per_second: rounded(stormPerSecond),
    },
  };
}

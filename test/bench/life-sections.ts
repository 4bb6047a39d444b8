/** The figures of cgroups and programs that come and go, as sections of the table. */
import { type HostFigures, SWEPT } from './host-bench.ts';
import type { IdentityFigures } from './identity-bench.ts';
import type { Row } from './report.ts';
import type { Result } from './sections.ts';
import { median } from './statistics.ts';
import type { StormFigures } from './storm-bench.ts';
import { UPGRADE_PODS, type UpgradeFigures } from './upgrade-bench.ts';

const round = (value: number, digits: number): number => Number(value.toFixed(digits));

export function identityResult({ podNs, unknownNs, containerNs, hostNs, rmdirNs }: IdentityFigures): Result {
  const slowest = Math.max(podNs, unknownNs, containerNs, hostNs);
  return {
    section: {
      title: 'what mkdir() of a cgroup takes longer',
      unit: 'ns',
      rows: [
        { name: "a pod's, which is known", value: podNs },
        { name: "a pod's, which is not", value: unknownNs },
        { name: "a container's", value: containerNs },
        { name: "a host service's", value: hostNs },
        {
          name: 'the slowest of these',
          value: slowest,
          goal: { name: 'mkdir_ns', value: slowest, atMost: 3000, unit: ' ns' },
        },
        { name: 'rmdir(), all of them', value: rmdirNs },
      ],
      notes: ["the kernel's own statistics of the two programs alone, at the depth where kubelets put pods"],
    },
    json: {
      mkdir_ns: round(slowest, 0),
      mkdir_ns_by: {
        pod: round(podNs, 0),
        unknown: round(unknownNs, 0),
        container: round(containerNs, 0),
        host: round(hostNs, 0),
        rmdir: round(rmdirNs, 0),
      },
    },
  };
}

export function stormResult({
  agentPercent,
  healthMs,
  perSecond,
  slowdown,
  forkUs,
  isAhead,
}: StormFigures): Result {
  const row = (name: string, way: keyof typeof slowdown, goal?: Row['goal']): Row => {
    const { median, low, high } = slowdown[way];
    return {
      name,
      value: median,
      digits: 3,
      beside: `x  (${low.toFixed(3)} to ${high.toFixed(3)})`,
      ...(goal && { goal }),
    };
  };
  return {
    section: {
      title: 'a storm of programs outside pods',
      unit: '',
      rows: [
        {
          name: "the agent's CPU, %",
          value: agentPercent,
          digits: 2,
          beside: `${Math.round(perSecond)} forked and exec'd a second`,
          goal: { name: 'fork_storm_cpu_percent', value: agentPercent, atMost: 1, unit: ' %' },
        },
        {
          name: 'the slowest answer of /healthz, ms',
          value: healthMs,
          goal: { name: 'fork_storm_healthz_ms', value: healthMs, atMost: 1000, unit: ' ms' },
        },
        { name: 'CPU of a fork, exec and exit, us', value: forkUs, digits: 1, beside: 'without cgroute' },
        row('  the same again, to see the noise', 'control'),
        row('  with the programs, and no agent', 'programs'),
        row('  with the agent and its process events', 'agent', {
          name: 'fork_storm_slowdown',
          value: slowdown.agent.median,
          atMost: 1.02,
          unit: ' x',
        }),
      ],
      notes: [
        `CPU is of one processor; the storm's own, without the agent's; ${isAhead ? 'with real-time priority' : 'without real-time priority, which this machine refuses: noisy'}; 50 pods known`,
        'x: to the round without; median of all rounds, each way once in each, in another order; in brackets the middle half',
      ],
    },
    json: {
      fork_storm_cpu_percent: round(agentPercent, 2),
      fork_storm_healthz_ms: healthMs,
      fork_storm_per_second: Math.round(perSecond),
      fork_storm_slowdown: round(slowdown.agent.median, 3),
      fork_storm_slowdown_by: {
        control: round(slowdown.control.median, 3),
        programs: round(slowdown.programs.median, 3),
        process_events: round(slowdown.agent.median - slowdown.programs.median, 3),
      },
    },
  };
}

export function upgradeResult({ waited, fromOld, afterwards }: UpgradeFigures): Result {
  const longest = Math.max(...waited, ...(fromOld ?? []));
  const row = (name: string, figures: readonly number[]): Row => ({
    name,
    value: median(figures),
    beside: `longest of ${figures.length}: ${Math.max(...figures)}`,
  });
  return {
    section: {
      title: 'an upgrade, time without an agent',
      unit: 'ms',
      rows: [
        row('to one that has waited beside it', waited),
        ...(fromOld === undefined ? [] : [row('the same, from 0.1, with other layouts', fromOld)]),
        {
          name: 'longest time without an agent',
          value: longest,
          goal: { name: 'upgrade_gap_ms', value: longest, atMost: 1000, unit: ' ms' },
        },
        row('to one that is started afterwards', afterwards),
      ],
      notes: [
        `medians; from the moment when the old agent stops its work until the new one is ready, with ${UPGRADE_PODS} pods; redirection goes on throughout${fromOld === undefined ? '; this clone has no 0.1 in its history' : ''}`,
      ],
    },
    json: {
      upgrade_gap_ms: longest,
      upgrade_ms: {
        waited: median(waited),
        ...(fromOld === undefined ? {} : { from_0_1: median(fromOld) }),
        afterwards: median(afterwards),
      },
    },
  };
}

export function hostResult({ trialsMs, doctorMs, sweepMs }: HostFigures): Result {
  const row = (name: string, key: string, value: number, atMost: number): Row => ({
    name,
    value,
    digits: 1,
    goal: { name: key, value, atMost, unit: ' ms' },
  });
  return {
    section: {
      title: 'a look at the host',
      unit: 'ms',
      rows: [
        row("the trials of all the kernel's features", 'trials_ms', trialsMs, 200),
        row('cgroute doctor, all of it', 'doctor_ms', doctorMs, 1000),
        row(`a sweep of ${SWEPT.toLocaleString('en-US')} cgroups`, 'sweep_ms', sweepMs, 2000),
      ],
      notes: ['medians; the trials in a process of their own, the sweep without a change since the last'],
    },
    json: {
      host_ms: { trials: round(trialsMs, 1), doctor: round(doctorMs, 1), sweep: round(sweepMs, 1) },
    },
  };
}

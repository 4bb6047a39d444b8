/** The figures of many cgroups, of pods that come and go, and of pods with a sidecar, as sections of the table. */
import { type Footprint, growth } from './footprint.ts';
import type { Row } from './report.ts';
import { FEW, MANY, type ScaleFigures, SWEEP_SECONDS } from './scale-bench.ts';
import { type Result, rounded } from './sections.ts';
import {
  type Direction,
  DIRECTIONS,
  type Moment,
  MOMENTS,
  SIDECAR_WAYS,
  type SidecarBenchFigures,
  type SidecarWay,
} from './sidecar-bench.ts';
import { WARM_UP, type TurnoverFigures } from './turnover-bench.ts';

const thousands = (value: number): string => value.toLocaleString('en-US');
const goal = (name: string, value: number, atMost: number, unit: string): Pick<Row, 'goal'> => ({
  goal: { name, value, atMost, unit },
});
const signed = (value: number, digits: number): string => `${value < 0 ? '' : '+'}${value.toFixed(digits)}`;
const jsonOf = ({
  entries,
  links,
  files,
  children,
  pssMb,
  anonymousMb,
}: Footprint): Readonly<Record<string, unknown>> => ({
  pss_mb: rounded(pssMb, 1),
  anonymous_mb: rounded(anonymousMb, 1),
  files,
  children,
  links,
  entries,
});

export function scaleResult(figures: ScaleFigures): Result {
  const { few, many, held, afterReplaced, fewAgain, none } = figures;
  const heldMb = held.anonymousMb - many.anonymousMb;
  const replacedMb = afterReplaced.anonymousMb - many.anonymousMb;
  const left = growth(few, fewAgain);
  const leftMb = none.anonymousMb - few.anonymousMb;
  const cgroupsLeft = none.entries['cgroup_info_map'] ?? NaN;
  const row = (name: string, { pssMb, anonymousMb }: Footprint): Row => ({
    name,
    value: pssMb,
    digits: 1,
    beside: `of these ${anonymousMb.toFixed(1)} anonymous`,
  });
  return {
    section: {
      title: `${thousands(MANY)} cgroups`,
      unit: '',
      rows: [
        row(`memory with ${thousands(FEW)} cgroups, MB`, few),
        row(`  with ${thousands(MANY)}`, many),
        {
          name: '  a cgroup, kB',
          value: ((many.anonymousMb - few.anonymousMb) / (MANY - FEW)) * 1000,
          digits: 2,
          beside: `${thousands(MANY - FEW)} mapped in ${figures.mapMs.toFixed(0)} ms`,
        },
        {
          name: '  growth while nothing changes, MB',
          value: heldMb,
          digits: 1,
          beside: `${figures.heldSeconds} s, a sweep each ${SWEEP_SECONDS} s`,
          ...goal('cgroups_10000.held_growth_mb', heldMb, 3, ' MB'),
        },
        {
          name: '  the most meanwhile, MB',
          value: figures.ceilingMb,
          digits: 1,
          beside: 'garbage left to Node',
          ...goal('cgroups_10000.ceiling_mb', figures.ceilingMb, 150, ' MB'),
        },
        {
          name: '  growth after replacing containers, MB',
          value: replacedMb,
          digits: 1,
          beside: `${thousands(figures.replaced)} of them`,
          ...goal('cgroups_10000.replaced_growth_mb', replacedMb, 3, ' MB'),
        },
        row(`memory, back at ${thousands(FEW)} cgroups, MB`, fewAgain),
        {
          name: '  open files, child processes, links',
          value: left.files + left.children + left.links,
          beside: `${fewAgain.files}, ${fewAgain.children}, ${fewAgain.links}: more than before`,
          ...goal('cgroups_10000.left_open', left.files + left.children + left.links, 3, ''),
        },
        {
          name: 'memory when none is there, MB',
          value: none.anonymousMb,
          digits: 1,
          beside: `${signed(leftMb, 1)} to ${thousands(FEW)} at first, anonymous`,
          ...goal('cgroups_10000.left_mb', leftMb, 3, ' MB'),
        },
        {
          name: 'cgroups in the map when none is there',
          value: cgroupsLeft,
          beside: `${none.links} links, were ${few.links}`,
          ...goal('cgroups_10000.left_cgroups', cgroupsLeft, 0, ''),
        },
      ],
      notes: [
        'the agent as it is shipped, with 2,000 pods in a manifest; memory is PSS in 10^6 bytes after garbage was collected, growth is of anonymous memory',
        "garbage is collected by Node's debugger, which the bench starts; it is left to Node for the most",
      ],
    },
    json: {
      cgroups_10000: {
        few: jsonOf(few),
        many: jsonOf(many),
        held: jsonOf(held),
        after_replaced: jsonOf(afterReplaced),
        few_again: jsonOf(fewAgain),
        none: jsonOf(none),
        bytes_per_cgroup: Math.round(((many.anonymousMb - few.anonymousMb) / (MANY - FEW)) * 1e6),
        map_ms: Math.round(figures.mapMs),
        held_seconds: figures.heldSeconds,
        held_growth_mb: rounded(heldMb, 1),
        slope_mb_per_minute: rounded((heldMb / figures.heldSeconds) * 60, 2),
        ceiling_mb: rounded(figures.ceilingMb, 1),
        replaced: figures.replaced,
        replaced_growth_mb: rounded(replacedMb, 1),
        left_mb: rounded(leftMb, 1),
        left_open: left.files + left.children + left.links,
        left_cgroups: cgroupsLeft,
      },
    },
  };
}

export function turnoverResult({
  pods,
  seconds,
  redirected,
  others,
  before,
  after,
  meanwhile,
}: TurnoverFigures): Result {
  const more = growth(before, after);
  const perThousand = (seconds / pods) * 1000;
  const names = Object.entries(more.entries)
    .map(([name, count]) => `${name} ${signed(count, 0)}`)
    .join(', ');
  return {
    section: {
      title: `${thousands(pods)} pods made and deleted`,
      unit: '',
      rows: [
        {
          name: 'seconds for 1,000',
          value: perThousand,
          digits: 1,
          beside: `${(pods / seconds).toFixed(1)} a second`,
          ...goal('pods_1000.seconds', perThousand, 60, ' s'),
        },
        {
          name: 'connections past the proxy',
          value: others.length,
          beside: `${thousands(redirected)} by it`,
          ...goal('pods_1000.escaped', others.length, 0, ''),
        },
        {
          name: 'entries of all maps, more than before',
          value: more.entriesMore,
          beside: names === '' ? `${Object.keys(after.entries).length} maps` : names,
          ...goal('pods_1000.entries_growth', more.entriesMore, 0, ''),
        },
        {
          name: 'open files, more than before',
          value: more.files,
          beside: `${before.files} to ${after.files}`,
          ...goal('pods_1000.files_growth', more.files, 2, ''),
        },
        {
          name: 'child processes, more than before',
          value: more.children,
          beside: `${before.children} to ${after.children}`,
          ...goal('pods_1000.children_growth', more.children, 0, ''),
        },
        {
          name: 'links of programs, more than before',
          value: more.links,
          beside: `${before.links} to ${after.links}`,
          ...goal('pods_1000.links_growth', more.links, 1, ''),
        },
        {
          name: 'memory, more than before, MB',
          value: more.anonymousMb,
          digits: 1,
          beside: `${before.anonymousMb.toFixed(1)} to ${after.anonymousMb.toFixed(1)}, anonymous`,
          ...goal('pods_1000.memory_growth_mb', more.anonymousMb, 2, ' MB'),
        },
      ],
      notes: [
        'a real kube-apiserver; each pod has two containers, a process, and a connection through the proxy that lasts as long as it; 110 at a time',
        `memory is what is left when garbage was collected; ${WARM_UP} pods had come and gone before; with 110 there, cgroup_info_map held ${meanwhile['cgroup_info_map'] ?? 0}, connection_map ${meanwhile['connection_map'] ?? 0}`,
      ],
    },
    json: {
      pods_1000: {
        pods,
        seconds: rounded(perThousand, 1),
        redirected,
        escaped: others.length,
        other_answers: others.slice(0, 10),
        before: jsonOf(before),
        after: jsonOf(after),
        entries_meanwhile: meanwhile,
        entries_growth: more.entriesMore,
        files_growth: more.files,
        children_growth: more.children,
        links_growth: more.links,
        memory_growth_mb: rounded(more.anonymousMb, 1),
      },
    },
  };
}

const POD_TEXT: Readonly<Record<SidecarWay, string>> = {
  plain: 'a pod without a sidecar',
  control: '  the same again, to see the noise',
  bypassed: '  with a sidecar, bypassed by its label',
  sidecar: '  with a sidecar, through it',
};
const DIRECTION_TEXT: Readonly<Record<Direction, string>> = { outbound: 'from', inbound: 'to' };
const MOMENT_TEXT: Readonly<Record<Moment, string>> = { connected: 'connect()', answered: 'first line' };

export function sidecarResult(
  { directions, isAhead }: SidecarBenchFigures,
  rounds: number,
  count: number,
): Result {
  const rows = DIRECTIONS.flatMap((direction) =>
    MOMENTS.flatMap((moment) =>
      SIDECAR_WAYS.map((way): Row => {
        const { p50, toPlain, toSidecar } = directions[direction][moment][way];
        const name =
          way === 'plain'
            ? `${MOMENT_TEXT[moment]}, ${DIRECTION_TEXT[direction]} ${POD_TEXT.plain}`
            : POD_TEXT[way];
        const beside =
          way === 'plain'
            ? undefined
            : `${toPlain.median.toFixed(3)} x  (${toPlain.low.toFixed(3)} to ${toPlain.high.toFixed(3)})`;
        return {
          name,
          value: p50,
          ...(beside !== undefined && {
            beside: way === 'bypassed' ? `${beside}, ${toSidecar.median.toFixed(2)} x of through it` : beside,
          }),
        };
      }),
    ),
  );
  const record = <V>(
    value: (direction: Direction, moment: Moment) => V,
  ): Record<Direction, Record<Moment, V>> =>
    Object.fromEntries(
      DIRECTIONS.map((direction) => [
        direction,
        Object.fromEntries(MOMENTS.map((moment) => [moment, value(direction, moment)])),
      ]),
    ) as Record<Direction, Record<Moment, V>>;
  const p50 = record((direction, moment) =>
    Object.fromEntries(SIDECAR_WAYS.map((way) => [way, rounded(directions[direction][moment][way].p50)])),
  );
  const byRatio = record((direction, moment) => {
    const { control, bypassed, sidecar } = directions[direction][moment];
    return {
      control_to_plain: rounded(control.toPlain.median, 3),
      bypassed_to_plain: rounded(bypassed.toPlain.median, 3),
      sidecar_to_plain: rounded(sidecar.toPlain.median, 3),
      bypassed_to_sidecar: rounded(bypassed.toSidecar.median, 3),
    };
  });
  return {
    section: {
      title: 'pods with a sidecar, median',
      unit: 'ns',
      rows,
      notes: [
        'x: to the pod without a sidecar in the same round; median of all rounds, in brackets the middle half; connect() through a sidecar ends at the sidecar, in the pod itself',
        `Istio's rules with HAProxy as the sidecar, over a bridge; ${rounds} rounds of ${count} connections; ${isAhead ? 'clients, listeners and sidecars with real-time priority' : 'without real-time priority, which this machine refuses: noisy'}`,
      ],
    },
    json: { sidecar_p50_ns: p50, sidecar_ratio: byRatio },
  };
}

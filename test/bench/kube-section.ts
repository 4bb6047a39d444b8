/** The figures of the section `kube`, as a part of the table and in the JSON. */
import type { KubeFigures } from './kube-bench.ts';
import { ELSEWHERE, type Load } from './kube-load.ts';
import type { Row } from './report.ts';
import { type Result, rounded } from './sections.ts';

const thousands = (value: number): string => value.toLocaleString('en-US');

export function kubeResult({
  labels,
  start,
  churn,
  load: { alone, withOthers },
  isAhead,
}: KubeFigures): Result {
  const goal = (name: string, value: number, atMost: number, unit: string): Pick<Row, 'goal'> => ({
    goal: { name, value, atMost, unit },
  });
  const byteRatio = withOthers.bytes / alone.bytes;
  const kinds = ({ byKind }: Load): string =>
    Object.entries(byKind)
      .toSorted()
      .map(([kind, count]) => `${count} ${kind}`)
      .join(', ');
  return {
    section: {
      title: 'the agent with a real API server',
      unit: '',
      rows: [
        {
          name: "a namespace's label, 100 pods, ms, p50",
          value: labels.p50,
          digits: 1,
          beside: `of ${labels.flips}`,
        },
        {
          name: "a namespace's label, 100 pods, ms, p99",
          value: labels.p99,
          digits: 1,
          beside: `at most ${labels.worst.toFixed(1)}`,
          ...goal('label_to_map_p99', labels.p99, 50, ' ms'),
        },
        { name: '  into the mesh, p50', value: labels.inP50, digits: 1 },
        { name: '  out of it, p50', value: labels.outP50, digits: 1, beside: 'the annotation goes first' },
        {
          name: 'start to mapped, 250 pods, ms',
          value: start.medianMs,
          beside: `${Math.min(...start.rounds)} to ${Math.max(...start.rounds)}, of ${start.rounds.length}`,
          ...goal('start_to_mapped_ms', start.medianMs, 1500, ' ms'),
        },
        { name: '  with the maps of an earlier agent, ms', value: start.againMs },
        { name: 'memory with 110 pods, MB', value: churn.readyMb, digits: 1 },
        { name: `  after ${thousands(churn.pods / 2)} have come and gone`, value: churn.halfMb, digits: 1 },
        {
          name: `  after ${thousands(churn.pods)}`,
          value: churn.rssMb,
          digits: 1,
          beside: `${Math.round(churn.perSecond)} pods a second`,
          ...goal('kube_rss_mb', churn.rssMb, 90, ' MB'),
        },
        {
          name: '  growth in the second half, MB',
          value: churn.growthMb,
          digits: 1,
          beside: 'anonymous memory',
          ...goal('kube_rss_growth_mb', churn.growthMb, 2, ' MB'),
        },
        {
          name: '  while they come and go, MB',
          value: churn.busyMb[1],
          digits: 1,
          beside: `third quarter ${churn.busyMb[0].toFixed(1)}, most ${churn.peakMb.toFixed(1)}`,
        },
        {
          name: "a node's requests to the API server",
          value: alone.requests,
          beside: `${thousands(alone.bytes)} bytes`,
        },
        {
          name: `  with ${thousands(ELSEWHERE)} pods on other nodes`,
          value: withOthers.requests,
          beside: `${thousands(withOthers.bytes)} bytes, ${byteRatio.toFixed(3)} x`,
          ...goal('api_requests.with_5000_elsewhere', withOthers.requests, alone.requests, ''),
        },
      ],
      notes: [
        "from the event's first byte on its way to the agent, to the last entry of the last pod in the kernel's maps; the label goes and comes by turns",
        isAhead
          ? 'for that, the agent has real-time priority, so that neighbours on the machine are left out; the API server has not'
          : 'without real-time priority, which this machine refuses: noisy',
        'pods are objects of a real kube-apiserver, with cgroups and without processes; 1,000 containers at the start, from exec to ready',
        `${thousands(churn.pods)} pods one after the other with 110 at any time; memory is VmRSS in 10^6 bytes, after 5 s of rest where nothing else is said`,
        `requests of a start, of a label on each of 20 pods, after a broken connection, and while 200 pods of other nodes change: ${kinds(alone)}`,
      ],
    },
    json: {
      label_to_map_ms: {
        p50: rounded(labels.p50, 1),
        p99: rounded(labels.p99, 1),
        in_p50: rounded(labels.inP50, 1),
        out_p50: rounded(labels.outP50, 1),
        max: rounded(labels.worst, 1),
        flips: labels.flips,
      },
      start_to_mapped_ms: rounded(start.medianMs),
      start_to_mapped_again_ms: rounded(start.againMs),
      rss_mb: rounded(churn.rssMb, 1),
      kube_rss_mb: {
        ready: rounded(churn.readyMb, 1),
        half: rounded(churn.halfMb, 1),
        end: rounded(churn.rssMb, 1),
        peak: rounded(churn.peakMb, 1),
        growth: rounded(churn.growthMb, 1),
        busy_third_quarter: rounded(churn.busyMb[0], 1),
        busy_last_quarter: rounded(churn.busyMb[1], 1),
        pods: churn.pods,
      },
      api_requests: { alone: alone.requests, with_5000_elsewhere: withOthers.requests },
      api_bytes: { alone: alone.bytes, with_5000_elsewhere: withOthers.bytes },
    },
  };
}

/** The agent with a real API server: what a label takes, a start, memory that many pods have passed through, requests. */
import { benchChurn, type ChurnFigures } from './kube-churn.ts';
import { benchLabels, type LabelLatencies } from './kube-latency.ts';
import { benchLoad, type LoadFigures } from './kube-load.ts';
import { hasPriority, startBenchCluster } from './kube-pods.ts';
import { benchStart, type StartFigures } from './kube-start.ts';

export interface KubeFigures {
  readonly labels: LabelLatencies;
  readonly start: StartFigures;
  readonly load: LoadFigures;
  readonly churn: ChurnFigures;
  /** Whether the agent had real-time priority while labels changed. */
  readonly isAhead: boolean;
}

/** One after the other, each with a node of its own: an agent is never told of the others' pods. */
export async function benchKube(quick: boolean): Promise<KubeFigures> {
  await using bench = await startBenchCluster();
  const isAhead = await hasPriority();
  const labels = await benchLabels(bench, quick ? 11 : 101, isAhead);
  const start = await benchStart(bench, quick ? 3 : 9);
  const churn = await benchChurn(bench, quick ? 1000 : 10_000);
  return { labels, start, churn, load: await benchLoad(bench), isAhead };
}

/** The real node's section of docs/kernels.md. */
import type { NodeResult, NodeRow } from './run.ts';

const mark = (row: NodeRow | undefined): string =>
  row === undefined ? '**did not run**' : row.passed ? 'yes' : '**no**';

/** Row by row what was tried, a column for each cgroup driver; nothing in it depends on the day. */
export function nodeSection({ rows }: NodeResult): string {
  const drivers = [...new Set(rows.map(({ driver }) => driver))];
  const checks = [...new Set(rows.map(({ check }) => check))];
  const cells = checks.map((check) => [
    check,
    ...drivers.map((driver) => mark(rows.find((row) => row.check === check && row.driver === driver))),
  ]);
  const line = (texts: readonly string[]): string => `| ${texts.join(' | ')} |`;
  return `## A real node

One guest more is a node: Debian's systemd, containerd, runc and CNI plugins, a kubelet built from its Go module, joined to the API server of the tests. The agent's image and its pod are those of \`deploy/\`; the node's proxy is HAProxy in a pod on the host's network. Both cgroup drivers have their turn in one boot. No scheduler and no controllers run: pods are bound by name, and the agent's pod is made from its DaemonSet's template.

${[line(['', ...drivers]), line(['---', ...drivers.map(() => '---')]), ...cells.map(line)].join('\n')}
`;
}

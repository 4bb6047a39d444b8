/** The scene `sidecar`: a pod that has one goes around it by a label, or is handled by the node's proxy in its place. */
import { setTimeout as delay } from 'node:timers/promises';
import { cgroute, startAgent } from '../stage/agent.ts';
import type { Sandbox } from '../stage/sandbox.ts';
import { SIDECAR_USER, installSidecarRules, natRules, ownRules, startSidecar } from '../stage/sidecar.ts';
import { type Connected, connect, listen } from '../stage/sock.ts';
import { type DemoNode, NODE_NAME, makeDemoNode } from './demo-node.ts';
import type { NodePod } from '../stage/node.ts';
import type { Report } from './demo-report.ts';

const MODE = 'istio.io/dataplane-mode';
const BYPASS = 'kmesh.net/bypass';
const PORT = 8080;

/** Who is between the two ends of a connection. */
type Way = 'nobody' | 'the sidecar' | 'ztunnel' | (string & {});

/** How long a change may take until connections show it; far more than it should. */
const DEADLINE_MS = 5000;

interface Cast {
  readonly node: DemoNode;
  readonly web: NodePod;
  readonly client: NodePod;
  readonly ztunnel: NodePod;
}

/** One of web's two directions: opens a connection and tells who was between. */
interface Direction {
  readonly text: (way: Way) => string;
  readonly way: () => Promise<Way>;
}

/** Plays the scene; what is not as it should be becomes a cross in the report. */
export async function playSidecar(sandbox: Sandbox, report: Report): Promise<void> {
  report.title(
    "cgroute beside sidecars: a label takes a sidecar out of the path, another puts the node's proxy in its place",
  );
  const cast = await introduce(sandbox, report);
  const { node, web } = cast;
  const [outbound, inbound] = directionsOf(cast);
  const show = (direction: Direction, wanted: Way): Promise<void> => shows(report, direction, wanted);

  report.part('Without cgroute');
  await show(outbound, 'the sidecar');
  await show(inbound, 'the sidecar');

  report.part('The agent starts: a sidecar stays where it is until a label says otherwise');
  report.command(`cgroute run --source file:pods.yaml --node ${NODE_NAME}`);
  const agent = startAgent(sandbox, { manifest: node.manifest, node: NODE_NAME });
  await agent.ready();
  await show(outbound, 'the sidecar');
  await show(inbound, 'the sidecar');

  report.part('Is the mesh at fault, or the application? Take the pod around its sidecar');
  report.command(node.label(web, BYPASS, 'enabled'));
  await show(outbound, 'nobody');
  await show(inbound, 'nobody');
  report.text("the first rule of OUTPUT in web's network namespace:");
  report.aside(
    (await natRules(web.host.netns, 'OUTPUT'))[0]?.replaceAll(`${sandbox.directory}/`, '') ?? 'none',
  );
  report.command(node.label(web, BYPASS, 'outbound'));
  await show(outbound, 'nobody');
  await show(inbound, 'the sidecar');
  report.command(node.label(web, BYPASS, undefined));
  await show(outbound, 'the sidecar');
  await show(inbound, 'the sidecar');

  report.part("Two data planes on one pod: the node's proxy takes over, and the sidecar is short-circuited");
  report.command(node.label('namespace/shop', MODE, 'kmesh'));
  await show(outbound, 'ztunnel');
  await show(inbound, 'nobody');
  report.command(node.label('namespace/shop', MODE, undefined));
  await show(outbound, 'the sidecar');
  await show(inbound, 'the sidecar');

  report.part('And away, with the pod bypassed');
  report.command(node.label(web, BYPASS, 'enabled'));
  await show(outbound, 'nobody');
  await agent.stop();
  report.command('cgroute cleanup');
  const { stdout, stderr } = await cgroute(sandbox, ['cleanup']);
  report.aside((stdout || stderr).replaceAll(`${sandbox.directory}/`, ''));
  const left = await ownRules(web.host.netns);
  report.check(
    left.length === 0,
    left.length === 0 ? 'no rule of cgroute is left in the pod' : `left in the pod: ${left.join(', ')}`,
  );
  await show(outbound, 'the sidecar');
  await show(inbound, 'the sidecar');
}

/** Makes the pods and says who they are. */
async function introduce(sandbox: Sandbox, report: Report): Promise<Cast> {
  const node = await makeDemoNode(sandbox);
  const web = await node.addClient({
    namespace: 'shop',
    name: 'web',
    style: 'systemd',
    annotations: { 'sidecar.istio.io/status': '{}' },
  });
  const client = await node.addClient({ namespace: 'batch', name: 'client', style: 'systemd' });
  const ztunnel = await node.addProxy({ namespace: 'istio-system', name: 'ztunnel', style: 'cgroupfs' });
  node.replace(ztunnel, ztunnel);
  await installSidecarRules(web.host.netns);
  await startSidecar(sandbox, web.host, web.place);
  await listen(sandbox, web.place, 'serve', '0.0.0.0', [PORT], '--quiet');

  report.part('The cast: pods of one node, each in its own cgroup and network namespace');
  for (const [{ name, host }, what] of [
    [
      web,
      `has a sidecar: a real HAProxy of user ${SIDECAR_USER}, under the rules that Istio's init container makes`,
    ],
    [client, 'has none, and is not in the mesh'],
    [ztunnel, "the node's proxy, a real HAProxy, too"],
  ] as const) {
    report.text(`${name.padEnd(9)}  ${host.ip4.padEnd(10)}  ${what}`);
  }
  report.text(`server     ${node.server.split(':')[0] ?? ''}  elsewhere; tells who has connected to it`);
  report.text('A kubectl command below stands for the same edit of the file pods.yaml.');
  return { node, web, client, ztunnel };
}

function directionsOf({ node, web, client, ztunnel }: Cast): readonly [Direction, Direction] {
  const [server = '', port = ''] = node.server.split(':');
  const between = (way: Way): string => (way === 'nobody' ? '' : ` → ${way}`);
  return [
    {
      text: (way) => `web${between(way)} → server`,
      way: async () => wayOf(await connect(web.place, server, Number(port)), ztunnel),
    },
    {
      text: (way) => `client${between(way)} → web`,
      way: async () => wayOf(await connect(client.place, web.host.ip4, PORT), ztunnel),
    },
  ];
}

/** By whom the other end was reached: the sidecar passes on from another port, or from 127.0.0.6; ztunnel from its own address. */
function wayOf(connected: Connected, ztunnel: NodePod): Way {
  if (!connected.ok) return `${connected.step} failed with ${connected.errno}`;
  const [, , peer = ''] = connected.reply.split(' ');
  if (peer === connected.local) return 'nobody';
  return peer.startsWith(`${ztunnel.host.ip4}:`) ? 'ztunnel' : 'the sidecar';
}

/** Connects until it shows, at most for a while. No connection may fail on the way. */
async function shows(report: Report, { text, way }: Direction, wanted: Way): Promise<void> {
  const started = performance.now();
  const failed: Way[] = [];
  let seen: Way;
  for (;;) {
    seen = await way();
    if (seen.includes(' failed with ')) failed.push(seen);
    if (seen === wanted || performance.now() - started > DEADLINE_MS) break;
    await delay(5);
  }
  const ms = Math.round(performance.now() - started);
  report.check(
    seen === wanted,
    seen === wanted ? text(wanted).padEnd(32) : `${text(wanted)} was expected, and it was ${seen}`,
    seen === wanted ? `(after ${ms} ms)` : undefined,
  );
  if (failed.length > 0 && seen === wanted)
    report.check(false, `before that, ${failed.length} connections: ${failed[0]}`);
}

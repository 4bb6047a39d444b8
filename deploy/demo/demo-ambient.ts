/** The scene `ambient`: pods join the mesh, and leave it, by a label; the agent comes, dies and comes back. */
import { setTimeout as delay } from 'node:timers/promises';
import { type Agent, cgroute, startAgent } from '../stage/agent.ts';
import type { Sandbox } from '../stage/sandbox.ts';
import { type Client, type DemoNode, NODE_NAME, type Proxy, type Visit, makeDemoNode } from './demo-node.ts';
import type { Report } from './demo-report.ts';
import { type Tally, type Witness, makeWitness, showVisit } from './demo-witness.ts';

const MODE = 'istio.io/dataplane-mode';
const BYPASS = 'kmesh.net/bypass';

interface Cast {
  readonly web: Client;
  readonly cart: Client;
  readonly cron: Client;
  readonly ztunnelA: Proxy;
}

/** Plays the scene; what is not as it should be becomes a cross in the report. */
export async function playAmbient(sandbox: Sandbox, report: Report): Promise<void> {
  report.title("cgroute: a label decides whether a pod's connections go through the node's proxy");
  const node = await makeDemoNode(sandbox);
  const cast = await introduce(sandbox, node, report);
  const { web, cart, cron, ztunnelA } = cast;
  const witness = makeWitness(node, report);
  const { shows, comesToShow, showsOriginal } = witness;

  report.part('Without cgroute');
  showVisit(report, node, web, 'straight', await web.visit());

  report.part('The agent starts, on a node where the pods already run');
  const agent = await start(sandbox, node, report);

  report.part('Who goes through the proxy?');
  await showsOriginal(web, ztunnelA, await shows(web, ztunnelA));
  await shows(cart, 'straight', 'enrolled, but bypassed');
  await shows(cron, 'straight', 'not enrolled');

  report.part('A label on the namespace: its pods leave the mesh and come back, without a restart');
  report.command(node.label('namespace/shop', MODE, undefined));
  await comesToShow(web, 'straight');
  report.command(node.label('namespace/shop', MODE, 'ambient'));
  await comesToShow(web, ztunnelA);

  report.part('A label on the pod: is the mesh at fault, or the application? Take one pod past the proxy');
  report.command(node.label(web, BYPASS, 'enabled'));
  await comesToShow(web, 'straight');
  report.command(node.label(web, BYPASS, undefined));
  await comesToShow(web, ztunnelA);

  report.part('The proxy is replaced by one at another address');
  const ztunnelB = await node.addProxy({ namespace: 'istio-system', name: 'ztunnel-b', style: 'cgroupfs' });
  node.replace(ztunnelA, ztunnelB);
  report.command('kubectl -n istio-system rollout restart daemonset ztunnel');
  report.aside(`ztunnel-b, ${ztunnelB.host.ip4}, is ready now; ztunnel-a is not`);
  await comesToShow(web, ztunnelB);

  report.part('The agent is killed: the kernel goes on by itself, and a new agent takes over');
  const successor = await survive(sandbox, node, report, witness, agent, cast, ztunnelB);
  report.command(node.label(cart, BYPASS, undefined));
  await comesToShow(cart, ztunnelB);

  report.part('What the node says');
  await showStatus(sandbox, report, successor, ztunnelB, witness.tallies);
  const counted = [...witness.tallies.values()].reduce((sum, { proxied }) => sum + proxied, 0);
  const logged = await settled(() => ztunnelA.count() + ztunnelB.count(), counted);
  report.check(
    logged === counted,
    `the two proxies have seen ${logged} connections, the server ${counted} of theirs${logged === counted ? ': nothing else came to a proxy' : ''}`,
  );
  const ended = [web, cart, cron].filter((client) => !client.isAlive()).map(({ name }) => name);
  report.check(
    ended.length === 0,
    ended.length === 0
      ? 'no pod was restarted: each is the process that it was at first'
      : `these pods ended on the way: ${ended.join(', ')}`,
  );

  report.part('And away');
  await successor.stop();
  report.command('cgroute cleanup');
  const { stdout, stderr } = await cgroute(sandbox, ['cleanup']);
  report.aside((stdout || stderr).replaceAll(`${sandbox.directory}/`, ''));
  showVisit(report, node, web, 'straight', await web.visit());
}

/** Makes the pods and says who they are. */
async function introduce(sandbox: Sandbox, node: DemoNode, report: Report): Promise<Cast> {
  const web = await node.addClient({ namespace: 'shop', name: 'web', style: 'systemd' });
  const cart = await node.addClient({
    namespace: 'shop',
    name: 'cart',
    style: 'cgroupfs',
    labels: { [BYPASS]: 'enabled' },
  });
  const cron = await node.addClient({ namespace: 'batch', name: 'cron', style: 'systemd' });
  const ztunnelA = await node.addProxy({ namespace: 'istio-system', name: 'ztunnel-a', style: 'cgroupfs' });
  node.replace(ztunnelA, ztunnelA);
  node.label('namespace/shop', MODE, 'ambient');

  report.part('The cast: pods of one node, each in its own cgroup and network namespace');
  const row = (name: string, address: string, what: string): void =>
    report.text(`${name.padEnd(9)}  ${address.padEnd(10)}  ${what}`);
  for (const [{ name, host, cgroup }, what] of [
    [web, `in the mesh: its namespace, shop, has the label ${MODE}=ambient`],
    [cart, `in the same namespace, and has the label ${BYPASS}=enabled itself`],
    [cron, 'not in the mesh: its namespace, batch, has no label'],
    [ztunnelA, "the node's proxy, a real HAProxy"],
  ] as const) {
    row(name, host.ip4, what);
    report.aside(`${' '.repeat(23)}${shortened(cgroup.path)}`);
  }
  row('server', node.server.split(':')[0] ?? '', 'elsewhere; tells who has connected to it');
  report.text(`All below ${sandbox.cgroupRoot}; the agent is not to look beyond.`);
  report.text('A kubectl command below stands for the same edit of the file pods.yaml.');
  return { web, cart, cron, ztunnelA };
}

/** UIDs, container ids and slices cut short, so that it fits in a line. */
function shortened(path: string): string {
  return path
    .replace(/(?<=\/kubepods\.slice\/).*(?=-pod)/, '…')
    .replace(/(?<=pod[\da-f]{8})[\da-f_-]{28}/, '…')
    .replace(/(?<=\b[\da-f]{12})[\da-f]{52}\b/, '…');
}

/** Starts the agent and waits until it is ready. */
async function start(sandbox: Sandbox, node: DemoNode, report: Report): Promise<Agent> {
  report.command(`cgroute run --source file:pods.yaml --node ${NODE_NAME}`);
  const started = performance.now();
  const agent = startAgent(sandbox, { manifest: node.manifest, node: NODE_NAME });
  const { pods, cgroups } = await agent.ready();
  report.check(
    true,
    `ready in ${Math.round(performance.now() - started)} ms: ${String(pods)} pods and their ${String(cgroups)} cgroups are in the kernel's maps`,
  );
  return agent;
}

/** Kills the agent and starts another, while a pod goes on connecting. */
async function survive(
  sandbox: Sandbox,
  node: DemoNode,
  report: Report,
  { visit, shows }: Witness,
  agent: Agent,
  { web, cart }: Cast,
  proxy: Proxy,
): Promise<Agent> {
  let isOver = false;
  const meanwhile = (async () => {
    const visits: Visit[] = [];
    while (!isOver) visits.push(await visit(web));
    return visits;
  })();
  let successor: Agent;
  try {
    report.command(`kill -9 ${agent.running.pid}`);
    await agent.kill9();
    await shows(web, proxy, 'no agent runs');
    await shows(cart, 'straight', 'its bypass stands, too');
    const { agent: dead } = await agent.status();
    report.check(!dead.running, `status says that the agent ${dead.running ? 'is running' : 'is down'}`);
    successor = await start(sandbox, node, report);
  } finally {
    isOver = true;
    await meanwhile.catch(() => {});
  }
  const visits = await meanwhile;
  const astray = visits.filter(({ saw }) => saw !== proxy.host.ip4);
  const [first] = astray;
  const how =
    first === undefined
      ? ''
      : first.connected.ok
        ? `the server saw ${first.saw}`
        : `${first.connected.step} failed with ${first.connected.errno}`;
  report.check(
    astray.length === 0,
    astray.length === 0
      ? `web has connected ${visits.length} times through all of this, each time by the proxy`
      : `${astray.length} of web's ${visits.length} connections during all of this did not go by the proxy: ${how}`,
  );
  return successor;
}

/** The table for people, then that the same figures are what was seen here. */
async function showStatus(
  sandbox: Sandbox,
  report: Report,
  agent: Agent,
  proxy: Proxy,
  tallies: ReadonlyMap<Client, Tally>,
): Promise<void> {
  report.command('cgroute status');
  const { stdout } = await cgroute(sandbox, ['status']);
  report.text(stdout.replaceAll(`${sandbox.directory}/`, ''));
  const status = await agent.status();
  const name = `${proxy.namespace}/${proxy.name}`;
  report.check(
    status.agent.pid === agent.running.pid &&
      status.proxy.address === proxy.host.ip4 &&
      status.proxy.pod === name,
    `the agent is process ${status.agent.pid ?? 'unknown'}, the proxy ${status.proxy.pod ?? 'unknown'} at ${status.proxy.address ?? 'no address'}`,
  );
  const wrong = [...tallies].flatMap(([client, { straight, proxied }]) => {
    const {
      redirected = 0,
      out = 0,
      bypassed = 0,
    } = status.pods.find(({ uid }) => uid === client.uid)?.connections ?? {};
    return redirected === proxied && out + bypassed === straight
      ? []
      : [
          `${client.name} has ${redirected} redirected and ${out + bypassed} untouched, but the server saw ${proxied} and ${straight}`,
        ];
  });
  report.check(
    wrong.length === 0,
    wrong.length === 0
      ? 'its counters agree with what the server saw, connection by connection'
      : `its counters are wrong: ${wrong.join('; ')}`,
  );
}

/** The value once it is the wanted one, or what it is when a while has passed: logs come late. */
async function settled(value: () => number, wanted: number): Promise<number> {
  const until = performance.now() + 2000;
  while (value() < wanted && performance.now() < until) await delay(10);
  return value();
}

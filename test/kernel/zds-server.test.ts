/** The ZDS server with a proxy that listens in pods' network namespaces, as ztunnel does. */
import assert from 'node:assert/strict';
import { openSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { startInpodProxy, type InpodProxy } from '../../deploy/stage/inpod-proxy.ts';
import { makeNetwork, type NetworkHost } from '../../deploy/stage/netns.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';
import { listen } from '../../deploy/stage/sock.ts';
import { openZdsServer, type Workload, type ZdsServer } from '../../mapper/ztunnel/zds-server.ts';

const pathOf = ({ netns }: NetworkHost): string => `/run/netns/${netns}`;

test('a proxy in pods’ namespaces listens where it is told, is asked again where it could not, and outlives the server', async () => {
  await using sandbox = await makeSandbox('zds-server');
  const network = await makeNetwork(sandbox);
  const [node, free, held] = [
    await network.addHost('node'),
    await network.addHost('free'),
    await network.addHost('held'),
  ];
  const pods = new Map([free, held].map((pod) => [pod.name, pod]));
  const workload = (pod: NetworkHost): Workload => ({
    uid: pod.name,
    name: pod.name,
    namespace: 'shop',
    serviceAccount: 'till',
    network: BigInt(statSync(pathOf(pod)).ino),
  });
  const path = sandbox.file('zds.sock');
  const said: string[] = [];
  const log = (_: object | string, text?: string): void => void said.push(text ?? '');
  const open = (): ZdsServer =>
    openZdsServer({
      path,
      logger: { info: log, warn: log, error: log } as Parameters<typeof openZdsServer>[0]['logger'],
      networkOf: (uid) => {
        const pod = pods.get(uid);
        return pod && openSync(pathOf(pod), 'r');
      },
      onRefused: (uid, reason) => void said.push(`${uid}: ${reason}`),
      limits: { againMs: [50, 200] },
    });
  const is = (server: ZdsServer, pod: NetworkHost, state: string): Promise<unknown> =>
    eventually(`${pod.name} is ${state}`, () => server.standingOf(pod.name)?.state === state);
  const proxy = (): InpodProxy => startInpodProxy(sandbox, { socket: path, netns: node.netns, spoof: false });

  // An application has the port that the proxy needs.
  const application = await listen(sandbox, { netns: held.netns }, 'serve', '*', [15006], '--dual');
  const first = open();
  for (const pod of [free, held]) first.set(workload(pod));
  const ztunnel = proxy();
  const { account, namespace, netns } = await ztunnel.said('listening', 'free');
  assert.deepEqual([account, namespace, netns], ['till', 'shop', Number(workload(free).network)]);
  await is(first, free, 'acknowledged');
  await is(first, held, 'refused');
  assert.match(first.standingOf('held')?.reason ?? '', /\S/);
  assert.equal(said.filter((line) => line.startsWith('held: ')).length, 1);
  await application.running.stop('SIGKILL');
  await is(first, held, 'acknowledged');

  // The agent ends and comes back; one pod has gone meanwhile.
  first[Symbol.dispose]();
  await eventually('it knows', () => ztunnel.events().some(({ event }) => event === 'disconnected'));
  using second = open();
  second.set(workload(free));
  await is(second, free, 'acknowledged');
  await ztunnel.said('drained', 'held');
  assert.ok(!ztunnel.events().some((each) => each.event === 'drained' && each.uid === 'free'));

  // Another takes the proxy's place: both are told, and the first may go.
  const newer = startInpodProxy(sandbox, {
    socket: path,
    netns: node.netns,
    spoof: false,
    name: 'newer',
  });
  await newer.said('listening', 'free');
  await ztunnel.crash();
  await eventually('one is left', () => second.ztunnels.length === 1);
  assert.equal(second.standingOf('free')?.state, 'acknowledged');
  second.remove('free');
  await newer.said('drained', 'free');
});

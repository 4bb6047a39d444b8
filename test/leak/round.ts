/** One round of the leak test: every case some times, with pods of its own. */
import { existsSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { containerId } from '../../deploy/stage/pod-cgroup.ts';
import type { AgentChurn } from './agent-churn.ts';
import type { CaseName, Job, Way } from './connection.ts';
import { type LeakNode, POD_PORT } from './node.ts';
import { type LeakPod, NAMESPACES, removePod, type Verdict } from './pods.ts';
import type { Random } from '../harness/random.ts';
import { BYPASS, MODE } from '../harness/label-names.ts';

export interface RoundOptions {
  readonly node: LeakNode;
  readonly churn: AgentChurn;
  readonly random: Random;
  /** How much of everything; 1 is some 700 connections. */
  readonly size: number;
  /** Enrolled pods that live through all rounds. */
  readonly homes: readonly LeakPod[];
  readonly number: number;
}

const PROXIED: readonly Way[] = ['proxied'];
const DIRECT: readonly Way[] = ['direct'];
const always = (ways: readonly Way[]) => () => ways;

export async function runRound(options: RoundOptions): Promise<void> {
  const { node, churn, random, size, homes, number } = options;
  const { manifest } = node;
  const live: LeakPod[] = [];
  const stray: string[] = [];
  const many = (count: number): number => Math.max(1, Math.round(count * size));
  const times = <T>(count: number, make: (index: number) => T): T[] =>
    Array.from({ length: many(count) }, (_, index) => make(index));
  const pick = <T>(items: readonly T[]): T => {
    const item = random.pick(items);
    if (item === undefined) throw new Error('there is nothing to pick from');
    return item;
  };
  const pod: LeakNode['pods']['make'] = (...args) => {
    const made = node.pods.make(...args);
    live.push(made);
    return made;
  };
  const job = (
    name: CaseName,
    directory: string,
    ways: readonly Way[] | Job['allowed'],
    more: Partial<Job> = {},
  ): Job => ({
    case: name,
    directory,
    isNew: true,
    isExec: random.next() < 0.5,
    isMapped: random.next() < 0.2,
    from: 'pods',
    allowed: typeof ways === 'function' ? ways : always(ways),
    ...more,
  });
  const host = (name: CaseName, way: Way, more: Partial<Job> = {}): Job => {
    const directory = `${node.sandbox.cgroupRoot}/${more.directory ?? `system.slice/${name}-${stray.length}.service`}`;
    stray.push(directory);
    return job(name, directory, [way], { isExec: false, from: 'host', ...more, directory });
  };
  const connect = (jobs: readonly Job[]): Promise<void> => node.connect(random.shuffled(jobs));
  const nest = (outer: string, uid: string): string =>
    `${outer}/kubepods/burstable/pod${uid}/${containerId(`${outer} ${uid}`)}`;

  // Known before their cgroups: some for now, some for when no agent runs.
  node.pods.hasRootPods = number % 3 === 2;
  const known = times(120, () => pod());
  const statics = times(10, () => pod({}, { isStatic: true, style: pick(['cgroupfs', 'systemd']) }));
  const tree = (n: string): LeakPod => {
    stray.push(`${node.sandbox.cgroupRoot}/r${number}${n}-kubepods.slice`);
    return pod({}, { tree: `r${number}${n}-kubepods.slice` });
  };
  const [trees, treesDead] = [[tree('a'), tree('b')], [tree('c')]];
  const dead = times(60, () => pod());
  const again = times(15, () => pod());
  const againDead = times(15, () => pod());
  const out = times(30, (n) =>
    n % 2 === 0 ? pod({ namespace: NAMESPACES.plain }) : pod({ labels: { [MODE]: 'none' } }),
  );
  const bypassed = times(20, (n) => pod({ labels: { [BYPASS]: n % 2 === 0 ? 'enabled' : 'outbound' } }));
  const flips = makeFlips(
    times(24, (n) => n),
    pod,
  );
  for (const { object } of live) manifest.pod(object);
  manifest.write();
  const inMesh = [...known, ...statics, ...trees, ...treesDead, ...dead, ...again, ...againDead];
  await node.known(inMesh, 'in');
  await node.known(out, 'out');
  await node.known(bypassed, 'bypass');
  for (const { pods, was } of flips) await node.known(pods, was);

  const home = (): LeakPod => pick(homes);
  const restart = (): Job[] => {
    const { containers, newContainer } = pick(homes);
    const at = containers.findIndex((path, n) => n > 0 && existsSync(path));
    if (at < 0) return [];
    for (const old of containers.splice(at, 1)) removeCgroup(old);
    return [job('restarted', newContainer(), PROXIED)];
  };
  const dial = (name: CaseName, way: Way, more: Partial<Job> = {}): Job =>
    host(name, way, { to: { ip: home().ip, port: POD_PORT }, ...more });
  const steady = (): Job[] => [
    ...times(30, () => job('new_container', home().newContainer(), PROXIED)),
    ...times(15, restart).flat(),
    ...times(15, () => job('exec', pick(home().containers.slice(0, 1)), PROXIED, { isNew: false })),
    ...times(20, () =>
      job('nested', nest(home().newContainer(), pick([...out, ...known, ...bypassed]).uid), PROXIED),
    ),
    ...times(3, () =>
      job('proxy_pod', `${node.proxyPod.directory}/${containerId(`proxy ${random.next()}`)}`, DIRECT),
    ),
    ...times(15, () => host('host', 'direct')),
    ...times(5, () =>
      host('host', 'direct', {
        directory: `user.slice/kubepods/burstable/pod${home().uid}/${containerId(String(random.next()))}`,
      }),
    ),
    ...times(15, () => dial('host_inbound', 'inbound')),
    ...times(8, () => dial('kubelet', 'direct', { comm: 'kubelet' })),
  ];
  const first = (name: CaseName, pods: readonly LeakPod[], ways: readonly Way[]): Job[] =>
    pods.map((one) => job(name, one.newContainer(), ways));

  await connect([
    ...first('known', known, PROXIED),
    ...first('static_pod', statics, PROXIED),
    ...first('new_tree', trees, PROXIED),
    ...first('out', out, DIRECT),
    ...first('bypassed', bypassed, DIRECT),
    ...flips.flatMap(({ pods, was }) => first('flip_before', pods, wayOf(was))),
    ...times(10, () => job('nested_out', nest(pick(out).newContainer(), home().uid), DIRECT)),
    ...first('known', [...again, ...againDead], PROXIED),
    ...steady(),
  ]);
  if (node.wants(EARLY_CASES)) await connectEarly(options, { pod, times, job, connect });
  if (node.wants(['flip_during', 'flip_after'])) await flip(options, flips, job, connect);

  const whileDead = async (jobs: readonly Job[]): Promise<void> => {
    if (!node.wants(jobs.map((one) => one.case))) return;
    await churn.pause();
    await connect(jobs);
    await resumeWhileDialled(options);
  };
  await whileDead([
    ...first('new_tree_dead', treesDead, PROXIED),
    ...first('agent_dead', dead, PROXIED),
    ...steady(),
  ]);
  // Now each pod has a cgroup, and the agent awaits none. Where one is made again that
  // the agent has not heard of, the proxy cannot be told where to: refused is right, too.
  const remade: readonly Way[] = ['proxied', 'denied'];
  for (const one of again) removeCgroup(one.directory);
  await connect(first('pod_again', again, remade));
  for (const one of againDead) removeCgroup(one.directory);
  await whileDead([...first('pod_again_dead', againDead, remade), ...steady()]);
  if (node.wants(['pod_again', 'pod_again_dead'])) {
    await node.known([...again, ...againDead], 'in');
    await connect([...first('pod_again', again, PROXIED), ...first('pod_again_dead', againDead, PROXIED)]);
  }

  for (const one of live) removePod(manifest, one);
  for (const { containers } of homes) for (const directory of containers.splice(1)) removeCgroup(directory);
  for (const directory of stray) removeCgroup(directory);
}

/** Of pods that live long, every few milliseconds until the agent is ready: what it swaps and takes over must leave no gap. */
export async function resumeWhileDialled({
  node,
  churn,
  random,
  homes,
}: Pick<RoundOptions, 'node' | 'churn' | 'random' | 'homes'>): Promise<void> {
  let isReady = false;
  const ready = churn.resume().finally(() => (isReady = true));
  const dial = async (): Promise<void> => {
    while (!isReady && node.wants(['taken_over'])) {
      const jobs = [true, false].map((isNew): Job => {
        const home = random.pick(homes);
        const directory = isNew ? home?.newContainer() : home?.containers[0];
        if (directory === undefined) throw new Error('there is no pod to connect from');
        return {
          case: 'taken_over',
          directory,
          isNew,
          isExec: false,
          isMapped: random.next() < 0.2,
          from: 'pods',
          allowed: always(PROXIED),
        };
      });
      await node.connect(jobs);
      await delay(5);
    }
  };
  await Promise.all([ready, dial()]);
}

const wayOf = (verdict: Verdict): readonly Way[] => (verdict === 'in' ? PROXIED : DIRECT);

interface Parts {
  readonly pod: LeakNode['pods']['make'];
  readonly times: <T>(count: number, make: (index: number) => T) => T[];
  readonly job: (
    name: CaseName,
    directory: string,
    ways: readonly Way[] | Job['allowed'],
    more?: Partial<Job>,
  ) => Job;
  readonly connect: (jobs: readonly Job[]) => Promise<void>;
}

/** So many pods begin at the same moment, and some more a few milliseconds later: the agent reads what has been written, and knows some of them. */
const AT_ONCE = 5;

const EARLY_CASES: readonly CaseName[] = ['same_moment', 'object_after', 'known_late'];

/** Pods whose first process is there before anybody has said whose it is, or as they say it. */
async function connectEarly(
  { node, random }: RoundOptions,
  { pod, times, job, connect }: Parts,
): Promise<void> {
  const { manifest } = node;
  const late = times(40, () => pod());
  const same = times(40, () => pod());
  await connect(late.map((one) => job('object_after', one.newContainer(), ['denied'])));
  for (const { object } of [...late, ...same]) manifest.pod(object);
  const knownAt = new Map<string, bigint>();
  const isOver = (startNs: bigint, { uid }: LeakPod): boolean => startNs > (knownAt.get(uid) ?? startNs);
  manifest.write();
  const first = (async () => {
    for (let begun = 0; begun < same.length; begun += AT_ONCE) {
      await connect(
        same
          .slice(begun, begun + AT_ONCE)
          .map((one) =>
            job('same_moment', one.newContainer(), (startNs) =>
              isOver(startNs, one) ? PROXIED : ['denied', 'proxied'],
            ),
          ),
      );
      await delay(random.next() * 60);
    }
  })();
  await node.known(same, 'in', ({ uid }) => void knownAt.set(uid, process.hrtime.bigint()));
  await first;
  await node.known([...late, ...same], 'in');
  await connect(
    [...late, ...same].flatMap((one, n) => [
      job('known_late', one.newContainer(), PROXIED),
      ...(n % 2 === 0 ? [job('known_late', one.containers[0] ?? '', PROXIED, { isNew: false })] : []),
    ]),
  );
}

/** Pods that are going to change, all in one write. */
interface Flip {
  readonly pods: readonly LeakPod[];
  readonly was: Verdict;
  readonly becomes: Verdict;
  /** Undefined: the namespace's label does it. */
  readonly labels: Readonly<Record<string, string>> | undefined;
}

function makeFlips(indexes: readonly number[], pod: LeakNode['pods']['make']): Flip[] {
  const some = (
    kind: number,
    labels: Readonly<Record<string, string>>,
    namespace: string = NAMESPACES.mesh,
  ): LeakPod[] => indexes.filter((index) => index % 6 === kind).map(() => pod({ labels, namespace }));
  return [
    { pods: some(0, {}), was: 'in', becomes: 'out', labels: { [MODE]: 'none' } },
    { pods: some(1, { [MODE]: 'none' }), was: 'out', becomes: 'in', labels: {} },
    { pods: some(2, {}), was: 'in', becomes: 'bypass', labels: { [BYPASS]: 'enabled' } },
    { pods: some(3, { [BYPASS]: 'enabled' }), was: 'bypass', becomes: 'in', labels: {} },
    { pods: some(4, {}, NAMESPACES.flipping), was: 'in', becomes: 'out', labels: undefined },
    { pods: some(5, { [MODE]: 'ambient' }, NAMESPACES.plain), was: 'in', becomes: 'out', labels: {} },
  ];
}

/** So long after the change is written connections begin, in milliseconds: the agent is somewhere in between. */
const DURING_MS = [0, 30, 60];

async function flip(
  { node }: RoundOptions,
  flips: readonly Flip[],
  job: Parts['job'],
  connect: Parts['connect'],
): Promise<void> {
  const { manifest } = node;
  for (const { pods, labels } of flips) {
    if (labels !== undefined) for (const { uid } of pods) manifest.change(uid, { labels });
  }
  manifest.namespace(NAMESPACES.flipping, {});
  manifest.write();
  for (const ms of DURING_MS) {
    await delay(ms);
    await connect(
      flips.flatMap(({ pods }) =>
        pods.map((one) => job('flip_during', one.newContainer(), ['proxied', 'direct'])),
      ),
    );
  }
  for (const { pods, becomes } of flips) await node.known(pods, becomes);
  await connect(
    flips.flatMap(({ pods, becomes }) =>
      pods.flatMap((one) => [
        job('flip_after', one.newContainer(), wayOf(becomes)),
        job('flip_after', one.containers[0] ?? '', wayOf(becomes), { isNew: false }),
      ]),
    ),
  );
  manifest.namespace(NAMESPACES.flipping, { [MODE]: 'ambient' });
}

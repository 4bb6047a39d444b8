/** PIDs that end and begin again while they are read, forced by a PID namespace whose next PID can be chosen. */
import assert from 'node:assert/strict';
import { readFileSync, readlinkSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { beginWait } from '../../deploy/stage/deadline.ts';
import { findCgroupMount } from '../../watcher/host.ts';
import { openProc } from '../../watcher/proc.ts';
import { makeNetwork } from '../../deploy/stage/netns.ts';
import { eventually } from '../../deploy/stage/process.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';

const PID = 300;
/** So often the PID changes hands, if the machine is not far too slow for that. */
const HANDOVERS = 80;

/**
 * In a namespace of its own, two shells, each in a cgroup and a network namespace
 * of their own, take turns: one begins a process with the PID and waits for its
 * end. Start times count 10 ms, so no process ends as young as that.
 */
const SCRIPT = `
turns() {
  echo 0 >"$1/cgroup.procs"
  exec nsenter --net=/run/netns/"$2" sh -c '
    while read -r turn <"$1"; do echo ${PID - 1} >/proc/sys/kernel/ns_last_pid; sleep 0.015 & wait $!; echo turn >"$2"; done
  ' sh "$3" "$4"
}
mkfifo "$5/ping" "$5/pong"
(turns "$1" "$2" "$5/ping" "$5/pong") &
(turns "$3" "$4" "$5/pong" "$5/ping") &
echo begun
echo turn >"$5/ping"
wait
`;

test('PID gone or reused mid-read: what is read is of one process, or nothing', async (t) => {
  await using sandbox = await makeSandbox('pids');
  const network = await makeNetwork(sandbox);
  const places = [
    { cgroup: sandbox.cgroup('one'), host: await network.addHost('one') },
    { cgroup: sandbox.cgroup('two'), host: await network.addHost('two') },
  ] as const;
  const [one, two] = places;
  await using namespace = sandbox.spawn({
    cmd: 'unshare',
    args: [
      '--pid',
      '--fork',
      '--mount-proc',
      '--kill-child',
      'sh',
      '-c',
      SCRIPT,
      'sh',
      one.cgroup.absolute,
      one.host.netns,
      two.cgroup.absolute,
      two.host.netns,
      sandbox.directory,
    ],
  });
  await namespace.line(/begun/);
  const init = Number(
    readFileSync(`/proc/${namespace.pid}/task/${namespace.pid}/children`, 'utf8').trim().split(' ')[0],
  );
  const proc = openProc({
    procRoot: `/proc/${init}/root/proc`,
    cgroupRoot: sandbox.cgroupRoot,
    mount: findCgroupMount('/proc', sandbox.cgroupRoot),
  });
  const netnsOf = (name: string): number => Number(statSync(`/run/netns/${name}`).ino);
  const owners = new Map(
    places.map(({ cgroup, host }) => [
      cgroup.path,
      { netns: netnsOf(host.netns), ips: [host.ip4, host.ip6].join() },
    ]),
  );
  const byNetns = new Map([...owners.values()].map(({ netns, ips }) => [netns, ips]));
  assert.ok(!byNetns.has(Number(/\d+/.exec(readlinkSync('/proc/self/ns/net'))?.[0])));
  await eventually('both have begun', () =>
    [one, two].every(({ cgroup }) => readFileSync(`${cgroup.absolute}/cgroup.procs`, 'utf8') !== ''),
  );

  const seen = new Map<string, number>();
  let handovers = 0;
  let last = '';
  const see = (what: string): void => void seen.set(what, (seen.get(what) ?? 0) + 1);
  for (const wait = beginWait(); handovers < HANDOVERS && !wait.isOver(); ) {
    for (let n = 0; n < 50; n++) {
      const fact = proc.processOf(PID);
      const owner = owners.get(fact?.path ?? '');
      if (fact !== undefined) {
        assert.ok(owner, `it is in ${fact.path}`);
        assert.equal(fact.netns, owner.netns, `in ${fact.path} with the network namespace of the other`);
        if (fact.path !== last) handovers++;
        last = fact.path;
      }
      see(fact?.path ?? 'nobody');
      const addresses = proc.addressesOf(PID);
      if (addresses !== undefined)
        assert.equal(addresses.ips.join(), byNetns.get(addresses.netns), 'addresses of another namespace');
    }
    await delay(0);
  }
  t.diagnostic(
    `${JSON.stringify(Object.fromEntries(seen))}, and PID ${PID} changed hands ${handovers} times`,
  );
  assert.ok(handovers > 20, `PID ${PID} changed hands ${handovers} times only`);
  assert.ok((seen.get('nobody') ?? 0) > 0, 'it was gone, too');
});

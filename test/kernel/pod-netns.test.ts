/** What is done inside a pod's network namespace, and that nothing of the agent stays there. */
import assert from 'node:assert/strict';
import { readdirSync, readlinkSync, statSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { CgrouteError } from '../../native/error.ts';
import { writeNat } from '../../native/netns/iptables-rules.ts';
import { insideNetns, openPodNetns, runInNetns } from '../../native/netns/pod-netns.ts';
import { makeNetwork, type NetworkHost } from '../../deploy/stage/netns.ts';
import { makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';

/** The network namespaces of all threads of this process. */
const namespaces = (): Set<string> =>
  new Set(readdirSync('/proc/self/task').map((thread) => readlinkSync(`/proc/self/task/${thread}/ns/net`)));
const own = readlinkSync('/proc/self/ns/net');

describe("a pod's network namespace", () => {
  let sandbox: Sandbox;
  let host: NetworkHost;
  let pid: number;
  before(async () => {
    sandbox = await makeSandbox('pod-netns');
    host = await (await makeNetwork(sandbox)).addHost('pod');
    const running = sandbox.spawn({
      netns: host.netns,
      cmd: 'sh',
      args: ['-c', 'echo here; exec sleep 1000'],
    });
    await running.line();
    pid = running.pid;
  });
  after(() => sandbox?.[Symbol.asyncDispose]());

  const open = () => openPodNetns(pid) ?? assert.fail('it is there');

  test('is where a program runs that is started in it, and where the agent is not', async () => {
    using netns = open();
    assert.equal(netns.inode, statSync(`/run/netns/${host.netns}`).ino);
    const many = Array.from({ length: 20 }, (_, more) =>
      runInNetns(netns, 'readlink', ['/proc/self/ns/net'], more),
    );
    assert.deepEqual([...namespaces()], [own], 'while they run');
    for (const { code, stdout, stderr } of await Promise.all(many))
      assert.deepEqual([code, stdout, stderr], [0, `net:[${netns.inode}]\n`, '']);
    assert.deepEqual([...namespaces()], [own]);
  });

  test('is left when what is done in it throws', () => {
    using netns = open();
    assert.throws(
      () =>
        insideNetns(netns.fd, () => {
          assert.equal(readlinkSync('/proc/thread-self/ns/net'), `net:[${netns.inode}]`);
          throw new RangeError('within');
        }),
      /within/,
    );
    assert.deepEqual([...namespaces()], [own]);
  });

  test('gives a program as many descriptors as are asked for', async () => {
    using netns = open();
    const script =
      'for fd in 0 1 2 3 4 5 6 7 8 9; do if [ -e /proc/$$/fd/$fd ]; then printf "$fd "; fi; done';
    const given = async (more: number): Promise<string> =>
      (await runInNetns(netns, 'sh', ['-c', script], more)).stdout.trim();
    assert.deepEqual([await given(0), await given(3)], ['0 1 2', '0 1 2 3 4 5']);
  });

  test('is not entered for a program that is not there, and a descriptor of something else is refused', async () => {
    using netns = open();
    await assert.rejects(runInNetns(netns, 'no-such-program', []), {
      code: 'ENOPROGRAM',
      message: /no-such-program is not installed where the agent runs/,
    });
    assert.throws(() => insideNetns(0, () => assert.fail('not entered')), {
      code: 'ESYSCALL',
      message: /^setns\(\) for the network namespace of a pod failed with E/,
    });
    assert.deepEqual([...namespaces()], [own]);
  });

  test('keeps its rules where the lock of iptables may not be written, which is not said to be a want of capabilities', async (t) => {
    process.env['XTABLES_LOCKFILE'] = '/proc/none/xtables.lock';
    t.after(() => delete process.env['XTABLES_LOCKFILE']);
    using netns = open();
    const rule = '-m comment --comment cgroute:short-circuit -j RETURN';
    await assert.rejects(
      writeNat(netns, { tool: 'iptables-legacy', hasSidecar: true, own: [] }, rule),
      (error) => {
        assert.ok(error instanceof CgrouteError && error.code === 'EIPTABLES');
        assert.match(error.message, /can't open lock file .*; the agent needs a lock file that it can write/);
        assert.doesNotMatch(error.message, /CAP_/);
        return true;
      },
    );
  });
});

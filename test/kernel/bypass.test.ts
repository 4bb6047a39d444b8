/** The filter that takes a sidecar out of a pod's path, and the rules that ask it, in a pod's real namespace. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { describe, test } from 'node:test';
import { bypassDirection } from '../../native/layout/layouts.ts';
import {
  isAsWanted,
  readNat,
  ruleText,
  writeNat,
  type FilterPin,
  type RuleKind,
} from '../../native/netns/iptables-rules.ts';
import { openPodNetns } from '../../native/netns/pod-netns.ts';
import { makeNetwork, type NetworkHost } from '../../deploy/stage/netns.ts';
import { makeNode, SERVER_PORT } from '../../deploy/stage/node.ts';
import { must } from '../../deploy/stage/process.ts';
import { inSandbox, makeSandbox, type Sandbox } from '../../deploy/stage/sandbox.ts';
import {
  installSidecarRules,
  natRules,
  ownRules,
  startSidecar,
  type Backend,
} from '../../deploy/stage/sidecar.ts';
import { connect, listen, type Place } from '../../deploy/stage/sock.ts';
import { plain } from '../harness/travel.ts';
import { bytesOf, openTestPlane, type TestPlane } from './data-plane.ts';

const BOTH = bypassDirection.outbound | bypassDirection.inbound;

interface Scene extends AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly plane: TestPlane;
  readonly filter: FilterPin;
  readonly pod: NetworkHost & { readonly place: Place; readonly pid: number };
  readonly server: NetworkHost;
  /** What an agent does: rules in the pod's namespace. Returns how many tables had to be changed. */
  rules(kind: RuleKind | undefined): Promise<number>;
  /** What the maps say of the pod's two addresses. */
  directions(value: number): void;
  /** Who handled a connection from the pod to the server, and one from the server's namespace to the pod. */
  outbound(): Promise<string>;
  inbound(): Promise<string>;
  outbound6(): Promise<string>;
  inbound6(): Promise<string>;
}

function makeScene(name: string, backend: Backend): Promise<Scene> {
  return inSandbox(name, async (sandbox) => {
    const base = await makeNode(sandbox);
    const { host, place } = await base.addPod({ name: 'pod' });
    const plane = openTestPlane(sandbox);
    const filter = plane.plane.pinBypass();
    await installSidecarRules(host.netns, backend);
    await startSidecar(sandbox, host, place);
    // It asks for the original destination on IPv4 alone, so IPv6 has a sidecar that answers by itself.
    await listen(sandbox, place, 'proxy', '::', [15001, 15006], '-6');
    const app = await listen(sandbox, place, 'serve', '*', [SERVER_PORT], '--dual', '--quiet');
    const server = await base.startServer({ flags: ['--dual', '--quiet'] });
    const travel = async (from: Place, to: string): Promise<string> => {
      const result = await connect(from, to, SERVER_PORT);
      if (!result.ok) return result.errno;
      const [who, , peer = ''] = result.reply.split(' ');
      return who === 'server' && plain(peer) === result.local ? 'direct' : 'sidecar';
    };
    return {
      sandbox,
      plane,
      filter,
      server,
      pod: { ...host, place, pid: app.running.pid },
      async rules(kind) {
        using netns = openPodNetns(app.running.pid);
        assert.ok(netns !== undefined);
        const { tables, missing } = await readNat(netns, app.running.pid);
        assert.deepEqual(missing, []);
        const text = kind === undefined ? undefined : ruleText(kind, filter);
        const wrong = tables.filter((table) => !isAsWanted(table, text));
        for (const table of wrong) await writeNat(netns, table, text);
        return wrong.length;
      },
      directions(value) {
        const { bypass4, bypass6 } = plane.plane.maps;
        bypass4.set(bytesOf(host.ip4).subarray(12), value);
        bypass6.set(bytesOf(host.ip6), value);
      },
      outbound: () => travel(place, server.ip4),
      inbound: () => travel({ netns: server.netns }, host.ip4),
      outbound6: () => travel(place, server.ip6),
      inbound6: () => travel({ netns: server.netns }, host.ip6),
      async [Symbol.asyncDispose]() {
        plane[Symbol.dispose]();
        await sandbox[Symbol.asyncDispose]();
      },
    };
  });
}

const all = async (scene: Scene): Promise<string[]> => [
  await scene.outbound(),
  await scene.inbound(),
  await scene.outbound6(),
  await scene.inbound6(),
];

for (const backend of ['nft', 'legacy'] as const) {
  describe(`rules in the backend ${backend}`, () => {
    test('take the sidecar out of the path in the directions that the map says, for IPv4 and IPv6', async () => {
      await using scene = await makeScene(`bypass-${backend}`, backend);
      const { pod, filter } = scene;
      assert.deepEqual(await all(scene), ['sidecar', 'sidecar', 'sidecar', 'sidecar'], 'without rules');
      assert.equal(await scene.rules('bypass'), 2);
      assert.deepEqual(
        await all(scene),
        ['sidecar', 'sidecar', 'sidecar', 'sidecar'],
        'the map does not have the pod yet',
      );
      for (const family of ['iptables', 'ip6tables']) {
        for (const chain of ['OUTPUT', 'PREROUTING']) {
          const [first = ''] = await natRules(pod.netns, chain, `${family}-${backend}`);
          assert.equal(
            first.replaceAll('"', ''),
            `-m bpf --object-pinned ${filter.path} -m comment --comment cgroute:bypass:${filter.mapId} -j RETURN`,
          );
        }
      }
      scene.directions(BOTH);
      assert.deepEqual(await all(scene), ['direct', 'direct', 'direct', 'direct']);
      scene.directions(bypassDirection.outbound);
      assert.deepEqual(await all(scene), ['direct', 'sidecar', 'direct', 'sidecar']);
      scene.directions(bypassDirection.inbound);
      assert.deepEqual(await all(scene), ['sidecar', 'direct', 'sidecar', 'direct']);
      scene.directions(0);
      assert.deepEqual(await all(scene), ['sidecar', 'sidecar', 'sidecar', 'sidecar']);
      assert.equal(await scene.rules('bypass'), 0, 'nothing left to do');
    });

    test('change their kind, and leave nothing behind', async () => {
      await using scene = await makeScene(`kinds-${backend}`, backend);
      const { pod } = scene;
      const other = backend === 'nft' ? 'legacy' : 'nft';
      await scene.rules('bypass');
      await scene.rules('short-circuit');
      assert.deepEqual(await all(scene), ['direct', 'direct', 'direct', 'direct']);
      assert.equal((await ownRules(pod.netns)).length, 4);
      assert.ok(
        (await ownRules(pod.netns)).every((rule) => !rule.includes(other) && rule.includes('short-circuit')),
      );
      await scene.rules('bypass');
      assert.ok((await ownRules(pod.netns)).every((rule) => rule.includes(':bypass:')));
      await scene.rules(undefined);
      assert.deepEqual(await ownRules(pod.netns), []);
      assert.deepEqual(await all(scene), ['sidecar', 'sidecar', 'sidecar', 'sidecar']);
    });

    test('are put first again, and of all others none is touched', async () => {
      await using scene = await makeScene(`order-${backend}`, backend);
      const { pod, filter } = scene;
      const tool = `iptables-${backend}`;
      const iptables = (...args: readonly string[]) =>
        must({ cmd: tool, args: ['-t', 'nat', ...args], netns: pod.netns });
      await scene.rules('bypass');
      await iptables(
        '-I',
        'OUTPUT',
        '1',
        '-p',
        'udp',
        '-m',
        'comment',
        '--comment',
        'cgroute is not our comment',
        '-j',
        'RETURN',
      );
      await iptables('-I', 'PREROUTING', '1', '-m', 'comment', '--comment', 'cgroute:bypass', '-j', 'RETURN');
      await iptables(
        '-I',
        'PREROUTING',
        '1',
        '-m',
        'comment',
        '--comment',
        'cgroute:short-circuit',
        '-p',
        'udp',
        '-j',
        'RETURN',
      );
      // One of another time, whose map is gone, and one that was made twice.
      await iptables(
        '-A',
        'OUTPUT',
        '-m',
        'bpf',
        '--object-pinned',
        filter.path,
        '-m',
        'comment',
        '--comment',
        'cgroute:bypass:1',
        '-j',
        'RETURN',
      );
      // The match remembers the number of the descriptor that the program had.
      const twice = `exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null; exec ${tool} -t nat -A OUTPUT -m bpf --object-pinned ${filter.path} -m comment --comment cgroute:bypass:${filter.mapId} -j RETURN`;
      await must({ cmd: 'bash', args: ['-c', twice], netns: pod.netns });
      const foreign = async (): Promise<string[]> => {
        const ours = /cgroute:bypass:\d+/;
        return [
          ...(await natRules(pod.netns, 'OUTPUT', tool)),
          ...(await natRules(pod.netns, 'PREROUTING', tool)),
          ...(await natRules(pod.netns, 'ISTIO_OUTPUT', tool)),
        ].filter((rule) => !ours.test(rule));
      };
      const before = await foreign();
      assert.equal(before.length, 2 + 3 + 9);
      assert.equal(await scene.rules('bypass'), 1);
      assert.deepEqual(await foreign(), before);
      for (const chain of ['OUTPUT', 'PREROUTING']) {
        const rules = (await natRules(pod.netns, chain, tool)).map(
          (rule) => /cgroute:bypass:\d+/.exec(rule)?.[0],
        );
        assert.deepEqual(
          rules.filter((rule) => rule !== undefined),
          [`cgroute:bypass:${filter.mapId}`],
          chain,
        );
        assert.equal(rules[0], `cgroute:bypass:${filter.mapId}`);
      }
      await iptables('-D', 'PREROUTING', '1');
      assert.equal(await scene.rules('bypass'), 1);
      assert.equal(await scene.rules(undefined), 2);
      assert.deepEqual(await foreign(), before);
    });
  });
}

test('a pod without a sidecar gets no rules, and no legacy table', async () => {
  await using scene = await makeScene('without', 'nft');
  await scene.rules('bypass');
  assert.deepEqual(
    (await must({ cmd: 'cat', args: ['/proc/net/ip_tables_names'], netns: scene.pod.netns })).trim(),
    '',
  );
  await using sandbox = await makeSandbox('none');
  const network = await makeNetwork(sandbox);
  const plain = await network.addHost('plain');
  const app = await listen(sandbox, { netns: plain.netns }, 'serve', '*', [SERVER_PORT], '--quiet');
  using netns = openPodNetns(app.running.pid);
  assert.ok(netns !== undefined);
  const { tables } = await readNat(netns, app.running.pid);
  for (const table of tables) await writeNat(netns, table, ruleText('bypass', scene.filter));
  assert.deepEqual(await ownRules(plain.netns), []);
});

test('the pin is replaced in place, and another agent beside has one of its own', async () => {
  await using scene = await makeScene('pins', 'nft');
  const { sandbox, filter } = scene;
  assert.equal(filter.path, `${sandbox.bpffs}/bypass`);
  using next = openTestPlane(sandbox);
  assert.deepEqual(next.plane.pinBypass(), filter, 'the same path and the same map');
  using other = openTestPlane(sandbox, { bpffsRoot: `${sandbox.bpffs}/other` });
  const second = other.plane.pinBypass();
  assert.equal(second.path, `${sandbox.bpffs}/other/bypass`);
  assert.notEqual(second.mapId, filter.mapId);
  other.plane.detach();
  scene.plane.plane.detach();
  assert.deepEqual(
    readdirSync(sandbox.bpffs).filter((name) => !name.endsWith('.debug')),
    [],
  );
});

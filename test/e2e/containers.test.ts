/** Real containers: redirected from their first instruction, through restarts and `exec`. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { removeCgroup } from '../../deploy/stage/cgroup.ts';
import { type TestNode, startNode } from '../harness/node.ts';
import type { NodePod } from '../../deploy/stage/node.ts';
import { containerId, containerPath } from '../../deploy/stage/pod-cgroup.ts';
import { startContainer } from '../harness/runc.ts';
import { BYPASS } from '../harness/label-names.ts';
import type { Connected } from '../../deploy/stage/sock.ts';

for (const style of ['cgroupfs', 'systemd'] as const) {
  describe(`a container by runc, in cgroups of the ${style} driver`, () => {
    let node: TestNode;
    let pod: NodePod;
    before(async () => {
      node = await startNode(`runc-${style}`, { agent: false });
      writeFileSync(node.sandbox.file('config.yaml'), 'sweepSeconds: 1\n');
      pod = await node.addPod({ name: 'pod', style, running: false });
      await node.startAgent({ args: ['--config', node.sandbox.file('config.yaml')] });
    });
    after(() => node?.[Symbol.asyncDispose]());

    const start = (id: string, ...args: readonly string[]): ReturnType<typeof startContainer> =>
      startContainer(node.sandbox, {
        id,
        cgroupPath: containerPath(style, pod.uid, id),
        netns: pod.host.netns,
        ...(args.length === 0 ? {} : { args }),
      });
    /** Connects, then stays. */
    const client = (): string[] => ['sh', '-c', `sock connect ${node.server.ip4} 8080; exec sleep 1000`];

    function isRedirected(result: Connected): void {
      assert.ok(result.ok, JSON.stringify(result));
      assert.equal(result.peer, `${node.server.ip4}:8080`, 'getpeername');
      assert.equal(
        result.reply.split(' ')[2]?.replace(/.*ffff:([\d.]+).*/, '$1'),
        node.proxyPod.host.ip4,
        'the server saw the proxy',
      );
    }

    test('of init, restarted, ephemeral containers and exec is redirected with its first connection', async () => {
      // The pod's first container, whose pod cgroup is new as well.
      const sandboxContainer = await start(containerId(`${style} pause`));
      const pause = await node.podStatus(pod);
      assert.ok(pause.cgroups.length >= 1, 'its cgroups are known');
      // An init container connects, and is gone before the next one begins.
      for (const name of ['first', 'second']) {
        const init = await start(
          containerId(`${style} init ${name}`),
          'sh',
          '-c',
          `sock connect ${node.server.ip4} 8080; sleep 0.3`,
        );
        isRedirected(await init.running.json<Connected>());
        await init.running.exit;
        await init.delete();
      }
      for (let restart = 0; restart < 3; restart++) {
        const container = await start(containerId(`${style} ${restart}`), ...client());
        isRedirected(await container.running.json<Connected>());
        await container.delete();
      }
      // An ephemeral container begins beside one that runs, as does what is executed there.
      const app = await start(containerId(`${style} app`));
      isRedirected(await app.exec('sock', 'connect', node.server.ip4, '8080').json<Connected>());
      const ephemeral = await start(containerId(`${style} debug`), ...client());
      isRedirected(await ephemeral.running.json<Connected>());
      for (const container of [ephemeral, app]) await container.delete();
      const { connections } = await node.podStatus(pod);
      assert.deepEqual([connections['redirected'], connections['unknownAllowed']], [7, 0]);
      assert.equal((await node.status()).host['unknownAllowed'], 0);
      await sandboxContainer.delete();
    });

    test('follows labels in what is executed in it, live like any other', async () => {
      const container = await start(containerId(`${style} exec`));
      const execute = async (): Promise<Connected> =>
        container.exec('sock', 'connect', node.server.ip4, '8080').json<Connected>();
      isRedirected(await execute());
      node.manifest.change(pod.uid, { labels: { [BYPASS]: 'enabled' } });
      await node.apply();
      const bypassed = await execute();
      assert.ok(bypassed.ok && bypassed.reply.includes(pod.host.ip4), JSON.stringify(bypassed));
      node.manifest.change(pod.uid, { labels: {} });
      await node.apply();
      isRedirected(await execute());
      await container.delete();
    });

    test('leaves no entry when it and its pod are gone', async () => {
      const container = await start(containerId(`${style} last`));
      await container.delete();
      // runc leaves the pod's own cgroup to the kubelet.
      const own = node.sandbox.cgroup(dirname(containerPath(style, pod.uid, 'any')));
      await node.until('its containers are forgotten', ({ pods }) =>
        pods.find(({ uid }) => uid === pod.uid)?.cgroups.every(({ id }) => id === String(own.id)),
      );
      node.manifest.remove(pod.uid);
      removeCgroup(own.absolute);
      await node.apply();
      await node.until('the pod is forgotten', ({ pods }) => !pods.some(({ uid }) => uid === pod.uid));
      assert.equal((await node.entries('cgroup_info_map')).length, 2, "the proxy's");
    });
  });
}

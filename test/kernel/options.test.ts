/** Traffic options as the annotations say them, as the client, the proxy and the server see them. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { PodOptions } from '../../mapper/maps/pod-options.ts';
import { trafficOptions } from '../../mapper/decisions/traffic-options.ts';
import { infoFlag } from '../../native/layout/layouts.ts';
import { connect, listen } from '../../deploy/stage/sock.ts';
import { bytesOf } from './data-plane.ts';
import { assertDirect, assertRedirected, makeMesh, PORT } from './mesh.ts';
import { at } from '../harness/travel.ts';
import { TRAFFIC } from '../harness/label-names.ts';

const mesh = await makeMesh('options');
const { plane, app, server, proxy } = mesh;
const other = await mesh.addPod('other', {});
const serving = await listen(mesh.sandbox, { netns: server.netns }, 'serve', '*', [81, 82], '--dual');
const appServing = await listen(mesh.sandbox, app, 'serve', '*', [PORT, 81], '--dual');
const options = new PodOptions(plane.plane.maps);
after(() => mesh[Symbol.asyncDispose]());

/** The annotations of the pod `app`; `user` is exempt. */
function annotate(annotations: Readonly<Record<string, string>>, user?: number): void {
  const { options: traffic, problems } = trafficOptions(
    Object.fromEntries(Object.entries(annotations).map(([name, value]) => [TRAFFIC + name, value])),
  );
  assert.deepEqual(problems, []);
  options.set(app.slot, traffic, user);
  const has = traffic !== undefined || user !== undefined;
  plane.enrol(app.cgroup, {
    slot: app.slot,
    ip4: app.ip4,
    ip6: app.ip6,
    flags: infoFlag.ambient | (has ? infoFlag.options : 0),
  });
  for (const ip of [app.ip4, app.ip6])
    plane.plane.maps.podAddresses.set({ word: bytesOf(ip) }, { slot: app.slot, hasOptions: has ? 1 : 0 });
}

/** How connections of the pod to these ports of the server travel: `proxy` or `server`. */
async function ways(
  ports: readonly number[],
  families: readonly ('ip4' | 'ip6')[] = ['ip4', 'ip6'],
  ...args: string[]
): Promise<string[]> {
  const seen: string[] = [];
  for (const port of ports) {
    for (const family of families) {
      const result = await connect(app, server[family], port, ...args);
      assert.ok(result.ok, `${family} ${port}: ${JSON.stringify(result)}`);
      const isProxied = result.reply.startsWith('proxy');
      if (isProxied) await assertRedirected(mesh, result, at(server[family], port));
      else
        await assertDirect(
          { serving: port === PORT ? mesh.serving : serving },
          result,
          at(server[family], port),
        );
      seen.push(isProxied ? 'proxy' : 'server');
    }
  }
  return seen;
}

const four = (text: string): string[] => Array.from({ length: 4 }, () => text);
const cidr4 = (bits: number): string => `${server.ip4}/${bits}`;
const cidr6 = (bits: number): string => `${server.ip6}/${bits}`;

for (const [what, annotations, expected] of [
  ['nothing', {}, four('proxy')],
  ['an excluded port', { excludeOutboundPorts: '81' }, ['server', 'server', 'proxy', 'proxy']],
  ['all ports excluded', { excludeOutboundPorts: '*' }, four('server')],
  ['an excluded IPv4 range', { excludeOutboundIPRanges: cidr4(24) }, ['server', 'proxy', 'server', 'proxy']],
  [
    'an excluded IPv4 address',
    { excludeOutboundIPRanges: server.ip4 },
    ['server', 'proxy', 'server', 'proxy'],
  ],
  ['an excluded IPv6 range', { excludeOutboundIPRanges: cidr6(64) }, ['proxy', 'server', 'proxy', 'server']],
  ['all of IPv4 excluded', { excludeOutboundIPRanges: '0.0.0.0/0' }, ['server', 'proxy', 'server', 'proxy']],
  ['all of IPv6 excluded', { excludeOutboundIPRanges: '::/0' }, ['proxy', 'server', 'proxy', 'server']],
  [
    'an excluded range in other words',
    { excludeOutboundIPRanges: '192.0.2.0/24,2001:db8::/32' },
    four('proxy'),
  ],
  ['an included range', { includeOutboundIPRanges: cidr4(24) }, ['proxy', 'server', 'proxy', 'server']],
  ['no included range', { includeOutboundIPRanges: '' }, four('server')],
  [
    'an included port beside ranges',
    { includeOutboundIPRanges: '192.0.2.0/24', includeOutboundPorts: '82' },
    ['server', 'server', 'proxy', 'proxy'],
  ],
  [
    'every port included beside ranges',
    { includeOutboundIPRanges: '192.0.2.0/24', includeOutboundPorts: '*' },
    four('proxy'),
  ],
  [
    'a range in a range: what excludes wins',
    { includeOutboundIPRanges: cidr4(32), excludeOutboundIPRanges: cidr4(16) },
    four('server'),
  ],
  [
    'a range in a range, the other way round',
    { includeOutboundIPRanges: cidr4(16), excludeOutboundIPRanges: cidr4(32) },
    four('server'),
  ],
  [
    'an excluded port that is included as well',
    { excludeOutboundPorts: '81', includeOutboundPorts: '81', includeOutboundIPRanges: '' },
    four('server'),
  ],
] as const) {
  test(`${what}: ${JSON.stringify(annotations)}`, async () => {
    annotate(annotations);
    assert.deepEqual(await ways([81, 82]), expected);
  });
}

test('a v4-mapped address is in the IPv4 ranges', async () => {
  annotate({ excludeOutboundIPRanges: cidr4(24) });
  const result = await connect(app, server.ip4, 81, '--mapped');
  assert.ok(result.ok && !result.reply.startsWith('proxy'), JSON.stringify(result));
});

test('an exempt user is left alone, and others are not', async () => {
  annotate({}, 1337);
  assert.deepEqual(await ways([81], ['ip4'], '--uid', '1337'), ['server']);
  assert.deepEqual(await ways([81], ['ip4'], '--uid', '1338'), ['proxy']);
  assert.deepEqual(await ways([81], ['ip4']), ['proxy']);
});

test("another pod's options are its own", async () => {
  annotate({ excludeOutboundPorts: '*' });
  await assertRedirected(mesh, await connect(other, server.ip4, PORT), at(server.ip4, PORT));
});

for (const [what, annotations, expected] of [
  ['an excluded port', { excludeInboundPorts: '81' }, ['proxy', 'server']],
  ['all excluded', { excludeInboundPorts: '*' }, ['server', 'server']],
  ['an included port', { includeInboundPorts: '81' }, ['server', 'proxy']],
  ['none included', { includeInboundPorts: '' }, ['server', 'server']],
  [
    'included ones decide, as in Istio',
    { includeInboundPorts: '81', excludeInboundPorts: '81' },
    ['server', 'proxy'],
  ],
  ['of the outbound side only', { excludeOutboundPorts: '*' }, ['proxy', 'proxy']],
] as const) {
  test(`from host processes, ${what}: ${JSON.stringify(annotations)}`, async () => {
    annotate(annotations);
    const seen: string[] = [];
    for (const port of [PORT, 81]) {
      const result = await connect(mesh.hostProcess(), app.ip4, port);
      assert.ok(result.ok, JSON.stringify(result));
      const isProxied = result.reply.startsWith('proxy');
      if (isProxied)
        await assertRedirected({ proxying: mesh.proxying, proxy }, result, at(app.ip4, port), 15006);
      else await assertDirect({ serving: appServing }, result, at(app.ip4, port));
      seen.push(isProxied ? 'proxy' : 'server');
    }
    assert.deepEqual(seen, expected);
  });
}

test('200 ranges and 20 ports on one pod, and nothing of them when they are gone', async () => {
  const many = Array.from({ length: 200 }, (_, n) => `10.${n}.0.0/${8 + (n % 24)}`);
  const ports = Array.from({ length: 20 }, (_, n) => String(100 + n));
  annotate({
    excludeOutboundIPRanges: [...many, cidr4(32)].join(),
    excludeOutboundPorts: [...ports, '82'].join(),
  });
  assert.deepEqual(await ways([81, 82], ['ip4']), ['server', 'server']);
  assert.deepEqual(await ways([81, 82], ['ip6']), ['proxy', 'server']);
  const { podPorts, podRanges, podOptions } = plane.plane.maps;
  assert.equal(podPorts.keys().length, 21);
  assert.ok(podRanges.keys().length > 100);
  annotate({ excludeOutboundPorts: '82' });
  assert.deepEqual([podPorts.keys().length, podRanges.keys().length], [1, 0]);
  assert.deepEqual(await ways([81, 82], ['ip4']), ['proxy', 'server']);
  options.clear(app.slot);
  assert.deepEqual(
    [podPorts.keys().length, podRanges.keys().length, podOptions.get(app.slot)],
    [0, 0, { flags: 0, exemptUser: 0 }],
  );
});

test("what others did to the maps is undone, and an earlier agent's lists are known", async () => {
  annotate({ excludeOutboundIPRanges: `${cidr4(24)},10.0.0.0/8`, excludeOutboundPorts: '82' });
  const { podPorts, podRanges, podOptions } = plane.plane.maps;
  const [range] = podRanges.keys();
  assert.ok(range);
  podRanges.delete(range);
  podPorts.set({ slot: 9, list: 0, port: 9 }, 1);
  podOptions.set(app.slot, { flags: 0, exemptUser: 0 });
  podOptions.set(9, { flags: 1, exemptUser: 0 });
  assert.equal(options.repair(), 4);
  assert.equal(options.repair(), 0);
  assert.deepEqual([podRanges.keys().length, podPorts.keys().length], [2, 1]);
  assert.deepEqual(await ways([81, 82], ['ip4']), ['server', 'server']);
  const next = new PodOptions(plane.plane.maps);
  assert.deepEqual([...next.slots()], [app.slot]);
  next.clear(app.slot);
  assert.deepEqual([podPorts.keys().length, podRanges.keys().length], [0, 0]);
});

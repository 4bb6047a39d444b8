/** What a program has found in a map may be taken for another key before it is read: nobody gets another's verdict by it. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { cgroupInfo, infoFlag, proxyMode, setting, type CgroupInfo } from '../../native/layout/layouts.ts';
import { PIN_VERSION } from '../../native/pins/pin-directory.ts';
import { must } from '../../deploy/stage/process.ts';
import { type Place, SOCK } from '../../deploy/stage/sock.ts';
import { bytesOf } from './data-plane.ts';
import { makeMesh } from './mesh.ts';
import { FOR_NOW } from '../harness/for-now.ts';

/** Some five wrong ones are seen in it where nothing is done about them, on two processors that do nothing else. */
const KNOCK_MS = 4000;

const mesh = await makeMesh('reuse');
const { plane, app, sandbox } = mesh;
const other = await mesh.addPod('other', { inMesh: false });
after(() => mesh[Symbol.asyncDispose]());

interface Knocked {
  readonly total: number;
  readonly errors: Readonly<Record<string, number>>;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
function number(value: number | bigint, size: 4 | 8): string {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return hex(bytes.subarray(0, size));
}

/** Connects all the time while these entries of a map are written again all the time. */
async function knockDuring(map: string, entries: readonly string[], place: Place): Promise<Knocked> {
  const pin = `${plane.bpffsRoot}/${PIN_VERSION}/maps/${map}`;
  const writing = sandbox.spawn({
    cgroup: sandbox.hostCgroup,
    cmd: SOCK,
    args: ['rewrite', pin, ...entries],
  });
  await writing.line();
  const knocked = JSON.parse(
    await must({ ...place, cmd: SOCK, args: ['knock', String(KNOCK_MS), '192.0.2.1', '81'] }),
  ) as Knocked;
  writing.end();
  await writing.exit;
  return knocked;
}

test('an entry that is replaced while a program reads it is not taken for that of the next pod', async (t) => {
  plane.policies({ unknownPods: 'deny', whenProxyDown: 'deny' });
  const entry = (id: bigint, flags: number): string => {
    const bytes = Buffer.alloc(cgroupInfo.size);
    const info: CgroupInfo = {
      id,
      slot: 0,
      isInMesh: 0,
      flags,
      detectedFlags: 0xffff,
      cgroupIp: bytesOf('0.0.0.0'),
      cgroupIp6: bytesOf('::'),
      proxyMode: proxyMode.node,
      netns: 0n,
    };
    cgroupInfo.encode(info, bytes);
    return `${number(id, 8)}=${hex(bytes)}`;
  };
  // What is not found in that instant is looked for above.
  plane.enrol(app.podCgroup, { slot: app.slot, inMesh: false, flags: infoFlag.unknownPod });
  const { total, errors } = await knockDuring(
    'cgroup_info_map',
    [entry(app.cgroup.id, infoFlag.unknownPod), entry(other.cgroup.id, 0)],
    app,
  );
  plane.policies(undefined);
  t.diagnostic(`${total} connections: ${JSON.stringify(errors)}`);
  assert.deepEqual(errors, { [FOR_NOW]: total }, 'of a pod that is denied, beside one that is not');
});

test("an address of the proxy's that is replaced is not taken for its other one", async (t) => {
  plane.enrol(app.cgroup, { slot: app.slot, ip4: app.ip4, ip6: app.ip6 });
  const address = (key: number, text: string): string => `${number(key, 4)}=${hex(bytesOf(text))}`;
  // Nobody listens at the first; the end of the second is an IPv4 address that no route leads to.
  const { total, errors } = await knockDuring(
    'settings',
    [address(setting.proxyIp4, '127.0.0.1'), address(setting.proxyIp6, 'fd00::ffff:ffff')],
    app,
  );
  t.diagnostic(`${total} connections: ${JSON.stringify(errors)}`);
  assert.deepEqual(errors, { EINPROGRESS: total });
});

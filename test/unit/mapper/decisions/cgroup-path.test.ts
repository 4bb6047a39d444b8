import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';

import { isPodTree, ownerOf } from '../../../../mapper/decisions/cgroup-path.ts';
import type { PodCgroup } from '../../../../mapper/decisions/cgroup-path.ts';

const UID = '2c48913c-b29f-11e7-9350-020968147796';
const UID_ = UID.replaceAll('-', '_');
const UID2 = 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee';
const HASH = 'c7ee5aa1bf29ba1d85a18d3fd1ef2a37';
const C = '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08';
const C2 = '60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752';

type Expected = Partial<Omit<PodCgroup, 'kind'>>;

const PODS: readonly (readonly [string, string, Expected])[] = [
  [
    'cgroupfs, burstable',
    `/kubepods/burstable/pod${UID}/${C}`,
    { container: C, qos: 'burstable', podDepth: 3, runtime: 'unknown' },
  ],
  ['cgroupfs, guaranteed', `/kubepods/pod${UID}/${C}`, { container: C, qos: 'guaranteed', podDepth: 2 }],
  [
    'cgroupfs, the pod itself',
    `/kubepods/besteffort/pod${UID}`,
    { container: undefined, qos: 'besteffort', podDepth: 3, nested: false },
  ],
  [
    'systemd, containerd',
    `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${UID_}.slice/cri-containerd-${C}.scope`,
    { container: C, qos: 'burstable', runtime: 'containerd', podDepth: 3 },
  ],
  [
    'systemd, CRI-O, guaranteed',
    `/kubepods.slice/kubepods-pod${UID_}.slice/crio-${C}.scope`,
    { container: C, qos: 'guaranteed', runtime: 'crio', podDepth: 2 },
  ],
  [
    'systemd, Docker',
    `/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${UID_}.slice/docker-${C}.scope`,
    { container: C, qos: 'besteffort', runtime: 'docker' },
  ],
  [
    "CRI-O's monitor",
    `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${UID_}.slice/crio-conmon-${C}.scope`,
    { container: undefined, monitor: true, runtime: 'crio', nested: false },
  ],
  [
    "CRI-O's monitor, cgroupfs",
    `/kubepods/burstable/pod${UID}/crio-conmon-${C}`,
    { container: undefined, monitor: true, runtime: 'crio' },
  ],
  ['CRI-O, cgroupfs', `/kubepods/burstable/pod${UID}/crio-${C}`, { container: C, runtime: 'crio' }],
  [
    'pod and container in one name',
    `/kubepods-besteffort-pod${UID_}.slice:cri-containerd:${C}`,
    { container: C, runtime: 'containerd', qos: 'besteffort', podDepth: 1, nested: false },
  ],
  [
    "the same below containerd's service",
    `/system.slice/containerd.service/kubepods-pod${UID_}.slice:cri-containerd:${C}/init.scope`,
    { container: C, qos: 'guaranteed', podDepth: 3, nested: true },
  ],
  [
    'kind, cgroupfs',
    `/docker/${C2}/kubepods/besteffort/pod${UID}/${C}`,
    { container: C, qos: 'besteffort', podDepth: 5, runtime: 'unknown', nested: false },
  ],
  [
    'kind, systemd',
    `/system.slice/docker-${C2}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod${UID_}.slice/cri-containerd-${C}.scope`,
    { container: C, qos: 'besteffort', runtime: 'containerd', podDepth: 6, nested: false },
  ],
  [
    'kind, cgroupfs, seen from the node',
    `/kubelet/kubepods/burstable/pod${UID}/${C}`,
    { container: C, qos: 'burstable', podDepth: 4, runtime: 'unknown', nested: false },
  ],
  [
    'kind, systemd, seen from the node',
    `/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod${UID_}.slice/cri-containerd-${C}.scope`,
    { container: C, qos: 'guaranteed', runtime: 'containerd', podDepth: 3, nested: false },
  ],
  ['from a private cgroup namespace', `/../../pod${UID}/${C}`, { container: C, qos: undefined, podDepth: 3 }],
  ['a static pod', `/kubepods/burstable/pod${HASH}/${C}`, { uid: HASH, isConfigHash: true, container: C }],
  [
    'a static pod, systemd',
    `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${HASH}.slice/cri-containerd-${C}.scope`,
    { uid: HASH, isConfigHash: true, container: C },
  ],
  [
    'init inside a container',
    `/kubepods/burstable/pod${UID}/${C}/init.scope`,
    { container: C, nested: true, podDepth: 3 },
  ],
  [
    'a service inside a container',
    `/kubepods.slice/kubepods-pod${UID_}.slice/crio-${C}.scope/system.slice/nginx.service`,
    { container: C, nested: true, podDepth: 2 },
  ],
  ['Docker inside a container', `/kubepods/pod${UID}/${C}/docker/${C2}`, { container: C, nested: true }],
  [
    'a fake pod inside a container',
    `/kubepods/burstable/pod${UID}/${C}/kubepods/burstable/pod${UID2}/${C2}`,
    { container: C, nested: true, podDepth: 3 },
  ],
  [
    'a fake slice inside a container',
    `/kubepods/pod${UID}/${C}/kubepods-pod${UID2.replaceAll('-', '_')}.slice/crio-${C2}.scope`,
    { container: C, nested: true },
  ],
  [
    'a fake pod straight in the pod',
    `/kubepods/pod${UID}/pod${UID2}`,
    { container: undefined, nested: true, podDepth: 2 },
  ],
  ['a removed cgroup', `/kubepods/pod${UID}/${C} (deleted)`, { container: C, gone: true }],
  ['a removed pod', `/kubepods/pod${UID} (deleted)`, { container: undefined, gone: true }],
  ['upper case', `/kubepods/pod${UID.toUpperCase()}/${C.toUpperCase()}`, { container: C }],
  ['no leading slash', `kubepods/pod${UID}`, { podDepth: 2 }],
  [
    'a custom cgroup root',
    `/custom.slice/custom-kubepods.slice/custom-kubepods-pod${UID_}.slice`,
    { podDepth: 3, qos: 'guaranteed' },
  ],
  [
    'a runtime that is not known',
    `/kubepods.slice/kubepods-pod${UID_}.slice/newthing-${C}.scope`,
    { container: C, runtime: 'unknown' },
  ],
];

const NOT_PODS: readonly string[] = [
  `/user.slice/user-1000.slice/pod${UID}/${C}`,
  `/user.slice/kubepods/burstable/pod${UID}`,
  '',
  '/',
  '//',
  '/..',
  '/../..',
  ' (deleted)',
  '/user.slice',
  '/user.slice/user-0.slice/session-1.scope',
  '/system.slice/containerd.service',
  '/system.slice/kubelet.service',
  '/kubepods',
  '/kubepods.slice',
  '/kubepods/burstable',
  '/kubepods.slice/kubepods-burstable.slice',
  `/docker/${C}`,
  `/system.slice/docker-${C}.scope`,
  // A name that only contains the right letters is no pod's.
  `/user.slice/mypod${UID}`,
  `/user.slice/pod${UID}x`,
  '/machine.slice/podman-1.scope',
  `/machine.slice/libpod-${C}.scope`,
  `/user.slice/pod${UID_}`,
  `/user.slice/kubepods-pod${UID}`,
  `/user.slice/pod${UID.slice(1)}`,
  `/user.slice/pod${HASH}0`,
  `/user.slice/pod${UID.replace('-', '')}`,
  `/xkubepods-pod${UID_}.slice`,
  `/user.slice/pods/${UID}`,
  // The kernel makes no name with these.
  `/kubepods/pod${UID}/${C}\n`,
  `/kubepods/\0pod${UID}`,
  `0::/x\n0::/kubepods/pod${UID}`,
  '\u0000\u0001\ufffd\ud800',
  'x'.repeat(4096),
  '/'.repeat(4096),
  '/-'.repeat(2048),
  '-kubepods'.repeat(455),
];

const AMBIGUOUS: readonly string[] = [
  // A static pod may choose any UID; what it makes below must not pass for another pod.
  '/kubepods/burstable/podmy-static-pod',
  '/kubepods/pod123/x',
  `/kubepods/burstable/podx/${C}/kubepods/pod${UID}/${C2}`,
  `/kubepods.slice/kubepods-podx.slice/crio-${C}.scope/kubepods.slice/kubepods-pod${UID_}.slice`,
  `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${UID_}-pod${UID_}.slice`,
  `/kubepods/pod${UID}/../pod${UID2}/${C}`,
  `/kubepods/../pod${UID}`,
  `/../${C}`,
  `/../../cri-containerd-${C}.scope/init.scope`,
];

const sampleHex = (length: number): fc.Arbitrary<string> =>
  fc
    .array(fc.constantFrom(...'0123456789abcdef'), { minLength: length, maxLength: length })
    .map((digits) => digits.join(''));
const uids = sampleHex(32).map((hex) =>
  [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-'),
);
const containers = sampleHex(64);
const qosClasses = fc.constantFrom('guaranteed', 'burstable', 'besteffort');

interface Style {
  readonly name: string;
  readonly render: (uid: string, qos: string, container: string) => string;
}

const underscored = (uid: string): string => uid.replaceAll('-', '_');
const infix = (qos: string): string => (qos === 'guaranteed' ? '' : `-${qos}`);
const slices = (head: string, uid: string, qos: string): string =>
  `${head}kubepods.slice/${qos === 'guaranteed' ? '' : `${head}kubepods-${qos}.slice/`}${head}kubepods${infix(qos)}-pod${underscored(uid)}.slice`;
const directories = (uid: string, qos: string): string =>
  `kubepods/${qos === 'guaranteed' ? '' : `${qos}/`}pod${uid}`;

const STYLES: readonly Style[] = [
  { name: 'cgroupfs', render: (uid, qos, c) => `/${directories(uid, qos)}/${c}` },
  { name: 'cgroupfs, CRI-O', render: (uid, qos, c) => `/${directories(uid, qos)}/crio-${c}` },
  ...['cri-containerd', 'crio', 'docker'].map((runtime) => ({
    name: `systemd, ${runtime}`,
    render: (uid: string, qos: string, c: string) => `/${slices('', uid, qos)}/${runtime}-${c}.scope`,
  })),
  { name: 'kind, cgroupfs', render: (uid, qos, c) => `/docker/${C2}/${directories(uid, qos)}/${c}` },
  {
    name: 'kind, systemd',
    render: (uid, qos, c) =>
      `/system.slice/docker-${C2}.scope/kubelet.slice/${slices('kubelet-', uid, qos)}/cri-containerd-${c}.scope`,
  },
  {
    name: 'one name',
    render: (uid, qos, c) => `/kubepods${infix(qos)}-pod${underscored(uid)}.slice:cri-containerd:${c}`,
  },
];

describe('the owner of a cgroup path', () => {
  for (const [name, path, expected] of PODS) {
    test(`is the pod: ${name}`, () => {
      const owner = ownerOf(path);
      assert.equal(owner.kind, 'pod');
      const defaults: Expected = { uid: UID, isConfigHash: false, monitor: false, gone: false };
      for (const [key, value] of Object.entries({ ...defaults, ...expected })) {
        assert.equal((owner as unknown as Record<string, unknown>)[key], value, key);
      }
    });
  }

  for (const path of NOT_PODS) {
    test(`is nobody for ${JSON.stringify(path.slice(0, 90))}`, () =>
      assert.deepEqual(ownerOf(path), { kind: 'none' }));
  }

  for (const path of AMBIGUOUS) {
    test(`is ambiguous for ${path.slice(0, 90)}`, () => {
      const owner = ownerOf(path);
      assert.equal(owner.kind, 'ambiguous');
      assert.match((owner as { why: string }).why, /\w/);
    });
  }

  test('is found for every style, UID, class and container', () => {
    fc.assert(
      fc.property(fc.constantFrom(...STYLES), uids, qosClasses, containers, (style, uid, qos, container) => {
        const owner = ownerOf(style.render(uid, qos, container));
        assert.equal(owner.kind, 'pod', style.name);
        const { uid: foundUid, container: foundContainer, qos: foundQos, nested, gone } = owner as PodCgroup;
        assert.deepEqual(
          { foundUid, foundContainer, foundQos, nested, gone },
          { foundUid: uid, foundContainer: container, foundQos: qos, nested: false, gone: false },
          style.name,
        );
      }),
    );
  });

  test('stays the outer pod, whatever is made below it', () => {
    const below = fc.oneof(
      fc
        .tuple(fc.constantFrom(...STYLES), uids, qosClasses, containers)
        .map(([style, uid, qos, container]) => style.render(uid, qos, container)),
      fc
        .array(
          fc.string({ unit: 'binary' }).filter((name) => !/[/\n\0]/.test(name) && name !== '..'),
          { maxLength: 4 },
        )
        .map((names) => names.join('/')),
    );
    fc.assert(
      fc.property(
        fc.constantFrom(...STYLES),
        uids,
        qosClasses,
        containers,
        below,
        (style, uid, qos, container, inner) => {
          const outer = style.render(uid, qos, container);
          const owner = ownerOf(`${outer}/${inner}`);
          assert.equal(owner.kind, 'pod');
          assert.equal((owner as PodCgroup).uid, uid);
          assert.equal((owner as PodCgroup).container, container);
          assert.equal((owner as PodCgroup).podDepth, (ownerOf(outer) as PodCgroup).podDepth);
        },
      ),
    );
  });

  test('is never an exception', () => {
    const pieces = fc.constantFrom(
      '/',
      '..',
      '.',
      'pod',
      'kubepods',
      '.slice',
      '-pod',
      UID,
      UID_,
      HASH,
      C,
      ':',
      ' (deleted)',
      '\0',
      '\n',
      '-',
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string({ unit: 'binary', maxLength: 4096 }),
          fc.array(pieces, { maxLength: 60 }).map((all) => all.join('')),
        ),
        (path) => {
          assert.ok(['pod', 'none', 'ambiguous'].includes(ownerOf(path).kind));
          assert.equal(typeof isPodTree(path), 'boolean');
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe('the root of the pods', () => {
  const yes = [
    '/kubepods',
    '/kubepods.slice',
    'kubepods.slice',
    '/kubelet/kubepods',
    '/kubelet.slice/kubelet-kubepods.slice',
    '/system.slice/docker-x.scope/kubelet.slice/kubelet-kubepods.slice',
    `/docker/${C}/kubepods`,
    '/custom.slice/custom-kubepods.slice',
  ];
  const no = [
    '',
    '/',
    '/kubepods/burstable',
    '/kubepods.slice/kubepods-burstable.slice',
    `/kubepods/pod${UID}`,
    `/kubepods/pod${UID}/${C}/kubepods`,
    `/kubepods/pododd/${C}/kubepods.slice`,
    '/mykubepods',
    '/kubepodsx.slice',
    '/kubepods (deleted)',
    '/kubepods\n',
  ];
  for (const path of yes) test(`is ${path}`, () => assert.equal(isPodTree(path), true));
  for (const path of no)
    test(`is not ${JSON.stringify(path.slice(0, 80))}`, () => assert.equal(isPodTree(path), false));
});

/** Which rules a pod's sidecar gets, and which rules are taken for ours. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { defaultConfig } from '../../../../mapper/config/config.ts';
import { podOf, type Pod } from '../../../../mapper/objects/pod.ts';
import { ruleKindOf, SidecarRules } from '../../../../mapper/sidecars/sidecar-rules.ts';
import { decide } from '../../../../mapper/decisions/verdict.ts';
import type { Decision } from '../../../../mapper/decisions/decision.ts';
import { isAsWanted, parseNat, ruleText } from '../../../../native/netns/iptables-rules.ts';
import { findProgram } from '../../../../native/netns/pod-netns.ts';
import { BYPASS, MODE, SIDECAR_STATUS } from '../../../harness/label-names.ts';

const FILTER = { path: '/sys/fs/bpf/bypass', mapId: 12 };
const OURS = '-m bpf --object-pinned /sys/fs/bpf/bypass -m comment --comment "cgroute:bypass:12" -j RETURN';
const saved = (...rules: readonly string[]): string =>
  ['*nat', ':OUTPUT ACCEPT [0:0]', ':ISTIO_OUTPUT - [0:0]', ...rules, 'COMMIT', ''].join('\n');

function podWith(
  labels: Readonly<Record<string, string>>,
  annotations: Readonly<Record<string, string>> = { [SIDECAR_STATUS]: '{}' },
  spec: object = {},
): Pod {
  const pod = podOf({
    metadata: { name: 'pod', namespace: 'demo', uid: 'u', labels, annotations },
    spec,
    status: { phase: 'Running' },
  });
  assert.ok(!('problem' in pod));
  return pod;
}
const decided = (pod: Pod, mode?: string, config = defaultConfig('manifest')): Decision =>
  decide(pod, { name: 'demo', labels: mode === undefined ? {} : { [MODE]: mode } }, config);
const BYPASSED = { [BYPASS]: 'enabled' };

test('what a pod gets follows from its sidecar, mode and bypass, and nothing where an earlier rule decides', () => {
  assert.equal(ruleKindOf(decided(podWith({}))), undefined);
  assert.equal(ruleKindOf(decided(podWith(BYPASSED))), 'bypass');
  assert.equal(ruleKindOf(decided(podWith({ [BYPASS]: 'inbound' }))), 'bypass');
  assert.equal(ruleKindOf(decided(podWith(BYPASSED), 'ambient')), 'bypass');
  assert.equal(ruleKindOf(decided(podWith({}), 'kmesh')), 'short-circuit');
  assert.equal(ruleKindOf(decided(podWith(BYPASSED), 'kmesh')), 'short-circuit');
  assert.equal(ruleKindOf(decided(podWith(BYPASSED, {}))), undefined, 'without a sidecar');
  assert.equal(ruleKindOf(decided(podWith(BYPASSED, undefined, { hostNetwork: true }), 'kmesh')), undefined);
  assert.equal(
    ruleKindOf(
      decided(podWith(BYPASSED), 'kmesh', { ...defaultConfig('manifest'), excludedNamespaces: ['demo'] }),
    ),
    undefined,
  );
  assert.equal(
    ruleKindOf(
      decided(podWith(BYPASSED), undefined, { ...defaultConfig('manifest'), bypass: { allowed: 'never' } }),
    ),
    undefined,
  );
});

test('a rule is ours whole or not at all', () => {
  const { own, hasSidecar } = parseNat(
    'iptables-nft',
    saved(
      '-A OUTPUT -j ISTIO_OUTPUT',
      `-A OUTPUT ${OURS}`,
      `-A OUTPUT -p tcp ${OURS}`,
      '-A OUTPUT -m comment --comment "cgroute:short-circuit" -j ACCEPT',
      '-A OUTPUT -m comment --comment "cgroute:short-circuit" -j RETURN',
      '-A OUTPUT -m comment --comment "not cgroute:short-circuit" -j RETURN',
      '-A OUTPUT -m bpf --object-pinned "/a b" -m comment --comment "cgroute:bypass:12" -j RETURN',
      '-A OUTPUT -m bpf --object-pinned /x;reboot -m comment --comment "cgroute:bypass:12" -j RETURN',
      '-A OUTPUT -m comment --comment "cgroute:bypass:12 -j RETURN" -j DNAT --to-destination 10.0.0.1',
      `-A POSTROUTING ${OURS}`,
      `-A ISTIO_OUTPUT ${OURS}`,
    ),
  );
  assert.equal(hasSidecar, true);
  assert.deepEqual(
    own.map(({ chain, place, kind }) => [chain, place, kind]),
    [
      ['OUTPUT', 2, 'bypass'],
      ['OUTPUT', 5, 'short-circuit'],
    ],
  );
  assert.equal(own[0]?.text, ruleText('bypass', FILTER), 'as it is given back to iptables');
});

test('rules are as wanted when both stand first and no other of ours is there', () => {
  const both = [`-A PREROUTING ${OURS}`, `-A OUTPUT ${OURS}`];
  const is = (text: string, kind: 'bypass' | 'short-circuit' | undefined, filter = FILTER): boolean =>
    isAsWanted(parseNat('iptables-nft', text), kind === undefined ? undefined : ruleText(kind, filter));
  assert.equal(is(saved(...both), 'bypass'), true);
  assert.equal(is(saved(...both), 'bypass', { ...FILTER, mapId: 13 }), false, 'of a map that is gone');
  assert.equal(is(saved(...both), 'short-circuit'), false);
  assert.equal(is(saved(...both), undefined), false);
  assert.equal(is(saved(), undefined), true);
  assert.equal(is(saved(both[0] ?? ''), 'bypass'), false);
  assert.equal(is(saved(...both, both[0] ?? ''), 'bypass'), false, 'twice');
  assert.equal(is(saved('-A OUTPUT -p udp -j RETURN', ...both), 'bypass'), false, 'not first');
  const without = (text: string): string => text.replace(/:ISTIO.*\n/, '');
  assert.equal(is(without(saved()), 'bypass'), true, 'nothing to do without a sidecar');
  assert.equal(is(without(saved(...both)), 'bypass'), false);
});

test('a program is looked for in absolute directories only', () => {
  assert.equal(findProgram('sh', '.:bin:/bin'), '/bin/sh');
  assert.equal(findProgram('no-such-program'), undefined);
});

interface Fake {
  readonly rules: SidecarRules;
  processes: number[];
}

function fakeRules(sidecars: boolean, before: readonly object[] = []): Fake {
  const map = (entries: readonly object[] = []) => ({
    entries: () => entries,
    set: () => {},
    delete: () => true,
  });
  const fake: Fake = {
    processes: [],
    rules: new SidecarRules({
      dataPlane: {
        maps: { bypass4: map(), bypass6: map(), pods: map(before.map((value) => [{}, value])) },
        pinBypass: () => FILTER,
      } as unknown as ConstructorParameters<typeof SidecarRules>[0]['dataPlane'],
      config: { sidecars },
      procRoot: '/proc',
      host: { pidsOf: () => fake.processes, addressesOf: () => undefined },
      logger: pino({ level: 'silent' }),
      onChanged: () => {},
    }),
  };
  return fake;
}
const settled = ({ rules }: Fake, pod: Pod, decision: Decision): string => {
  rules.place(pod, ['/kubepods/podu/c']);
  const { verdict, reason } = rules.adjust(pod, decision);
  return `${verdict} ${reason}`;
};

test('a pod is not redirected before its sidecar is out of the path', {
  skip: process.getuid?.() === 0 ? false : 'takes root',
}, () => {
  const pod = podWith({});
  const fake = fakeRules(true);
  using _ = fake.rules;
  assert.equal(
    settled(fake, pod, decided(pod, 'kmesh')),
    'in sidecar-short-circuited',
    'nothing runs there that could be redirected twice',
  );
  fake.processes = [1];
  assert.equal(settled(fake, pod, decided(pod, 'kmesh')), 'out sidecar');
  assert.equal(settled(fake, pod, decided(pod, 'ambient')), 'out sidecar');
  const later = fakeRules(true, [{ uid: 'u', flags: 32, reason: 'sidecar-short-circuited' }]);
  using _later = later.rules;
  later.processes = [1];
  assert.equal(
    settled(later, pod, decided(pod, 'kmesh')),
    'in sidecar-short-circuited',
    "an earlier agent's rules stand",
  );
});

test('sidecars: false leaves them in the path, and says so on each pod that asks', () => {
  const fake = fakeRules(false);
  using rules = fake.rules;
  const pod = podWith({});
  assert.equal(settled(fake, pod, decided(pod, 'kmesh')), 'out sidecar');
  const [note] = rules.adjust(pod, decided(pod, 'kmesh')).notes;
  assert.deepEqual(note, {
    code: 'sidecar-stays',
    message:
      "the sidecar of pod demo/pod cannot be short-circuited: the agent runs with sidecars: false; to allow it, set sidecars: true in the chart's values, or without the chart in the agent's configuration",
  });
  assert.equal(rules.adjust(podWith(BYPASSED), decided(podWith(BYPASSED))).notes.length, 1);
  assert.deepEqual(rules.adjust(pod, decided(pod)).notes, [], 'nobody asks');
});

test('an agent that may not remove the rules of an earlier one leaves the pod as redirected as it is, and says so', () => {
  const fake = fakeRules(false, [{ uid: 'u', flags: 32, reason: 'sidecar-short-circuited' }]);
  using rules = fake.rules;
  fake.processes = [1];
  const pod = podWith({});
  assert.equal(settled(fake, pod, decided(pod, 'kmesh')), 'in sidecar-short-circuited');
  for (const mode of ['kmesh', undefined]) {
    const [note] = rules.adjust(pod, decided(pod, mode)).notes;
    assert.match(
      note?.message ?? '',
      /^the sidecar of pod demo\/pod is kept out of its path by rules that an earlier agent left, until the pod is replaced or an agent may remove them: the agent runs with sidecars: false/,
    );
  }
  assert.equal(settled(fake, pod, decided(pod)), 'out not-enrolled');
});

/** The commands and the examples of deploy/README.md, by the real Helm and the real API server. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { test } from 'node:test';
import { HELM_MISSING, template } from '../../deploy/build/helm.ts';
import { startCluster } from '../harness/kube.ts';
import { KUBE_MISSING } from '../harness/kube-tools.ts';
import { makeSandbox } from '../../deploy/stage/sandbox.ts';

const deploy = resolve(import.meta.dirname, '../../deploy');
const lines = readFileSync(`${deploy}/README.md`, 'utf8')
  .replaceAll(/\s*\\\n\s*/g, ' ')
  .split('\n');

/** What follows `--set` on the command lines that install or upgrade the chart, and in what is said beside them. */
function settings(): string[][] {
  return lines
    .filter((line) => /--set /.test(line))
    .map((line) =>
      [...line.matchAll(/--set (?:'([^']+)'|([^\s'`]+))/g)].map(([, quoted, plain]) => quoted ?? plain ?? ''),
    );
}

test('the chart takes all that deploy/README.md sets', { skip: HELM_MISSING }, async () => {
  const all = settings();
  assert.ok(all.length >= 4 && all.every((some) => some.length > 0));
  for (const some of all) {
    const { code, stderr } = await template(
      ...some.flatMap((setting) => ['--set', setting]),
      '--api-versions',
      'monitoring.coreos.com/v1',
    );
    assert.equal(code, 0, `${some.join(' ')}: ${stderr}`);
  }
  for (const setting of [
    'config.meshModes={ambient}',
    'config.meshModes={ambient,cgroute}',
    'config.proxy.namespaces={kmesh-system}',
  ]) {
    assert.ok(
      lines.some((line) => line.includes(setting)),
      setting,
    );
    assert.equal((await template('--set', setting)).code, 0, setting);
  }
});

test('the API server takes the examples as they are', { skip: KUBE_MISSING }, async () => {
  await using sandbox = await makeSandbox('deploy-readme');
  await using cluster = await startCluster(sandbox);
  const said = await cluster.kubectl('apply', '--validate=strict', '-f', `${deploy}/examples/haproxy.yaml`);
  assert.deepEqual(said.trim().split('\n'), [
    'namespace/node-proxy created',
    'configmap/node-proxy created',
    'daemonset.apps/node-proxy created',
  ]);
});

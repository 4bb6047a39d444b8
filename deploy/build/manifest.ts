/**
 * Renders deploy/cgroute.yaml, for people without Helm: what the chart makes of
 * its own values.
 *
 *     node deploy/build/manifest.ts            prints it
 *     node deploy/build/manifest.ts --write    replaces deploy/cgroute.yaml
 *     node deploy/build/manifest.ts --check    exits 1 when that file is out of date
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { template } from './helm.ts';

const root = resolve(import.meta.dirname, '../..');
const TARGET = 'deploy/cgroute.yaml';

const HEADER = `# cgroute in kube-system. Rendered from deploy/chart by \`npm run manifest\`; change it there.
#
# Before it is applied: the image is one that you have built and pushed
# (deploy/Containerfile), and proxy.namespaces below is the namespace of the
# nodes' proxy. To remove it, the agents first, as they take what they have made
# off the nodes with the rights that the rest of this file gives them:
#
#     kubectl -n kube-system delete daemonset cgroute --cascade=foreground
#     kubectl delete -f cgroute.yaml --ignore-not-found
`;

/** The manifest, without Helm's own remarks and without hooks, which are for `helm uninstall`. */
export async function plainManifest(): Promise<string> {
  const { code, stdout, stderr } = await template('--no-hooks');
  if (code !== 0) throw new Error(`helm template exited with ${code}: ${stderr.trim()}`);
  const documents = stdout
    .split(/^---$/m)
    .map((document) => document.replace(/^# Source: .*$/gm, '').trim())
    .filter((document) => document !== '');
  return `${HEADER}---\n${documents.join('\n---\n')}\n`;
}

async function main(args: readonly string[]): Promise<number> {
  const path = resolve(root, TARGET);
  const [mode = '', ...more] = args;
  if (!['', '--write', '--check'].includes(mode) || more.length > 0) {
    process.stderr.write(`manifest: expected --write, --check or nothing, got "${args.join(' ')}"\n`);
    return 2;
  }
  const text = await plainManifest();
  if (mode === '') process.stdout.write(text);
  else if (mode === '--write') writeFileSync(path, text);
  else if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
    process.stderr.write(`manifest: ${TARGET} is out of date: run \`npm run manifest\`\n`);
    return 1;
  }
  return 0;
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));

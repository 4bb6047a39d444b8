/** An image as one file, for `ctr images import`: what `docker save` writes, with one layer. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

const TAR = ['--sort=name', '--owner=0', '--group=0', '--numeric-owner', '--mtime=@0'];

/**
 * @param root the image's files
 * @param name with its tag
 * @param entrypoint what its containers run
 */
export function makeArchive(root: string, file: string, name: string, entrypoint: readonly string[]): void {
  const directory = mkdtempSync(join(dirname(file), 'archive-'));
  try {
    const layer = join(directory, 'layer.tar');
    execFileSync('tar', [...TAR, '-C', root, '-cf', layer, '.']);
    const digest = createHash('sha256').update(readFileSync(layer)).digest('hex');
    const config = {
      architecture: 'amd64',
      os: 'linux',
      config: { Entrypoint: entrypoint, Env: ['PATH=/bin:/sbin'] },
      rootfs: { type: 'layers', diff_ids: [`sha256:${digest}`] },
    };
    writeFileSync(join(directory, 'config.json'), JSON.stringify(config));
    writeFileSync(
      join(directory, 'manifest.json'),
      JSON.stringify([{ Config: 'config.json', RepoTags: [name], Layers: ['layer.tar'] }]),
    );
    execFileSync('tar', [...TAR, '-C', directory, '-cf', file, 'manifest.json', 'config.json', 'layer.tar']);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

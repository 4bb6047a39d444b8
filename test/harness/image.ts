/**
 * The image, built by buildah from deploy/Containerfile. No registry is asked: the
 * base is a Debian that mmdebstrap makes from packages. Base and layers are kept
 * in the cache, outside the tree.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { run } from '../../deploy/stage/process.ts';
import type { Sandbox } from '../../deploy/stage/sandbox.ts';

const project = resolve(import.meta.dirname, '../..');
const CONTAINERFILE = join(project, 'deploy/Containerfile');
const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'cgroute/image');

const lacking = ['buildah', 'mmdebstrap'].filter(
  (command) => spawnSync('sh', ['-c', `command -v ${command}`]).status !== 0,
);

/**
 * Why no image can be built on this machine, for the option `skip`; false when it
 * can. In CI nothing is skipped: it fails instead.
 */
export const IMAGE_MISSING: string | false =
  lacking.length === 0 || process.env['CI']
    ? false
    : `no image can be built: install the Debian packages ${lacking.join(' and ')}`;

/** What an image says of itself, as in the OCI image specification, config.md. */
export interface ImageConfig {
  readonly architecture: string;
  readonly config: {
    readonly Entrypoint?: readonly string[];
    readonly Cmd?: readonly string[];
    readonly Env?: readonly string[];
    readonly User?: string;
  };
}

export interface Image {
  readonly config: ImageConfig;
  /** Its files, in a directory that goes away with the sandbox. */
  readonly root: string;
  /** Milliseconds that base and image took. */
  readonly took: number;
}

const BASE = 'localhost/cgroute-test-base:bookworm';
const IMAGE = 'localhost/cgroute-test:latest';
/** Layers of images of the past that are kept before they are thrown away. */
const MOST_LAYERS = 30;

/** Where it can be had, overlay: with vfs each layer is a whole copy. */
const driver = readFileSync('/proc/filesystems', 'utf8').includes('\toverlay\n') ? 'overlay' : 'vfs';

/**
 * One at a time on this machine, as all use one directory for its parts and one name
 * for the image, and in a mount namespace of its own, in which buildah's mounts end.
 * What a run that was killed has begun is removed by the next.
 */
const SCRIPT = `
set -eu
cache=$1 base=$2 image=$3 containerfile=$4 context=$5 root=$6 most=$7 node=$8 gather=$9 archive=\${10}
shift 10
exec 9>"$cache/lock"
flock 9
"$node" "$gather" >&2 9>&-
"$@" rm --all >&2
if ! "$@" inspect --type image "$base" >/dev/null 2>&1; then
	work=$(mktemp -d "$cache/base.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mmdebstrap --quiet --variant=minbase bookworm "$work/base.tar" >&2
	printf 'FROM scratch\\nADD base.tar /\\n' >"$work/Containerfile"
	"$@" build --quiet --isolation chroot --tag "$base" "$work" >&2 9>&-
fi
if [ "$("$@" images --all --quiet | wc -l)" -gt "$most" ]; then "$@" rmi --prune >&2; fi
"$@" build --isolation chroot --layers --pull-never --build-arg "BASE=$base" --tag "$image" --file "$containerfile" "$context" >&2 9>&-
container=$("$@" from --pull-never "$image")
mounted=$("$@" mount "$container")
[ -z "$root" ] || cp -a "$mounted/." "$root"
"$@" rm "$container" >/dev/null
if [ -n "$archive" ]; then "$@" push --quiet "$image" "$archive" >&2; fi
"$@" inspect --type image "$image"
`;

interface Build {
  /** Where its files are copied to; empty: nowhere. */
  readonly root: string;
  /** Where buildah keeps what is of this moment. */
  readonly runRoot: string;
  readonly archive?: Archive | undefined;
}

interface Archive {
  readonly file: string;
  /** The name that the image has there. */
  readonly name: string;
}

async function build({ root, runRoot, archive }: Build): Promise<ImageConfig> {
  mkdirSync(cache, { recursive: true });
  const places = [
    cache,
    BASE,
    IMAGE,
    CONTAINERFILE,
    join(project, 'dist/image'),
    root,
    String(MOST_LAYERS),
    process.execPath,
    join(project, 'deploy/build/image.ts'),
    archive === undefined ? '' : `docker-archive:${archive.file}:${archive.name}`,
  ];
  const buildah = [
    'buildah',
    '--root',
    join(cache, driver),
    '--runroot',
    runRoot,
    '--storage-driver',
    driver,
  ];
  const built = await run({
    cmd: 'unshare',
    args: ['--mount', '--propagation', 'private', 'sh', '-c', SCRIPT, 'sh', ...places, ...buildah],
  });
  if (built.code !== 0)
    throw new Error(`the image could not be built\n${built.stderr.split('\n').slice(-40).join('\n')}`);
  return (JSON.parse(built.stdout) as { readonly OCIv1: ImageConfig }).OCIv1;
}

/** Builds base and layers, which are kept: what {@link buildImage} does from then on takes seconds. */
export async function prepareImage(say: (line: string) => void): Promise<void> {
  say("builds it, and at first the Debian below it, of Debian's packages: some minutes, this once");
  const directory = mkdtempSync(join(tmpdir(), 'cgroute-image-'));
  try {
    await build({ root: '', runRoot: join(directory, 'buildah') });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/**
 * Gathers the image's files from dist/ and builds it as the Containerfile says, but for the base.
 * `archive` is a file to write it to as well, for `ctr images import`, and the name that it has there.
 */
export async function buildImage(
  sandbox: Sandbox,
  { archive }: { readonly archive?: Archive } = {},
): Promise<Image> {
  const started = performance.now();
  const root = sandbox.file('image');
  mkdirSync(root);
  const config = await build({ root, runRoot: sandbox.file('buildah'), archive });
  return { config, root, took: performance.now() - started };
}

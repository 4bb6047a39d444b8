/**
 * Builds what is stale, and only that: the kernel's types, the BPF objects, the
 * agent's bundle and the test tools, all into dist/.
 *
 * Each product keeps a stamp beside it: how it was made, and the hash of every
 * file that went into it (as the compiler itself reported them). One line is
 * printed for each thing that was built.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, copyFile, mkdir, readFile, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { availableParallelism, homedir } from 'node:os';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { promisify } from 'node:util';
import type { BuildOptions } from 'esbuild';

const root = resolve(import.meta.dirname, '../..');
const run = promisify(execFile);

/** A kernel's types as BTF, https://docs.kernel.org/bpf/btf.html. */
const KERNEL_BTF = '/sys/kernel/btf/vmlinux';

/** What `__TARGET_ARCH_*` of libbpf's bpf_tracing.h calls this machine. */
const BPF_ARCH: Readonly<Record<string, string>> = { x64: 'x86', arm64: 'arm64' };

/** A library for tests; not there in a copy without them. */
const CLOCK = 'test/kube/clock.c';

/** One file that can be built; paths are relative to the project's root. */
interface Product {
  readonly output: string;
  /** Everything but the inputs that decides the result: tools, flags. */
  readonly recipe: string;
  /** Writes `target` and returns the files that went into it. */
  readonly make: (target: string) => Promise<readonly string[]>;
}

interface Stamp {
  readonly recipe: string;
  readonly inputs: Readonly<Record<string, string>>;
}

/** A failed step whose own output is the whole message. */
class BuildError extends Error {}

function hashOf(content: string | Buffer): string {
  return createHash('sha256').update(content).digest('hex');
}

async function hashOfFile(path: string): Promise<string> {
  try {
    return hashOf(await readFile(resolve(root, path)));
  } catch {
    return 'missing';
  }
}

async function exists(path: string): Promise<boolean> {
  return (await stat(resolve(root, path)).catch(() => undefined)) !== undefined;
}

/** Runs a tool in the project's root; its output is shown only when it fails. */
async function tool(command: string, args: readonly string[]): Promise<string> {
  try {
    const { stdout } = await run(command, args, { cwd: root, maxBuffer: 64 << 20 });
    return stdout;
  } catch (error) {
    const failure = error as { code?: unknown; stderr?: string; message: string };
    if (failure.code === 'ENOENT') {
      throw new BuildError(`${command} is not installed; \`npm run setup\` installs it`);
    }
    throw new BuildError(`${command} ${args.join(' ')}\n${failure.stderr ?? failure.message}`.trimEnd());
  }
}

function stampPath(output: string): string {
  return join(root, 'dist/.stamps', `${output.replaceAll('/', '.')}.json`);
}

async function isFresh(product: Product): Promise<boolean> {
  let stamp: Stamp;
  try {
    stamp = JSON.parse(await readFile(stampPath(product.output), 'utf8')) as Stamp;
  } catch {
    return false;
  }
  if (stamp.recipe !== product.recipe || !(await exists(product.output))) return false;
  const same = await Promise.all(
    Object.entries(stamp.inputs).map(async ([path, hash]) => (await hashOfFile(path)) === hash),
  );
  return same.every(Boolean);
}

/** Builds one product unless it is fresh. The result appears in one rename. */
async function build(product: Product): Promise<void> {
  if (await isFresh(product)) return;
  const started = performance.now();
  const target = join(dirname(product.output), `.${process.pid}.${basename(product.output)}`);
  await mkdir(resolve(root, dirname(product.output)), { recursive: true });
  try {
    const inputs = await product.make(target);
    const hashes = await Promise.all(inputs.map(async (path) => [path, await hashOfFile(path)] as const));
    await rename(resolve(root, target), resolve(root, product.output));
    const stamp: Stamp = { recipe: product.recipe, inputs: Object.fromEntries(hashes) };
    await mkdir(dirname(stampPath(product.output)), { recursive: true });
    await writeFile(stampPath(product.output), JSON.stringify(stamp, null, 1));
  } finally {
    // The target when it failed, and what the tools put beside it.
    const directory = resolve(root, dirname(target));
    const left = (await readdir(directory)).filter((name) => name.startsWith(basename(target)));
    await Promise.all(left.map((name) => rm(join(directory, name), { force: true })));
  }
  console.log(`built ${product.output} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
}

/** The prerequisites in a make rule that `clang -MD` wrote. */
async function prerequisites(depfile: string): Promise<string[]> {
  const rule = await readFile(resolve(root, depfile), 'utf8');
  await rm(resolve(root, depfile));
  return rule
    .slice(rule.indexOf(':') + 1)
    .replaceAll('\\\n', ' ')
    .split(/(?<!\\)\s+/)
    .filter(Boolean);
}

/** vmlinux.h of the running kernel; made once per kernel, shared by checkouts. */
async function vmlinux(): Promise<Product> {
  const btf = await readFile(KERNEL_BTF).catch(() => {
    throw new BuildError(
      `${KERNEL_BTF} cannot be read; a kernel with CONFIG_DEBUG_INFO_BTF=y is needed to compile`,
    );
  });
  const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'cgroute');
  const cached = join(cache, `vmlinux-${hashOf(btf).slice(0, 16)}.h`);
  return {
    output: 'dist/bpf/vmlinux.h',
    recipe: `bpftool ${hashOf(btf)}`,
    async make(target) {
      if (!(await exists(cached))) {
        const text = await tool('bpftool', ['btf', 'dump', 'file', KERNEL_BTF, 'format', 'c']);
        await mkdir(cache, { recursive: true });
        await writeFile(`${cached}.${process.pid}`, text);
        await rename(`${cached}.${process.pid}`, cached);
      }
      await copyFile(cached, resolve(root, target));
      return [];
    },
  };
}

/** A BPF object from one C file: CO-RE, with BTF, without DWARF. */
function bpfObject(source: string, output: string, clang: string): Product {
  const arch = BPF_ARCH[process.arch];
  if (arch === undefined) {
    throw new BuildError(`this machine is ${process.arch}; the BPF objects are built on x64 or arm64`);
  }
  // The generated header is a system header here: its warnings are not ours.
  const flags = ['-g', '-O2', '-Wall', '-Werror', '-target', 'bpf', '-mcpu=v3', `-D__TARGET_ARCH_${arch}`];
  flags.push('-isystem', 'dist/bpf', '-I', 'bpf', `-fdebug-prefix-map=${root}=.`);
  return {
    output,
    recipe: [clang, ...flags].join(' ').replaceAll(root, ''),
    async make(target) {
      await tool('clang', [...flags, '-MD', '-MF', `${target}.d`, '-c', source, '-o', target]);
      await tool('llvm-strip', ['-g', target]);
      return prerequisites(`${target}.d`);
    },
  };
}

/** A static program for tests from a directory of C files, or from one file. */
function testTool(sources: readonly string[], output: string, clang: string): Product {
  const flags = ['-g', '-O2', '-std=gnu11', '-Wall', '-Wextra', '-Werror', '-pthread', '-static'];
  return {
    output,
    recipe: [clang, ...flags, ...sources].join(' '),
    async make(target) {
      const inputs: string[] = [];
      const objects: string[] = [];
      for (const source of sources) {
        const object = `${target}.${basename(source)}.o`;
        await tool('clang', [...flags.slice(0, -1), '-MD', '-MF', `${object}.d`, '-c', source, '-o', object]);
        inputs.push(...(await prerequisites(`${object}.d`)));
        objects.push(object);
      }
      await tool('clang', [...flags, ...objects, '-o', target]);
      await Promise.all(objects.map((object) => rm(resolve(root, object))));
      return inputs;
    },
  };
}

/** A library that tests put before the C library, from one file. */
function testLibrary(source: string, output: string, clang: string): Product {
  const flags = ['-shared', '-fPIC', '-O2', '-Wall', '-Werror'];
  return {
    output,
    recipe: [clang, ...flags, source].join(' '),
    async make(target) {
      await tool('clang', [...flags, '-o', target, source]);
      return [source];
    },
  };
}

/**
 * A program as one ES module. koffi and @parcel/watcher stay outside, as they
 * load native addons; `require` exists for the CommonJS packages inside.
 */
async function bundle(entry: string, output: string): Promise<Product> {
  const { build: esbuild, version } = await import('esbuild');
  const project = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
  const options: BuildOptions = {
    entryPoints: [entry],
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node24',
    external: ['koffi', '@parcel/watcher'],
    define: { __CGROUTE_VERSION__: JSON.stringify(project.version) },
    banner: {
      js: "import { createRequire as createRequire__ } from 'node:module'; const require = createRequire__(import.meta.url);",
    },
    // No source map: Node would hold it, 20 MB, and the bundle is legible as it is.
    logLevel: 'silent',
  };
  return {
    output,
    recipe: `esbuild ${version} ${JSON.stringify(options)}`,
    async make(target) {
      // Built in memory: the map's name must be the final one, not the target's.
      const result = await esbuild({
        ...options,
        absWorkingDir: root,
        outfile: output,
        write: false,
        metafile: true,
      }).catch((error: unknown) => {
        throw new BuildError(error instanceof Error ? error.message : String(error));
      });
      for (const file of result.outputFiles ?? []) {
        const isMap = file.path.endsWith('.map');
        await writeFile(isMap ? file.path : resolve(root, target), file.contents);
      }
      await chmod(resolve(root, target), 0o755);
      return Object.keys(result.metafile?.inputs ?? {});
    },
  };
}

/** The program as it is called. */
function launcher(output: string): Product {
  const source = 'deploy/cgroute.sh';
  return {
    output,
    recipe: `copy of ${source}`,
    async make(target) {
      await copyFile(join(root, source), resolve(root, target));
      await chmod(resolve(root, target), 0o755);
      return [source];
    },
  };
}

/** What the test tools beside it have in common: linked into each of them, and no tool itself. */
const GROUND = 'deploy/stage/ground';

async function cSources(directory: string): Promise<string[]> {
  const names = (await readdir(join(root, directory))).filter((name) => name.endsWith('.c')).sort();
  return names.map((name) => `${directory}/${name}`);
}

/** The test tools: `x.c` and `x/*.c` become dist/test/x, `x.bpf.c` an object. */
async function testProducts(clang: string): Promise<Product[]> {
  const products: Product[] = [];
  const ground = await cSources(GROUND);
  const entries = await Promise.all(
    ['deploy/stage', 'test/harness'].map((path) => readdir(join(root, path), { withFileTypes: true })),
  );
  for (const entry of entries.flat()) {
    const path = relative(root, join(entry.parentPath, entry.name));
    if (entry.isDirectory()) {
      const sources = await cSources(path);
      if (sources.length === 0 || path === GROUND) continue;
      if (dirname(path) === dirname(GROUND)) sources.push(...ground);
      products.push(testTool(sources, `dist/test/${entry.name}`, clang));
    } else if (entry.name.endsWith('.bpf.c')) {
      products.push(bpfObject(path, `dist/test/${entry.name.replace(/c$/, 'o')}`, clang));
    } else if (entry.name.endsWith('.c')) {
      products.push(testTool([path], `dist/test/${entry.name.slice(0, -2)}`, clang));
    }
  }
  return products;
}

/** Removes objects whose source is gone, so that nobody loads them. */
async function dropOrphans(products: readonly Product[]): Promise<void> {
  const wanted = new Set(products.map((product) => product.output));
  for (const name of await readdir(join(root, 'dist/bpf')).catch(() => [])) {
    const path = `dist/bpf/${name}`;
    if (/^[^.].*\.bpf\.o$/.test(name) && !wanted.has(path)) await rm(join(root, path));
  }
}

async function main(): Promise<void> {
  const clang = (await tool('clang', ['--version'])).split('\n')[0] ?? '';
  const sources = (await readdir(join(root, 'bpf'))).filter((name) => name.endsWith('.bpf.c'));
  const products = sources.map((name) =>
    bpfObject(`bpf/${name}`, `dist/bpf/${name.replace(/c$/, 'o')}`, clang),
  );
  products.push(...(await testProducts(clang)));
  if (await exists(CLOCK)) products.push(testLibrary(CLOCK, 'dist/test/clock.so', clang));
  if (await exists('cgroute.ts'))
    products.push(
      await bundle('cgroute.ts', 'dist/cgroute.mjs'),
      await bundle('mapper/cli/probe-program.ts', 'dist/probe.mjs'),
      launcher('dist/cgroute'),
    );
  await dropOrphans(products);
  await build(await vmlinux()); // the objects include it
  const queue = products[Symbol.iterator]();
  const worker = async (): Promise<void> => {
    for (const product of queue) await build(product);
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
}

try {
  await main();
} catch (error) {
  if (!(error instanceof BuildError)) throw error;
  console.error(`build failed: ${error.message.replaceAll(`${root}/`, '')}`);
  process.exitCode = 1;
}

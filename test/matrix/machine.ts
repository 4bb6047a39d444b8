/** One guest: QEMU without KVM, its console in a file, what it reports as lines. */
import { spawn } from 'node:child_process';
import { openSync, closeSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Kernel } from './kernel.ts';

export interface Guest {
  readonly kernel: Kernel;
  /** The root file system; stays as it is. */
  readonly image: string;
  /** Where what the guest prints goes. */
  readonly console: string;
  readonly memoryMib: number;
  readonly cpus: number;
  readonly timeoutMs: number;
  /** More disks, read-only, from /dev/vdc on. */
  readonly drives?: readonly string[];
  /** Options of QEMU's user network, for a guest that has one: `restrict=on`. */
  readonly network?: readonly string[];
  /** More for the kernel's command line. */
  readonly kernelArguments?: string;
  /** Ends it. */
  readonly signal?: AbortSignal;
  /** Lines that come from the guest's second serial line. */
  readonly onLine: (line: string) => void;
}

export interface Ended {
  /** Why it ended before its time; undefined when it switched itself off. */
  readonly failure?: string;
  /** The last lines of its console. */
  readonly tail: string;
  readonly seconds: number;
}

export const QEMU = 'qemu-system-x86_64';

/**
 * Old enough that Node and HAProxy do with what QEMU emulates well, and with all
 * that Debian's programs ask for.
 */
const CPU = 'Nehalem,+rdrand';

/** No mitigations and no checks of clocks: they take time and test nothing of ours. */
const COMMAND_LINE =
  'console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr random.trust_cpu=on no_timer_check tsc=reliable nowatchdog rcupdate.rcu_cpu_stall_suppress=1 audit=0';

/** Boots it and waits until it has switched itself off. */
export async function runGuest(guest: Guest): Promise<Ended> {
  const {
    kernel,
    image,
    console: file,
    memoryMib,
    cpus,
    timeoutMs,
    onLine,
    drives = [],
    network,
    kernelArguments,
    signal: ended,
  } = guest;
  const began = performance.now();
  // It does not outlive this process, however that ends.
  const child = spawn(
    'setpriv',
    [
      '--pdeathsig',
      'KILL',
      QEMU,
      '-nodefaults',
      '-no-user-config',
      '-display',
      'none',
      '-no-reboot',
      '-machine',
      'pc',
      '-cpu',
      CPU,
      '-accel',
      'tcg,thread=multi',
      '-smp',
      String(cpus),
      '-m',
      String(memoryMib),
      '-kernel',
      kernel.vmlinuz,
      '-initrd',
      kernel.initramfs,
      '-append',
      `${COMMAND_LINE} ${kernelArguments ?? ''}`,
      '-drive',
      `file=${image},if=virtio,format=raw,snapshot=on,cache=unsafe`,
      '-drive',
      `file=${kernel.modules},if=virtio,format=raw,readonly=on`,
      ...drives.flatMap((drive) => ['-drive', `file=${drive},if=virtio,format=raw,readonly=on`]),
      ...(network === undefined
        ? []
        : [
            '-netdev',
            ['user', 'id=net', ...network].join(','),
            '-device',
            'virtio-net-pci,netdev=net,romfile=',
          ]),
      '-serial',
      `file:${file}`,
      '-serial',
      'stdio',
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  closeSync(openSync(file, 'w'));
  let complaint = '';
  child.stderr.on('data', (chunk: Buffer) => (complaint += chunk.toString()));
  createInterface({ input: child.stdout }).on('line', onLine);
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  const stop = (): void => void child.kill('SIGKILL');
  process.once('exit', stop);
  ended?.addEventListener('abort', stop);
  const code = await new Promise<number | string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('close', (exit, signal) => resolve(exit ?? signal ?? ''));
  });
  clearTimeout(timer);
  process.off('exit', stop);
  const text = readFileSync(file, 'latin1');
  const failure = late
    ? `killed, as it had not ended after ${Math.round(timeoutMs / 1000)} s`
    : (/Kernel panic|guest: no disk/.exec(text)?.[0] ??
      (code === 0 || ended?.aborted ? undefined : `${QEMU} ended with ${code}: ${complaint.trim()}`));
  return {
    ...(failure === undefined ? {} : { failure }),
    tail: text
      .split(/\r?\n/)
      .filter((line) => line.trim() !== '')
      .slice(-20)
      .join('\n'),
    seconds: (performance.now() - began) / 1000,
  };
}

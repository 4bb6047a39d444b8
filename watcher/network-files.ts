/** The files of /proc/PID/net that tell of a network namespace, read up to a limit: a pod can make them as long as it likes. */
import { closeSync, openSync, readSync } from 'node:fs';
import { NETWORK_FILES, type NetworkFiles } from './network-tables.ts';

/** Of each file, in bytes. */
const MOST_READ = 512 * 1024;

/** @param directory `/proc/PID/net`; a file that cannot be read is empty */
export function networkFiles(directory: string): NetworkFiles {
  return Object.fromEntries(
    NETWORK_FILES.map((file) => [file, beginning(`${directory}/${file}`)]),
  ) as unknown as NetworkFiles;
}

function beginning(path: string): string {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch {
    return '';
  }
  try {
    const parts: Buffer[] = [];
    for (let length = 0; length < MOST_READ; ) {
      const part = Buffer.alloc(16 * 1024);
      const got = readSync(fd, part);
      if (got <= 0) break;
      parts.push(part.subarray(0, got));
      length += got;
    }
    return Buffer.concat(parts).toString('utf8');
  } catch {
    return '';
  } finally {
    closeSync(fd);
  }
}

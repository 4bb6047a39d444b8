/** The files of /proc/PID/net that tell of a network namespace, read up to a limit: a pod can make them as long as it likes. */
import { closeSync, openSync, readSync } from 'node:fs';
import { NETWORK_FILES, type NetworkFiles } from './network-tables.ts';

/** Of each file, in bytes. */
const MOST_READ = 512 * 1024;

/** Reading is done at once, so that one buffer is enough for all. */
const part = Buffer.alloc(16 * 1024);

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
    let text = '';
    while (text.length < MOST_READ) {
      const got = readSync(fd, part);
      if (got <= 0) break;
      // Numbers and names of interfaces, of which only bytes that are equal matter.
      text += part.toString('latin1', 0, got);
    }
    return text;
  } catch {
    return '';
  } finally {
    closeSync(fd);
  }
}

/** The errno of a connection that is denied because something is not there yet: what a kernel before 6.1 cannot say is EPERM there. */
import { release } from 'node:os';

const [major = 0, minor = 0] = release()
  .split('.')
  .map((part) => Number.parseInt(part, 10));

export const FOR_NOW = major > 6 || (major === 6 && minor >= 1) ? 'ECONNREFUSED' : 'EPERM';

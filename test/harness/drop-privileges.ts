/**
 * Loaded into a program before it begins (`NODE_OPTIONS=--import=...`): at SIGUSR2
 * its main thread gives up every capability, as if an operator or a security
 * module had taken them while it ran. Says so on stderr.
 */
import koffi from 'koffi';

const capset = koffi.load('libc.so.6').func('int capset(const void *header, const void *data)') as (
  header: Buffer,
  data: Buffer,
) => number;

process.on('SIGUSR2', () => {
  // struct __user_cap_header_struct and two __user_cap_data_struct of <linux/capability.h>.
  const header = Buffer.alloc(8);
  header.writeUInt32LE(0x20080522, 0);
  const result = capset(header, Buffer.alloc(24));
  process.stderr.write(result === 0 ? 'capabilities dropped\n' : 'capset failed\n');
});

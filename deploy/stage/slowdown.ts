/** How much slower than usual the machine is that the tests run on: an emulated one says so. */

/** What waiting times and limits are multiplied by; 1 unless CGROUTE_TEST_SLOWDOWN says otherwise. */
export const SLOWDOWN = Math.max(1, Number(process.env['CGROUTE_TEST_SLOWDOWN'] ?? 1) || 1);

/** How an error quotes a value that came from outside. */

/** A value as an error quotes it: short, on one line, with its type where that is the point. Never throws. */
export function shown(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'a mapping';
  if (typeof value === 'string')
    return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  return `the ${typeof value} ${String(value)}`;
}

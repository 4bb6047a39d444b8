/** A start where nothing of cgroute redirects yet and nobody says which pods there are: what it may do, and what is said of it. */
import type { SourceState } from '../../watcher/source-state.ts';
import type { Config } from '../config/config.ts';

/** Whether the programs are attached before the first list: an earlier agent's redirect anyway, and know their pods. */
export const attachesUnlisted = (
  wasRedirecting: boolean,
  { firstStart }: Pick<Config, 'firstStart'>,
): boolean => wasRedirecting || firstStart === 'deny';

export const WAITS =
  'no list of pods and namespaces has come yet, so nothing is attached and connections pass as without cgroute (firstStart: wait)';

/** While that is so. */
export const waitingState: SourceState = { name: 'first-start', state: 'failed', detail: WAITS };

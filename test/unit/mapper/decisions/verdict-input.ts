/** Pods, namespaces and configurations to decide about. */
import { defaultConfig, parseConfig, type Config } from '../../../../mapper/config/config.ts';
import type { Namespace } from '../../../../mapper/objects/namespace.ts';
import { MODE, SIDECAR_STATUS } from '../../../harness/label-names.ts';
import type { Settings } from '../../../harness/verdict-oracle.ts';

export const SIDECAR = { [SIDECAR_STATUS]: '{}' };

export const shop = (labels: Namespace['labels'] = {}): Namespace => ({ name: 'shop', labels });
export const AMBIENT = shop({ [MODE]: 'ambient' });
export const KMESH = shop({ [MODE]: 'kmesh' });

/** The agent's configuration with a manifest where these settings are not the default. */
export function configured(settings: Partial<Settings>): Config {
  const { allowed, proxy, ...same } = settings;
  const [key, value] = proxy?.label ?? [];
  const written = {
    ...same,
    ...(allowed && { bypass: { allowed } }),
    ...(proxy && { proxy: { selector: `${key} in (${value})`, namespaces: proxy.namespaces } }),
  };
  return Object.keys(written).length === 0
    ? defaultConfig('manifest')
    : parseConfig(JSON.stringify(written), 'test.yaml', 'manifest');
}

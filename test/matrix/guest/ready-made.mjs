/** Loads the JavaScript that was made beforehand beside a TypeScript file, where there is one. */
import { readFileSync } from 'node:fs';
import { registerHooks } from 'node:module';
import { fileURLToPath } from 'node:url';

registerHooks({
  load(url, context, next) {
    if (url.startsWith('file:') && new URL(url).pathname.endsWith('.ts')) {
      try {
        return { format: 'module', source: readFileSync(`${fileURLToPath(url)}.js`), shortCircuit: true };
      } catch {
        // None: Node does it itself.
      }
    }
    return next(url, context);
  },
});

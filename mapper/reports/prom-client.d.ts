/**
 * The parts of prom-client that are used, each by its own file: the package's
 * main file also loads its push gateway and its cluster mode, some ten megabytes.
 */
declare module 'prom-client/lib/registry.js' {
  import { Registry } from 'prom-client';
  export { Registry as default };
}
declare module 'prom-client/lib/counter.js' {
  import { Counter } from 'prom-client';
  export { Counter as default };
}
declare module 'prom-client/lib/gauge.js' {
  import { Gauge } from 'prom-client';
  export { Gauge as default };
}
declare module 'prom-client/lib/histogram.js' {
  import { Histogram } from 'prom-client';
  export { Histogram as default };
}

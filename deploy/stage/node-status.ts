/** What `cgroute status -o json` prints, as far as the demo and the tests read it. */

export interface NodeStatus {
  readonly node: string | null;
  readonly redirecting: boolean;
  readonly agent: {
    readonly running: boolean;
    readonly ready: boolean;
    readonly pid: number | null;
    readonly version: string | null;
  };
  readonly conditions: readonly {
    readonly type: string;
    readonly status: string;
    readonly message: string;
  }[];
  readonly proxy: {
    readonly address: string | null;
    readonly pod: string | null;
    readonly ready: boolean;
    readonly unready: string | null;
    readonly notListening: readonly string[] | null;
    readonly notTaken: readonly { readonly pod: string; readonly reason: string }[];
  };
  readonly sources: readonly { readonly name: string; readonly state: string; readonly detail: string }[];
  readonly pods: readonly PodStatus[];
  readonly unknown: readonly { readonly id: string; readonly path: string | null }[];
  readonly host: Readonly<Record<string, number>>;
}

export interface PodStatus {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly verdict: string;
  readonly reason: string;
  readonly ips: readonly string[];
  readonly cgroups: readonly { readonly id: string; readonly path: string | null }[];
  readonly connections: Readonly<Record<string, number>>;
}

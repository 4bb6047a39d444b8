/** What doctor found about one thing of this host. */
export interface DoctorLine {
  /** Short and stable, `bpffs`. */
  readonly check: string;
  /** `warn`: cgroute works, with something missing that the detail names. `fail`: it does not. */
  readonly state: 'ok' | 'warn' | 'fail';
  readonly detail: string;
  /** What to do about it. */
  readonly remedy?: string;
}

/** Where to look; the same as the flags of those names. */
export interface DoctorPlaces {
  /** @default where cgroup2 is mounted */
  readonly cgroupRoot?: string | undefined;
  readonly procRoot: string;
  readonly bpffsRoot: string;
  /** @default /sys */
  readonly sysRoot?: string;
}

export const ok = (check: string, detail: string): DoctorLine => ({ check, state: 'ok', detail });
export const warn = (check: string, detail: string, remedy: string): DoctorLine => ({
  check,
  state: 'warn',
  detail,
  remedy,
});
export const fail = (check: string, detail: string, remedy: string): DoctorLine => ({
  check,
  state: 'fail',
  detail,
  remedy,
});

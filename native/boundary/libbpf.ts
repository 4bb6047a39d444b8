/**
 * libbpf through koffi: each call with the types that its header declares.
 *
 * Map calls are synchronous: 1 to 2 us, where koffi's asynchronous form takes
 * about 50. libbpf returns negative errno values, or NULL with errno set; errno
 * is read for nothing else, as it is stale after a success.
 */
import { release } from 'node:os';
import koffi, { type LibraryHandle } from 'koffi';
import { CgrouteError } from '../error.ts';
import { errnoName } from './libc.ts';
import { effectiveCapabilities } from './privilege.ts';

declare const pointer: unique symbol;
/** koffi's pointers are plain bigints; the brand keeps them apart. */
type Pointer<Name extends string> = bigint & { readonly [pointer]: Name };
export type ObjectPointer = Pointer<'bpf_object'>;
export type MapPointer = Pointer<'bpf_map'>;
export type ProgramPointer = Pointer<'bpf_program'>;
export type RingBufferPointer = Pointer<'ring_buffer'>;
type LogPointer = Pointer<'char'>;

const openOptions = koffi.struct('bpf_object_open_opts', {
  sz: 'size_t',
  object_name: 'const char *',
  relaxed_maps: 'bool',
  pin_root_path: 'const char *',
  unused: 'uint32_t',
  kconfig: 'const char *',
  btf_custom_path: 'const char *',
  kernel_log_buf: 'void *',
  kernel_log_size: 'size_t',
  kernel_log_level: 'uint32_t',
});
const LOG_BYTES = 1 << 20;

function bind(lib: LibraryHandle) {
  return {
    setPrint: lib.func('void *libbpf_set_print(void *fn)') as (fn: null) => unknown,
    versionString: lib.func('const char *libbpf_version_string(void)') as () => string,
    objectOpenFile: lib.func(
      'void *bpf_object__open_file(const char *path, const bpf_object_open_opts *opts)',
    ) as (path: string, options: object) => ObjectPointer | null,
    objectLoad: lib.func('int bpf_object__load(void *obj)') as (object: ObjectPointer) => number,
    objectClose: lib.func('void bpf_object__close(void *obj)') as (object: ObjectPointer) => void,
    nextMap: lib.func('void *bpf_object__next_map(void *obj, void *map)') as (
      object: ObjectPointer,
      map: MapPointer | null,
    ) => MapPointer | null,
    nextProgram: lib.func('void *bpf_object__next_program(void *obj, void *prog)') as (
      object: ObjectPointer,
      program: ProgramPointer | null,
    ) => ProgramPointer | null,
    mapName: lib.func('const char *bpf_map__name(void *map)') as (map: MapPointer) => string,
    mapFd: lib.func('int bpf_map__fd(void *map)') as (map: MapPointer) => number,
    mapIsInternal: lib.func('bool bpf_map__is_internal(void *map)') as (map: MapPointer) => boolean,
    mapKeySize: lib.func('uint32_t bpf_map__key_size(void *map)') as (map: MapPointer) => number,
    mapValueSize: lib.func('uint32_t bpf_map__value_size(void *map)') as (map: MapPointer) => number,
    mapType: lib.func('int bpf_map__type(void *map)') as (map: MapPointer) => number,
    mapFlags: lib.func('uint32_t bpf_map__map_flags(void *map)') as (map: MapPointer) => number,
    mapKeyTypeId: lib.func('uint32_t bpf_map__btf_key_type_id(void *map)') as (map: MapPointer) => number,
    mapValueTypeId: lib.func('uint32_t bpf_map__btf_value_type_id(void *map)') as (map: MapPointer) => number,
    mapSetMaxEntries: lib.func('int bpf_map__set_max_entries(void *map, uint32_t max)') as (
      map: MapPointer,
      max: number,
    ) => number,
    mapSetPinPath: lib.func('int bpf_map__set_pin_path(void *map, const char *path)') as (
      map: MapPointer,
      path: string,
    ) => number,
    mapReuseFd: lib.func('int bpf_map__reuse_fd(void *map, int fd)') as (
      map: MapPointer,
      fd: number,
    ) => number,
    mapSetInitialValue: lib.func(
      'int bpf_map__set_initial_value(void *map, const void *data, size_t size)',
    ) as (map: MapPointer, data: Buffer, size: number) => number,
    programName: lib.func('const char *bpf_program__name(void *prog)') as (program: ProgramPointer) => string,
    programFd: lib.func('int bpf_program__fd(void *prog)') as (program: ProgramPointer) => number,
    programAttachType: lib.func('int bpf_program__expected_attach_type(void *prog)') as (
      program: ProgramPointer,
    ) => number,
    mapUpdate: lib.func(
      'int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags)',
    ) as (fd: number, key: Buffer, value: Buffer, flags: number) => number,
    mapLookup: lib.func('int bpf_map_lookup_elem(int fd, const void *key, _Out_ void *value)') as (
      fd: number,
      key: Buffer,
      value: Buffer,
    ) => number,
    mapDelete: lib.func('int bpf_map_delete_elem(int fd, const void *key)') as (
      fd: number,
      key: Buffer,
    ) => number,
    mapNextKey: lib.func('int bpf_map_get_next_key(int fd, const void *key, _Out_ void *next)') as (
      fd: number,
      key: Buffer | null,
      next: Buffer,
    ) => number,
    mapLookupBatch: lib.func(
      'int bpf_map_lookup_batch(int fd, const void *in_batch, _Out_ void *out_batch, _Out_ void *keys, _Out_ void *values, _Inout_ void *count, const void *opts)',
    ) as (
      fd: number,
      from: Buffer | null,
      next: Buffer,
      keys: Buffer,
      values: Buffer,
      count: Buffer,
      options: null,
    ) => number,
    objPin: lib.func('int bpf_obj_pin(int fd, const char *path)') as (fd: number, path: string) => number,
    objGet: lib.func('int bpf_obj_get(const char *path)') as (path: string) => number,
    objGetInfo: lib.func('int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *len)') as (
      fd: number,
      info: Buffer,
      length: Buffer,
    ) => number,
    linkCreate: lib.func('int bpf_link_create(int prog_fd, int target_fd, int type, const void *opts)') as (
      program: number,
      target: number,
      type: number,
      options: null,
    ) => number,
    linkUpdate: lib.func('int bpf_link_update(int link_fd, int prog_fd, const void *opts)') as (
      link: number,
      program: number,
      options: null,
    ) => number,
    linkNextId: lib.func('int bpf_link_get_next_id(uint32_t id, _Out_ void *next)') as (
      id: number,
      next: Buffer,
    ) => number,
    linkFdById: lib.func('int bpf_link_get_fd_by_id(uint32_t id)') as (id: number) => number,
    progQuery: lib.func(
      'int bpf_prog_query(int target_fd, int type, uint32_t flags, _Out_ void *attach_flags, _Out_ void *ids, _Inout_ void *count)',
    ) as (
      target: number,
      type: number,
      flags: number,
      attachFlags: Buffer,
      ids: Buffer,
      count: Buffer,
    ) => number,
    progFdById: lib.func('int bpf_prog_get_fd_by_id(uint32_t id)') as (id: number) => number,
    mapCreate: lib.func(
      'int bpf_map_create(int type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t max_entries, const void *opts)',
    ) as (
      type: number,
      name: string | null,
      keySize: number,
      valueSize: number,
      maxEntries: number,
      options: null,
    ) => number,
    mapFdById: lib.func('int bpf_map_get_fd_by_id(uint32_t id)') as (id: number) => number,
    btfFdById: lib.func('int bpf_btf_get_fd_by_id(uint32_t id)') as (id: number) => number,
    rawTracepointOpen: lib.func('int bpf_raw_tracepoint_open(const char *name, int prog_fd)') as (
      name: string | null,
      program: number,
    ) => number,
    ringBufferNew: lib.func(
      'void *ring_buffer__new(int map_fd, void *sample_cb, void *ctx, const void *opts)',
    ) as (map: number, callback: bigint, context: null, options: null) => RingBufferPointer | null,
    ringBufferEpollFd: lib.func('int ring_buffer__epoll_fd(void *rb)') as (ring: RingBufferPointer) => number,
    ringBufferConsume: lib.func('int ring_buffer__consume(void *rb)') as (ring: RingBufferPointer) => number,
    ringBufferFree: lib.func('void ring_buffer__free(void *rb)') as (ring: RingBufferPointer) => void,
    enableStats: lib.func('int bpf_enable_stats(int type)') as (type: number) => number,
    progLoad: lib.func(
      'int bpf_prog_load(int type, const char *name, const char *license, const void *insns, size_t count, const void *opts)',
    ) as (
      type: number,
      name: string | null,
      license: string,
      instructions: Buffer,
      count: number,
      options: Buffer,
    ) => number,
    progTestRun: lib.func('int bpf_prog_test_run_opts(int prog_fd, void *opts)') as (
      program: number,
      options: Buffer,
    ) => number,
    findVmlinuxBtfId: lib.func('int libbpf_find_vmlinux_btf_id(const char *name, int attach_type)') as (
      name: string,
      attachType: number,
    ) => number,
    probeMapType: lib.func('int libbpf_probe_bpf_map_type(int map_type, const void *opts)') as (
      mapType: number,
      options: null,
    ) => number,
  };
}

let bound: ReturnType<typeof bind> | undefined;

/**
 * The library, loaded at first use, so that `help` and `doctor` work without it.
 * @throws CgrouteError `ELIBBPF` when the host has no libbpf 1.x
 */
export function libbpf(): ReturnType<typeof bind> {
  if (bound !== undefined) return bound;
  let lib: LibraryHandle;
  try {
    lib = koffi.load('libbpf.so.1');
  } catch (cause) {
    throw new CgrouteError(
      'ELIBBPF',
      'libbpf.so.1 was not found on this host: install the package libbpf1 (Debian) or libbpf (Fedora)',
      { cause },
    );
  }
  bound = bind(lib);
  // Its messages would go to stderr, between our log lines; errors carry the verifier's log.
  bound.setPrint(null);
  return bound;
}

/**
 * Turns libbpf's negative return into an error, else passes it on.
 * @throws CgrouteError `EBPF` with the syscall and the errno's name
 */
export function checked(result: number, syscall: string, what: string): number {
  if (result >= 0) return result;
  const errno = errnoName(-result);
  throw new CgrouteError('EBPF', `${syscall} of ${what} failed with ${errno}${hint(errno)}`, {
    syscall,
    errno,
  });
}

/** Before Linux 5.11. */
const COUNTS_LOCKED_MEMORY = /^(?:4|5\.(?:\d|10))\./.test(release());

function hint(errno: string): string {
  if (errno === 'EPERM')
    return `: the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root)${COUNTS_LOCKED_MEMORY ? ', and on this kernel a high limit of locked memory (ulimit -l)' : ''}`;
  if (errno === 'EACCES') return ': run as root, or as a user who may';
  if (errno === 'EROFS') return ': it is mounted read-only here';
  if (errno === 'E2BIG') return ': the map is full';
  return '';
}

/** An opened object and the buffer that the kernel's log goes to. */
export interface OpenObject {
  readonly object: ObjectPointer;
  readonly log: LogPointer;
}

/** @throws CgrouteError `EBPF` when the file is not there or is no BPF object */
export function openObject(file: string): OpenObject {
  const log = koffi.alloc('char', LOG_BYTES) as LogPointer;
  const object = libbpf().objectOpenFile(file, {
    sz: koffi.sizeof(openOptions),
    object_name: null,
    relaxed_maps: false,
    pin_root_path: null,
    unused: 0,
    kconfig: null,
    btf_custom_path: null,
    kernel_log_buf: log,
    kernel_log_size: LOG_BYTES,
    kernel_log_level: 0,
  });
  if (object === null) {
    const errno = errnoName(koffi.errno());
    koffi.free(log);
    throw new CgrouteError('EBPF', `opening the BPF object ${file} failed with ${errno}`, {
      syscall: 'bpf_object__open_file',
      errno,
    });
  }
  return { object, log };
}

/** Loads every program; the error's cause holds the verifier's whole log. */
export function loadObject({ object, log }: OpenObject, file: string): void {
  const result = libbpf().objectLoad(object);
  if (result >= 0) return;
  const errno = errnoName(-result);
  const text = String(koffi.decode(log, 'char', LOG_BYTES)).replace(/\0[^]*$/, '');
  const summary = text
    .trimEnd()
    .split('\n')
    .filter((line) => !/^(processed|-- END)/.test(line))
    .at(-1);
  throw new CgrouteError(
    'EBPFLOAD',
    `the kernel refused ${file} with ${errno}${refusalHint(errno)}${summary === undefined || summary === '' ? '' : `: ${summary}`}`,
    { syscall: 'bpf_object__load', errno, ...(text === '' ? {} : { cause: new Error(text) }) },
  );
}

/** How the verifier refuses what only CAP_PERFMON may do differs from kernel to kernel. */
function refusalHint(errno: string): string {
  const may = errno === 'EACCES' || errno === 'EINVAL';
  return may && !effectiveCapabilities().has('CAP_PERFMON')
    ? ': the agent needs CAP_PERFMON (or root)'
    : hint(errno);
}

export function closeObject({ object, log }: OpenObject): void {
  libbpf().objectClose(object);
  koffi.free(log);
}

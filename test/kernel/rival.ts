/** Other people's programs on the connect hooks (test/harness/rival.bpf.c), loaded and attached at a test's own cgroups. */
import { closeSync, openSync } from 'node:fs';
import { resolve } from 'node:path';
import { BpfMap } from '../../native/bpf/bpf-map.ts';
import { u32, type Codec } from '../../native/layout/codec.ts';
import { checked, closeObject, libbpf, loadObject, openObject } from '../../native/boundary/libbpf.ts';
import type { Cgroup } from '../../deploy/stage/cgroup.ts';
import { bytesOf } from './data-plane.ts';

const OBJECT = resolve(import.meta.dirname, '../../dist/test/rival.bpf.o');

export interface Destination {
  readonly address: string;
  readonly port: number;
}

export interface Rival extends Disposable {
  /** Puts both programs, for IPv4 and IPv6, at a cgroup: behind those that are there. Dispose to take them off. */
  attach(what: 'balance' | 'deny', cgroup: Pick<Cgroup, 'absolute'>): Disposable;
  /** From now on a connect to the service is one to the backend. */
  serve(service: Destination, backend: Destination): void;
  deny(destination: Destination): void;
  /** How often it was shown this destination. */
  shown(destination: Destination): number;
}

/** struct destination of rival.bpf.c: an address of 16 bytes, a port of 4, in network order. */
const destination: Codec<Destination> = {
  name: 'destination',
  size: 20,
  encode({ address, port }, buffer, offset = 0) {
    buffer.set(bytesOf(address), offset);
    buffer.writeUInt16BE(port, offset + 16);
    buffer.writeUInt16LE(0, offset + 18);
  },
  decode: () => {
    throw new Error('nobody reads destinations');
  },
};

/** Loads it; nothing is attached yet. */
export function loadRival(): Rival {
  const lib = libbpf();
  const open = openObject(OBJECT);
  loadObject(open, OBJECT);
  const programs = new Map<string, { fd: number; type: number }>();
  for (
    let program = lib.nextProgram(open.object, null);
    program !== null;
    program = lib.nextProgram(open.object, program)
  ) {
    programs.set(lib.programName(program), {
      fd: lib.programFd(program),
      type: lib.programAttachType(program),
    });
  }
  const maps = new Map<string, number>();
  for (let map = lib.nextMap(open.object, null); map !== null; map = lib.nextMap(open.object, map)) {
    maps.set(lib.mapName(map), lib.mapFd(map));
  }
  const mapOf = <V>(name: string, value: Codec<V>): BpfMap<Destination, V> =>
    new BpfMap(name, maps.get(name) ?? -1, destination, value);
  const services = mapOf('services', destination);
  const denied = mapOf('denied', u32);
  const shown = mapOf('shown', u32);
  return {
    attach(what, cgroup) {
      const directory = openSync(cgroup.absolute, 'r');
      const links = ['4', '6'].map((family) => {
        const { fd, type } = programs.get(`${what}${family}`) ?? { fd: -1, type: -1 };
        return checked(
          lib.linkCreate(fd, directory, type, null),
          'bpf_link_create',
          `${what}${family} at ${cgroup.absolute}`,
        );
      });
      closeSync(directory);
      return { [Symbol.dispose]: () => links.forEach((link) => closeSync(link)) };
    },
    serve: (service, backend) => services.set(service, backend),
    deny: (place) => denied.set(place, 1),
    shown: (place) => shown.get(place) ?? 0,
    // The object owns the maps' descriptors, so the handles are left alone.
    [Symbol.dispose]: () => closeObject(open),
  };
}

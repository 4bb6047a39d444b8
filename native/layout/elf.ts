/** The little of ELF-64 that a BPF object needs: sections by name, symbols by name. Format: elf(5). */
import { CgrouteError } from '../error.ts';

export interface ElfSymbol {
  readonly section: string;
  /** Bytes from the start of the section. */
  readonly offset: number;
  readonly size: number;
}

export interface Elf {
  /** The section's bytes, as a view. @throws CgrouteError `EELF` when there is none */
  section(name: string): Buffer;
  /** A variable or function of the object. */
  symbol(name: string): ElfSymbol | undefined;
}

interface Section {
  readonly name: string;
  readonly link: number;
  readonly bytes: Buffer;
}

/** @throws CgrouteError `EELF` when it is no little-endian ELF-64 file */
export function readElf(elf: Buffer, file: string): Elf {
  if (elf.length < 64 || elf.readUInt32BE(0) !== 0x7f454c46 || elf[4] !== 2 || elf[5] !== 1) {
    throw new CgrouteError('EELF', `${file} is no BPF object: expected a little-endian ELF-64 file`);
  }
  const sections = readSections(elf);
  const section = (name: string): Section => {
    const found = sections.find((candidate) => candidate.name === name);
    if (found === undefined)
      throw new CgrouteError('EELF', `${file} is no BPF object of cgroute: it has no section ${name}`);
    return found;
  };
  return {
    section: (name) => section(name).bytes,
    symbol(name) {
      const { bytes, link } = section('.symtab');
      const names = sections[link]?.bytes ?? Buffer.alloc(0);
      for (let at = 0; at + 24 <= bytes.length; at += 24) {
        const owner = sections[bytes.readUInt16LE(at + 6)];
        if (owner === undefined || cString(names, bytes.readUInt32LE(at)) !== name) continue;
        return {
          section: owner.name,
          offset: Number(bytes.readBigUInt64LE(at + 8)),
          size: Number(bytes.readBigUInt64LE(at + 16)),
        };
      }
      return undefined;
    },
  };
}

function readSections(elf: Buffer): Section[] {
  const table = Number(elf.readBigUInt64LE(0x28));
  const entry = elf.readUInt16LE(0x3a);
  const header = (index: number) => {
    const at = table + index * entry;
    const offset = Number(elf.readBigUInt64LE(at + 0x18));
    return {
      name: elf.readUInt32LE(at),
      link: elf.readUInt32LE(at + 0x28),
      bytes: elf.subarray(offset, offset + Number(elf.readBigUInt64LE(at + 0x20))),
    };
  };
  const names = header(elf.readUInt16LE(0x3e)).bytes;
  return Array.from({ length: elf.readUInt16LE(0x3c) }, (_, index) => {
    const { name, link, bytes } = header(index);
    return { name: cString(names, name), link, bytes };
  });
}

/** The text from `at` up to the first zero. */
export function cString(buffer: Buffer, at: number): string {
  const end = buffer.indexOf(0, at);
  return buffer.toString('utf8', at, end < 0 ? buffer.length : end);
}

/** What pinned maps of the kernel hold, as bpftool reads them: it knows nothing of the agent's codecs. */
import { globSync } from 'node:fs';
import { must, run } from '../../deploy/stage/process.ts';

export interface MapEntry {
  readonly key: unknown;
  readonly value: Readonly<Record<string, unknown>>;
}

/** Bytes of a key of `pod_info_map`: a UID, with zeros behind it. */
const POD_KEY = 40;

/** Where the map of an agent with this root is, whatever the version of its pins. */
function pinOf(bpffsRoot: string, map: string): string {
  return globSync(`${bpffsRoot}/*/maps/${map}`)[0] ?? `${bpffsRoot}/${map}`;
}

/** All entries of a map, by the map's own BTF. */
export async function entriesOf(bpffsRoot: string, map: string): Promise<readonly MapEntry[]> {
  const dump = JSON.parse(
    await must({ cmd: 'bpftool', args: ['-j', 'map', 'dump', 'pinned', pinOf(bpffsRoot, map)] }),
  ) as readonly { readonly formatted: MapEntry }[];
  return dump.map(({ formatted }) => formatted);
}

/** Whether the agent has put a pod of this UID into the kernel. */
export async function hasPod(bpffsRoot: string, uid: string): Promise<boolean> {
  const key = Buffer.alloc(POD_KEY);
  key.write(uid);
  const pin = pinOf(bpffsRoot, 'pod_info_map');
  const args = ['map', 'lookup', 'pinned', pin, 'key', ...[...key].map(String)];
  return (await run({ cmd: 'bpftool', args })).code === 0;
}

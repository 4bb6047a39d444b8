/** The shape of what is in a pinned map, of whichever version. */
import { sameShape } from '../layout/btf-shape.ts';
import { shapeOfCodec } from '../layout/foreign-codec.ts';
import { formerShape } from '../layout/former-layouts.ts';
import { PIN_VERSION } from '../pins/pin-directory.ts';
import { fits, type WantedMap } from '../pins/pinned-map.ts';
import { mapShape, type MapFacts, type MapShape } from '../pins/pinned-object.ts';
import { mapNamed } from '../programs/maps.ts';

/**
 * What the kernel says of it. To who lacks CAP_SYS_ADMIN it says only that there are
 * types, and how large: then what is known of the version whose directory it is in.
 * Undefined where that is nothing, or cannot be.
 * @param path of the pin
 */
export function shapeAt(path: string, facts: MapFacts): MapShape | undefined {
  const told = mapShape(facts);
  if (told !== undefined || facts.btfId === 0) return told;
  const [, version = '', name = ''] = /\/(v\d+)\/maps\/([^/]+)$/.exec(path) ?? [];
  const known = version === PIN_VERSION ? ownShape(name) : formerShape(version, name);
  const isSo = known?.key.size === facts.keySize && known.value.size === facts.valueSize;
  return isSo ? known : undefined;
}

/** Of this version's map, as far as the agent reads or writes it. */
export function ownShape(name: string): MapShape | undefined {
  const { key, value } = mapNamed(name) ?? {};
  return key === undefined || value === undefined
    ? undefined
    : { key: shapeOfCodec(key), value: shapeOfCodec(value) };
}

/** Whether the map behind a pin of another version can stand for the wanted one, as the layouts of both are the same. */
export function isSameLayout(wanted: WantedMap, path: string, facts: MapFacts): boolean {
  const shape = shapeAt(path, facts);
  if (shape === undefined || !fits(wanted, facts)) return false;
  return (
    wanted.shape === undefined ||
    (sameShape(shape.key, wanted.shape.key) && sameShape(shape.value, wanted.shape.value))
  );
}

/** Brings what a source tells into the inventory and the memory of enrolment. */
import type { Enrolment } from './enrolment.ts';
import type { Inventory } from './inventory.ts';
import type { ObjectHandlers } from '../object-sources/object-source.ts';

/** @param changed gets the UIDs of the pods that a change may concern, when all is in place */
export function objectIntake(
  inventory: Inventory,
  enrolment: Enrolment,
  changed: (uids: ReadonlySet<string>) => void,
): ObjectHandlers {
  return {
    onObjects(objects) {
      for (const pod of objects.pods) enrolment.podSeen(pod);
      enrolment.namespacesAre(objects.namespaces);
      changed(inventory.replaceAll(objects));
    },
    onPod(pod) {
      enrolment.podSeen(pod);
      changed(inventory.upsertPod(pod));
    },
    onPodGone: (uid) => changed(inventory.removePod(uid)),
    onNamespace(namespace) {
      enrolment.namespaceSeen(namespace);
      changed(inventory.upsertNamespace(namespace));
    },
    onNamespaceGone(name) {
      enrolment.namespaceGone(name);
      changed(inventory.removeNamespace(name));
    },
  };
}

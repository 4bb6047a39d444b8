/**
 * Labels and annotations that the tests set and read, spelled a second time: a
 * slip in the agent's own names would else pass every test.
 */

/** On a pod or its namespace: `ambient`, `kmesh` or `none`. */
export const MODE = 'istio.io/dataplane-mode';
/** On a pod: `enabled`, `outbound` or `inbound`. */
export const BYPASS = 'kmesh.net/bypass';
/** On a namespace: `true`, where {@link BYPASS} counts with `bypass.allowed: namespace`. */
export const ALLOW_BYPASS = 'cgroute.io/allow-bypass';
/** On a pod: the controller of a waypoint or a gateway. */
export const GATEWAY = 'gateway.istio.io/managed';

/** Annotation of a pod with a sidecar. */
export const SIDECAR_STATUS = 'sidecar.istio.io/status';
/** Annotation of a pod whose connections are redirected: `enabled`. */
export const REDIRECTION = 'ambient.istio.io/redirection';
/** The same by Kmesh's own data plane. */
export const KMESH_REDIRECTION = 'kmesh.net/redirection';
/** What the annotations about ports and ranges begin with. */
export const TRAFFIC = 'traffic.sidecar.istio.io/';
/** Annotations of a static pod, by its kubelet. */
export const CONFIG_HASH = 'kubernetes.io/config.hash';
export const CONFIG_MIRROR = 'kubernetes.io/config.mirror';

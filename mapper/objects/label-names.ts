/** Names of labels and annotations that decide something: each stands here, and nowhere else. */

/** On a pod or its namespace: a mesh mode, or `none`. */
export const MODE_LABEL = 'istio.io/dataplane-mode';
/** On a waypoint or a gateway: the controller that made it. */
export const GATEWAY_LABEL = 'gateway.istio.io/managed';
/** On a pod: `enabled`, `outbound` or `inbound`. */
export const BYPASS_LABEL = 'kmesh.net/bypass';
/** On a namespace: `true` where {@link BYPASS_LABEL} counts with `bypass.allowed: namespace`. */
export const ALLOW_BYPASS_LABEL = 'cgroute.io/allow-bypass';

/** Annotation of a pod that has a sidecar; its value is the injector's own. */
export const SIDECAR_STATUS = 'sidecar.istio.io/status';
/** Annotation that says whether a pod's connections are redirected: `enabled`; or, by its owner, that they shall not be: `disabled`. */
export const REDIRECTION = 'ambient.istio.io/redirection';
/** The same of Kmesh's own data plane; cgroute never writes it. */
export const KMESH_REDIRECTION = 'kmesh.net/redirection';
/** What the annotations about ports and ranges begin with. */
export const TRAFFIC = 'traffic.sidecar.istio.io/';
/** Annotation of a static pod, by the kubelet: what stands in its cgroup's path in place of the UID. */
export const CONFIG_HASH = 'kubernetes.io/config.hash';
/** Annotation of a static pod's image in the API, by the kubelet. */
export const CONFIG_MIRROR = 'kubernetes.io/config.mirror';

/** Every setting of the configuration file: its key, default, what it accepts and what it means. */
import { choice, integer, onOrOff, selector, text, texts } from './config-field.ts';

const LABEL_VALUE = /^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$/;
const RUNTIME_CLASS = /^[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$|^[a-z0-9][a-z0-9.-]*\*$/;
/** A qualified name of the API: a DNS name before the slash. */
const TAINT_KEY =
  /^(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*\/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/;
const NAMESPACE_NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const NAMESPACE_OR_ANY = /^(?:\*|[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/;

/** In `proxy.namespaces`. */
export const ANY_NAMESPACE = '*';

/** Nested as in the file. */
export const SETTINGS = {
  meshModes: texts(
    ['ambient', 'kmesh'],
    {
      item: 'a label value',
      form: LABEL_VALUE,
      lowerCase: true,
      reserved: { none: 'which always means "not in the mesh"' },
    },
    'Values of the label `istio.io/dataplane-mode` that put a pod into the mesh, compared without regard to case.',
  ),
  excludedNamespaces: texts(
    ['kube-system', 'istio-system'],
    { item: "a namespace's name", form: NAMESPACE_NAME, mayBeEmpty: true },
    'Namespaces whose pods are never in the mesh, whatever their labels.',
  ),
  gatewayControllers: texts(
    ['istio.io-mesh-controller', 'istio.io-gateway-controller', 'istio.io-eastwest-controller'],
    { item: 'a label value', form: LABEL_VALUE, lowerCase: true, mayBeEmpty: true },
    'Values of the label `gateway.istio.io/managed` that make a pod a waypoint or a gateway, which is never redirected. Compared without regard to case. The defaults are what Istio and Kmesh write for waypoints, ingress gateways and east-west gateways.',
  ),
  runtimeClasses: texts(
    ['kata', 'kata-*', 'gvisor', 'gvisor-*', 'runsc', 'runsc-*'],
    { item: 'a runtime class\'s name, which may end in "*"', form: RUNTIME_CLASS, mayBeEmpty: true },
    'Values of `spec.runtimeClassName` whose pods have a kernel of their own, which makes their sockets out of reach of this one: they are never redirected. A name that ends in `*` stands for all that begin like it. The defaults are what the installers of Kata Containers (`kata-qemu`, `kata-clh`, `kata-fc`, `kata-dragonball`, `kata-remote`, `kata-cc-isolation`, ...) and of gVisor create.',
  ),
  takeOver: onOrOff(
    false,
    'Whether pods that another mesh redirects, which it says by the annotation `ambient.istio.io/redirection` or `kmesh.net/redirection`, are enrolled all the same. For what a mesh has left behind that is gone: on pods that it still has, each connection would be redirected twice.',
  ),
  proxy: {
    selector: selector('app=ztunnel', "Label selector of the node's ztunnel pod."),
    namespaces: texts(
      ['istio-system'],
      {
        item: `a namespace's name, or "${ANY_NAMESPACE}" for any`,
        form: NAMESPACE_OR_ANY,
        withManifest: [ANY_NAMESPACE],
        ratherThanEmpty: `for any namespace write ["${ANY_NAMESPACE}"]`,
      },
      `Namespaces in which the selector counts: for Kmesh \`[kmesh-system]\`, else that of your proxy. \`["${ANY_NAMESPACE}"]\` is any: whoever may make a pod on the node, in whatever namespace, can then have the traffic of all its enrolled pods, by a label. An empty list is refused, as it could mean either.`,
    ),
    outboundPort: integer(1, 65535, 15001, 'Port of the proxy for what pods send.'),
    inboundPort: integer(1, 65535, 15006, 'Port of the proxy for what the host sends to enrolled pods.'),
  },
  enrollment: choice(
    ['live', 'new-pods'],
    'live',
    "When the label of a namespace takes effect. `live`: on running pods too, for every connection opened afterwards. `new-pods`: only on pods that are made after the change; each keeps what it had. A pod's own label always takes effect at once.",
  ),
  existingConnections: choice(
    ['keep', 'reset'],
    'keep',
    'What becomes of the connections that a pod has open when its verdict changes. `keep`: they stay as they are. `reset`: those that would go the other way now are reset: what the pod opened, and what processes of the host opened to it; that takes CAP_SYS_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY.',
  ),
  unknownPods: choice(
    ['deny', 'allow'],
    'deny',
    'Connections of a pod that has no verdict yet: `deny` refuses them with ECONNREFUSED, on which clients try again (EPERM before Linux 6.1), `allow` lets them pass untouched, outside the mesh. Loopback, and what is in the network namespace of the host, is never refused.',
  ),
  whenProxyDown: choice(
    ['deny', 'allow'],
    'deny',
    'Connections of enrolled pods while no proxy is ready: `deny` refuses them with ECONNREFUSED (EPERM before Linux 6.1), `allow` lets them pass untouched, outside the mesh.',
  ),
  firstStart: choice(
    ['wait', 'deny'],
    'wait',
    'What a start does where nothing of cgroute redirects yet and the API server does not answer within three seconds, so that nobody knows a pod. `wait`: nothing is attached, connections pass as without cgroute, and the agent is not ready until it has the first list. `deny`: the programs are attached at once, and connections of pods are treated by `unknownPods` until then.',
  ),
  nestedNetworks: choice(
    ['untouched', 'deny'],
    'untouched',
    "Connections from a network namespace within an enrolled pod that is not the pod's own, as containers of Docker in Docker have: `untouched` leaves them as they are, outside the mesh, `deny` refuses them with EPERM.",
  ),
  otherNetworks: choice(
    ['untouched', 'deny'],
    'untouched',
    'Connections of an enrolled pod from a socket that is bound to an interface or address by which the proxy is not reached, as a second interface of the pod: `untouched` leaves them as they are, outside the mesh, `deny` refuses them with EPERM.',
  ),
  bypass: {
    allowed: choice(
      ['any', 'namespace', 'never'],
      'any',
      "Whose label `kmesh.net/bypass` counts: `any` pod's, only where the `namespace` carries `cgroute.io/allow-bypass=true`, or `never`.",
    ),
  },
  sidecarUser: integer(
    0,
    4_294_967_294,
    1337,
    'User id of sidecars: in a pod that has one, its own connections are left alone.',
  ),
  sidecars: onOrOff(
    true,
    'Whether rules are put into the network namespaces of pods with a sidecar, to bypass or to short-circuit it. `false`: sidecars stay in the path, and pods that have one stay out of the mesh.',
  ),
  sweepSeconds: integer(
    1,
    86_400,
    30,
    'Seconds between two sweeps of the whole cgroup tree, which find what every other source missed.',
  ),
  relistSeconds: integer(
    10,
    86_400,
    600,
    'Seconds between two full lists of pods and namespaces, beside the watch that tells of each change at once. Up to a fifth is added at random.',
  ),
  maxPods: integer(
    16,
    1_048_576,
    4096,
    'Room for this many pods in the maps of the kernel, of those that have a cgroup or may get one: what has ended takes none. The proxy comes first, then pods that run; a pod without room is treated as unknown (`unknownPods`).',
  ),
  maxConnections: integer(
    1024,
    16_777_216,
    262_144,
    'Room for this many redirected connections that are open at one time.',
  ),
  maxTrafficEntries: integer(
    1024,
    16_777_216,
    65_536,
    "Room for this many ports, and as many ranges, of all pods' traffic annotations together.",
  ),
  maxConnectionsPerPod: integer(
    1,
    16_777_216,
    32_768,
    'How many of these one pod may have, so that none takes the room of the others; nor does it get more than a quarter of what is free. The first 4,096 of the node are not counted. A pod has no more ports than 28,232 for one address of its own, unless it was given more.',
  ),
  annotate: onOrOff(
    true,
    'With `--source kube`: pods whose connections are redirected carry the annotation `ambient.istio.io/redirection: enabled`.',
  ),
  events: onOrOff(
    true,
    'With `--source kube`: what becomes of a pod is said in Events on it, few and each once in ten minutes.',
  ),
  startupTaint: text(
    { item: 'the key of a taint such as "cgroute.io/agent-not-ready"', form: TAINT_KEY },
    'With `--source kube`: the key of a taint that new nodes come with, so that no pod is put there before the agent; the agent takes it off its node when it is ready, with whatever value and effect it has, and again where somebody puts it back. Empty: none.',
  ),
  log: {
    level: choice(
      ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'],
      'info',
      'The least important level that is logged.',
    ),
  },
} as const;

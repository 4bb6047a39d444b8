// Generated from the BTF of bpf/*.bpf.c by native/layout/layouts-gen.ts; do not edit.
import { readText, readWords, writeText, writeWords, type Layout } from './layout.ts';

export const setting = {
  proxyIp4: 1,
  proxyIp6: 2,
  ports: 3,
  policies: 4,
  proxyNetwork: 5,
} as const;

export const infoFlag = {
  ambient: 1,
  dnsCapture: 2,
  proxy: 4,
  bypassOutbound: 8,
  bypassInbound: 16,
  sidecar: 32,
  hostNetwork: 64,
  unknownPod: 128,
  options: 256,
  noHandoff: 512,
  addresses: 1024,
} as const;

export const handoff = {
  all: 1,
  pods: 2,
} as const;

export const branch = {
  inboundRedirected: 0,
  inboundExempt: 1,
  hostUntouched: 2,
  out: 3,
  bypassed: 4,
  proxy: 5,
  unknownAllowed: 6,
  unknownDenied: 7,
  local: 8,
  excluded: 9,
  noProxyAllowed: 10,
  noProxyDenied: 11,
  redirected: 12,
  loopDenied: 13,
  errorDenied: 14,
  handoffLost: 15,
  foreignUntouched: 16,
  nestedUntouched: 17,
  nestedDenied: 18,
  otherNetworkUntouched: 19,
  otherNetworkDenied: 20,
  count: 21,
} as const;

export const policy = {
  allow: 0,
  deny: 1,
} as const;

export const proxyMode = {
  node: 0,
  inPod: 1,
} as const;

export const optionFlag = {
  nothingOutbound: 1,
  exemptUser: 2,
  excludedPorts: 4,
  excludedRanges: 8,
  includedPorts: 16,
  includedRanges: 32,
  nothingInbound: 64,
  excludedInbound: 128,
  includedInbound: 256,
} as const;

export const bypassDirection = {
  outbound: 1,
  inbound: 2,
} as const;

export const portList = {
  excludedOutbound: 0,
  includedOutbound: 1,
  excludedInbound: 2,
  includedInbound: 3,
} as const;

export const rangeList = {
  excludedIp4: 0,
  excludedIp6: 1,
  includedIp4: 2,
  includedIp6: 3,
} as const;

export const localAddress = {
  elsewhere: 1,
  leads: 2,
} as const;

export const cgroupChange = {
  made: 0,
  removed: 1,
} as const;

export const freePart = {
  connections: 4,
  originals: 8,
} as const;

export interface CgroupInfo {
  readonly id: bigint;
  readonly isInMesh: number;
  readonly cgroupIp: Uint8Array;
  readonly flags: number;
  readonly detectedFlags: number;
  readonly slot: number;
  readonly proxyMode: number;
  readonly cgroupIp6: Uint8Array;
  readonly netns: bigint;
}

export const cgroupInfo: Layout<CgroupInfo> = {
  name: 'cgroup_info',
  size: 64,
  fields: [
    { name: 'id', offset: 0, kind: 'u64', count: 1 },
    { name: 'is_in_mesh', offset: 8, kind: 'u32', count: 1 },
    { name: 'cgroup_ip', offset: 12, kind: 'u8', count: 16 },
    { name: 'flags', offset: 28, kind: 'u16', count: 1 },
    { name: 'detected_flags', offset: 30, kind: 'u16', count: 1 },
    { name: 'slot', offset: 32, kind: 'u32', count: 1 },
    { name: 'proxy_mode', offset: 36, kind: 'u16', count: 1 },
    { name: 'reserved', offset: 38, kind: 'u16', count: 1 },
    { name: 'cgroup_ip6', offset: 40, kind: 'u8', count: 16 },
    { name: 'netns', offset: 56, kind: 'u64', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 64);
    buffer.writeBigUInt64LE(value.id, at + 0);
    buffer.writeUInt32LE(value.isInMesh, at + 8);
    buffer.set(value.cgroupIp, at + 12);
    buffer.writeUInt16LE(value.flags, at + 28);
    buffer.writeUInt16LE(value.detectedFlags, at + 30);
    buffer.writeUInt32LE(value.slot, at + 32);
    buffer.writeUInt16LE(value.proxyMode, at + 36);
    buffer.set(value.cgroupIp6, at + 40);
    buffer.writeBigUInt64LE(value.netns, at + 56);
  },
  decode(buffer, at = 0) {
    return {
      id: buffer.readBigUInt64LE(at + 0),
      isInMesh: buffer.readUInt32LE(at + 8),
      cgroupIp: Uint8Array.from(buffer.subarray(at + 12, at + 12 + 16)),
      flags: buffer.readUInt16LE(at + 28),
      detectedFlags: buffer.readUInt16LE(at + 30),
      slot: buffer.readUInt32LE(at + 32),
      proxyMode: buffer.readUInt16LE(at + 36),
      cgroupIp6: Uint8Array.from(buffer.subarray(at + 40, at + 40 + 16)),
      netns: buffer.readBigUInt64LE(at + 56),
    };
  },
};

export interface SettingValue {
  readonly bytes: Uint8Array;
}

export const settingValue: Layout<SettingValue> = {
  name: 'setting_value',
  size: 16,
  fields: [
    { name: 'bytes', offset: 0, kind: 'u8', count: 16 },
  ],
  encode(value, buffer, at = 0) {
    buffer.set(value.bytes, at + 0);
  },
  decode(buffer, at = 0) {
    return {
      bytes: Uint8Array.from(buffer.subarray(at + 0, at + 0 + 16)),
    };
  },
};

export interface ProxyPorts {
  readonly outbound: number;
  readonly inbound: number;
}

export const proxyPorts: Layout<ProxyPorts> = {
  name: 'proxy_ports',
  size: 16,
  fields: [
    { name: 'outbound', offset: 0, kind: 'u16', count: 1 },
    { name: 'inbound', offset: 2, kind: 'u16', count: 1 },
    { name: 'reserved', offset: 4, kind: 'u32', count: 3 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 16);
    buffer.writeUInt16LE(value.outbound, at + 0);
    buffer.writeUInt16LE(value.inbound, at + 2);
  },
  decode(buffer, at = 0) {
    return {
      outbound: buffer.readUInt16LE(at + 0),
      inbound: buffer.readUInt16LE(at + 2),
    };
  },
};

export interface Policies {
  readonly unknownPods: number;
  readonly whenProxyDown: number;
  readonly proxyMode: number;
  readonly nestedNetworks: number;
  readonly otherNetworks: number;
}

export const policies: Layout<Policies> = {
  name: 'policies',
  size: 16,
  fields: [
    { name: 'unknown_pods', offset: 0, kind: 'u32', count: 1 },
    { name: 'when_proxy_down', offset: 4, kind: 'u32', count: 1 },
    { name: 'proxy_mode', offset: 8, kind: 'u16', count: 1 },
    { name: 'reserved', offset: 10, kind: 'u16', count: 1 },
    { name: 'nested_networks', offset: 12, kind: 'u16', count: 1 },
    { name: 'other_networks', offset: 14, kind: 'u16', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 16);
    buffer.writeUInt32LE(value.unknownPods, at + 0);
    buffer.writeUInt32LE(value.whenProxyDown, at + 4);
    buffer.writeUInt16LE(value.proxyMode, at + 8);
    buffer.writeUInt16LE(value.nestedNetworks, at + 12);
    buffer.writeUInt16LE(value.otherNetworks, at + 14);
  },
  decode(buffer, at = 0) {
    return {
      unknownPods: buffer.readUInt32LE(at + 0),
      whenProxyDown: buffer.readUInt32LE(at + 4),
      proxyMode: buffer.readUInt16LE(at + 8),
      nestedNetworks: buffer.readUInt16LE(at + 12),
      otherNetworks: buffer.readUInt16LE(at + 14),
    };
  },
};

export interface ProxyNetwork {
  readonly netns: bigint;
}

export const proxyNetwork: Layout<ProxyNetwork> = {
  name: 'proxy_network',
  size: 16,
  fields: [
    { name: 'netns', offset: 0, kind: 'u64', count: 1 },
    { name: 'reserved', offset: 8, kind: 'u64', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 16);
    buffer.writeBigUInt64LE(value.netns, at + 0);
  },
  decode(buffer, at = 0) {
    return {
      netns: buffer.readBigUInt64LE(at + 0),
    };
  },
};

export interface Address {
  readonly word: Uint8Array;
}

export const address: Layout<Address> = {
  name: 'address',
  size: 16,
  fields: [
    { name: 'word_be', offset: 0, kind: 'u32', count: 4 },
  ],
  encode(value, buffer, at = 0) {
    buffer.set(value.word, at + 0);
  },
  decode(buffer, at = 0) {
    return {
      word: Uint8Array.from(buffer.subarray(at + 0, at + 0 + 16)),
    };
  },
};

export interface PodAddress {
  readonly slot: number;
  readonly hasOptions: number;
}

export const podAddress: Layout<PodAddress> = {
  name: 'pod_address',
  size: 8,
  fields: [
    { name: 'slot', offset: 0, kind: 'u32', count: 1 },
    { name: 'has_options', offset: 4, kind: 'u32', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeUInt32LE(value.slot, at + 0);
    buffer.writeUInt32LE(value.hasOptions, at + 4);
  },
  decode(buffer, at = 0) {
    return {
      slot: buffer.readUInt32LE(at + 0),
      hasOptions: buffer.readUInt32LE(at + 4),
    };
  },
};

export interface PodOptions {
  readonly flags: number;
  readonly exemptUser: number;
}

export const podOptions: Layout<PodOptions> = {
  name: 'pod_options',
  size: 8,
  fields: [
    { name: 'flags', offset: 0, kind: 'u32', count: 1 },
    { name: 'exempt_user', offset: 4, kind: 'u32', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeUInt32LE(value.flags, at + 0);
    buffer.writeUInt32LE(value.exemptUser, at + 4);
  },
  decode(buffer, at = 0) {
    return {
      flags: buffer.readUInt32LE(at + 0),
      exemptUser: buffer.readUInt32LE(at + 4),
    };
  },
};

export interface PortKey {
  readonly slot: number;
  readonly list: number;
  readonly port: number;
}

export const portKey: Layout<PortKey> = {
  name: 'port_key',
  size: 8,
  fields: [
    { name: 'slot', offset: 0, kind: 'u32', count: 1 },
    { name: 'list', offset: 4, kind: 'u16', count: 1 },
    { name: 'port', offset: 6, kind: 'u16', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeUInt32LE(value.slot, at + 0);
    buffer.writeUInt16LE(value.list, at + 4);
    buffer.writeUInt16LE(value.port, at + 6);
  },
  decode(buffer, at = 0) {
    return {
      slot: buffer.readUInt32LE(at + 0),
      list: buffer.readUInt16LE(at + 4),
      port: buffer.readUInt16LE(at + 6),
    };
  },
};

export interface RangeKey {
  readonly prefixLength: number;
  readonly slot: number;
  readonly list: number;
  readonly address: Address;
}

export const rangeKey: Layout<RangeKey> = {
  name: 'range_key',
  size: 28,
  fields: [
    { name: 'prefix_length', offset: 0, kind: 'u32', count: 1 },
    { name: 'slot', offset: 4, kind: 'u32', count: 1 },
    { name: 'list', offset: 8, kind: 'u32', count: 1 },
    { name: 'address', offset: 12, kind: { struct: 'address' }, count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeUInt32LE(value.prefixLength, at + 0);
    buffer.writeUInt32LE(value.slot, at + 4);
    buffer.writeUInt32LE(value.list, at + 8);
    address.encode(value.address, buffer, at + 12);
  },
  decode(buffer, at = 0) {
    return {
      prefixLength: buffer.readUInt32LE(at + 0),
      slot: buffer.readUInt32LE(at + 4),
      list: buffer.readUInt32LE(at + 8),
      address: address.decode(buffer, at + 12),
    };
  },
};

export interface LocalKey {
  readonly slot: number;
  readonly address: Address;
}

export const localKey: Layout<LocalKey> = {
  name: 'local_key',
  size: 20,
  fields: [
    { name: 'slot', offset: 0, kind: 'u32', count: 1 },
    { name: 'address', offset: 4, kind: { struct: 'address' }, count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeUInt32LE(value.slot, at + 0);
    address.encode(value.address, buffer, at + 4);
  },
  decode(buffer, at = 0) {
    return {
      slot: buffer.readUInt32LE(at + 0),
      address: address.decode(buffer, at + 4),
    };
  },
};

export interface PodDevices {
  readonly ip4: number;
  readonly ip6: number;
}

export const podDevices: Layout<PodDevices> = {
  name: 'pod_devices',
  size: 8,
  fields: [
    { name: 'ip4', offset: 0, kind: 'u32', count: 1 },
    { name: 'ip6', offset: 4, kind: 'u32', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeUInt32LE(value.ip4, at + 0);
    buffer.writeUInt32LE(value.ip6, at + 4);
  },
  decode(buffer, at = 0) {
    return {
      ip4: buffer.readUInt32LE(at + 0),
      ip6: buffer.readUInt32LE(at + 4),
    };
  },
};

export interface PodCounters {
  readonly count: readonly bigint[];
}

export const podCounters: Layout<PodCounters> = {
  name: 'pod_counters',
  size: 256,
  fields: [
    { name: 'count', offset: 0, kind: 'u64', count: 32 },
  ],
  encode(value, buffer, at = 0) {
    writeWords(value.count, buffer, at + 0, 32);
  },
  decode(buffer, at = 0) {
    return {
      count: readWords(buffer, at + 0, 32),
    };
  },
};

export interface PodTrees {
  readonly count: number;
  readonly id: readonly bigint[];
}

export const podTrees: Layout<PodTrees> = {
  name: 'pod_trees',
  size: 72,
  fields: [
    { name: 'count', offset: 0, kind: 'u32', count: 1 },
    { name: 'reserved', offset: 4, kind: 'u32', count: 1 },
    { name: 'id', offset: 8, kind: 'u64', count: 8 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 72);
    buffer.writeUInt32LE(value.count, at + 0);
    writeWords(value.id, buffer, at + 8, 8);
  },
  decode(buffer, at = 0) {
    return {
      count: buffer.readUInt32LE(at + 0),
      id: readWords(buffer, at + 8, 8),
    };
  },
};

export interface PodKey {
  readonly text: string;
}

export const podKey: Layout<PodKey> = {
  name: 'pod_key',
  size: 40,
  fields: [
    { name: 'text', offset: 0, kind: 'char', count: 40 },
  ],
  encode(value, buffer, at = 0) {
    writeText(value.text, buffer, at + 0, 40);
  },
  decode(buffer, at = 0) {
    return {
      text: readText(buffer, at + 0, 40),
    };
  },
};

export interface CgroupEvent {
  readonly id: bigint;
  readonly parent: bigint;
  readonly change: number;
  readonly name: string;
}

export const cgroupEvent: Layout<CgroupEvent> = {
  name: 'cgroup_event',
  size: 152,
  fields: [
    { name: 'id', offset: 0, kind: 'u64', count: 1 },
    { name: 'parent', offset: 8, kind: 'u64', count: 1 },
    { name: 'change', offset: 16, kind: 'u32', count: 1 },
    { name: 'reserved', offset: 20, kind: 'u32', count: 1 },
    { name: 'name', offset: 24, kind: 'char', count: 128 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 152);
    buffer.writeBigUInt64LE(value.id, at + 0);
    buffer.writeBigUInt64LE(value.parent, at + 8);
    buffer.writeUInt32LE(value.change, at + 16);
    writeText(value.name, buffer, at + 24, 128);
  },
  decode(buffer, at = 0) {
    return {
      id: buffer.readBigUInt64LE(at + 0),
      parent: buffer.readBigUInt64LE(at + 8),
      change: buffer.readUInt32LE(at + 16),
      name: readText(buffer, at + 24, 128),
    };
  },
};

export interface PodInfo {
  readonly slot: number;
  readonly flags: number;
  readonly detectedFlags: number;
  readonly isInMesh: number;
  readonly namespaceMode: number;
  readonly ip4: Uint8Array;
  readonly ip6: Uint8Array;
  readonly netns: bigint;
  readonly proxyMode: number;
  readonly uid: string;
  readonly verdict: string;
  readonly reason: string;
  readonly podNamespace: string;
  readonly podName: string;
  readonly serviceAccount: string;
}

export const podInfo: Layout<PodInfo> = {
  name: 'pod_info',
  size: 720,
  fields: [
    { name: 'slot', offset: 0, kind: 'u32', count: 1 },
    { name: 'flags', offset: 4, kind: 'u16', count: 1 },
    { name: 'detected_flags', offset: 6, kind: 'u16', count: 1 },
    { name: 'is_in_mesh', offset: 8, kind: 'u32', count: 1 },
    { name: 'namespace_mode', offset: 12, kind: 'u32', count: 1 },
    { name: 'ip4', offset: 16, kind: 'u8', count: 16 },
    { name: 'ip6', offset: 32, kind: 'u8', count: 16 },
    { name: 'netns', offset: 48, kind: 'u64', count: 1 },
    { name: 'proxy_mode', offset: 56, kind: 'u16', count: 1 },
    { name: 'reserved', offset: 58, kind: 'u16', count: 1 },
    { name: 'reserved2', offset: 60, kind: 'u32', count: 1 },
    { name: 'uid', offset: 64, kind: 'char', count: 40 },
    { name: 'verdict', offset: 104, kind: 'char', count: 8 },
    { name: 'reason', offset: 112, kind: 'char', count: 32 },
    { name: 'pod_namespace', offset: 144, kind: 'char', count: 64 },
    { name: 'pod_name', offset: 208, kind: 'char', count: 256 },
    { name: 'service_account', offset: 464, kind: 'char', count: 256 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 720);
    buffer.writeUInt32LE(value.slot, at + 0);
    buffer.writeUInt16LE(value.flags, at + 4);
    buffer.writeUInt16LE(value.detectedFlags, at + 6);
    buffer.writeUInt32LE(value.isInMesh, at + 8);
    buffer.writeUInt32LE(value.namespaceMode, at + 12);
    buffer.set(value.ip4, at + 16);
    buffer.set(value.ip6, at + 32);
    buffer.writeBigUInt64LE(value.netns, at + 48);
    buffer.writeUInt16LE(value.proxyMode, at + 56);
    writeText(value.uid, buffer, at + 64, 40);
    writeText(value.verdict, buffer, at + 104, 8);
    writeText(value.reason, buffer, at + 112, 32);
    writeText(value.podNamespace, buffer, at + 144, 64);
    writeText(value.podName, buffer, at + 208, 256);
    writeText(value.serviceAccount, buffer, at + 464, 256);
  },
  decode(buffer, at = 0) {
    return {
      slot: buffer.readUInt32LE(at + 0),
      flags: buffer.readUInt16LE(at + 4),
      detectedFlags: buffer.readUInt16LE(at + 6),
      isInMesh: buffer.readUInt32LE(at + 8),
      namespaceMode: buffer.readUInt32LE(at + 12),
      ip4: Uint8Array.from(buffer.subarray(at + 16, at + 16 + 16)),
      ip6: Uint8Array.from(buffer.subarray(at + 32, at + 32 + 16)),
      netns: buffer.readBigUInt64LE(at + 48),
      proxyMode: buffer.readUInt16LE(at + 56),
      uid: readText(buffer, at + 64, 40),
      verdict: readText(buffer, at + 104, 8),
      reason: readText(buffer, at + 112, 32),
      podNamespace: readText(buffer, at + 144, 64),
      podName: readText(buffer, at + 208, 256),
      serviceAccount: readText(buffer, at + 464, 256),
    };
  },
};

export interface AgentInfo {
  readonly startedMs: bigint;
  readonly beatMs: bigint;
  readonly pid: number;
  readonly rootLevel: number;
  readonly rootId: bigint;
  readonly netns: bigint;
  readonly version: string;
  readonly node: string;
  readonly http: string;
}

export const agentInfo: Layout<AgentInfo> = {
  name: 'agent_info',
  size: 392,
  fields: [
    { name: 'started_ms', offset: 0, kind: 'u64', count: 1 },
    { name: 'beat_ms', offset: 8, kind: 'u64', count: 1 },
    { name: 'pid', offset: 16, kind: 'u32', count: 1 },
    { name: 'root_level', offset: 20, kind: 'u32', count: 1 },
    { name: 'root_id', offset: 24, kind: 'u64', count: 1 },
    { name: 'netns', offset: 32, kind: 'u64', count: 1 },
    { name: 'version', offset: 40, kind: 'char', count: 32 },
    { name: 'node', offset: 72, kind: 'char', count: 256 },
    { name: 'http', offset: 328, kind: 'char', count: 64 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeBigUInt64LE(value.startedMs, at + 0);
    buffer.writeBigUInt64LE(value.beatMs, at + 8);
    buffer.writeUInt32LE(value.pid, at + 16);
    buffer.writeUInt32LE(value.rootLevel, at + 20);
    buffer.writeBigUInt64LE(value.rootId, at + 24);
    buffer.writeBigUInt64LE(value.netns, at + 32);
    writeText(value.version, buffer, at + 40, 32);
    writeText(value.node, buffer, at + 72, 256);
    writeText(value.http, buffer, at + 328, 64);
  },
  decode(buffer, at = 0) {
    return {
      startedMs: buffer.readBigUInt64LE(at + 0),
      beatMs: buffer.readBigUInt64LE(at + 8),
      pid: buffer.readUInt32LE(at + 16),
      rootLevel: buffer.readUInt32LE(at + 20),
      rootId: buffer.readBigUInt64LE(at + 24),
      netns: buffer.readBigUInt64LE(at + 32),
      version: readText(buffer, at + 40, 32),
      node: readText(buffer, at + 72, 256),
      http: readText(buffer, at + 328, 64),
    };
  },
};

export interface PodShare {
  readonly connections: bigint;
  readonly originals: bigint;
}

export const podShare: Layout<PodShare> = {
  name: 'pod_share',
  size: 16,
  fields: [
    { name: 'connections', offset: 0, kind: 'u64', count: 1 },
    { name: 'originals', offset: 8, kind: 'u64', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.writeBigUInt64LE(value.connections, at + 0);
    buffer.writeBigUInt64LE(value.originals, at + 8);
  },
  decode(buffer, at = 0) {
    return {
      connections: buffer.readBigUInt64LE(at + 0),
      originals: buffer.readBigUInt64LE(at + 8),
    };
  },
};

export interface Tuple {
  readonly netns: bigint;
  readonly client: Address;
  readonly clientPort: number;
  readonly isn: number;
}

export const tuple: Layout<Tuple> = {
  name: 'tuple',
  size: 32,
  fields: [
    { name: 'netns', offset: 0, kind: 'u64', count: 1 },
    { name: 'client', offset: 8, kind: { struct: 'address' }, count: 1 },
    { name: 'client_port_be', offset: 24, kind: 'u16', count: 1 },
    { name: 'reserved', offset: 26, kind: 'u16', count: 1 },
    { name: 'isn', offset: 28, kind: 'u32', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 32);
    buffer.writeBigUInt64LE(value.netns, at + 0);
    address.encode(value.client, buffer, at + 8);
    buffer.writeUInt16BE(value.clientPort, at + 24);
    buffer.writeUInt32LE(value.isn, at + 28);
  },
  decode(buffer, at = 0) {
    return {
      netns: buffer.readBigUInt64LE(at + 0),
      client: address.decode(buffer, at + 8),
      clientPort: buffer.readUInt16BE(at + 24),
      isn: buffer.readUInt32LE(at + 28),
    };
  },
};

export interface OriginalDst {
  readonly address: Address;
  readonly port: number;
  readonly slot: number;
  readonly atNs: bigint;
  readonly service: number;
  readonly waypoint: number;
}

export const originalDst: Layout<OriginalDst> = {
  name: 'original_dst',
  size: 40,
  fields: [
    { name: 'address', offset: 0, kind: { struct: 'address' }, count: 1 },
    { name: 'port_be', offset: 16, kind: 'u16', count: 1 },
    { name: 'reserved', offset: 18, kind: 'u16', count: 1 },
    { name: 'slot', offset: 20, kind: 'u32', count: 1 },
    { name: 'at_ns', offset: 24, kind: 'u64', count: 1 },
    { name: 'service', offset: 32, kind: 'u32', count: 1 },
    { name: 'waypoint', offset: 36, kind: 'u32', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 40);
    address.encode(value.address, buffer, at + 0);
    buffer.writeUInt16BE(value.port, at + 16);
    buffer.writeUInt32LE(value.slot, at + 20);
    buffer.writeBigUInt64LE(value.atNs, at + 24);
    buffer.writeUInt32LE(value.service, at + 32);
    buffer.writeUInt32LE(value.waypoint, at + 36);
  },
  decode(buffer, at = 0) {
    return {
      address: address.decode(buffer, at + 0),
      port: buffer.readUInt16BE(at + 16),
      slot: buffer.readUInt32LE(at + 20),
      atNs: buffer.readBigUInt64LE(at + 24),
      service: buffer.readUInt32LE(at + 32),
      waypoint: buffer.readUInt32LE(at + 36),
    };
  },
};

export interface Connection {
  readonly original: OriginalDst;
  readonly tuple: Tuple;
  readonly proxy: Address;
  readonly proxyPort: number;
}

export const connection: Layout<Connection> = {
  name: 'connection',
  size: 96,
  fields: [
    { name: 'original', offset: 0, kind: { struct: 'original_dst' }, count: 1 },
    { name: 'tuple', offset: 40, kind: { struct: 'tuple' }, count: 1 },
    { name: 'proxy', offset: 72, kind: { struct: 'address' }, count: 1 },
    { name: 'proxy_port_be', offset: 88, kind: 'u16', count: 1 },
    { name: 'reserved', offset: 90, kind: 'u16', count: 1 },
    { name: 'reserved2', offset: 92, kind: 'u32', count: 1 },
  ],
  encode(value, buffer, at = 0) {
    buffer.fill(0, at, at + 96);
    originalDst.encode(value.original, buffer, at + 0);
    tuple.encode(value.tuple, buffer, at + 40);
    address.encode(value.proxy, buffer, at + 72);
    buffer.writeUInt16BE(value.proxyPort, at + 88);
  },
  decode(buffer, at = 0) {
    return {
      original: originalDst.decode(buffer, at + 0),
      tuple: tuple.decode(buffer, at + 40),
      proxy: address.decode(buffer, at + 72),
      proxyPort: buffer.readUInt16BE(at + 88),
    };
  },
};

export const layouts = [cgroupInfo, settingValue, proxyPorts, policies, proxyNetwork, address, podAddress, podOptions, portKey, rangeKey, localKey, podDevices, podCounters, podTrees, podKey, cgroupEvent, podInfo, agentInfo, podShare, tuple, originalDst, connection] as const;

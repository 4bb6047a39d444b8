/**
 * The parts of the agent: a feature has one line here and nothing in node-agent.ts.
 * Each moment and each fact goes through the list in this order, the end of the
 * agent from its end.
 */
import type { AgentCore } from './agent-core.ts';
import type { AgentPart } from './agent-part.ts';
import { connectionResetPart } from './parts/connection-reset-part.ts';
import { connectionFailuresPart } from './parts/connection-failures-part.ts';
import { endedPodsPart } from './parts/ended-pods-part.ts';
import { handoffPart } from './parts/handoff-part.ts';
import { nodeProxyPart } from './parts/node-proxy-part.ts';
import { originalsPart } from './parts/originals-part.ts';
import { podMarksPart } from './parts/pod-marks-part.ts';
import { podNetworksPart } from './parts/pod-networks-part.ts';
import { podTreesPart } from './parts/pod-trees-part.ts';
import { reconcilerPart } from './parts/reconciler-part.ts';
import { recordPart } from './parts/record-part.ts';
import { sidecarsPart } from './parts/sidecars-part.ts';
import { startupTaintPart } from './parts/startup-taint-part.ts';
import { unknownPodsPart } from './parts/unknown-pods-part.ts';

/** Attaches nothing and writes nothing. @throws CgrouteError `EBPF` when the maps cannot be read */
export function agentParts(core: AgentCore): readonly AgentPart[] {
  const parts = [
    recordPart(core),
    // What is redirected can be handed over; and a tree is listed before what is in it is written.
    handoffPart(core),
    podTreesPart(core),
    reconcilerPart(core),
    endedPodsPart(core),
    podNetworksPart(core),
    // These follow from what stands in the maps.
    sidecarsPart(core),
    nodeProxyPart(core),
    connectionResetPart(core),
    connectionFailuresPart(core),
    unknownPodsPart(core),
    podMarksPart(core),
    originalsPart(core),
    // When all of them are ready, pods may come.
    startupTaintPart(core),
  ];
  return parts.filter((part) => part !== undefined);
}

/** ZDS as a protobuf library has it, for tests: written from the protocol's messages and not from the agent's code. */
import protobuf from 'protobufjs';

export const { root: zds } = protobuf.parse(`
  syntax = "proto3";
  message WorkloadNames { string name = 1; string namespace = 2; string service_account = 3; }
  message Add { string uid = 1; WorkloadNames names = 2; }
  message Del { string uid = 2; }
  message SnapshotSent {}
  message Keep { string uid = 1; }
  message Request { oneof payload { Add add = 1; Del del = 2; SnapshotSent snapshot_sent = 3; Keep keep = 5; } }
  message Ack { string error = 1; }
  message Response { oneof payload { Ack ack = 1; } }
  message Hello { int32 version = 1; }
  // Of a ztunnel that is newer: fields that nobody here knows.
  message NewerAck { string error = 1; uint64 a = 2; fixed64 b = 3; bytes c = 4; fixed32 d = 500; }
  message NewerResponse { NewerAck ack = 1; sint64 e = 7; string f = 15; }
  message NewerHello { int32 version = 1; uint64 a = 2; string b = 3; double c = 4; float d = 16; }
`);

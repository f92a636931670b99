"""Prints the official messages of the Open Inference Protocol, a FileDescriptorSet in hexadecimal digits."""

from __future__ import annotations

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

if __name__ == "__main__":
    files = descriptor_pb2.FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    print(files.SerializeToString().hex())

"""Our .proto files against the official ones, and the pool that they live in."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from appliance.protocols import protos
from tests.support import clients, official_protos

FOLDER = os.path.dirname(protos.__file__)
Field = descriptor_pb2.FieldDescriptorProto


@pytest.fixture(scope="module")
def official() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(official_protos.ask("descriptors"))


@pytest.fixture(scope="module")
def official_v2() -> descriptor_pb2.FileDescriptorSet:
    printed = clients.run("tritonclient", "triton_descriptors.py")
    return descriptor_pb2.FileDescriptorSet.FromString(bytes.fromhex(printed))


@pytest.fixture(scope="module")
def ours() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(Path(FOLDER, "dropserve.binpb").read_bytes())


def messages(files: descriptor_pb2.FileDescriptorSet) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def add(prefix: str, message: Any) -> None:
        found[f"{prefix}.{message.name}"] = message
        for nested in message.nested_type:
            add(f"{prefix}.{message.name}", nested)

    for file in files.file:
        for message in file.message_type:
            add(file.package, message)
    return found


def enums(files: descriptor_pb2.FileDescriptorSet) -> dict[str, dict[str, int]]:
    found = [(f"{file.package}.{enum.name}", enum) for file in files.file for enum in file.enum_type]
    for name, message in messages(files).items():
        found += [(f"{name}.{enum.name}", enum) for enum in message.enum_type]
    return {name: {value.name: value.number for value in enum.value} for name, enum in found}


def described(message: Any) -> dict[int, tuple[Any, ...]]:
    """By number, all that decides how a field is written and reached."""
    return {
        field.number: (
            field.name,
            field.label,
            field.type,
            field.type_name,
            field.proto3_optional,
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None,
            # An explicit [packed = true] says what proto3 does anyway.
            field.options.packed if field.options.HasField("packed") else True,
        )
        for field in message.field
    }


# The files behind flags, which the official package leaves out.
NOT_PACKAGED = {
    f"tensorflow.serving.{name}" for name in ("BatchingParameters", "MonitoringConfig", "PrometheusConfig", "SSLConfig")
} | {
    f"tensorflow.{name}"
    for call in ("Monitor", "Profile", "Terminate")
    for name in (f"{call}Options", f"{call}Request", f"{call}Response", f"{call}ToolData")
}


def test_every_field_is_the_official_one(
    ours: descriptor_pb2.FileDescriptorSet, official: descriptor_pb2.FileDescriptorSet
) -> None:
    theirs = messages(official)
    for name, message in messages(ours).items():
        if name.startswith("inference."):
            continue  # below
        if name.startswith("dropserve."):
            continue  # views of our own, which tests of those who use them compare with the official messages
        if name in NOT_PACKAGED:
            assert name not in theirs, f"{name} can be compared by now"
            continue
        assert described(message).items() <= described(theirs[name]).items(), name
        assert message.options.map_entry == theirs[name].options.map_entry, name


def test_every_enum_value_is_the_official_one(
    ours: descriptor_pb2.FileDescriptorSet, official: descriptor_pb2.FileDescriptorSet
) -> None:
    theirs = enums(official)
    for name, values in enums(ours).items():
        if not name.startswith("inference."):
            assert values.items() <= theirs[name].items(), name


def test_the_open_inference_protocol_is_the_official_one(
    ours: descriptor_pb2.FileDescriptorSet, official_v2: descriptor_pb2.FileDescriptorSet
) -> None:
    theirs = messages(official_v2)
    compared = [name for name in messages(ours) if name.startswith("inference.")]
    assert len(compared) > 30
    for name in compared:
        assert described(messages(ours)[name]).items() <= described(theirs[name]).items(), name
    assert enums(ours)["inference.DataType"] == enums(official_v2)["inference.DataType"]


def test_the_methods_of_the_open_inference_protocol_are_official_ones(
    ours: descriptor_pb2.FileDescriptorSet, official_v2: descriptor_pb2.FileDescriptorSet
) -> None:
    def methods(files: descriptor_pb2.FileDescriptorSet) -> dict[str, tuple[Any, ...]]:
        return {
            method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            for file in files.file
            for service in file.service
            if service.name == "GRPCInferenceService"
            for method in service.method
        }

    assert methods(ours).items() <= methods(official_v2).items()
    assert len(methods(ours)) == 9


def test_every_dtype_has_its_name(official: descriptor_pb2.FileDescriptorSet) -> None:
    assert dict(protos.DataType.items()) == enums(official)["tensorflow.DataType"]


def test_both_services_have_the_official_methods(
    ours: descriptor_pb2.FileDescriptorSet, official: descriptor_pb2.FileDescriptorSet
) -> None:
    def methods(files: descriptor_pb2.FileDescriptorSet) -> dict[str, list[tuple[Any, ...]]]:
        return {
            f"{file.package}.{service.name}": sorted(
                (m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in service.method
            )
            for file in files.file
            for service in file.service
            if file.package == "tensorflow.serving"  # the profiler's is in no Python package
        }

    assert methods(ours) == methods(official)
    assert len(methods(ours)) == 2


def test_committed_descriptors_are_what_the_protos_compile_to(tmp_path: Path) -> None:
    compiled = tmp_path / "dropserve.binpb"
    sources = sorted(glob.glob(os.path.join(FOLDER, "*.proto")))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", FOLDER, "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={compiled}", *sources], check=True, timeout=60)
    assert compiled.read_bytes() == Path(FOLDER, "dropserve.binpb").read_bytes(), "run `make protos`"


def test_pool_is_private_and_complete_for_reflection() -> None:
    for service in ("PredictionService", "ModelService"):
        assert protos.POOL.FindServiceByName(f"tensorflow.serving.{service}").methods
    assert protos.POOL.FindMessageTypeByName("google.protobuf.BoolValue").fields
    assert protos.POOL is not descriptor_pool.Default()
    assert protos.TensorProto.DESCRIPTOR.file.pool is protos.POOL


def test_any_carries_a_message_of_the_pool() -> None:
    definitions = protos.SignatureDefMap()
    definitions.signature_def["serve"].method_name = "predict"
    packed = protos.AnyProto()
    packed.Pack(definitions)
    unpacked = protos.SignatureDefMap()
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    assert packed.Unpack(unpacked)
    assert unpacked == definitions

"""Talks to a server with the official tensorflow-serving-api stubs, and prints what came back as one JSON object.

A process of its own: the official protos and TensorFlow stay out of the tests' process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.python.framework import tensor_util
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

from tests.support.official_protos import samples

SAMPLES = {name: array.reshape(-1) for name, array in samples().items()}


def main(port: int) -> dict[str, Any]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    models = model_service_pb2_grpc.ModelServiceStub(channel)

    def predict(
        model: str,
        inputs: dict[str, Any],
        signature: str = "",
        output_filter: list[str] | None = None,
        version: int | None = None,
        label: str = "",
    ) -> predict_pb2.PredictResponse:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        if label:
            request.model_spec.version_label = label
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(
                value if isinstance(value, tf.compat.v1.make_tensor_proto(0).__class__) else tf.make_tensor_proto(value)
            )
        request.output_filter.extend(output_filter or [])
        return stub.Predict(request, timeout=30, metadata=[("authorization", "Bearer of a token that nobody checks")])

    def metadata_of(model: str | None, *metadata_fields: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=metadata_fields)
        if model is not None:
            request.model_spec.name = model
        return stub.GetModelMetadata(request, timeout=30)

    def status_of(model: str, version: int | None = None) -> Any:
        request = status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        return models.GetModelStatus(request, timeout=30)

    def values(response: predict_pb2.PredictResponse) -> dict[str, Any]:
        found = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
        return {
            "spec": [
                response.model_spec.name,
                response.model_spec.version.value,
                response.model_spec.signature_name,
            ],
            "outputs": {name: _texts(a) for name, a in found.items()},
            "typed": {name: not proto.tensor_content for name, proto in response.outputs.items()},
        }

    def error(call: Callable[[], Any]) -> list[str]:
        try:
            call()
        except grpc.RpcError as failure:
            return [failure.code().name, failure.details()]
        return ["OK", ""]

    x = np.array([1.0, 2.0, 5.0], np.float32)
    # An attached tensor_content, and a large tensor that goes through shared memory.
    content = tf.compat.v1.make_tensor_proto(x)
    content.ClearField("float_val")
    content.tensor_content = x.tobytes()
    large = np.arange(4_000_000, dtype=np.float32) % 1000
    repeated = tf.compat.v1.make_tensor_proto(np.zeros(3, np.float32))
    repeated.ClearField("tensor_content")
    repeated.ClearField("float_val")
    repeated.float_val.append(4.0)

    excess = tf.compat.v1.make_tensor_proto(np.array([1], np.int32))
    excess.ClearField("tensor_content")
    excess.int_val[:] = [1, 2, 3]
    bad = tf.compat.v1.make_tensor_proto(x)
    bad.tensor_shape.dim[0].size = -1
    huge = tf.compat.v1.make_tensor_proto(x[:1])
    huge.tensor_shape.dim[0].size = 10**13

    def definitions_of(model: str) -> Any:
        definitions = get_model_metadata_pb2.SignatureDefMap()
        # A field that is asked for twice is no mistake.
        metadata_of(model, "signature_def", "signature_def").metadata["signature_def"].Unpack(definitions)
        return definitions

    reload_request = model_management_pb2.ReloadConfigRequest()
    reload_request.config.model_config_list.config.add(name="etc", base_path="/etc", model_platform="tensorflow")
    large_answer = tf.make_ndarray(predict("half_plus_two", {"x": large}).outputs["y"])

    return {
        "float_val": values(predict("half_plus_two", {"x": x})),
        "content": values(predict("half_plus_two", {"x": content})),
        "repeated": values(predict("half_plus_two", {"x": repeated})),
        "version": values(predict("half_plus_two", {"x": x}, version=1)),
        "large": bool((large_answer == large / 2 + 2).all()),
        "strings": values(predict("strings", _strings(stub))),
        "lists": {
            name: values(predict("dtypes", {"x": _listed(array)}, signature=name))["outputs"]["y"]
            for name, array in SAMPLES.items()
        },
        "contents": {
            name: values(predict("dtypes", {"x": array}, signature=name))["outputs"]["y"]
            for name, array in SAMPLES.items()
        },
        "excess": values(predict("multi_io", {"a": np.ones((1, 3), np.float32), "b": excess}))["outputs"],
        "filtered": values(predict("strings", {"text": np.array([b"ab"])}, output_filter=["length", "upper"]))[
            "outputs"
        ],
        "defaults": {
            "all": values(predict("defaults", {"x": x}))["outputs"],
            "one": values(predict("defaults", {"x": x, "scale": np.float32(3)}))["outputs"],
            "none": values(predict("defaults", {"x": x, "scale": np.float32(3), "unit": b"km"}))["outputs"],
            "metadata": {
                name: _texts(tf.make_ndarray(proto))
                for name, proto in definitions_of("defaults").signature_def["serving_default"].defaults.items()
            },
        },
        "status": json_format.MessageToDict(status_of("half_plus_two")),
        "metadata": json_format.MessageToDict(definitions_of("half_plus_two")),
        "errors": {
            "unknown model": error(lambda: predict("unknown", {"x": x})),
            "unknown version": error(lambda: predict("half_plus_two", {"x": x}, version=7)),
            "unknown signature": error(lambda: predict("half_plus_two", {"x": x}, signature="nope")),
            "wrong input": error(lambda: predict("half_plus_two", {"z": x})),
            "wrong dtype": error(lambda: predict("half_plus_two", {"x": x.astype(np.int64)})),
            "unknown output": error(lambda: predict("half_plus_two", {"x": x}, output_filter=["nope"])),
            "same output twice": error(lambda: predict("half_plus_two", {"x": x}, output_filter=["y", "y"])),
            "other name": error(lambda: predict("multi_io", {"a": x, "z": x})),
            "one input too few": error(lambda: predict("multi_io", {"a": x})),
            "default and an extra input": error(lambda: predict("defaults", {"x": x, "z": x})),
            "no default": error(lambda: predict("defaults", {"scale": np.float32(3)})),
            "wrong dtype of two": error(lambda: predict("multi_io", {"a": x, "b": x})),
            "bad tensor of an unknown model": error(lambda: predict("unknown", {"x": bad})),
            "bad tensor of an unknown signature": error(lambda: predict("half_plus_two", {"x": bad}, signature="nope")),
            "bad tensor of an unknown input": error(lambda: predict("half_plus_two", {"z": bad})),
            "bad tensor": error(lambda: predict("half_plus_two", {"x": bad}, output_filter=["nope"])),
            "wrong dtype and output": error(
                lambda: predict("half_plus_two", {"x": x.astype(np.int64)}, output_filter=["nope"])
            ),
            "huge claim": error(lambda: predict("half_plus_two", {"x": huge})),
            "unknown label": error(lambda: predict("half_plus_two", {"x": x}, label="canary")),
            "no model spec": error(lambda: stub.Predict(predict_pb2.PredictRequest(), timeout=30)),
            "no model name": error(lambda: predict("", {"x": x})),
            "long message": error(lambda: predict("half_plus_two", {"z" * 2000: x, "x": x})),
            "metadata without a spec": error(lambda: metadata_of(None, "signature_def")),
            "metadata of nothing": error(lambda: metadata_of("unknown")),
            "metadata of something else": error(lambda: metadata_of("unknown", "signature_def", "graph")),
            "metadata of an unknown model": error(lambda: metadata_of("unknown", "signature_def")),
            "status without a spec": error(lambda: models.GetModelStatus(status_pb2.GetModelStatusRequest())),
            "status of an unknown model": error(lambda: status_of("unknown")),
            "status of an unknown version": error(lambda: status_of("half_plus_two", 7)),
            "reload by TCP": error(lambda: models.HandleReloadConfigRequest(reload_request, timeout=30)),
        },
    }


def _texts(array: np.ndarray) -> list[str]:
    return [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]


def _listed(array: np.ndarray) -> Any:
    """The array in the list of its type, never in tensor_content."""
    message = tf.make_tensor_proto(array)
    message.ClearField("tensor_content")
    if array.dtype != object:
        tensor_util.GetNumpyAppendFn(array.dtype)(message, array)
    return message


def _strings(stub: Any) -> dict[str, Any]:
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "strings"
    request.metadata_field.append("signature_def")
    found = get_model_metadata_pb2.SignatureDefMap()
    stub.GetModelMetadata(request, timeout=30).metadata["signature_def"].Unpack(found)
    return {name: np.array([b"a", b"\xff\x00z"]) for name in found.signature_def["serving_default"].inputs}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))

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
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


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
    ) -> predict_pb2.PredictResponse:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(
                value if isinstance(value, tf.compat.v1.make_tensor_proto(0).__class__) else tf.make_tensor_proto(value)
            )
        request.output_filter.extend(output_filter or [])
        return stub.Predict(request, timeout=30)

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

    status_request = get_model_status_pb2.GetModelStatusRequest()
    status_request.model_spec.name = "half_plus_two"
    metadata_request = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata_request.model_spec.name = "half_plus_two"
    metadata_request.metadata_field.append("signature_def")
    metadata = stub.GetModelMetadata(metadata_request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    metadata.metadata["signature_def"].Unpack(signatures)
    large_answer = tf.make_ndarray(predict("half_plus_two", {"x": large}).outputs["y"])

    return {
        "float_val": values(predict("half_plus_two", {"x": x})),
        "content": values(predict("half_plus_two", {"x": content})),
        "repeated": values(predict("half_plus_two", {"x": repeated})),
        "version": values(predict("half_plus_two", {"x": x}, version=1)),
        "large": bool((large_answer == large / 2 + 2).all()),
        "strings": values(predict("strings", _strings(stub))),
        "status": json_format.MessageToDict(models.GetModelStatus(status_request, timeout=30)),
        "metadata": json_format.MessageToDict(signatures),
        "errors": {
            "unknown model": error(lambda: predict("unknown", {"x": x})),
            "unknown version": error(lambda: predict("half_plus_two", {"x": x}, version=7)),
            "unknown signature": error(lambda: predict("half_plus_two", {"x": x}, signature="nope")),
            "wrong input": error(lambda: predict("half_plus_two", {"z": x})),
            "wrong dtype": error(lambda: predict("half_plus_two", {"x": x.astype(np.int64)})),
            "unknown output": error(lambda: predict("half_plus_two", {"x": x}, output_filter=["nope"])),
            "same output twice": error(lambda: predict("half_plus_two", {"x": x}, output_filter=["y", "y"])),
            "classify": error(lambda: stub.Classify(predict_pb2.PredictRequest(), timeout=30)),
        },
    }


def _texts(array: np.ndarray) -> list[str]:
    return [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]


def _strings(stub: Any) -> dict[str, Any]:
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "strings"
    request.metadata_field.append("signature_def")
    found = get_model_metadata_pb2.SignatureDefMap()
    stub.GetModelMetadata(request, timeout=30).metadata["signature_def"].Unpack(found)
    return {name: np.array([b"a", b"\xff\x00z"]) for name in found.signature_def["serving_default"].inputs}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))

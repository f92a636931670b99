"""Sends TensorFlow Lite models what the official tensorflow-serving-api stubs send; prints the answers as JSON.

A process of its own, as tests/support/official_client.py.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc


def main(port: int) -> dict[str, Any]:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))

    def predict(model: str, signature: str, **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        try:
            response = stub.Predict(request, timeout=60)
        except grpc.RpcError as error:
            return [error.code().name, error.details()]
        found = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
        return {name: [str(value) for value in array.reshape(-1)] for name, array in sorted(found.items())}

    def metadata(model: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest()
        request.model_spec.name = model
        request.metadata_field.append("signature_def")
        found = get_model_metadata_pb2.SignatureDefMap()
        stub.GetModelMetadata(request, timeout=60).metadata["signature_def"].Unpack(found)
        return json_format.MessageToDict(found)["signatureDef"]

    x = np.array([1, 2, 5], np.float32)
    return {
        "lite": predict("lite", "", x=x),
        "multi": predict("lite", "multi", a=np.ones((2, 3), np.float32), b=np.array([1, 2], np.int32)),
        "strings": predict("lite_dtypes", "string", x=np.array([b"a", b"\xff\x00z", b""], object)),
        "half": predict("lite_dtypes", "float16", x=np.array([0.5, 2], np.float16)),
        "old": predict("lite_old", "", x=np.array([2.0], np.float32)),
        "no signature": predict("lite", "nope", x=x),
        "wrong shape": predict("lite", "multi", a=np.ones((2, 4), np.float32), b=np.array([1, 2], np.int32)),
        "wrong type": predict("lite", "", x=np.array([1], np.int64)),
        "refused value": predict("lite_gather", "", x=np.ones((2, 2), np.float32), index=np.array([7], np.int32)),
        "metadata": metadata("lite"),
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))

"""`python -m tests.rpm.grpc_predict PORT`: a Predict with the official stubs, and its outputs as JSON."""

from __future__ import annotations

import json
import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

if __name__ == "__main__":
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}"))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    answer = stub.Predict(request, timeout=60)
    print(json.dumps({name: tf.make_ndarray(tensor).tolist() for name, tensor in answer.outputs.items()}))

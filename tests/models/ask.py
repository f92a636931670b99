"""Asks a server for each model's answers over gRPC and REST, and compares them with those that a judge has written.

A process of its own, with TensorFlow Serving's official stubs: `python -m tests.models.ask REST_PORT GRPC_PORT RTOL
ANSWERS NAME…` prints a JSON object that has, for each model, what was wrong: nothing, if all is well.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.models.catalogue import MODELS
from tests.models.compare import Arrays, differences
from tests.models.model import Model

_DEADLINE_SECONDS = 120.0

# -- gRPC


def by_grpc(stub: Any, model: str, signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    answer = stub.Predict(request, timeout=_DEADLINE_SECONDS)
    return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}


# -- REST


def _to_json(value: np.ndarray) -> Any:
    if value.dtype != object:
        return (value.astype("float64") if value.dtype.kind in "fV" else value).tolist()
    encoded = np.empty(value.shape, object)
    for at in np.ndindex(value.shape):
        encoded[at] = {"b64": base64.b64encode(value[at]).decode()}
    return encoded.tolist()


def _from_json(value: Any, like: np.ndarray) -> np.ndarray:
    """The array of JSON's `value`, of the element type of `like`."""
    if like.dtype != object:
        return np.array(value, like.dtype)
    found = np.empty(like.shape, object)
    for at in np.ndindex(like.shape):
        element = value
        for index in at:
            element = element[index]
        found[at] = base64.b64decode(element["b64"]) if isinstance(element, dict) else element.encode()
    return found


class Rest:
    """TensorFlow Serving's REST API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def post(self, model: str, document: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_DEADLINE_SECONDS)
        try:
            connection.request("POST", f"/v1/models/{model}:predict", json.dumps(document).encode())
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                raise RuntimeError(f"{response.status} {answer.get('error', '')}")
            return answer
        finally:
            connection.close()

    def columns(self, model: str, signature: str, inputs: Arrays, expected: Arrays) -> dict[str, np.ndarray]:
        document = {"signature_name": signature, "inputs": {name: _to_json(value) for name, value in inputs.items()}}
        outputs = self.post(model, document)["outputs"]
        named = outputs if isinstance(outputs, dict) and len(expected) > 1 else dict.fromkeys(expected, outputs)
        return {name: _from_json(value, expected[name]) for name, value in named.items()}

    def rows(self, model: str, signature: str, inputs: Arrays, expected: Arrays) -> dict[str, np.ndarray]:
        columns = {name: _to_json(value) for name, value in inputs.items()}
        count = len(next(iter(columns.values())))
        instances = [{name: value[row] for name, value in columns.items()} for row in range(count)]
        rows = self.post(model, {"signature_name": signature, "instances": instances})["predictions"]
        if len(expected) == 1:
            (name,) = expected
            return {name: _from_json(rows, expected[name])}
        return {name: _from_json([row[name] for row in rows], value) for name, value in expected.items()}


def _in_json(arrays: Arrays) -> bool:
    """Whether JSON can carry them: it has no complex numbers."""
    return all(value.dtype.kind != "c" for value in arrays.values())


def _in_rows(inputs: Arrays, expected: Arrays, batch: int) -> bool:
    return all(value.ndim and len(value) == batch for value in (*inputs.values(), *expected.values()))


# -- all of it


def faults_of(model: Model, stub: Any, rest: Rest, answers: Path, relative: float) -> list[str]:
    faults = []

    def compare(what: str, expected: Arrays, ask: Callable[[], Arrays]) -> None:
        try:
            told = differences(expected, ask(), relative)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError, grpc.RpcError) as error:
            told = error.details() if isinstance(error, grpc.RpcError) else f"{type(error).__name__}: {error}"
        if told:
            faults.append(f"{what}: {told}")

    for signature in model.signatures:
        for batch in model.batches:
            inputs = model.inputs(signature, batch)
            path = answers / model.name / signature / f"{batch}.pb"
            written = predict_pb2.PredictResponse.FromString(path.read_bytes())
            expected = {name: tf.make_ndarray(value) for name, value in written.outputs.items()}
            where = (model.name, signature, inputs)
            what = f"{signature}, batch {batch}"
            compare(f"{what}, gRPC", expected, lambda: by_grpc(stub, *where))  # noqa: B023  (called at once)
            # TensorFlow Serving's REST API takes no request without an input.
            if model.rest and inputs and _in_json(inputs) and _in_json(expected):
                compare(f"{what}, REST", expected, lambda: rest.columns(*where, expected))  # noqa: B023
                if _in_rows(inputs, expected, batch):
                    compare(f"{what}, REST in rows", expected, lambda: rest.rows(*where, expected))  # noqa: B023
    for signature, pattern in model.refused_signatures.items():
        try:
            by_grpc(stub, model.name, signature, {"x": np.zeros([1, 4], "float32")})
            faults.append(f"{signature}: was answered, and should be refused")
        except grpc.RpcError as error:
            if not re.search(pattern, error.details()):
                faults.append(f"{signature}: {error.details()!r} says nothing of {pattern!r}")
    return faults


def main(rest_port: str, grpc_port: str, relative: str, answers: str, *names: str) -> dict[str, list[str]]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        rest = Rest(int(rest_port))
        return {name: faults_of(MODELS[name], stub, rest, Path(answers), float(relative)) for name in names}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

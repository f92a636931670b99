"""Classify, Regress and MultiInference with the official tensorflow-serving-api stubs: prints what came back as one
JSON object, for test_classify_regress.

A process of its own: the official protos and TensorFlow stay out of the tests' process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def example(features: Mapping[str, float | int | bytes]) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        feature = made.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.float_list.value.append(value)
    return made


def fill(request: Any, examples: list[Any], context: Any = None) -> Any:
    if context is None:
        request.input.example_list.examples.extend([example(each) for each in examples])
    else:
        request.input.example_list_with_context.examples.extend([example(each) for each in examples])
        request.input.example_list_with_context.context.CopyFrom(example(context))
    return request


def single(kind: Any, model: str, signature: str, examples: list[Any], context: Any = None, **spec: Any) -> Any:
    request = kind()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    return fill(request, examples, context)


def several(tasks: list[tuple[str, str, str]], examples: list[Any], context: Any = None) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    return fill(request, examples, context)


def main(port: int) -> dict[str, Any]:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
    classification, regression = classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest

    def call(method: Callable[..., Any], request: Any, metadata: Any = None) -> Any:
        try:
            return json_format.MessageToDict(method(request, timeout=30, metadata=metadata))
        except grpc.RpcError as failure:
            return [failure.code().name, failure.details()]

    def classify(*arguments: Any, **options: Any) -> Any:
        return call(stub.Classify, single(classification, *arguments, **options))

    def regress(*arguments: Any, **options: Any) -> Any:
        return call(stub.Regress, single(regression, *arguments, **options))

    def multi(*arguments: Any) -> Any:
        return call(stub.MultiInference, several(*arguments))

    xs = [{"x": 1.0}, {"x": 2.0}]
    half, parsed = "half_plus_two", "parsed_examples"
    both = [(half, "regress_x_to_y", REGRESS), (half, "classify_x_to_label", CLASSIFY)]
    with_token = single(regression, half, "regress_x_to_y", xs)
    return {
        "scores": classify(half, "classify_x_to_y", xs),
        "labels": classify(half, "classify_x_to_label", xs),
        "classes": classify(parsed, "classify_text", [{"n": 7, "f": 0.5, "s": b"a"}]),
        "default signature": classify(parsed, "", [{"n": 7}]),
        "context": classify(parsed, "classify_text", [{"f": 0.5}, {"n": 2}], {"n": 1, "s": b"shared"}),
        "regression": regress(half, "regress_x_to_y", xs),
        "version": regress(half, "regress_x_to_y", xs, version=1),
        "column": regress(parsed, "regress_column", [{"n": 2, "f": 0.5}]),
        "token": call(stub.Regress, with_token, [("authorization", "Bearer anything")]),
        "multi": multi(both, xs),
        "multi reversed": multi(both[::-1], xs),
        "multi context": multi([(parsed, "", CLASSIFY), (parsed, "classify_text", CLASSIFY)], [{"f": 0.5}], {"n": 1}),
        "multi inputs": multi(
            [(parsed, "classify_text", CLASSIFY), (parsed, "regress_column", REGRESS)], [{"n": 2, "f": 0.5}, {"n": 3}]
        ),
        "many": len(regress(half, "regress_x_to_y", [{"x": float(i)} for i in range(5000)])["result"]["regressions"]),
        "errors": {
            "no model": call(stub.Classify, classification()),
            "no name": classify("", "", xs),
            "unknown model": regress("unknown", "", xs),
            "unknown version": classify(half, "", xs, version=7),
            "unknown label": classify(half, "", xs, label="stable"),
            "unknown signature": classify(half, "nope", xs),
            "predict's signature": regress(half, "", xs),
            "no example": classify(half, "classify_x_to_y", []),
            "only a context": regress(half, "regress_x_to_y", [], {"x": 1.0}),
            "no input": call(stub.Regress, _without_input(regression())),
            "a missing feature": regress(half, "regress_x_to_y", [{"y": 1.0}]),
            "another kind of feature": regress(half, "regress_x_to_y", [{"x": b"text"}]),
            "integer scores": classify(parsed, "classify_int_scores", [{"n": 1}]),
            "no task": multi([], xs),
            "two models": multi([both[0], (parsed, "regress_column", REGRESS)], xs),
            "a task without a model": multi([both[0], ("", "classify_x_to_y", CLASSIFY)], xs),
            "the same signature twice": multi([both[0], both[0]], xs),
            "a task's unknown signature": multi([(half, "nope", CLASSIFY)], xs),
            "a task's unknown method": multi([(half, "serving_default", "tensorflow/serving/predict")], xs),
            "a task's unknown model": multi([("unknown", "", CLASSIFY)], xs),
            "a task that parses nothing": multi(
                [(parsed, "classify_text", CLASSIFY), (parsed, "not_parsed", REGRESS)], [{"n": 1}]
            ),
            "tasks without examples": multi(both, []),
        },
    }


def _without_input(request: Any) -> Any:
    request.model_spec.name = "half_plus_two"
    request.model_spec.signature_name = "regress_x_to_y"
    return request


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))

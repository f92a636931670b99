"""gRPC calls with our own messages on a channel, for tests that are about the transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np

from appliance.protocols import protos
from appliance.protocols.tensor_protos import decode_tensor
from tests.support.tensor_messages import encode_tensor

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


def method(channel: grpc.Channel, path: str, response: Any) -> Any:
    """The unary call `path`; its requests are messages."""
    serialize: Callable[[Any], bytes] = lambda message: message.SerializeToString()  # noqa: E731
    return channel.unary_unary(path, request_serializer=serialize, response_deserializer=response.FromString)


def request(model: str, **inputs: Any) -> Any:
    message = protos.PredictRequest()
    message.model_spec.name = model
    for name, array in inputs.items():
        message.inputs[name].MergeFromString(encode_tensor(np.asarray(array)))
    return message


def predict(channel: grpc.Channel, model: str, seconds: float = 30, **inputs: Any) -> dict[str, np.ndarray]:
    answer = method(channel, PREDICT, protos.PredictResponse)(request(model, **inputs), timeout=seconds)
    return {name: decode_tensor(tensor.SerializeToString()) for name, tensor in answer.outputs.items()}


def half_plus_two(channel: grpc.Channel) -> list[float]:
    """What half_plus_two answers to 1, 2 and 5: [2.5, 3.0, 4.5]."""
    answer = predict(channel, "half_plus_two", x=np.array([1, 2, 5], "f4"))["y"]
    return [float(value) for value in answer]


def reload(channel: grpc.Channel, entries: Sequence[tuple[str, str]] = ()) -> Any:
    """Asks for a reload with (name, base path) entries; without any, with a kind of config that is never accepted."""
    message = protos.ReloadConfigRequest()
    if not entries:
        message.config.custom_model_config.type_url = "nothing"
    for name, base_path in entries:
        message.config.model_config_list.config.add(name=name, base_path=base_path)
    return method(channel, RELOAD, protos.ReloadConfigResponse)(message, timeout=30)


def code_of(call: Callable[[], Any]) -> tuple[str, str]:
    """The status code and the details of a call."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""

"""An inference request as the body of an HTTP request, and its answer: JSON, which binary tensors may follow.

With binary tensors, the header `Inference-Header-Content-Length` gives the size of the JSON, and the parameter
`binary_data_size` of an input or output the size of its elements, which follow the JSON in the order of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from appliance.core.errors import ServingError
from appliance.protocols.json_cost import UNBOUNDED
from appliance.protocols.json_pieces import array_pieces
from appliance.protocols.json_text import cut, load_object, refusal
from appliance.protocols.v2.contents import JsonContents, RawContents, check_has_type, raw_contents
from appliance.protocols.v2.datatypes import datatype
from appliance.protocols.v2.inference import InferRequest, InputTensor, WantedOutput, check_parameters
from backends.dtypes import of_array

__all__ = ["answer_pieces", "binary_contents", "parse_request"]

_MAX_SIZE = 2**63 - 1


def parse_request(body: bytes, json_bytes: int | None, room: int = UNBOUNDED) -> InferRequest:
    """Return the request in `body`, whose JSON has `json_bytes` (None: it is all JSON).

    Raise ServingError: INVALID_ARGUMENT for a body that does not follow the protocol, UNIMPLEMENTED for what this
    server does not do, TooCostlyError if the parsed JSON takes more than `room` bytes.
    """
    if json_bytes is None:
        json_bytes = len(body)
    elif not 0 < json_bytes <= len(body):
        raise refusal(
            f"Inference-Header-Content-Length is {json_bytes:,}, but the body has {len(body):,} bytes",
            "it is the size of the JSON with which the body starts",
        )
    document = load_object(body[:json_bytes] if json_bytes < len(body) else body, room)
    inputs = _objects(document, "inputs")
    if inputs is None:
        raise refusal("the request has no inputs", 'send {"inputs": [{"name", "shape", "datatype", "data"}, ...]}')
    parameters = _parameters(document, "the request")
    tensors = []
    position = json_bytes
    for index, item in enumerate(inputs):
        tensor, position = _input(item, index, body, position)
        tensors.append(tensor)
    if position != len(body):
        raise refusal(f"{len(body) - position:,} bytes follow the last binary tensor", "check each binary_data_size")
    return InferRequest(
        inputs=tensors,
        id=_text(document, "id", "the request", ""),
        outputs=[_output(item, index) for index, item in enumerate(_objects(document, "outputs") or ())],
        signature_name=_text(parameters, "signature_name", "the request's parameters", ""),
        timeout_us=_count(parameters, "timeout", "the request's parameters") or 0,
        binary_outputs=_flag(parameters, "binary_data_output", "the request's parameters") or False,
    )


def answer_pieces(
    request: InferRequest, model: str, version: int, outputs: Mapping[str, np.ndarray], binary: Mapping[str, int]
) -> Iterator[bytes]:
    """Yield the JSON of the answer with `outputs`, in pieces of about 1 MiB at most.

    `binary` gives the size of each output that follows as binary data (`binary_contents`). Raise ServingError for what
    JSON cannot carry.
    """
    head: dict[str, Any] = {"model_name": model, "model_version": str(version)}
    if request.id:
        head["id"] = request.id
    separator = orjson.dumps(head)[:-1] + b',"outputs":['
    for name, array in outputs.items():
        described: dict[str, Any] = {"name": name, "datatype": datatype(of_array(array)), "shape": array.shape}
        if name in binary:
            described["parameters"] = {"binary_data_size": binary[name]}
            yield separator + orjson.dumps(described)
        else:
            yield separator + orjson.dumps(described)[:-1] + b',"data":'
            yield from _json_data(name, array)
            yield b"}"
        separator = b","
    yield b"]}" if outputs else separator + b"]}"


def binary_contents(request: InferRequest, outputs: Mapping[str, np.ndarray]) -> dict[str, bytes | memoryview]:
    """Return the binary data of the outputs that are to be sent in that way. Raise ServingError."""
    return {name: raw_contents(array) for name, array in outputs.items() if request.is_binary(name)}


def _json_data(name: str, array: np.ndarray) -> Iterator[bytes]:
    """Yield the flat list of all elements."""
    check_has_type(array)
    flat = array.reshape(-1)
    if array.dtype.kind != "O":
        yield from array_pieces("", flat)
        return
    try:
        yield from array_pieces("", flat)
    except ServingError:  # it speaks of TensorFlow Serving's rule for names
        raise refusal(
            f"output {name!r} holds bytes that are not UTF-8 text",
            'request it with "parameters": {"binary_data": true}',
        ) from None


def _input(item: Mapping[str, Any], index: int, body: bytes, position: int) -> tuple[InputTensor, int]:
    """Return an input, whose binary data would start at `position`, and the position after it."""
    owner = f"inputs[{index}]"
    name = _text(item, "name", owner)
    shape = item.get("shape")
    if type(shape) is not list or not all(type(size) is int for size in shape):
        raise refusal(f"{owner} ({cut(name)}) has no shape", "state it as a list of numbers")
    parameters = _parameters(item, owner)
    size = _count(parameters, "binary_data_size", f"the parameters of {owner}")
    kind = _text(item, "datatype", owner)
    if size is None:
        if "data" not in item:
            raise refusal(f"{owner} ({cut(name)}) has neither data nor binary_data_size")
        return InputTensor(name, kind, tuple(shape), JsonContents(item["data"])), position
    if "data" in item:
        raise refusal(f"{owner} ({cut(name)}) has both data and binary_data_size", "send one of them")
    if size > len(body) - position:
        raise refusal(
            f"{owner} ({cut(name)}) has a binary_data_size of {size:,}, but {len(body) - position:,} bytes are left "
            "of the body",
            "set Inference-Header-Content-Length to the size of the JSON, and send each tensor whole",
        )
    return InputTensor(name, kind, tuple(shape), RawContents(body, position, position + size)), position + size


def _output(item: Mapping[str, Any], index: int) -> WantedOutput:
    owner = f"outputs[{index}]"
    parameters = _parameters(item, owner)
    return WantedOutput(_text(item, "name", owner), _flag(parameters, "binary_data", f"the parameters of {owner}"))


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]] | None:
    """Return the list of objects at `key`; None if there is none."""
    value = document.get(key)
    if value is None:
        return None
    if type(value) is not list or not all(type(item) is dict for item in value):
        raise refusal(f"{key} is no list of objects")
    return value


def _parameters(item: Mapping[str, Any], owner: str) -> Mapping[str, Any]:
    value = item.get("parameters")
    if value is None:
        return {}
    if type(value) is not dict:
        raise refusal(f"the parameters of {owner} are no object")
    check_parameters(owner, value)
    return value


def _text(item: Mapping[str, Any], key: str, owner: str, default: str | None = None) -> str:
    value = item.get(key, default)
    if type(value) is not str:
        raise refusal(f"{key} of {owner} is no text" if key in item else f"{owner} has no {key}")
    return value


def _flag(item: Mapping[str, Any], key: str, owner: str) -> bool | None:
    value = item.get(key)
    if value is not None and type(value) is not bool:
        raise refusal(f"{key} in {owner} is neither true nor false")
    return value


def _count(item: Mapping[str, Any], key: str, owner: str) -> int | None:
    value = item.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= _MAX_SIZE):
        raise refusal(f"{key} in {owner} is no whole number from 0 on")
    return value

"""An inference request as a ModelInferRequest, and its answer as a ModelInferResponse, whose contents are always raw.

Raw contents are most of a message's bytes, so they are found and written by hand: protobuf would copy each twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from appliance.core.limits import MAX_STRINGS
from appliance.core.servable import ModelSpec
from appliance.protocols import protos
from appliance.protocols.json_text import refusal
from appliance.protocols.json_values import MAX_RANK
from appliance.protocols.v2.contents import Contents, RawContents, TypedContents, raw_contents
from appliance.protocols.v2.datatypes import datatype
from appliance.protocols.v2.inference import InferRequest, InputTensor, WantedOutput, check_parameters
from appliance.protocols.v2.versions import model_spec
from appliance.protocols.wire_format import Budget, UnusualError, checked_fields, varint
from backends.dtypes import of_array

__all__ = ["OpenedRequest", "encode_infer_response", "open_infer_request"]

_PARAMETERS, _INPUT, _OUTPUT, _RAW_INPUT = 4, 5, 6, 7  # the fields of a ModelInferRequest
_SHAPE, _CONTENTS = 3, 5  # those of an input
_RAW_OUTPUT_TAG = 0x32  # field 6, a length and that many bytes
_SMALL_BYTES = 1 << 17  # a smaller request cannot have so many fields that it matters
_MAX_FIELDS = 10_000  # besides the elements of typed contents
_MAX_SHAPE_BYTES = 1 << 16


class OpenedRequest(NamedTuple):
    """The model that a ModelInferRequest names, and what it asks of it."""

    spec: ModelSpec
    request: InferRequest


def open_infer_request(data: bytes) -> OpenedRequest:
    """Read a serialized ModelInferRequest, without the elements of its tensors. Raise ServingError."""
    message, raw = _parsed(data)
    if not message.model_name:
        raise refusal("the request names no model")
    if raw and len(raw) != len(message.inputs):
        raise refusal(
            f"{len(raw)} raw_input_contents were sent for {len(message.inputs)} inputs", "send one for each, in order"
        )
    parameters = _values(message.parameters)
    name = parameters.get("signature_name", "")
    if not isinstance(name, str):
        raise refusal("the parameter signature_name is no text")
    timeout = parameters.get("timeout", 0)
    tensors = []
    for index, tensor in enumerate(message.inputs):
        owner = f"inputs[{index}]"
        check_parameters(owner, tensor.parameters)
        if len(tensor.shape) > MAX_RANK:
            raise refusal(f"{owner} has {len(tensor.shape):,} dimensions, of which at most {MAX_RANK} are supported")
        contents: Contents
        if not raw:
            contents = TypedContents(tensor.contents)
        elif tensor.HasField("contents"):
            raise refusal(f"{owner} has contents beside raw_input_contents", "send one of them")
        else:
            contents = raw[index]
        tensors.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), contents))
    for index, output in enumerate(message.outputs):
        check_parameters(f"outputs[{index}]", output.parameters)
    request = InferRequest(
        inputs=tensors,
        id=message.id,
        outputs=[WantedOutput(output.name) for output in message.outputs],
        signature_name=name,
        timeout_us=timeout if isinstance(timeout, int) and timeout > 0 else 0,
    )
    return OpenedRequest(model_spec(message.model_name, message.model_version), request)


def encode_infer_response(request: InferRequest, model: str, version: int, outputs: Mapping[str, np.ndarray]) -> bytes:
    """Return the serialized ModelInferResponse with `outputs`, in their order. Raise ServingError."""
    message = protos.ModelInferResponse(model_name=model, model_version=str(version), id=request.id)
    raw: list[bytes | memoryview] = []
    for name, array in outputs.items():
        message.outputs.add(name=name, datatype=datatype(of_array(array)), shape=array.shape)
        contents = raw_contents(array)
        raw += (b"%c%b" % (_RAW_OUTPUT_TAG, varint(len(contents))), contents)
    return b"".join([message.SerializeToString(), *raw])


def _parsed(data: bytes) -> tuple[Any, list[RawContents]]:
    """Return the ModelInferRequest, and its raw contents, which the message may be without."""
    raw: list[RawContents] = []
    rest: list[bytes] = []
    position = 0
    try:
        for number, start, stop in checked_fields(data, 0, len(data), _MAX_FIELDS):
            if number == _RAW_INPUT:
                tag = start - len(varint(stop - start)) - 1
                if data[tag] != _RAW_INPUT << 3 | 2:
                    raise UnusualError  # tag or length have more bytes than they need
                raw.append(RawContents(data, start, stop))
                rest.append(data[position:tag])
                position = stop
        rest.append(data[position:])
        return _message(b"".join(rest)), raw
    except ValueError:
        raise refusal(f"the request has more than {_MAX_FIELDS:,} fields", "send fewer inputs") from None
    except (UnusualError, IndexError):
        message = _message(data)
        return message, [RawContents(content, 0, len(content)) for content in message.raw_input_contents]


def _message(data: bytes) -> Any:
    if len(data) > _SMALL_BYTES:
        _check_fields(data)
    try:
        return protos.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise refusal(f"could not parse inference.ModelInferRequest: {error}") from None


def _check_fields(data: bytes) -> None:
    """Raise INVALID_ARGUMENT for so many fields that parsing them would take memory and time: most are objects then."""
    fields, elements = Budget(_MAX_FIELDS), Budget(MAX_STRINGS)
    shape_bytes = 0  # of all inputs: a shape may come in pieces
    try:
        for number, start, stop in checked_fields(data, 0, len(data), fields):
            if number not in (_PARAMETERS, _INPUT, _OUTPUT):
                continue
            for inner, inner_start, inner_stop in checked_fields(data, start, stop, fields):
                if number == _INPUT and inner == _SHAPE:
                    shape_bytes += inner_stop - inner_start
                elif number == _INPUT and inner == _CONTENTS:
                    for _ in checked_fields(data, inner_start, inner_stop, elements):
                        pass
    except ValueError:
        raise refusal(
            f"the request has more than {_MAX_FIELDS:,} fields, or its typed contents more than {MAX_STRINGS:,}",
            "send fewer inputs, strings in several requests, and numbers as raw_input_contents",
        ) from None
    except (UnusualError, IndexError):
        raise refusal("could not parse inference.ModelInferRequest") from None
    if shape_bytes > _MAX_SHAPE_BYTES:
        raise refusal(f"the shapes take {shape_bytes:,} bytes, of which at most {_MAX_SHAPE_BYTES:,} are taken")


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters' values by name."""
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, choice) if choice else None
    return values

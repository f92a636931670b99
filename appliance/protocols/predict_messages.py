"""Predict's messages: PredictRequest from bytes, PredictResponse to bytes, without parsing their tensors twice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from appliance.core.servable import ModelSpec
from appliance.protocols import protos
from appliance.protocols.tensor_protos import (
    BadTensorError,
    Elements,
    allowance_of,
    elements_of,
    encoded_tensor,
    invalid,
    read_tensor,
)
from appliance.protocols.wire_format import Budget, UnusualError, checked_fields, fields, varint

__all__ = [
    "PredictEnvelope",
    "encode_predict_response",
    "model_spec",
    "open_predict_request",
]

# A tag is the field's number << 3 | the wire type: 0 for a varint, 2 for a length and that many bytes.
_MODEL_SPEC, _INPUT, _OUTPUT_FILTER = 0x0A, 0x12, 0x1A  # PredictRequest
_OUTPUT, _RESPONSE_SPEC = 0x0A, 0x12  # PredictResponse
_KEY, _VALUE = 0x0A, 0x12  # an entry of a map


_SMALL_BYTES = 1 << 17  # a smaller request cannot have so many fields that it matters
_MAX_FIELDS = 10_000
_ENTRY_FIELDS = 2  # of an input: its name and its tensor


class PredictEnvelope:
    """A PredictRequest whose tensors are not read yet.

    TensorFlow Serving looks up the model first, so an unknown model is NOT_FOUND even if the inputs are invalid. An
    empty `output_filter` asks for every output.
    """

    __slots__ = ("_allowance", "_tensors", "names", "output_filter", "signature_name", "spec")

    names: Set[str]
    """The names of the inputs."""

    def __init__(
        self,
        spec: ModelSpec,
        signature_name: str,
        tensors: dict[str, tuple[bytes, int, int]],
        output_filter: tuple[str, ...],
        allowance: int,
    ) -> None:
        self.spec = spec
        self.signature_name = signature_name
        self.output_filter = output_filter
        self.names = tensors.keys()
        self._tensors = tensors
        self._allowance = allowance

    def arrays(self, grow: Callable[[int], object] = lambda _: None) -> dict[str, np.ndarray]:
        """Return the inputs by name. Raise ServingError (INVALID_ARGUMENT).

        The arrays may be read-only, unaligned views that keep the request's bytes alive. `grow` is called with the
        bytes of each other array before it is made, and may raise.
        """
        allowance = self._allowance
        inputs = {}
        for name, (buffer, start, stop) in self._tensors.items():
            try:
                array, used = read_tensor(buffer, start, stop, allowance, grow)
            except BadTensorError as error:
                raise invalid(f"tensor parsing error: {name}: {error}") from error
            inputs[name] = array
            allowance -= used
        return inputs

    def elements_in(self, data: bytes) -> dict[str, Elements] | None:
        """Return where the inputs' elements lie in the request's bytes; None if an array is not just a view of them."""
        found = {}
        for name, (buffer, start, stop) in self._tensors.items():
            elements = elements_of(buffer, start, stop) if buffer is data else None
            if elements is None:
                return None
            found[name] = elements
        return found


def open_predict_request(data: bytes) -> PredictEnvelope:
    """Read a serialized PredictRequest except for its tensors. Raise ServingError (INVALID_ARGUMENT)."""
    if len(data) > _SMALL_BYTES:
        _check_fields(data)
    try:
        spec, tensors, output_filter = _walk_request(data)
    except (UnusualError, IndexError, UnicodeDecodeError):
        request = _parse(protos.PredictRequest, data)
        spec = request.model_spec if request.HasField("model_spec") else None
        # Serialized again, each tensor has the form that the walk knows.
        encoded = {name: tensor.SerializeToString() for name, tensor in request.inputs.items()}
        tensors = {name: (tensor, 0, len(tensor)) for name, tensor in encoded.items()}
        output_filter = tuple(request.output_filter)
    if spec is None:
        raise invalid("Missing ModelSpec")
    return PredictEnvelope(model_spec(spec), spec.signature_name, tensors, output_filter, allowance_of(data))


def model_spec(message: Any) -> ModelSpec:
    """Return the model and version that a `protos.ModelSpec` asks for. Raise ServingError (INVALID_ARGUMENT)."""
    if not message.name:
        raise invalid("ModelSpec has no name specified.")
    version = message.version.value if message.HasField("version") else None
    return ModelSpec(message.name, version, message.version_label)


def encode_predict_response(
    model: str,
    version: int,
    signature_name: str,
    outputs: Mapping[str, np.ndarray],
    tensor_content: bool = False,
) -> bytes:
    """Return the serialized PredictResponse, with fields by number, and outputs in the order of `outputs`.

    `tensor_content` writes numeric arrays as raw memory, instead of the typed lists that every client reads.
    """
    parts: list[bytes | memoryview] = []
    for name, array in outputs.items():
        head, elements = encoded_tensor(array, tensor_content)
        parts += (_output_head(name, len(head), len(elements)), head, elements)
    parts.append(_response_spec(model, version, signature_name))
    return b"".join(parts)


@functools.lru_cache(256)
def _output_head(name: str, head_bytes: int, element_bytes: int) -> bytes:
    """Return what comes before a TensorProto in a PredictResponse's outputs."""
    size = head_bytes + element_bytes
    key = name.encode()
    key = b"%c%b%b" % (_KEY, varint(len(key)), key)
    value = b"%c%b" % (_VALUE, varint(size))
    return b"%c%b%b%b" % (_OUTPUT, varint(len(key) + len(value) + size), key, value)


@functools.lru_cache(256)
def _response_spec(model: str, version: int, signature_name: str) -> bytes:
    """Return the field of a PredictResponse that says what has answered: a model that is served, and a signature of
    its."""
    spec = protos.ModelSpec(name=model, signature_name=signature_name)
    spec.version.value = version
    encoded = spec.SerializeToString(deterministic=True)
    return b"%c%b%b" % (_RESPONSE_SPEC, varint(len(encoded)), encoded)


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise invalid(f"could not parse {kind.DESCRIPTOR.full_name}: {error}") from error


def _check_fields(data: bytes) -> None:
    """Raise INVALID_ARGUMENT for so many fields that reading them would hold up others."""
    try:
        of_entries = Budget(_ENTRY_FIELDS * _MAX_FIELDS)
        for number, start, stop in checked_fields(data, 0, len(data), _MAX_FIELDS):
            if number == _INPUT >> 3:
                for _ in checked_fields(data, start, stop, of_entries):
                    pass
    except ValueError:
        raise invalid(
            f"the request, or an entry of its inputs, has more than {_MAX_FIELDS:,} fields; send fewer inputs and "
            "names in output_filter"
        ) from None
    except (UnusualError, IndexError):
        raise invalid("could not parse tensorflow.serving.PredictRequest") from None


def _walk_request(data: bytes) -> tuple[Any, dict[str, tuple[bytes, int, int]], tuple[str, ...]]:
    """Return the ModelSpec message, the place of each input's TensorProto, and the output filter.

    Raise UnusualError.
    """
    spec = None
    tensors: dict[str, tuple[bytes, int, int]] = {}
    output_filter: list[str] = []
    for tag, start, stop in fields(data, 0, len(data)):
        if tag == _INPUT:
            name, value_start, value_stop = "", 0, 0
            for entry_tag, entry_start, entry_stop in fields(data, start, stop):
                if entry_tag == _KEY and not name:
                    name = data[entry_start:entry_stop].decode()
                elif entry_tag == _VALUE and not value_stop:
                    value_start, value_stop = entry_start, entry_stop
                else:
                    raise UnusualError
            if name in tensors:
                raise UnusualError  # the last one counts, and the others must be valid
            tensors[name] = data, value_start, value_stop
        elif tag == _MODEL_SPEC and spec is None:
            spec = _parse(protos.ModelSpec, data[start:stop])
        elif tag == _OUTPUT_FILTER:
            output_filter.append(data[start:stop].decode())
        else:
            raise UnusualError
    return spec, tensors, tuple(output_filter)

"""Reads the body of a REST predict request into named arrays. `json_output` writes the answer.

The rules and the texts of the errors are TensorFlow Serving's (`tensorflow_serving/util/json_tensor.cc`), except that
an error quotes only the beginning of a bad value.

A body is read in one of three ways, which all accept and refuse the same values:

- simdjson, for large bodies of numbers: it copies a nested list directly into a buffer. That loses the nesting, so the
  shape is proven from the brackets and commas of the text (`_nest_as`); if it cannot be proven, orjson reads the body.
- orjson, for small bodies, strings, booleans and rows of objects, and to find the error in a body.
- the standard library's json, only for NaN and Infinity, which are not JSON and which the other two refuse.

If a key occurs twice, the last one counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import simdjson

from appliance.core.errors import Code, ServingError
from appliance.protocols.json_cost import UNBOUNDED, check_index
from appliance.protocols.json_text import BOM, cut, load, not_an_object, refusal, signature_name, start
from appliance.protocols.json_values import BUFFERS, MAX_RANK, from_inputs, from_instances, narrowed, supports, tensor
from backends.contract import Signature, TensorSpec

__all__ = ["PredictBody", "parse_predict"]

# Below this size, orjson and lists are faster than simdjson and the proof of the shape.
_INDEX_BYTES = 2048
# More quotes than this near the beginning mean strings or rows of objects, which simdjson's buffers cannot hold.
_INDEX_QUOTES = 64
_INDEX_QUOTES_BYTES = 1 << 16
# A parser keeps the memory of its largest document, which saves the page faults of the next image (2026-11: 5.9 against
# 10.5 ms for 3 MB); beyond this size, keeping the memory would cost more than it saves.
_SPARE_PARSER_BYTES = 4 << 20
_spare_parser = simdjson.Parser()

_NUMBER_AND_BLANK_BYTES = b"0123456789+-.eE \t\r\n"


@dataclass(slots=True, eq=False, repr=False)
class PredictBody:
    """A predict request that is valid JSON, before its model and so its dtypes are known.

    `signature_name` is "" if the body has none. `row_format`: the body has `instances`. It holds the body and the
    parsed document, which is several times as large: drop it after `inputs`.
    """

    signature_name: str
    row_format: bool
    _body: bytes
    _document: Any  # Python values, or simdjson's views
    _room: int

    def inputs(self, signature: Signature) -> dict[str, np.ndarray]:
        """Return an array for each input of `signature`, with its dtype (strings: `object` arrays of `bytes`).

        Rank and shape are those of the JSON's nesting; the backend checks them against `TensorSpec.shape`.

        Raise ServingError: INVALID_ARGUMENT if names, nesting or values do not fit, UNIMPLEMENTED for columns of a
        dtype that JSON cannot carry.
        """
        specs = signature.inputs
        if not specs:
            name = cut(self.signature_name) or "DEFAULT"
            raise refusal(f"Failed to get input map for signature: {name}", "it has no inputs; try another signature")
        for name, spec in specs.items():
            if not supports(spec):
                # In the row format, TensorFlow Serving reports every error of a value as an invalid argument.
                code = Code.INVALID_ARGUMENT if self.row_format else Code.UNIMPLEMENTED
                message = f"Conversion of JSON values to type: {spec.element.label} is not supported (input {name})"
                raise ServingError(code, message, "use gRPC for this model")
        value = self._value()
        if isinstance(value, (simdjson.Array, simdjson.Object)):
            arrays = _from_index(self._body, value, specs)
            if arrays is not None:
                return arrays
            value = load(self._body, self._room)["instances" if self.row_format else "inputs"]
        return from_instances(value, specs) if self.row_format else from_inputs(value, specs)

    def _value(self) -> Any:
        """Return the value of the key `instances` or `inputs`. Raise INVALID_ARGUMENT unless exactly one is there."""
        if self.row_format is ("inputs" in self._document):
            if self.row_format:
                raise refusal(
                    f"JSON Value: {start(self._body)} Not formatted correctly expecting only one of 'inputs' or "
                    "'instances' keys to exist"
                )
            raise refusal("Missing 'inputs' or 'instances' key")
        value = self._document["instances" if self.row_format else "inputs"]
        if self.row_format:
            if not isinstance(value, (list, simdjson.Array)):
                # [sic]: TensorFlow Serving's spelling.
                raise refusal(f"JSON Value: {start(self._body)} Excepting 'instances' to be an list/array")
            if not len(value):
                raise refusal(f"JSON Value: {start(self._body)} No values in 'instances' array")
        return value


def parse_predict(body: bytes, room: int = UNBOUNDED) -> PredictBody:
    """Parse a predict request. `inputs` reports errors of names and values, because an unknown model is reported first.

    Raise ServingError: INVALID_ARGUMENT for any invalid bytes, and here or in `inputs` TooCostlyError if the parsed
    body takes more than `room` bytes.
    """
    body = body.removeprefix(BOM)
    document = _index(body, room)
    if document is None:
        document = load(body, room)
    if not isinstance(document, (dict, simdjson.Object)):
        raise not_an_object(body)
    return PredictBody(signature_name(document, body), "instances" in document, body, document, room)


def _index(body: bytes, room: int) -> Any:
    """Return simdjson's view of `body`; None if orjson is faster, or if simdjson cannot read it."""
    if len(body) < _INDEX_BYTES or body.count(b'"', 0, _INDEX_QUOTES_BYTES) > _INDEX_QUOTES:
        return None
    check_index(body, room)
    document: Any = None
    if len(body) <= _SPARE_PARSER_BYTES:
        # simdjson holds the GIL, so threads may share the parser. It refuses while a view of its last document is
        # alive.
        with suppress(ValueError, RuntimeError):
            document = _spare_parser.parse(body)
    if document is None:
        try:
            document = simdjson.Parser().parse(body)
        except (ValueError, RuntimeError):  # RuntimeError: integers beyond 64 bits
            return None
    # simdjson finds the first of equal keys, the other parsers the last.
    if isinstance(document, simdjson.Object) and len(set(document)) != len(document):
        return None
    return document


def _from_index(
    body: bytes, value: simdjson.Array | simdjson.Object, specs: Mapping[str, TensorSpec]
) -> dict[str, np.ndarray] | None:
    """Return the inputs; None if they need the slower way, which may find an error."""
    if isinstance(value, simdjson.Array):
        if len(specs) != 1:
            return None
        items: dict[str, Any] = dict.fromkeys(specs, value)
    else:
        names = list(value)
        if len(set(names)) != len(names):
            return None
        items = {name: value[name] for name in names if name in specs}
        if len(items) != len(specs):
            return None
    arrays: dict[str, np.ndarray] = {}
    shapes = []
    for name, item in items.items():
        if isinstance(item, simdjson.Array):
            array = _from_index_array(item, specs[name])
            shapes.append(_index_shape(item))
        else:  # a scalar beside large tensors, such as `training: false`
            array = None if isinstance(item, simdjson.Object) else tensor(item, specs[name])
        if array is None:
            return None
        arrays[name] = array
    lists = [name for name, item in items.items() if isinstance(item, simdjson.Array)]
    # Compare the sizes first: they bound the skeleton, which a first row alone could inflate.
    sizes_fit = all(0 < math.prod(shape) == arrays[name].size for name, shape in zip(lists, shapes, strict=True))
    if not sizes_fit or not _nest_as(body, shapes):
        return None
    for name, shape in zip(lists, shapes, strict=True):
        arrays[name] = arrays[name].reshape(shape)
    return arrays


def _from_index_array(item: simdjson.Array, spec: TensorSpec) -> np.ndarray | None:
    """Return all numbers in `item` as one flat array of the input's dtype; None if they are not all numbers of it."""
    if spec.dtype not in BUFFERS:
        return None
    of_type, dtype = BUFFERS[spec.dtype]
    try:
        buffer = item.as_buffer(of_type=of_type)
    except (TypeError, ValueError):
        return None
    return narrowed(np.frombuffer(buffer, dtype), spec)


def _index_shape(item: Any) -> tuple[int, ...]:
    """Return the shape of the first elements of `item`; (0,) if a list is empty, or if it exceeds numpy's rank."""
    shape: list[int] = []
    while isinstance(item, simdjson.Array):
        shape.append(len(item))
        if not shape[-1] or len(shape) > MAX_RANK:
            return (0,)
        item = item[0]
    return tuple(shape)


def _nest_as(body: bytes, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Return whether the lists in `body`, valid JSON, nest exactly as tensors of `shapes`, in this order.

    Without digits and blanks, a [2, 3] tensor reads `[[,,],[,,]]`. A skeleton has no quote, so it lies inside one list
    or inside one string. If the body has no other `[` than those of the skeletons, each lies in the right list. An
    empty list and a list of one number look the same, so the caller compares the number of values first.
    """
    text = body.translate(None, _NUMBER_AND_BLANK_BYTES)
    brackets = position = 0
    for shape in shapes:
        skeleton = b""
        for size in reversed(shape):
            skeleton = b"[" + b",".join([skeleton] * size) + b"]"
        position = text.find(skeleton, position)
        if position < 0:
            return False
        position += len(skeleton)
        brackets += skeleton.count(b"[")
    return text.count(b"[") == brackets

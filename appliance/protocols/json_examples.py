"""Reads the body of a REST classify or regress request into serialized `tensorflow.Example`s.

The rules and the texts of the errors are TensorFlow Serving's (`tensorflow_serving/util/json_tensor.cc`), except that
an error quotes only the beginning of a bad value. If a key occurs twice, the last one counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.core.errors import ServingError
from appliance.protocols import protos
from appliance.protocols.example_inputs import Examples
from appliance.protocols.json_cost import UNBOUNDED
from appliance.protocols.json_text import cut, load_object, refusal, signature_name, start
from appliance.protocols.json_values import from_base64, is_base64, type_label

__all__ = ["ExamplesBody", "parse_examples"]

_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)

_STRINGS = frozenset({str, dict})
# The types of a feature's values → TensorFlow Serving's word for them.
_KINDS = ((frozenset({int}), "int64"), (frozenset({float}), "float"), (_STRINGS, "bytes"))


@dataclass(frozen=True, slots=True, eq=False)
class ExamplesBody:
    """A request, before its model is known. `signature_name` is "" if the body has none."""

    signature_name: str
    examples: Examples


def parse_examples(body: bytes, room: int = UNBOUNDED) -> ExamplesBody:
    """Parse a classify or regress request: `examples`, and optionally `context` and `signature_name`.

    Each example, and the context, is an object of features. A feature is a value or a list of values of one kind:
    integers and booleans make an int64_list, decimals a float_list (too large ones become inf), strings and {"b64":
    "…"} a bytes_list. Other keys of the body are ignored.

    Raise ServingError: INVALID_ARGUMENT for any invalid bytes, TooCostlyError if it takes more than `room` bytes.
    """
    document = load_object(body, room)
    name = signature_name(document, body)
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        # [sic]: the server says classify for regress too.
        raise refusal(
            f"JSON Value: {start(body)} When method is classify, key 'examples' is expected and was not found"
        )
    values = document["examples"]
    if type(values) is not list:
        raise refusal(f"JSON Value: {start(body)} Expecting 'examples' value to be an list/array")
    if not values:
        raise refusal(f"JSON Value: {start(body)} 'examples' value is an empty array")
    return ExamplesBody(name, Examples([_example(value) for value in values], context))


def _example(value: Any) -> bytes:
    """Return one serialized Example: the same features give the same bytes in any order."""
    if type(value) is not dict:
        raise refusal(
            f"Example must be JSON object but got JSON {type_label(value)}", "give each feature as name: value"
        )
    example = protos.Example()
    features = example.features.feature
    for name, content in value.items():
        _fill(features[name], name, content if type(content) is list else [content])
    return bytes(example.SerializeToString(deterministic=True))


def _fill(feature: Any, name: str, values: list[Any]) -> None:
    """Put the values of the feature called `name` into `feature`. An empty list leaves it without a kind."""
    types = set(map(type, values))
    if not types:
        return
    if types == {float}:
        feature.float_list.value.extend(values)
    elif types == {int} and min(values) in _INT64 and max(values) in _INT64:
        feature.int64_list.value.extend(values)
    elif types <= _STRINGS:
        feature.bytes_list.value.extend([_bytes(value, name) for value in values])
    else:
        _fill_unusual(feature, name, values)


def _fill_unusual(feature: Any, name: str, values: list[Any]) -> None:
    """Like `_fill`, for values that are not all of one plain type.

    Booleans count as integers. As in RapidJSON, an integer that is neither int64 nor uint64 counts as a decimal.
    """
    read: list[Any] = []
    for value in values:
        if type(value) is bool:
            read.append(int(value))
        elif type(value) is int and value not in _INT64 and value not in _UINT64:
            read.append(_decimal(value))
        else:
            read.append(value)
    fault = _mixture(name, read)
    if fault is not None:
        raise fault
    if type(read[0]) is int:
        feature.int64_list.value.extend(read)
    else:
        feature.float_list.value.extend(read)


def _decimal(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise refusal("JSON Parse error: Number too big to be stored in double.") from None


def _bytes(value: Any, name: str) -> bytes:
    if type(value) is str:
        return value.encode()
    if not is_base64(value):
        raise _unexpected(name, value)
    decoded = from_base64(value)
    if decoded is None:
        raise refusal(f"Unable to base64 decode feature {cut(name)}", 'give {"b64": "…"} the standard base64 alphabet')
    return decoded


def _mixture(name: str, values: list[Any]) -> ServingError | None:
    """Return the error for the first of `values` that does not match those before it; None if all match."""
    first: tuple[frozenset[type], str] | None = None
    for value in values:
        own = next((kind for kind in _KINDS if type(value) in kind[0]), None)
        if own is None or (type(value) is dict and not is_base64(value)):
            return _unexpected(name, value)
        first = first or own
        if own != first:
            return refusal(
                f"Unexpected element type in feature: {cut(name)} expecting type: {first[1]}",
                "give all its values as integers, or all with a decimal point, or all as strings",
            )
        if type(value) is int and value not in _INT64:
            return refusal(f"Feature: {cut(name)} has uint64 element. Only int64 is supported.")
    return None


def _unexpected(name: str, value: Any) -> ServingError:
    return refusal(
        f"Feature: {cut(name)} has element with unexpected JSON type: {type_label(value)}",
        'a feature is a number, a string, {"b64": "…"}, or a flat list of such',
    )

"""Converts Python values from a JSON parser to named arrays, or reports why not in TensorFlow Serving's words."""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import numpy as np

from appliance.core.errors import ServingError
from appliance.protocols.json_text import cut, quoted, refusal
from backends.contract import TensorSpec

__all__ = [
    "BUFFERS",
    "MAX_RANK",
    "from_base64",
    "from_inputs",
    "from_instances",
    "is_base64",
    "narrowed",
    "supports",
    "tensor",
    "type_label",
]

# numpy's limit, rows included.
MAX_RANK = 64

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
# Numbers are read with 64 bits, then narrowed. The letter is simdjson's: 'd' accepts integers too, 'i' and 'u' no
# decimals, and none accepts null, booleans or strings.
BUFFERS: dict[str, tuple[Literal["d", "i", "u"], np.dtype]] = {
    **dict.fromkeys(_FLOATS, ("d", np.dtype("<f8"))),
    **dict.fromkeys(_INTEGERS, ("i", np.dtype("<i8"))),
    "uint64": ("u", np.dtype("<u8")),
}
# The Python types of a tensor's values. A bool is an int for isinstance, but not here.
_LEAF_TYPES: dict[str, frozenset[type]] = {
    **dict.fromkeys(_FLOATS, frozenset({float, int})),
    **dict.fromkeys((*_INTEGERS, "uint64"), frozenset({int})),
    "bool": frozenset({bool}),
    "string": frozenset({str, dict}),
}
_JSON_TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}


def type_label(value: Any) -> str:
    """Return the JSON type of `value`, as TensorFlow Serving calls it."""
    return str(value) if type(value) is bool else _JSON_TYPES[type(value)]


def supports(spec: TensorSpec) -> bool:
    """Return whether JSON can carry the dtype of `spec`: all but the complex ones."""
    return spec.dtype in _LEAF_TYPES


def from_instances(rows: list[Any], specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    """Return the inputs in `rows` by name. Raise ServingError.

    `rows` is not empty; each row is one value, or one object with the inputs' names.
    """
    if not _is_named(rows[0]):
        if len(specs) > 1:
            raise refusal(
                "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                f"tensorinfo_map (inputs: {','.join(sorted(specs))})"
            )
        ((name, spec),) = specs.items()
        array = tensor(rows, spec)
        if array is None:
            raise _instances_refusal(rows, spec)
        return {name: array}
    names = specs.keys()
    for index, row in enumerate(rows):
        if type(row) is not dict or row.keys() != names:
            raise _names_refusal(index, row, specs)
    arrays = {}
    for name, spec in specs.items():
        values = [row[name] for row in rows]
        array = tensor(values, spec)
        if array is None:
            raise _instances_refusal(values, spec, name)
        arrays[name] = array
    return arrays


def from_inputs(value: Any, specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    """Return the inputs in `value` by name. Raise ServingError.

    `value` is the tensor of the only input, or an object with all inputs; its other names are ignored.
    """
    named = _is_named(value)
    if not named and len(specs) > 1:
        raise refusal(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            f"tensorinfo_map (inputs: {','.join(sorted(specs))})"
        )
    arrays = {}
    for name, spec in specs.items():
        if named and name not in value:
            raise refusal(f"Missing named input: {name} in 'inputs' object.")
        item = value[name] if named else value
        array = tensor(item, spec)
        if array is None:
            raise refusal(_fault(item, spec, MAX_RANK), f"check the value of input {name}")
        arrays[name] = array
    return arrays


def _is_named(value: Any) -> bool:
    """Return whether `value` is an object with inputs' names; {"b64": "…"} alone is a value."""
    return type(value) is dict and not is_base64(value)


def is_base64(value: dict[str, Any]) -> bool:
    """Return whether `value` has the form {"b64": "…"}; the text is not checked."""
    return len(value) == 1 and type(value.get("b64")) is str


def tensor(value: Any, spec: TensorSpec) -> np.ndarray | None:
    """Return a scalar or nested lists as an array of the dtype of `spec`; None if ragged or of another type.

    It works level by level, so that every check is one pass in C, and deep nesting does not recurse.
    """
    shape = []
    level = [value]
    while level and type(level[0]) is list:
        size = len(level[0])
        if len(level) > 1 and (set(map(type, level)) != {list} or set(map(len, level)) != {size}):
            return None
        shape.append(size)
        if len(shape) > MAX_RANK:
            return None
        level = list(chain.from_iterable(level)) if len(level) > 1 else level[0]
    flat = _flat(level, spec)
    return flat if flat is None or len(shape) == 1 else flat.reshape(shape)


def _flat(leaves: list[Any], spec: TensorSpec) -> np.ndarray | None:
    """Return an array [len(leaves)] of the dtype of `spec`; None if a leaf has another type or is out of range."""
    if not _LEAF_TYPES[spec.dtype].issuperset(map(type, leaves)):
        return None
    if spec.dtype == "string":
        strings = [leaf.encode() if type(leaf) is str else from_base64(leaf) for leaf in leaves]
        if None in strings:
            return None
        array = np.empty(len(strings), object)
        array[:] = strings
        return array
    if spec.dtype == "bool":
        return np.array(leaves, np.bool_)
    try:
        return narrowed(np.array(leaves, BUFFERS[spec.dtype][1]), spec)
    except OverflowError:
        return None


def narrowed(flat: np.ndarray, spec: TensorSpec) -> np.ndarray | None:
    """Return 64-bit numbers as the dtype of `spec`; None for an integer out of range.

    As in TensorFlow Serving, a float that is too large becomes inf, and one that is too small 0.
    """
    dtype = spec.element.numpy
    if flat.dtype == dtype:
        return flat
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if flat.size and (flat.min() < limits.min or flat.max() > limits.max):
            return None
        return flat.astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        return flat.astype(dtype)


def from_base64(value: dict[str, Any]) -> bytes | None:
    """Return the bytes of {"b64": "…"}; None if invalid.

    As in Abseil, blanks are skipped, and padding may be absent.
    """
    if not is_base64(value):
        return None
    text = value["b64"]
    if not text.isascii():
        return None
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        text = "".join(text.split())
    try:
        return binascii.a2b_base64(text if "=" in text else text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return None


# Errors. Only refused requests come here; each step takes one pass over the values, or a few.


def _names_refusal(index: int, row: Any, specs: Mapping[str, TensorSpec]) -> ServingError:
    """Return the error for row `index`, which is not an object or has other names than `specs`."""
    if not _is_named(row):
        return refusal(f"Expecting object but got list at item {index} of input list")
    for name in row:
        if name not in specs:
            return refusal(
                f"Failed to process element: {index} key: {cut(name)} of 'instances' list. Error: INVALID_ARGUMENT: "
                f"JSON object: does not have named input: {cut(name)}",
                f"its inputs are {','.join(sorted(specs))}",
            )
    return refusal(
        f"Failed to process element: {index} of 'instances' list. JSON object: {quoted(row)} "
        f"keys must be equal to: {','.join(sorted(specs))}"
    )


def _instances_refusal(values: list[Any], spec: TensorSpec, name: str | None = None) -> ServingError:
    """Return the error for `values`, one for each row, which are not a tensor.

    `name` is their key in the rows; None if the rows are values themselves.
    """
    shape = _nominal_shape(values[0])
    index = _first_misfit(values, spec, shape)
    value = values[index]
    if name is None and _is_named(value):
        return refusal(f"Expecting value/list but got object at item {index} of input list")
    own = tensor(value, spec)
    if own is None or len(shape) >= MAX_RANK:
        fault, remedy = _fault(value, spec, MAX_RANK - 1), ""
    else:
        remedy = "give all instances the same shape"
        if own.size != math.prod(shape):
            fault = f"Expecting tensor size: {math.prod(shape)} but got: {own.size}"
        else:
            fault = f"Expecting shape {_shape_text(shape)} but got: {_shape_text(own.shape)}"
    key = "" if name is None else f" key: {name}"
    return refusal(
        f"Failed to process element: {index}{key} of 'instances' list. Error: INVALID_ARGUMENT: {fault}", remedy
    )


def _fault(value: Any, spec: TensorSpec, max_rank: int) -> str:
    """Return the error for `value`, which is not a tensor: its first list or leaf that does not fit."""
    shape = _nominal_shape(value)
    if len(shape) > max_rank:
        return f"Lists are nested {max_rank + 1} levels deep or more; a tensor has at most {MAX_RANK} dimensions"
    level = 0
    while type(value) is list:
        if level == len(shape):
            return f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        if len(value) != shape[level]:
            return f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        level += 1
        value = value[_first_misfit(value, spec, shape[level:])]
    if level != len(shape):
        return (
            f"JSON Value: {quoted(value)} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {len(shape)}"
        )
    return _leaf_fault(value, spec)


def _leaf_fault(value: Any, spec: TensorSpec) -> str:
    if type(value) is dict and spec.dtype == "string":
        if is_base64(value):
            return f"Unable to base64 decode {quoted(value)}"
        return f"JSON Value: {quoted(value)} not formatted correctly for base64 data"
    return f"JSON Value: {quoted(value)} Type: {type_label(value)} is not of expected type: {spec.element.label}"


def _nominal_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of the first elements of nested lists, cut beyond numpy's limit."""
    shape: list[int] = []
    while type(value) is list and len(shape) <= MAX_RANK:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _first_misfit(values: list[Any], spec: TensorSpec, shape: tuple[int, ...]) -> int:
    """Return the index of the first of `values` that is not a tensor of `shape`; there is one.

    It bisects: one pass over many values is far cheaper than one call for each, and all steps together are one more
    pass.
    """
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        array = tensor(values[low:middle], spec)
        if array is None or array.shape[1:] != shape:
            high = middle
        else:
            low = middle
    return low


def _shape_text(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"

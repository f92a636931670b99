"""What an operator is tried as: its inputs, and the graph that is made of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = [
    "FLOATS",
    "INTS",
    "NUMBERS",
    "OPERATORS",
    "SIGNED",
    "Input",
    "Role",
    "Variant",
    "attribute_of",
    "call",
    "dtypes_of",
    "variants",
]

FLOATS = ("float32", "float64", "float16")
SIGNED = ("int8", "int16", "int32", "int64")
INTS = (*SIGNED, "uint8")
NUMBERS = (*FLOATS, *INTS)
_TRIED = (*NUMBERS, "bool")


class Role(Enum):
    """What an input is for: it says which values are usual for it."""

    VALUES = "values"
    DIVISOR = "a divisor"
    EXPONENT = "an exponent"
    SHIFT = "a number of bits"
    INDEX = "an index"  # below `limit`
    SORTED = "sorted indices"  # of segments
    GIVEN = "given"  # always `given`


@dataclass(frozen=True, slots=True)
class Input:
    """`shape` has None for the number of rows; `limit` is for indices, `given` for what has no odd values."""

    dtype: str
    shape: tuple[int | None, ...] = (None, 4)
    role: Role = Role.VALUES
    limit: int = 0
    given: Any = None


@dataclass(frozen=True, slots=True)
class Variant:
    """`build` takes TensorFlow's raw operators and a tensor for each of `inputs`, and returns one tensor or several.
    `by_element`: each element of the output hangs on the elements at the same place only."""

    name: str
    inputs: Mapping[str, Input]
    build: Callable[..., Any]
    by_element: bool = False


_Make = Callable[[str, str], Iterator[Variant]]

OPERATORS: dict[str, tuple[str, _Make]] = {}
"""For each operator: the attribute that has its element type, and what makes its variants of (operator, dtype)."""


def variants(*ops: str, of: str = "") -> Callable[[_Make], _Make]:
    """Registers the variants of `ops`, whose element type is the attribute `of`, or the type of their first input."""

    def register(make: _Make) -> _Make:
        for op in ops:
            OPERATORS[op] = (of, make)
        return make

    return register


def attribute_of(op: str) -> str:
    """The attribute that has the operator's element type; "" where that is always the same. TensorFlow has to be
    imported."""
    from tensorflow.python.framework import op_def_registry  # noqa: PLC0415

    first = next(iter(op_def_registry.get(op).input_arg), None)
    return OPERATORS[op][0] or (first.type_attr or first.type_list_attr if first is not None else "")


def dtypes_of(op: str) -> list[str]:
    """The element types that the operator takes, of those that are tried. TensorFlow has to be imported."""
    import tensorflow as tf  # noqa: PLC0415
    from tensorflow.python.framework import op_def_registry  # noqa: PLC0415

    attribute = attribute_of(op)
    definition = op_def_registry.get(op)
    if not attribute:
        return [tf.as_dtype(definition.input_arg[0].type).name]
    for found in definition.attr:
        if found.name == attribute:
            allowed = [tf.as_dtype(number).name for number in found.allowed_values.list.type]
            return [name for name in _TRIED if not allowed or name in allowed]
    raise ValueError(f"{op} has no attribute {attribute!r}: name the one with its element type")


def call(raw: Any, op: str, *tensors: Any, **attributes: Any) -> Any:
    """The operator on its inputs in their order."""
    from tensorflow.python.framework import op_def_registry  # noqa: PLC0415

    names = [argument.name for argument in op_def_registry.get(op).input_arg]
    return getattr(raw, op)(**dict(zip(names, tensors, strict=True)), **attributes)

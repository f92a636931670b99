"""Spell out operators that a converter converts wrongly, or not at all, in others that it converts rightly.

Their errors were found by running them beside TensorFlow: see `converters.hazards`. Functions (the bodies of loops)
stay as they are; if that matters, the proof fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from backends.dtypes import BY_NAME
from backends.form import Format
from converters.spelling import Spelled

__all__ = ["REPAIRED", "repair"]


def repair(graph_def: Any, form: Format) -> None:
    """Change the graph in place, for the converter to `form`."""
    spelled = _SPELLED[form]
    constants = {node.name: node for node in graph_def.node if node.op == "Const"}
    for node in list(graph_def.node):
        if node.op in spelled:
            spelled[node.op](Spelled(graph_def, node, constants), node)


_INT32, _INT8, _INT64, _BOOL, _DOUBLE = (BY_NAME[name].number for name in ("int32", "int8", "int64", "bool", "float64"))
_FLOAT = BY_NAME["float32"].number
_SIGNED = frozenset(BY_NAME[name].number for name in ("int8", "int16", "int32", "int64"))
_WIDE = frozenset({_INT32, _INT64})  # a processor's division of their least number by -1 ends the process
_FLOATS = frozenset(BY_NAME[name].number for name in ("float16", "float32", "float64"))


# -- quotients and remainders


def _floor_div(spelled: Spelled, node: Any) -> None:
    """Round quotients of whole numbers down; tf2onnx rounds them towards 0."""
    dtype = node.attr["T"].type
    if dtype not in _SIGNED:
        return
    dividend, divisor, by_minus_one = _safe_division(spelled, dtype)
    quotient = spelled.add("TruncateDiv", [dividend, divisor], dtype=dtype, name="quotient")
    product = spelled.add("Mul", [quotient, divisor], dtype=dtype, name="product")
    rest = spelled.add("Sub", [dividend, product], dtype=dtype, name="rest")
    is_over = _is_of_other_sign(spelled, rest, divisor, dtype)
    one_over = spelled.cast(is_over, _BOOL, dtype, "one_over")
    if by_minus_one:
        negative = spelled.add("Neg", [dividend], dtype=dtype, name="negative")
        floor = spelled.add("Sub", [quotient, one_over], dtype=dtype, name="floor")
        spelled.become("SelectV2", [by_minus_one, negative, floor])
    else:
        spelled.become("Sub", [quotient, one_over])


def _truncate_div(spelled: Spelled, node: Any) -> None:
    """Round quotients of floats, which tf2onnx does not. Keep the least whole number from being divided by -1, which
    ends the process of ONNX Runtime."""
    dtype = node.attr["T"].type
    if dtype in _FLOATS and node.op == "TruncateDiv":
        quotient = spelled.add("RealDiv", spelled.inputs, dtype=dtype, name="quotient")
        sign = spelled.add("Sign", [quotient], dtype=dtype, name="sign")
        size = spelled.add("Abs", [quotient], dtype=dtype, name="size")
        spelled.become("Mul", [sign, spelled.add("Floor", [size], dtype=dtype, name="floor")])
        return
    if dtype not in _WIDE:
        return
    dividend, divisor, by_minus_one = _safe_division(spelled, dtype)
    if by_minus_one:
        quotient = spelled.add("TruncateDiv", [dividend, divisor], dtype=dtype, name="quotient")
        negative = spelled.add("Neg", [dividend], dtype=dtype, name="negative")
        spelled.become("SelectV2", [by_minus_one, negative, quotient])


def _floor_mod(spelled: Spelled, node: Any) -> None:
    """Give remainders the sign of the divisor. tf2onnx gives those of whole numbers the sign of the dividend, and
    computes those of floats from the rounded quotient: 1 % 0.05 becomes 0.

    The handler for whole numbers in `converters.onnx_handlers` is right, but for the least number by -1.
    """
    dtype = node.attr["T"].type
    if dtype in _WIDE:
        dividend, divisor, _ = _safe_division(spelled, dtype)
        spelled.become("FloorMod", [dividend, divisor])
    elif dtype in _FLOATS:
        dividend, divisor = spelled.inputs
        rest = spelled.add("TruncateMod", [dividend, divisor], dtype=dtype, name="rest")
        moved = spelled.add("AddV2", [rest, divisor], dtype=dtype, name="moved")
        spelled.become("SelectV2", [_is_of_other_sign(spelled, rest, divisor, dtype), moved, rest])


def _truncate_mod(spelled: Spelled, node: Any) -> None:
    """Compute remainders of whole numbers with the sign of the dividend; ONNX Runtime computes them by doubles."""
    dtype = node.attr["T"].type
    if dtype in _WIDE:
        dividend, divisor, _ = _safe_division(spelled, dtype)
        quotient = spelled.add("TruncateDiv", [dividend, divisor], dtype=dtype, name="quotient")
        spelled.become("Sub", [dividend, spelled.add("Mul", [quotient, divisor], dtype=dtype, name="product")])


def _safe_division(spelled: Spelled, dtype: int) -> tuple[str, str, str]:
    """Return the dividend, the divisor with 1 in place of -1, and whether it was -1; "" if it cannot be -1."""
    dividend, divisor = spelled.inputs
    if dtype not in _WIDE or spelled.is_constant(divisor):
        return dividend, divisor, ""
    minus_one, one = spelled.constant(-1, dtype, "minus_one"), spelled.constant(1, dtype, "one")
    is_it = spelled.add("Equal", [divisor, minus_one], dtype=dtype, name="by_minus_one")
    return dividend, spelled.choose(is_it, [one, divisor], dtype, "divisor"), is_it


def _is_of_other_sign(spelled: Spelled, rest: str, divisor: str, dtype: int) -> str:
    """Return whether the remainder is not 0 and has another sign than the divisor."""
    zero = spelled.constant(0, dtype, "zero")
    is_inexact = spelled.add("NotEqual", [rest, zero], dtype=dtype, name="is_inexact")
    below = [spelled.add("Less", [of, zero], dtype=dtype, name=name) for of, name in ((rest, "a"), (divisor, "b"))]
    differ = spelled.add("NotEqual", below, dtype=_BOOL, name="signs_differ")
    return spelled.add("LogicalAnd", [is_inexact, differ], name="is_of_other_sign")


def _rounded_quotient(spelled: Spelled, node: Any) -> None:
    """Round the quotient of floats that TensorFlow computes. LiteRT rounds one that it has computed more exactly: 1 //
    0.05 becomes 19."""
    dtype = node.attr["T"].type
    if dtype in _FLOATS:
        spelled.become("Floor", [spelled.add("RealDiv", spelled.inputs, dtype=dtype, name="quotient")])


# -- the larger and the smaller of whole numbers


def _larger(spelled: Spelled, node: Any) -> None:
    """Take the larger or the smaller of whole numbers by a comparison. ONNX Runtime compares some int64 by their lower
    32 bits if it takes several at once."""
    if node.attr["T"].type == _INT64:
        _choose_by(spelled, "Greater" if node.op == "Maximum" else "Less", *spelled.inputs)


def _rectified(spelled: Spelled, node: Any) -> None:
    """See `_larger`."""
    if node.attr["T"].type != _INT64:
        return
    (value,) = spelled.inputs
    zero = spelled.constant(0, _INT64, "zero")
    if node.op == "Relu6":
        six = spelled.constant(6, _INT64, "six")
        is_less = spelled.add("Less", [value, six], dtype=_INT64, name="is_less")
        value = spelled.choose(is_less, [value, six], _INT64, "at_most_six")
    _choose_by(spelled, "Greater", value, zero)


def _clipped(spelled: Spelled, node: Any) -> None:
    """See `_larger`."""
    if node.attr["T"].type == _INT64:
        value, least, most = spelled.inputs
        is_less = spelled.add("Less", [value, most], dtype=_INT64, name="is_less")
        _choose_by(spelled, "Greater", spelled.choose(is_less, [value, most], _INT64, "at_most"), least)


def _choose_by(spelled: Spelled, op: str, one: str, other: str) -> None:
    is_it = spelled.add(op, [one, other], dtype=_INT64, name="is_it")
    spelled.become("SelectV2", [is_it, one, other])


def _sign(spelled: Spelled, node: Any) -> None:
    """See `_larger`."""
    if node.attr["T"].type != _INT64:
        return
    (value,) = spelled.inputs
    zero = spelled.constant(0, _INT64, "zero")
    signs = [
        spelled.cast(spelled.add(op, [value, zero], dtype=_INT64, name=name), _BOOL, _INT64, f"{name}_as_number")
        for op, name in (("Greater", "is_above"), ("Less", "is_below"))
    ]
    spelled.become("Sub", signs)


_STEP = 2048  # by which an int64 becomes a whole number that a double has exactly


def _extreme(spelled: Spelled, node: Any) -> None:
    """Find the largest or the least int64 (see `_larger`): first the largest quotient, which a double holds exactly,
    then the largest rest of those that have it."""
    if node.attr["T"].type != _INT64:
        return
    op, (value, axes) = node.op, spelled.inputs
    step = spelled.constant(_STEP, _INT64, "step")
    quotient = spelled.add("TruncateDiv", [value, step], dtype=_INT64, name="quotient")
    product = spelled.add("Mul", [quotient, step], dtype=_INT64, name="product")
    rest = spelled.cast(
        spelled.add("Sub", [value, product], dtype=_INT64, name="rest"), _INT64, _DOUBLE, "rest_as_float"
    )
    quotients = spelled.cast(quotient, _INT64, _DOUBLE, "quotient_as_float")
    index, keep_dims = node.attr["Tidx"].type or _INT32, node.attr["keep_dims"].b

    def reduced(of: str, keep: bool, name: str) -> str:
        added = spelled.add(op, [of, axes], dtype=_DOUBLE, name=name)
        spelled.last.attr["Tidx"].type = index
        spelled.last.attr["keep_dims"].b = keep
        return added

    best = reduced(quotients, True, "best")
    is_best = spelled.add("Equal", [quotients, best], dtype=_DOUBLE, name="is_best")
    none = spelled.constant(-2.0 * _STEP if op == "Max" else 2.0 * _STEP, _DOUBLE, "none")
    rests = reduced(spelled.choose(is_best, [rest, none], _DOUBLE, "rests"), keep_dims, "best_rest")
    quotient = spelled.cast(reduced(quotients, keep_dims, "best_again"), _DOUBLE, _INT64, "best_as_number")
    added = spelled.add("Mul", [quotient, step], dtype=_INT64, name="best_product")
    spelled.become("AddV2", [added, spelled.cast(rests, _DOUBLE, _INT64, "rest_as_number")], drop=("Tidx", "keep_dims"))


# -- bins


def _bucketized(spelled: Spelled, node: Any) -> None:
    """Count the boundaries that a number is not below: no operator of ONNX does so. TensorFlow compares as float32, or
    as doubles if the number is one; NaN is below none."""
    (value,) = spelled.inputs
    dtype = node.attr["T"].type
    if dtype != _DOUBLE:
        value, dtype = spelled.cast(value, dtype, _FLOAT, "as_float"), _FLOAT
    boundaries = spelled.constant(list(node.attr["boundaries"].list.f), dtype, "limits")
    is_below = spelled.add("Less", [spelled.expanded(value, -1, dtype, "each"), boundaries], dtype=dtype, name="below")
    _count(spelled, spelled.add("LogicalNot", [is_below], name="is_reached"), _INT32, drop=("boundaries",))


def _bound(spelled: Spelled, node: Any) -> None:
    """Count the numbers of a sorted row that lie before each value. Neither converter knows the search for them."""
    ordered, values = spelled.inputs
    dtype, out_type = node.attr["T"].type, node.attr["out_type"].type or _INT32
    each = spelled.expanded(values, 2, dtype, "each")
    row = spelled.expanded(ordered, 1, dtype, "row")
    if node.op == "LowerBound":
        is_before = spelled.add("Less", [row, each], dtype=dtype, name="is_before")
    else:
        is_below = spelled.add("Less", [each, row], dtype=dtype, name="is_below")
        is_before = spelled.add("LogicalNot", [is_below], name="is_before")
    _count(spelled, is_before, out_type, drop=("out_type",))


def _count(spelled: Spelled, is_it: str, dtype: int, drop: Sequence[str]) -> None:
    """Turn the node into the count of what is true along the last dimension."""
    axis = spelled.constant(-1, _INT32, "axis")
    spelled.become("Sum", [spelled.cast(is_it, _BOOL, dtype, "numbers"), axis], drop=drop)
    spelled.retype(T=dtype, Tidx=_INT32)


# -- others


def _erfc(spelled: Spelled, node: Any) -> None:
    """Compute erfc(x) as 1 - erf(x), which tf2onnx knows: Keras 3 writes gelu, and so most transformers, with it. It is
    less exact if erfc is small; if that matters, the proof fails."""
    dtype = node.attr["T"].type
    one = spelled.constant(1.0, dtype, "one")
    spelled.become("Sub", [one, spelled.add("Erf", spelled.inputs, dtype=dtype, name="erf")])


def _one_hot(spelled: Spelled, node: Any) -> None:
    """Move indices below 0 to `depth`, for which there is no place either: TensorFlow leaves both out, and ONNX counts
    indices below 0 from the end."""
    dtype = node.attr["TI"].type
    if dtype not in _SIGNED:
        return
    indices, depth, on, off = spelled.inputs
    zero = spelled.constant(0, dtype, "zero")
    is_below = spelled.add("Less", [indices, zero], dtype=dtype, name="is_below")
    beyond = spelled.cast(depth, _INT32, dtype, "beyond") if dtype != _INT32 else depth
    placed = spelled.add("SelectV2", [is_below, beyond, indices], dtype=dtype, name="placed")
    spelled.become("OneHot", [placed, depth, on, off])


def _reverse_sequence(spelled: Spelled, node: Any) -> None:
    """Reverse sequences of length 0 as if of length 1, which changes nothing. ONNX Runtime loses their first
    element."""
    dtype = node.attr["Tlen"].type or _INT64
    value, lengths = spelled.inputs
    zero, one = spelled.constant(0, dtype, "zero"), spelled.constant(1, dtype, "one")
    is_empty = spelled.add("Equal", [lengths, zero], dtype=dtype, name="is_empty")
    spelled.become("ReverseSequence", [value, spelled.choose(is_empty, [one, lengths], dtype, "lengths")])


def _right_shift(spelled: Spelled, node: Any) -> None:
    """Shift int8 with their sign; tf2onnx fills them up with zeros."""
    if node.attr["T"].type != _INT8:
        return
    wide = [spelled.cast(of, _INT8, _INT32, name) for of, name in zip(spelled.inputs, ("value", "bits"), strict=True)]
    shifted = spelled.add("RightShift", wide, dtype=_INT32, name="shifted")
    spelled.become("Cast", [shifted], drop=("T",))
    node.attr["SrcT"].type, node.attr["DstT"].type = _INT32, _INT8


def _log1p(spelled: Spelled, node: Any) -> None:
    """Compute log(1 + x), which tf2onnx has no operator for, exactly also for small x: a factor makes up for what the
    sum loses of x (Kahan, as in HP's calculators)."""
    dtype = node.attr["T"].type
    (value,) = spelled.inputs
    one, infinity = spelled.constant(1.0, dtype, "one"), spelled.constant(float("inf"), dtype, "infinity")
    total = spelled.add("AddV2", [one, value], dtype=dtype, name="total")
    is_same = [
        spelled.add("Equal", [total, other], dtype=dtype, name=name)
        for other, name in ((one, "is_one"), (infinity, "is_infinite"))
    ]
    logarithm = spelled.add("Log", [total], dtype=dtype, name="log")
    kept = spelled.add("Sub", [total, one], dtype=dtype, name="kept")
    factor = spelled.add("RealDiv", [value, kept], dtype=dtype, name="factor")
    product = spelled.add("Mul", [logarithm, factor], dtype=dtype, name="product")
    spelled.become("SelectV2", [spelled.add("LogicalOr", is_same, name="is_same"), value, product])


def _softplus(spelled: Spelled, node: Any, rest_op: str) -> None:
    """Compute log(1 + exp(x)) without overflow: spelled out as it stands, it is infinite from 89 on (float32).
    `rest_op` is Log1p, or Log."""
    dtype = node.attr["T"].type
    (value,) = spelled.inputs
    size = spelled.add("Abs", [value], dtype=dtype, name="size")
    rest = spelled.add("Exp", [spelled.add("Neg", [size], dtype=dtype, name="negative")], dtype=dtype, name="small")
    if rest_op == "Log":
        rest = spelled.add("AddV2", [spelled.constant(1.0, dtype, "one"), rest], dtype=dtype, name="total")
    rest = spelled.add(rest_op, [rest], dtype=dtype, name="rest")
    spelled.become("AddV2", [spelled.add("Relu", [value], dtype=dtype, name="above_0"), rest])


def _softplus_of_doubles(spelled: Spelled, node: Any) -> None:
    """Spell out softplus of all floats but float32, which ONNX Runtime computes in another way."""
    if node.attr["T"].type != _FLOAT:
        _softplus(spelled, node, "Log")


_Spell = Callable[[Spelled, Any], None]

_SPELLED: Mapping[Format, Mapping[str, _Spell]] = {
    "onnx": {
        "Bucketize": _bucketized,
        "ClipByValue": _clipped,
        "Div": _truncate_div,
        "Erfc": _erfc,
        "FloorDiv": _floor_div,
        "FloorMod": _floor_mod,
        "Log1p": _log1p,
        "LowerBound": _bound,
        "Max": _extreme,
        "Maximum": _larger,
        "Min": _extreme,
        "Minimum": _larger,
        "Mod": _truncate_mod,
        "OneHot": _one_hot,
        "Relu": _rectified,
        "Relu6": _rectified,
        "ReverseSequence": _reverse_sequence,
        "RightShift": _right_shift,
        "Sign": _sign,
        "Softplus": _softplus_of_doubles,
        "TruncateDiv": _truncate_div,
        "TruncateMod": _truncate_mod,
        "UpperBound": _bound,
    },
    "tflite": {
        "FloorDiv": _rounded_quotient,
        "LowerBound": _bound,
        "Softplus": partial(_softplus, rest_op="Log1p"),
        "UpperBound": _bound,
    },
}

REPAIRED: Mapping[Format, frozenset[str]] = {form: frozenset(spelled) for form, spelled in _SPELLED.items()}
"""The operators that are spelled out, for some element types at least."""

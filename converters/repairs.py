"""Operators that tf2onnx converts to something else, or not at all, spelled out in those that it converts rightly.

Functions (the bodies of loops) stay as they are: the proof tells where that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["repair"]


class _Spelled:
    """The nodes that stand for one node: each has a name beneath its own."""

    def __init__(self, graph_def: Any, node: Any) -> None:
        self._graph_def = graph_def
        self._node = node
        self._order = [reference for reference in node.input if reference.startswith("^")]
        self.inputs = [reference for reference in node.input if not reference.startswith("^")]

    def add(self, op: str, inputs: Sequence[str], *, attribute: str = "T", dtype: int = 0, name: str) -> str:
        """A node, of a `dtype` if it has any; its name."""
        added = self._graph_def.node.add(name=f"{self._node.name}/{name}", op=op, input=list(inputs))
        if dtype:
            added.attr[attribute].type = dtype
        return str(added.name)

    def cast(self, value: str, source: int, target: int, name: str) -> str:
        cast = self.add("Cast", [value], attribute="SrcT", dtype=source, name=name)
        self._graph_def.node[-1].attr["DstT"].type = target
        return cast

    def constant(self, value: float, dtype: int, name: str) -> str:
        import tensorflow as tf  # noqa: PLC0415 - as all that imports it: entry points run in processes of their own

        added = self.add("Const", [], attribute="dtype", dtype=dtype, name=name)
        tensor = tf.make_tensor_proto(value, tf.as_dtype(dtype), [])
        self._graph_def.node[-1].attr["value"].tensor.CopyFrom(tensor)
        return added

    def become(self, op: str, inputs: Sequence[str]) -> None:
        """Makes of the node itself another one, of the same type."""
        self._node.op = op
        del self._node.input[:]
        self._node.input.extend([*inputs, *self._order])


def repair(graph_def: Any) -> None:
    """Changes the graph in place."""
    for node in list(graph_def.node):
        spell = _SPELLED.get(node.op)
        if spell is not None:
            spell(_Spelled(graph_def, node), node)


def _erfc(spelled: _Spelled, node: Any) -> None:
    """erfc(x) is 1 - erf(x), which tf2onnx knows: Keras 3 writes gelu, and so most transformers, with it. That is
    less exact where erfc is small; the proof tells where it matters."""
    dtype = node.attr["T"].type
    one = spelled.constant(1.0, dtype, "one")
    spelled.become("Sub", [one, spelled.add("Erf", spelled.inputs, dtype=dtype, name="erf")])


def _floor_div(spelled: _Spelled, node: Any) -> None:
    """tf2onnx rounds quotients of whole numbers towards 0."""
    if _is_signed(node.attr["T"].type):
        quotient, _, is_over = _divided(spelled, node)
        spelled.become("Sub", [quotient, is_over])


def _floor_mod(spelled: _Spelled, node: Any) -> None:
    """tf2onnx gives remainders of whole numbers the sign of the dividend."""
    dtype = node.attr["T"].type
    if _is_signed(dtype):
        divisor = spelled.inputs[1]
        _, rest, is_over = _divided(spelled, node)
        spelled.become("AddV2", [rest, spelled.add("Mul", [is_over, divisor], dtype=dtype, name="correction")])


def _divided(spelled: _Spelled, node: Any) -> tuple[str, str, str]:
    """The quotient that was rounded towards 0, what is left, and 1 where the quotient is over the exact one, else 0."""
    dtype = node.attr["T"].type
    dividend, divisor = spelled.inputs
    quotient = spelled.add("TruncateDiv", [dividend, divisor], dtype=dtype, name="quotient")
    product = spelled.add("Mul", [quotient, divisor], dtype=dtype, name="product")
    rest = spelled.add("Sub", [dividend, product], dtype=dtype, name="rest")
    zero = spelled.constant(0, dtype, "zero")
    is_inexact = spelled.add("NotEqual", [rest, zero], dtype=dtype, name="is_inexact")
    below = [spelled.add("Less", [of, zero], dtype=dtype, name=name) for of, name in ((rest, "a"), (divisor, "b"))]
    differ = spelled.add("NotEqual", below, dtype=_BOOL, name="signs_differ")
    is_over = spelled.add("LogicalAnd", [is_inexact, differ], name="is_over")
    return quotient, rest, spelled.cast(is_over, _BOOL, dtype, "one_over")


def _one_hot(spelled: _Spelled, node: Any) -> None:
    """ONNX counts indices below 0 from the end; TensorFlow has no place for them, nor for `depth`."""
    dtype = node.attr["TI"].type
    if not _is_signed(dtype):
        return
    indices, depth, on, off = spelled.inputs
    zero = spelled.constant(0, dtype, "zero")
    is_below = spelled.add("Less", [indices, zero], dtype=dtype, name="is_below")
    beyond = spelled.cast(depth, _INT32, dtype, "beyond") if dtype != _INT32 else depth
    placed = spelled.add("SelectV2", [is_below, beyond, indices], dtype=dtype, name="placed")
    spelled.become("OneHot", [placed, depth, on, off])


_INT32, _BOOL = 3, 10  # of the enum DataType
_SIGNED = frozenset({_INT32, 9})  # and int64: others are rare, and tf2onnx knows fewer operators for them


def _is_signed(dtype: int) -> bool:
    return dtype in _SIGNED


_SPELLED: dict[str, Callable[[_Spelled, Any], None]] = {
    "Erfc": _erfc,
    "FloorDiv": _floor_div,
    "FloorMod": _floor_mod,
    "OneHot": _one_hot,
}

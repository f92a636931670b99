"""Write nodes that stand for one node of a TensorFlow graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backends.dtypes import BY_NAME

__all__ = ["Spelled"]

_INT32 = BY_NAME["int32"].number


class Spelled:
    """The nodes that stand for one node. Their names begin with its name."""

    def __init__(self, graph_def: Any, node: Any, constants: Mapping[str, Any]) -> None:
        self.inputs = [reference for reference in node.input if not reference.startswith("^")]
        self._graph_def = graph_def
        self._node = node
        self._order = [reference for reference in node.input if reference.startswith("^")]
        self._constants = constants

    def add(self, op: str, inputs: Sequence[str], *, attribute: str = "T", dtype: int = 0, name: str) -> str:
        """Add a node, of a `dtype` if it has any, and return its name."""
        added = self._graph_def.node.add(name=f"{self._node.name}/{name}", op=op, input=list(inputs))
        if dtype:
            added.attr[attribute].type = dtype
        return str(added.name)

    @property
    def last(self) -> Any:
        """The node that was added last, for further attributes."""
        return self._graph_def.node[-1]

    def cast(self, value: str, source: int, target: int, name: str) -> str:
        cast = self.add("Cast", [value], attribute="SrcT", dtype=source, name=name)
        self.last.attr["DstT"].type = target
        return cast

    def constant(self, value: float | Sequence[float], dtype: int, name: str) -> str:
        import tensorflow as tf  # noqa: PLC0415 - as all that imports it: entry points run in processes of their own

        added = self.add("Const", [], attribute="dtype", dtype=dtype, name=name)
        tensor = tf.make_tensor_proto(value, tf.as_dtype(dtype), [len(value)] if isinstance(value, Sequence) else [])
        self.last.attr["value"].tensor.CopyFrom(tensor)
        return added

    def expanded(self, value: str, axis: int, dtype: int, name: str) -> str:
        """Insert a dimension of size 1 at `axis`."""
        at = self.constant(axis, _INT32, f"{name}_axis")
        added = self.add("ExpandDims", [value, at], dtype=dtype, name=name)
        self.last.attr["Tdim"].type = _INT32
        return added

    def choose(self, condition: str, inputs: Sequence[str], dtype: int, name: str) -> str:
        return self.add("SelectV2", [condition, *inputs], dtype=dtype, name=name)

    def is_constant(self, value: str) -> bool:
        return value.partition(":")[0] in self._constants

    def become(self, op: str, inputs: Sequence[str], drop: Sequence[str] = ()) -> None:
        """Turn the node itself into another one, of the same type, without the attributes `drop`."""
        self._node.op = op
        for name in drop:
            self._node.attr.pop(name, None)
        del self._node.input[:]
        self._node.input.extend([*inputs, *self._order])

    def retype(self, **types: int) -> None:
        """Set attributes of the node itself that are element types."""
        for name, dtype in types.items():
            self._node.attr[name].type = dtype

"""Read and set the weights of a loaded SavedModel: its variables of floats.

Only worker processes import this module, because it imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["Weights"]

_MAX_BYTES = 512 << 20  # callers hold two copies
_DTYPES = frozenset({tf.float16, tf.bfloat16, tf.float32, tf.float64})


class Weights:
    """The variables of floats of one session that have values: in the graph's order, as many as have 512 MiB together.

    It adds operators to the session's graph.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        with session.graph.as_default():
            found = list(_variables(session))
            self._reads = [_read(each) for each in found]
            self._feeds = [tf.compat.v1.placeholder(each.get_attr("dtype")) for each in found]
            self._assigns = [_assign(each, value) for each, value in zip(found, self._feeds, strict=True)]

    def get(self) -> list[np.ndarray]:
        """Return a copy of each."""
        return [np.array(value) for value in self._session.run(self._reads)]

    def set(self, values: Sequence[np.ndarray]) -> None:
        """Set all, in the order of `get`."""
        self._session.run(self._assigns, dict(zip(self._feeds, values, strict=True)))


def _variables(session: Any) -> Iterator[Any]:
    """Yield the operators of the variables."""
    able = [
        each
        for each in session.graph.get_operations()
        if each.type in ("VarHandleOp", "VariableV2") and each.get_attr("dtype") in _DTYPES
    ]
    left = _MAX_BYTES
    for operation, has_value in zip(able, session.run([_has_value(each) for each in able]), strict=True):
        shape = tf.TensorShape(operation.get_attr("shape"))
        if has_value and shape.is_fully_defined():
            left -= shape.num_elements() * operation.get_attr("dtype").size
            if left < 0:
                return
            yield operation


def _has_value(operation: Any) -> Any:
    variable = operation.outputs[0]
    if operation.type == "VarHandleOp":
        return tf.raw_ops.VarIsInitializedOp(resource=variable)
    return tf.raw_ops.IsVariableInitialized(ref=variable)


def _read(operation: Any) -> Any:
    variable = operation.outputs[0]
    if operation.type == "VarHandleOp":
        return tf.raw_ops.ReadVariableOp(resource=variable, dtype=operation.get_attr("dtype"))
    return tf.identity(variable)


def _assign(operation: Any, value: Any) -> Any:
    variable = operation.outputs[0]
    if operation.type == "VarHandleOp":
        return tf.raw_ops.AssignVariableOp(resource=variable, value=value)
    return tf.raw_ops.Assign(ref=variable, value=value).op

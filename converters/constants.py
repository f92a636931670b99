"""Find numbers of a model's graph at which its answers may jump: thresholds, divisors, depths, sizes of tables.

They are read from the protocol buffer; nothing is run. A number that is missed costs a case and nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["constants_of", "graphs_of"]

_MAX_FILE_BYTES = 64 << 20
_MAX_ELEMENTS = 8  # of a constant that is taken for some numbers, and not for weights
_MAX_CONSTANTS = 32

# The most telling first: answers jump at their numbers.
_JUMPING = (
    *("FloorMod", "FloorDiv", "Mod", "TruncateDiv", "TruncateMod", "OneHot", "Less", "LessEqual", "Greater"),
    *("GreaterEqual", "Equal", "NotEqual", "Bucketize", "Minimum", "Maximum", "ClipByValue", "LeftShift", "RightShift"),
)
_BENDING = ("BitwiseAnd", "RealDiv", "Div", "Sub", "AddV2", "Add")
_LOOK_UPS = ("Gather", "GatherV2", "ResourceGather")
_PASSING = ("Identity", "Cast", "ExpandDims", "Reshape", "ReadVariableOp")


def constants_of(path: str, tags: Iterable[str]) -> tuple[float, ...]:
    """Return at most 32 numbers of the SavedModel at `path`; whole ones are `int`. Return none if the file is large or
    cannot be read: whether it can be served is decided elsewhere."""
    found: dict[float, None] = {}
    for graph in graphs_of(path, tags):
        scopes = [graph.node, *(function.node_def for function in graph.library.function)]
        for ops in (_JUMPING, _LOOK_UPS, _BENDING):
            for nodes in scopes:
                for number in filter(math.isfinite, _numbers(nodes, ops)):
                    found.setdefault(number)
                    if len(found) >= _MAX_CONSTANTS:
                        return tuple(found)
    return tuple(found)


def graphs_of(path: str, tags: Iterable[str]) -> tuple[Any, ...]:
    """Return the graphs (`tensorflow.GraphDef`) with these tags of the SavedModel at `path`: one or none. Return none
    if the file is large or cannot be read."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - both come with TensorFlow, in jobs alone
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415

    file = os.path.join(path, "saved_model.pb")
    try:
        if os.path.getsize(file) > _MAX_FILE_BYTES:
            return ()
        with open(file, "rb") as opened:
            model = saved_model_pb2.SavedModel.FromString(opened.read())
    except (OSError, DecodeError):
        return ()
    wanted = set(tags)
    return tuple(meta.graph_def for meta in model.meta_graphs if set(meta.meta_info_def.tags) == wanted)


def _numbers(nodes: Any, ops: tuple[str, ...]) -> Iterator[float]:
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        if node.op not in ops:
            continue
        if node.op == "Bucketize":
            yield from (_plain(value) for value in node.attr["boundaries"].list.f)
        for reference in node.input[: 1 if node.op in _LOOK_UPS else None]:
            source = _source(by_name, reference)
            if source is None:
                continue
            if node.op in _LOOK_UPS:
                yield from _rows(source)
            elif source.op == "Const":
                yield from _elements(source.attr["value"].tensor)


def _source(by_name: dict[str, Any], reference: str) -> Any:
    """Return the node that a reference ("name:0", in functions "name:output:0") leads to through nodes that pass it
    on."""
    for _ in range(4):
        node = by_name.get(reference.removeprefix("^").partition(":")[0])
        if node is None or node.op not in _PASSING or not node.input:
            return node
        reference = node.input[0]
    return None


def _rows(table: Any) -> Iterator[float]:
    """Yield the number of rows of a table."""
    shape = table.attr["value"].tensor.tensor_shape if table.op == "Const" else table.attr["shape"].shape
    if len(shape.dim) and shape.dim[0].size > 0:
        yield int(shape.dim[0].size)


def _elements(tensor: Any) -> Iterator[float]:
    from tensorflow.python.framework import tensor_util  # noqa: PLC0415

    if any(dim.size > _MAX_ELEMENTS for dim in tensor.tensor_shape.dim):
        return
    try:
        array = tensor_util.MakeNdarray(tensor)
    except (TypeError, ValueError):  # it does not hold what it says
        return
    if array.size <= _MAX_ELEMENTS and array.dtype.kind in "iuf":
        yield from (_plain(value) for value in array.reshape(-1).tolist())


def _plain(value: float) -> float:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value

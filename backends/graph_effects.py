"""Which signatures of a SavedModel change what lasts: variables, tables, files. Without TensorFlow.

A function counts as running all of its nodes, as TensorFlow runs all that have effects.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from backends.contract import Signature

__all__ = ["changing_signatures"]

# Ops of TensorFlow 2.21 by name. Not among them: TensorScatter… and ScatterNd, which return a new tensor.
_CHANGING = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?$|AssignVariableXlaConcatND$|(Resource)?StridedSliceAssign$"
    r"|(Resource)?(Sparse)?Apply[A-Z]|ResourceScatter|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)$|(Resource)?CountUpTo$"
    r"|LookupTable(Insert|Remove|Import)(V2)?$|DestroyResourceOp$|Save(V2|Slices)?$|MergeV2Checkpoints$|WriteFile$"
)


def changing_signatures(graph: Any, signatures: Mapping[str, Signature]) -> frozenset[str]:
    """Those of `signatures` of the `tensorflow.GraphDef` that change what lasts."""
    functions = {function.signature.name: _called(function.node_def) for function in graph.library.function}
    changing = {name for name, called in functions.items() if any(map(_is_changing, called))}
    while more := {name for name, called in functions.items() if name not in changing and called & changing}:
        changing |= more
    nodes = {node.name: node for node in graph.node}
    found = set()
    for name, signature in signatures.items():
        todo = [_node_of(spec.tensor_name) for spec in signature.outputs.values()]
        # What is above an input does not run: that is fed.
        seen = {_node_of(spec.tensor_name) for spec in signature.inputs.values()}
        while todo:
            at = todo.pop()
            if at in seen or at not in nodes:
                continue
            seen.add(at)
            called = _called([nodes[at]])
            if called & changing or any(map(_is_changing, called)):
                found.add(name)
                break
            todo.extend(_node_of(tensor) for tensor in nodes[at].input)
    return frozenset(found)


def _called(nodes: Iterable[Any]) -> set[str]:
    """The names of the ops and functions of `nodes`, which share one name space."""
    called = set()
    for node in nodes:
        called.add(node.op)
        for value in node.attr.values():
            if value.HasField("func"):
                called.add(value.func.name)
            elif value.HasField("list"):
                called.update(function.name for function in value.list.func)
    return called


@functools.cache
def _is_changing(op: str) -> bool:
    return _CHANGING.match(op) is not None


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]

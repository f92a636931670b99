"""Which signatures of a SavedModel change what lasts: variables, tables, files. Without TensorFlow.

A function counts as running all of its nodes, as TensorFlow runs all that have effects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
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
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    changing = _changing_functions(functions)
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
            if _changes(nodes[at], changing):
                found.add(name)
                break
            todo.extend(_node_of(tensor) for tensor in nodes[at].input)
    return frozenset(found)


def _changing_functions(functions: Mapping[str, Any]) -> Set[str]:
    changing: set[str] = set()
    while True:
        more = {
            name
            for name, nodes in functions.items()
            if name not in changing and any(_changes(node, changing) for node in nodes)
        }
        if not more:
            return changing
        changing |= more


def _changes(node: Any, changing: Set[str]) -> bool:
    if _CHANGING.match(node.op) or node.op in changing:
        return True
    if not changing:
        return False
    return any(
        value.func.name in changing or any(function.name in changing for function in value.list.func)
        for value in node.attr.values()
    )


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]

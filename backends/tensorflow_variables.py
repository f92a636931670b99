"""Find the variables that a signature of a graph reads, which of them have no value, and a copy that has it.

A SavedModel that Keras 3 wrote by `tf.saved_model.save` holds each variable twice (`_export_to_saved_model_graph` in
keras/src/backend/tensorflow/core.py): its functions read the original, its checkpoint has the copy, and the copy's
initialiser reads the original. TensorFlow's loader for sessions, and so TensorFlow Serving, leaves the original unset.

Only worker processes import this module, because it imports TensorFlow.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

__all__ = ["Read", "Reads", "copies", "copy_values", "unset"]

_RESOURCES = frozenset({"VarHandleOp"})
_REFERENCES = frozenset({"VariableV2", "Variable", "AutoReloadVariable"})

# Ops that pass a variable on unchanged. Identity reads the value of a reference variable, but not of a resource.
_PASSING = frozenset({"Enter", "RefEnter", "RefIdentity", "Switch", "RefSwitch", "Merge", "RefMerge", "NextIteration"})
_PASSING_RESOURCES = _PASSING | {"Identity", "IdentityN"}

_ASSIGNING = frozenset({"AssignVariableOp", "Assign"})
_NEUTRAL = frozenset({"VarIsInitializedOp", "IsVariableInitialized", "DestroyResourceOp"})
_READING = ("ReadVariableOp", "VariableShape", "AssignAdd", "AssignSub", "ResourceGather", "ResourceScatter")
_CALLING = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_BRANCHING = {"If": 1, "StatelessIf": 1, "Case": 1, "StatelessCase": 1, "While": 0, "StatelessWhile": 0}
"""The number of inputs before those that are passed to the functions."""


@dataclass(frozen=True, slots=True)
class Read:
    """How a function uses a variable.

    `always`: no call can do without its value. `perhaps`: a call may read it. `assigned`: it sets the value itself,
    perhaps before it reads it.
    """

    always: bool = False
    perhaps: bool = False
    assigned: bool = False

    def __or__(self, other: Read) -> Read:
        return Read(self.always or other.always, self.perhaps or other.perhaps, self.assigned or other.assigned)

    def in_branch(self) -> Read:
        """Return the same use, but in a branch that may not run."""
        return Read(False, self.always or self.perhaps, self.assigned)

    @property
    def cannot_be_unset(self) -> bool:
        """Whether a call fails if the variable has no value."""
        return self.always and not self.assigned


_Ports = Mapping[str, Collection[int]]
"""Some outputs of some nodes: node's name → output numbers."""


class Reads:
    """Analyses `graph_def`, a GraphDef, without running anything."""

    def __init__(self, graph_def: Any) -> None:
        self._nodes = {node.name: node for node in graph_def.node}
        self._functions = {function.signature.name: function for function in graph_def.library.function}
        self._uses = functools.cache(self._uses_in_function)
        self._takes = functools.cache(self._taken_by_function)
        self._open: set[str] = set()  # the functions that are being analysed, because one may call itself

    def variables(self, feeds: Iterable[str], fetches: Iterable[str]) -> frozenset[str]:
        """Return the names of the variables that the tensors `fetches` depend on if `feeds` are given, read or not."""
        reached = self._reached(self._nodes, fetches, frozenset(feeds))
        return frozenset(
            name for name in reached if name in self._nodes and self._nodes[name].op in _RESOURCES | _REFERENCES
        )

    def assigned(self, operations: Iterable[str]) -> frozenset[str]:
        """Return the names of the variables that `operations` (names of nodes) set."""
        names = list(operations)
        return frozenset(name for name, read in self.of(self.variables((), names), (), names).items() if read.assigned)

    def of(self, variables: Iterable[str], feeds: Iterable[str], fetches: Sequence[str]) -> dict[str, Read]:
        """Return how `variables` are used by the nodes that the tensors `fetches` depend on, if `feeds` are given."""
        given = frozenset(feeds)
        run = self._reached(self._nodes, fetches, given)
        needed = self._reached(self._nodes, fetches, given, by_data=True)
        nodes = {name: self._nodes[name] for name in run if name in self._nodes}
        return self._uses_of(nodes, run.keys(), needed, frozenset(variables))

    def _uses_of(
        self, nodes: Mapping[str, Any], run: Collection[str], needed: _Ports, sources: frozenset[str]
    ) -> dict[str, Read]:
        """Return how `nodes` use the variables, or the arguments, `sources`.

        The nodes in `run` may run; only those in `needed` are certain to, because TensorFlow prunes reads whose values
        are unused.
        """
        # In TensorFlow 1's cond and while_loop, the nodes of a branch cannot be told from the others.
        has_branches = any(nodes[name].op in ("Switch", "RefSwitch") for name in run if name in nodes)
        found: dict[str, Read] = {}
        for name, node in nodes.items():
            for position, reference in enumerate(node.input):
                source = _source(nodes, reference, sources)
                if source is None:
                    continue
                is_reference = source in nodes and nodes[source].op in _REFERENCES
                if node.op in (_PASSING if is_reference else _PASSING_RESOURCES):
                    continue
                read = self._read_by(node, position, is_reference, needed.get(name, frozenset()))
                if has_branches or name not in needed:
                    read = read.in_branch()
                if name not in run:
                    read = Read(assigned=read.assigned)
                found[source] = found.get(source, Read()) | read
        return found

    def _read_by(self, node: Any, position: int, is_reference: bool, ports: Collection[int]) -> Read:
        """Return how `node`, whose outputs `ports` are needed, uses the variable that is its input at `position`."""
        op = node.op
        if op in _ASSIGNING and position == 0:
            return Read(assigned=True)
        if op in _NEUTRAL:
            return Read()
        if is_reference or op.startswith(_READING):
            return Read(always=True)
        if called := self._called(node):
            return self._argument(called, position, ports)
        if op in _BRANCHING:
            read = Read()
            for attribute in node.attr.values():
                for function in (attribute.func, *attribute.list.func):
                    if function.name:
                        read |= self._argument(function.name, position - _BRANCHING[op], ()).in_branch()
            return read
        return Read(perhaps=True)

    def _argument(self, function: str, position: int, ports: Collection[int]) -> Read:
        if function not in self._functions or function in self._open:
            return Read()
        uses = self._uses(function, frozenset(ports))
        return uses[position] if 0 <= position < len(uses) else Read()

    def _uses_in_function(self, name: str, ports: frozenset[int]) -> tuple[Read, ...]:
        """Return how the function `name`, whose results `ports` are needed, uses each of its arguments."""
        function = self._functions[name]
        arguments = [argument.name for argument in function.signature.input_arg]
        results = [function.ret[output.name] for output in function.signature.output_arg]
        nodes = {node.name: node for node in function.node_def}
        run = self._reached(nodes, [*results, *function.control_ret.values()])
        asked = [result for port, result in enumerate(results) if port in ports]
        needed = self._reached(nodes, asked, by_data=True)
        self._open.add(name)
        try:
            found = self._uses_of(nodes, run.keys(), needed, frozenset(arguments))
        finally:
            self._open.remove(name)
        return tuple(found.get(argument, Read()) for argument in arguments)

    def _taken_by_function(self, name: str, port: int) -> frozenset[int]:
        """Return the positions of the arguments that the result `port` of the function `name` depends on."""
        signature = self._functions[name].signature
        if name in self._open or not 0 <= port < len(signature.output_arg):
            return frozenset()
        result = self._functions[name].ret[signature.output_arg[port].name]
        self._open.add(name)
        try:
            reached = self._reached(
                {node.name: node for node in self._functions[name].node_def}, [result], by_data=True
            )
        finally:
            self._open.remove(name)
        return frozenset(at for at, argument in enumerate(signature.input_arg) if argument.name in reached)

    def _reached(
        self,
        nodes: Mapping[str, Any],
        tensors: Iterable[str],
        feeds: frozenset[str] = frozenset(),
        *,
        by_data: bool = False,
    ) -> dict[str, set[int]]:
        """Return the nodes and arguments that `tensors` depend on → the outputs of them that are used.

        Nodes above the tensors `feeds` are left out. `by_data`: follow only values, not control inputs.
        """
        reached: dict[str, set[int]] = {}
        waiting = list(tensors)
        while waiting:
            reference = waiting.pop()
            is_control = reference.startswith("^")
            if (by_data and is_control) or (not is_control and _with_port(reference) in feeds):
                continue
            name, port = _node_of(reference), _port(reference)
            ports = reached.setdefault(name, set())
            node = nodes.get(name)
            if node is not None and (called := self._called(node) if by_data else ""):
                if port not in ports:
                    waiting += [node.input[at] for at in self._takes(called, port) if at < len(node.input)]
            elif node is not None and not ports:
                waiting += node.input
            ports.add(port)
        return reached

    def _called(self, node: Any) -> str:
        """Return the function that `node` merely calls; "" if it does something else."""
        name = node.attr["f"].func.name if node.op in _CALLING else node.op
        return name if name in self._functions else ""


def _source(nodes: Mapping[str, Any], reference: str, sources: frozenset[str]) -> str | None:
    """Return the one of `sources` that `reference` refers to, perhaps passed on by other nodes; None if none."""
    for _ in range(100):
        if reference.startswith("^"):
            return None
        name = _node_of(reference)
        if name in sources:
            return name
        node = nodes.get(name)
        if node is None or node.op not in _PASSING_RESOURCES or not node.input:
            return None
        port = _port(reference) if node.op == "IdentityN" else 0
        reference = node.input[min(port, len(node.input) - 1)]
    return None


def _node_of(reference: str) -> str:
    return reference.removeprefix("^").partition(":")[0]


def _port(reference: str) -> int:
    """Return the output number of `node` (0), `node:1` in a graph, or `node:name:1` in a function.

    In a function, the number counts within one named output; for calls, all outputs have one name.
    """
    last = reference.rpartition(":")[2]
    return int(last) if last.isdecimal() else 0


def _with_port(reference: str) -> str:
    return reference if ":" in reference or reference.startswith("^") else f"{reference}:0"


def copies(graph_def: Any, variables: Iterable[str]) -> dict[str, list[str]]:
    """Return for each of `variables` (resources) those of the same type and shape whose initialiser reads it."""
    nodes = {node.name: node for node in graph_def.node}
    wanted = frozenset(variables)
    handles = frozenset(name for name, node in nodes.items() if node.op in _RESOURCES)
    found: dict[str, list[str]] = {}
    for node in graph_def.node:
        if node.op != "AssignVariableOp":
            continue
        copy = _source(nodes, node.input[0], handles)
        value = nodes.get(_node_of(node.input[1]))
        while value is not None and value.op == "Identity":
            value = nodes.get(_node_of(value.input[0]))
        if copy is None or value is None or value.op != "ReadVariableOp":
            continue
        original = _source(nodes, value.input[0], handles)
        if original not in wanted or original == copy:
            continue
        if all(nodes[original].attr[key] == nodes[copy].attr[key] for key in ("dtype", "shape")):
            found.setdefault(original, []).append(copy)
    return found


def unset(session: Any, variables: Sequence[str]) -> frozenset[str]:
    """Return those of `variables` that have no value in `session`, asked in one run."""
    if not variables:
        return frozenset()
    asked = tf.compat.v1.GraphDef()
    for number, name in enumerate(variables):
        is_resource = session.graph.get_operation_by_name(name).type in _RESOURCES
        asking = asked.node.add(
            op="VarIsInitializedOp" if is_resource else "IsVariableInitialized", name=f"is_set_{number}", input=[name]
        )
        if not is_resource:
            asking.attr["dtype"].type = _type_of(session.graph, name)
    answers = session.run([operation.outputs[0] for operation in _added(session.graph, asked, variables)])
    return frozenset(name for name, is_set in zip(variables, answers, strict=True) if not is_set)


def copy_values(session: Any, pairs: Mapping[str, str]) -> None:
    """Give each variable in `pairs` (resources) the value of the one that it maps to. The two share their memory."""
    copying = tf.compat.v1.GraphDef()
    for number, (name, source) in enumerate(pairs.items()):
        value = f"value_{number}"
        for node in (
            copying.node.add(op="ReadVariableOp", name=value, input=[source]),
            copying.node.add(op="AssignVariableOp", name=f"assign_{number}", input=[name, value]),
        ):
            node.attr["dtype"].type = _type_of(session.graph, source)
    added = _added(session.graph, copying, [*pairs.keys(), *pairs.values()])
    session.run([operation for operation in added if operation.type == "AssignVariableOp"])


def _type_of(graph: Any, variable: str) -> int:
    number: int = graph.get_operation_by_name(variable).get_attr("dtype").base_dtype.as_datatype_enum
    return number


def _added(graph: Any, nodes: Any, inputs: Iterable[str]) -> list[Any]:
    """Add the nodes of the GraphDef `nodes`, with `inputs` of `graph`, to it; return the operations in their order.

    This costs a tenth of TensorFlow's functions for single operations.
    """
    with graph.as_default():
        tensors = {name: graph.get_operation_by_name(name).outputs[0] for name in inputs}
        added: list[Any] = tf.graph_util.import_graph_def(
            nodes, tensors, [node.name for node in nodes.node], "dropserve"
        )
    return added

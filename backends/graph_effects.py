"""Find the signatures of a SavedModel that change lasting state or act outside of their process, without TensorFlow.

All nodes of a function count as run, because TensorFlow runs all that have effects.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.contract import Signature

__all__ = ["Effects", "acts_outside", "changes_state", "effects"]

# Ops of TensorFlow 2.21 by name; tests/backends/test_graph_effects.py goes through all that it registers.

# State that a session keeps: variables, tables, queues, iterators, random number generators. Left out are
# TensorScatter… and ScatterNd, which return a new tensor, and state that lasts no longer than a request, such as a
# TensorArray.
_CHANGING = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?$|AssignVariableXlaConcatND$|(Resource)?StridedSliceAssign$"
    r"|(Resource)?(Sparse)?Apply[A-Z]|ResourceScatter|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)$|(Resource)?CountUpTo$"
    r"|(NegTrain|SdcaShrinkL1|DestroyResourceOp)$"
    r"|(Resource|Sparse)?Accumulator(ApplyGradient|TakeGradient|SetGlobalStep)$"
    r"|LookupTable(Insert|Remove|Import)(V2)?$|InitializeTable(V2|FromDataset|FromTextFile(V2)?)?$"
    r"|Queue(Enqueue|EnqueueMany|Dequeue|DequeueMany|DequeueUpTo|Close)(V2)?$|Barrier(InsertMany|TakeMany|Close)$"
    r"|((Ordered)?Map)?(Stage|Unstage)(NoKey)?$|(Stage|(Ordered)?Map)Clear$"
    r"|Reader(Read|ReadUpTo|Reset|RestoreState)(V2)?$"
    r"|IteratorGetNext|(MakeIterator|DeserializeIterator|MultiDeviceIterator(Init|GetNextFromShard))$"
    r"|Stateful(StandardNormal(V2)?|Uniform(Int|FullInt)?|TruncatedNormal|RandomBinomial)$|Rng(Skip|ReadAndSkip)$"
    r"|(GetSessionHandle(V2)?|DeleteSessionTensor|(Add|AddMany|TakeMany)Sparse(To|From)TensorsMap)$"
    r"|BoostedTrees(UpdateEnsemble(V2)?|CenterBias|CreateEnsemble|DeserializeEnsemble|CreateQuantileStreamResource"
    r"|FlushQuantileSummaries|QuantileStreamResource(AddSummaries|Flush|Deserialize))$"
)

# Files, other processes and hosts, and state that a whole process shares: a second load of the model does not isolate
# it.
_TO_A_FILE = "PrintV2 to a file"
_OUTSIDE = re.compile(
    r"(Save|SaveV2|SaveSlices|DistributedSave|MergeV2Checkpoints|WriteFile|SaveDataset(V2)?|DumpTensor)$"
    r"|(Experimental)?DatasetToTFRecord$|Snapshot(Dataset|DatasetV2)$|CacheDataset(V2)?$|CalibrationStatisticsSaver$"
    r"|(Create|Close|Flush)Summary(File|Db)?Writer$|Write\w*Summary$|ImportEvent$|StatsAggregatorSetSummaryWriter$"
    r"|Debug(Identity|NanCount|NumericSummary)(V\d)?$|FileSystemSetConfiguration$"
    r"|Rpc(Call|CheckStatus|Client|GetValue|Server|ServerRegister|ServerStart)$|(RemoteCall|RegisterDataset(V2)?)$"
    r"|DataServiceDataset|Collective[A-Z]|_?Nccl[A-Z]" + f"|{_TO_A_FILE}$"
)


@functools.cache
def changes_state(op: str) -> bool:
    """Return whether ops of this name change state that a session keeps."""
    return _CHANGING.match(op) is not None


@functools.cache
def acts_outside(op: str) -> bool:
    """Return whether ops of this name write files, or act on other things outside of the session."""
    return _OUTSIDE.match(op) is not None


@dataclass(frozen=True, slots=True)
class Effects:
    """The effects of signatures besides their answers."""

    changing: frozenset[str] = frozenset()
    """Signatures that change lasting state, those in `outside` included."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Signatures that act outside of the process → the op that does."""


def effects(graph: Any, signatures: Mapping[str, Signature]) -> Effects:
    """Return the effects of `signatures` of a `tensorflow.GraphDef`."""
    functions = {function.signature.name: _called(function.node_def) for function in graph.library.function}
    changing, outside = _spread(functions, changes_state), _spread(functions, acts_outside)
    nodes = {node.name: node for node in graph.node}
    found: set[str] = set()
    found_outside: dict[str, str] = {}
    for name, signature in signatures.items():
        called = _called_by(signature, nodes)
        if op := _effect(called, outside, acts_outside):
            found_outside[name] = op
        if op or _effect(called, changing, changes_state):
            found.add(name)
    return Effects(frozenset(found), found_outside)


def _called_by(signature: Signature, nodes: Mapping[str, Any]) -> set[str]:
    """Return the names of the ops and functions that run for `signature`."""
    todo = [_node_of(spec.tensor_name) for spec in signature.outputs.values()]
    # Nodes above an input do not run, because it is fed.
    seen = {_node_of(spec.tensor_name) for spec in signature.inputs.values()}
    called: set[str] = set()
    while todo:
        at = todo.pop()
        if at in seen or at not in nodes:
            continue
        seen.add(at)
        called |= _called([nodes[at]])
        todo.extend(_node_of(tensor) for tensor in nodes[at].input)
    return called


def _spread(functions: Mapping[str, set[str]], has_effect: Callable[[str], bool]) -> dict[str, str]:
    """Return the `functions` that run an op with an effect, directly or in a function that they call → that op."""
    found: dict[str, str] = {}
    while True:
        others = {name: _effect(called, found, has_effect) for name, called in functions.items() if name not in found}
        more = {name: op for name, op in others.items() if op}
        if not more:
            return found
        found |= more


def _effect(called: Iterable[str], functions: Mapping[str, str], has_effect: Callable[[str], bool]) -> str:
    """Return the alphabetically first op with an effect; "" if none. `functions` are known to have effects."""
    return min((functions.get(name, name) for name in called if name in functions or has_effect(name)), default="")


def _called(nodes: Iterable[Any]) -> set[str]:
    """Return the names of the ops and functions that `nodes` use; both share one name space."""
    called = set()
    for node in nodes:
        called.add(node.op)
        for key, value in node.attr.items():
            if value.HasField("func"):
                called.add(value.func.name)
            elif value.HasField("list"):
                called.update(function.name for function in value.list.func)
            elif key == "output_stream" and value.s.startswith(b"file:"):
                called.add(_TO_A_FILE)
    return called


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]

"""Make a graph of one signature without variables from a SavedModel: both converters take that.

There are two ways, and real models need both: Keras 2 exports with an optimizer fail in `tf.saved_model.load`, and the
loops of Keras 3's LSTM and GRU convert only after TensorFlow has inlined their functions.

Only the processes of entry points import this module, because it imports TensorFlow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer

from backends.contract import Signature, TensorSpec
from backends.form import FormSignature
from backends.tensorflow_loading import opened
from converters.plugin import Converted, Failed, Task, shared

__all__ = ["FREEZERS", "Freezer", "FrozenSignature", "converted", "first_line", "frozen", "shape_of"]

# The beginnings of the names of operators that cannot be converted, because they need TensorFlow's runtime.
_HOPELESS = (
    "ParseExample",
    "ParseSequenceExample",
    "ParseSingle",
    "ParseTensor",
    "Decode",
    "HashTable",
    "MutableHashTable",
    "MutableDenseHashTable",
    "AnonymousHashTable",
    "AnonymousMutable",
    "LookupTable",
    "InitializeTable",
    "String",
    "StaticRegex",
    "Regex",
    "AsString",
    "Substr",
    "UnicodeDecode",
    "UnicodeTranscode",
    "UnicodeEncode",
    "RaggedTensorTo",
    "RaggedTensorFrom",
    "PyFunc",
    "EagerPyFunc",
    "XlaCallModule",
    "ReadFile",
    "MatchingFiles",
    "Abort",
    "Assign",
    "CountUpTo",
    "ScatterAdd",
    "ScatterDiv",
    "ScatterMax",
    "ScatterMin",
    "ScatterMul",
    "ScatterNdAdd",
    "ScatterNdSub",
    "ScatterNdUpdate",
    "ScatterSub",
    "ScatterUpdate",
    "ResourceScatter",
    "Random",
    "Stateless",
    "Multinomial",
)
# These names begin likewise, but the operators can be converted.
_HARMLESS = frozenset({"StatelessIf", "StatelessWhile", "StatelessCase"})


@dataclass(frozen=True, slots=True)
class FrozenSignature:
    """The graph of one signature: placeholders `input_0`, `input_1` …, identities `output_0`, `output_1` …, and what
    lies between.

    `inputs` and `outputs` map the signature's names to those. Two signatures with the same `fingerprint` compute the
    same from inputs in the same places; "": it is not known.
    """

    name: str
    signature: Signature
    graph_def: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    fingerprint: str


Freezer = Callable[[Task], Iterator[tuple[str, Callable[[], Any]]]]
"""Returns a function for each signature, which returns (GraphDef, input tensors by alias, output tensors by alias)."""


def frozen(task: Task, freezer: Freezer) -> Iterator[FrozenSignature | Failed]:
    """Yield the signatures of `task`, each frozen or failed."""
    for name, freeze in freezer(task):
        signature = task.signatures[name]
        try:
            cut = _cut(name, signature, *freeze())
        except Exception as error:  # noqa: BLE001 - what TensorFlow's Python raises on odd graphs is nowhere specified
            yield Failed(name, f"{type(error).__name__}: {first_line(error)}")
            continue
        hopeless = hopeless_ops(cut.graph_def)
        if hopeless:
            yield Failed(name, f"it needs TensorFlow's runtime: {', '.join(hopeless)}", hopeless, is_final=True)
        else:
            yield cut


def converted(
    task: Task,
    freezer: Freezer,
    convert: Callable[[int, FrozenSignature], Converted | Failed],
    named: Callable[[Mapping[str, str]], Mapping[str, str]] = dict,
) -> Iterator[Converted | Failed]:
    """Freeze the signatures of `task`, and give each to `convert` with a number for its file. Those that compute the
    same share the file of the first. `named` turns the graph's names into the file's."""
    done: dict[str, FormSignature] = {}
    for number, cut in enumerate(frozen(task, freezer)):
        if isinstance(cut, Failed):
            yield cut
            continue
        if cut.fingerprint in done:
            names = named(cut.inputs), named(cut.outputs)
            yield Converted(cut.name, shared(done[cut.fingerprint], cut.signature, *names))
            continue
        result = convert(number, cut)
        if cut.fingerprint and isinstance(result, Converted):
            done[cut.fingerprint] = result.entry
        yield result


def freeze_session(task: Task) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Freeze the session in which the model is served: replace its variables by their values."""
    found = opened(task.path, task.tags)
    session, graph = found.session, found.session.graph
    graph_def = graph.as_graph_def()
    for node in graph_def.node:
        node.device = ""

    for name, signature in task.signatures.items():

        def freeze(signature: Signature = signature) -> Any:
            inputs = {alias: spec.tensor_name for alias, spec in signature.inputs.items()}
            outputs = {alias: spec.tensor_name for alias, spec in signature.outputs.items()}
            names = sorted({tensor.partition(":")[0] for tensor in outputs.values()})
            # Cut first: the part that cannot be frozen may be one that only other signatures need.
            with graph.as_default():
                constant = tf.compat.v1.graph_util.convert_variables_to_constants(session, graph_def, names)
            return constant, inputs, outputs

        yield name, freeze


def freeze_functions(task: Task) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Freeze the functions that `tf.saved_model.load` makes, inlined."""
    loaded = tf.saved_model.load(task.path, tags=list(task.tags))
    for name in task.signatures:

        def freeze(name: str = name) -> Any:
            function = loaded.signatures[name]
            constant = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
            # Both orders are those of the flattened structures: sorted by alias.
            inputs = sorted(function.structured_input_signature[1])
            outputs = sorted(function.structured_outputs)
            return (
                constant.graph.as_graph_def(),
                {alias: tensor.name for alias, tensor in zip(inputs, constant.inputs, strict=True)},
                {alias: tensor.name for alias, tensor in zip(outputs, constant.outputs, strict=True)},
            )

        yield name, freeze


FREEZERS: Mapping[str, Freezer] = {"session": freeze_session, "functions": freeze_functions}


def _cut(
    name: str, signature: Signature, graph_def: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> FrozenSignature:
    """Cut the graph off at its inputs, which may lie in its middle, as in TensorFlow Serving's half_plus_two."""
    _drop_unused_functions(graph_def)
    present = {node.name for node in graph_def.node}
    names = {alias: f"input_{index}" for index, alias in enumerate(signature.inputs)}
    results = {alias: f"output_{index}" for index, alias in enumerate(signature.outputs)}
    graph = tf.Graph()
    with graph.as_default():
        feeds = {
            alias: tf.compat.v1.placeholder(tf.as_dtype(spec.element.number), shape_of(spec), names[alias])
            for alias, spec in signature.inputs.items()
        }
        used = _used_tensors(graph_def) | set(outputs.values())
        input_map = {
            inputs[alias]: feed
            for alias, feed in feeds.items()
            if inputs[alias].partition(":")[0] in present and inputs[alias] in used
        }
        echoed = {alias: feeds[source] for alias, source in _echoes(inputs, outputs).items()}
        fetched = [alias for alias in outputs if alias not in echoed]
        tensors = tf.graph_util.import_graph_def(
            graph_def, input_map=input_map, return_elements=[outputs[alias] for alias in fetched], name="model"
        )
        found = {**echoed, **dict(zip(fetched, tensors, strict=True))}
        for alias, result in results.items():
            tf.identity(found[alias], name=result)
    kept = [*names.values(), *results.values()]
    pruned = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(add_shapes=True), kept)
    inlined = _inlined(pruned, kept)
    return FrozenSignature(name, signature, inlined, names, results, _fingerprint(inlined, kept))


def _fingerprint(graph_def: Any, kept: Sequence[str]) -> str:
    """Return a hash of what the graph computes, whatever the names of its nodes: Keras exports one function under two
    names.

    Return "" for graphs with loops: functions would have to be compared likewise, and the loops of TensorFlow 1 are
    cycles.
    """
    if graph_def.library.function or any(node.op == "NextIteration" for node in graph_def.node):
        return ""
    nodes = {node.name: node for node in graph_def.node}
    numbers: dict[str, int] = {}
    digest = hashlib.sha256()
    for root in kept:
        waiting = [root]
        while waiting:
            node = nodes[waiting[-1]]
            references = [reference.removeprefix("^").partition(":") for reference in node.input]
            missing = [source for source, _, _ in references if source not in numbers]
            if missing and node.name not in numbers:
                waiting += missing
                continue
            waiting.pop()
            if node.name in numbers:
                continue
            numbers[node.name] = len(numbers)
            taken = [
                (numbers[source], port, raw[:1] == "^")
                for (source, _, port), raw in zip(references, node.input, strict=True)
            ]
            digest.update(repr((node.op, node.name if node.name in kept else "", taken)).encode())
            for key in sorted(node.attr):
                if key not in ("_output_shapes", "_class"):
                    digest.update(key.encode() + node.attr[key].SerializeToString(deterministic=True))
    return digest.hexdigest()


def _inlined(graph_def: Any, kept: Iterable[str]) -> Any:
    """Return the graph with functions in place of their calls. tf2onnx's own attempt leaves out small graphs, and
    functions that are marked as stateful, as all of Keras's are."""
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    for node in nodes:
        if "_lower_using_switch_merge" in node.attr:  # the converters know While and If, not what they are lowered to
            node.attr["_lower_using_switch_merge"].b = False
    config = config_pb2.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.min_graph_nodes = -1  # all, however small
    rewriting.optimizers.append("function")
    rewriting.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    with tf.Graph().as_default():
        meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=graph_def)
    meta_graph.collection_def["train_op"].node_list.value.extend(f"{name}:0" for name in kept)
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def _echoes(inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, str]:
    """Return the outputs that are an input's tensor itself → that input."""
    by_tensor = {tensor: alias for alias, tensor in inputs.items()}
    return {alias: by_tensor[tensor] for alias, tensor in outputs.items() if tensor in by_tensor}


def _used_tensors(graph_def: Any) -> set[str]:
    """Return the inputs of the nodes, with the number of the output, as `import_graph_def` compares them."""
    return {
        reference if ":" in reference else f"{reference}:0"
        for node in graph_def.node
        for reference in node.input
        if not reference.startswith("^")
    }


def hopeless_ops(graph_def: Any) -> tuple[str, ...]:
    """Return the operators in the graph, and in the functions that it calls, that cannot be converted."""
    ops, _ = _reached(graph_def)
    return tuple(sorted(op for op in ops if op.startswith(_HOPELESS) and op not in _HARMLESS))


def _drop_unused_functions(graph_def: Any) -> None:
    """Remove the functions that are not called. Freezing leaves the originals beside the frozen ones, and some of them
    call functions that are gone, so both converters fail."""
    _, used = _reached(graph_def)
    kept = [function for function in graph_def.library.function if function.signature.name in used]
    del graph_def.library.function[:]
    graph_def.library.function.extend(kept)
    del graph_def.library.gradient[:]


def _reached(graph_def: Any) -> tuple[set[str], set[str]]:
    """Return the operators in the graph and in the functions that it calls, and those functions."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    ops: set[str] = set()
    seen: set[str] = set()
    waiting = [graph_def.node]
    while waiting:
        for node in waiting.pop():
            ops.add(node.op)
            for called in (node.op, *_called(node)):
                if called in functions and called not in seen:
                    seen.add(called)
                    waiting.append(functions[called].node_def)
    return ops, seen


def _called(node: Any) -> Iterable[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name


def shape_of(spec: TensorSpec) -> list[int | None] | None:
    """Return the shape as TensorFlow's Python has it: None for a dimension of any size."""
    return None if spec.shape is None else [None if size < 0 else size for size in spec.shape]


def first_line(error: BaseException) -> str:
    """Return the message of an exception, short enough for a report."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:500]

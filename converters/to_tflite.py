"""Convert a SavedModel to TF-Lite by TensorFlow's converter: a file for each signature, with only LiteRT's own
operators."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from backends.form import Format, FormSignature
from converters.plugin import Converted, EntryPoint, Failed, Task
from converters.repairs import repair

__all__ = ["ENTRY_POINTS", "FORMAT", "PRECISIONS", "VERSIONS"]

FORMAT: Format = "tflite"
PRECISIONS = ("float32", "float16", "int8")
VERSIONS = ("tensorflow", "ai-edge-litert")

# "TF Select ops: Acosh, Erfinv" and "Custom ops: …", in the message that says that the runtime lacks them.
_OPS = re.compile(r"(?:Select|Custom|Flex) ops?: ([A-Za-z0-9_, ]+)")
# Places in MLIR's own source, which do not help the owner of a SavedModel.
_PLACE = re.compile(
    r"^(?:Could not translate MLIR to FlatBuffer\.)?\S*?(?:<[^>]*>|\S+):\d+(?::\d+)?: error: |loc\(.*\): "
)
_NAMES = re.compile(r"'tf\.([A-Za-z0-9_]+)' op is")


def _from_graphs(task: Task, freezer: str) -> Iterator[Converted | Failed]:
    import tensorflow as tf  # noqa: PLC0415 - as all that imports it: entry points run in processes of their own

    from converters.freezing import FREEZERS, FrozenSignature, converted  # noqa: PLC0415

    def write(number: int, cut: FrozenSignature) -> Converted | Failed:
        repair(cut.graph_def, FORMAT)

        def converter() -> Any:
            return tf.lite.TFLiteConverter.from_concrete_functions([_function(tf, cut)], tf.Module())

        return _written(task, number, cut.name, converter, cut.inputs, cut.outputs)

    return converted(task, FREEZERS[freezer], write)


def _function(tf: Any, cut: Any) -> Any:
    """Return the graph as a function of `input_0`, `input_1` …: the file takes these names."""
    from converters.freezing import shape_of  # noqa: PLC0415

    def call(**feeds: Any) -> dict[str, Any]:
        tensors = tf.graph_util.import_graph_def(
            cut.graph_def,
            input_map={f"{name}:0": feed for name, feed in feeds.items()},
            return_elements=[f"{name}:0" for name in cut.outputs.values()],
            name="model",
        )
        return dict(zip(cut.outputs.values(), tensors, strict=True))

    specs = {
        cut.inputs[alias]: tf.TensorSpec(shape_of(spec), tf.as_dtype(spec.element.number), cut.inputs[alias])
        for alias, spec in cut.signature.inputs.items()
    }
    return tf.function(call).get_concrete_function(**specs)


def _from_saved_model(task: Task) -> Iterator[Converted | Failed]:
    import tensorflow as tf  # noqa: PLC0415

    for index, (name, signature) in enumerate(task.signatures.items()):

        def converter(name: str = name) -> Any:
            return tf.lite.TFLiteConverter.from_saved_model(task.path, signature_keys=[name], tags=set(task.tags))

        inputs, outputs = {a: a for a in signature.inputs}, {a: a for a in signature.outputs}
        yield _written(task, index, name, converter, inputs, outputs)


def _written(
    task: Task,
    index: int,
    name: str,
    converter: Callable[[], Any],
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
) -> Converted | Failed:
    import tensorflow as tf  # noqa: PLC0415

    file = f"{task.prefix}{index}.tflite"
    try:
        made = converter()
        made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if task.precision != "float32":
            made.optimizations = [tf.lite.Optimize.DEFAULT]  # dynamic range: int8 weights
        if task.precision == "float16":
            made.target_spec.supported_types = [tf.float16]
        content = made.convert()
        with open(os.path.join(task.folder, file), "wb") as target:
            target.write(content)
        present = _present(content, inputs)
    except Exception as error:  # noqa: BLE001 - what the converter raises is nowhere specified
        from converters.freezing import first_line  # noqa: PLC0415

        text = str(error)
        ops = {op.strip() for found in _OPS.findall(text) for op in found.split(",") if op.strip()}
        ops |= set(_NAMES.findall(text))
        said = _PLACE.sub("", first_line(error)) or type(error).__name__
        reason = f"TF-Lite does not know {', '.join(sorted(ops))}" if ops else said
        return Failed(name, reason, tuple(sorted(ops)))
    return Converted(name, FormSignature(file, task.signatures[name], present, outputs))


def _present(content: bytes, inputs: Mapping[str, str]) -> Mapping[str, str]:
    """Return the inputs that the file's signature has."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    signatures = Interpreter(model_content=content).get_signature_list()
    if len(signatures) != 1:
        return inputs
    found = set(next(iter(signatures.values()))["inputs"])
    return {alias: name for alias, name in inputs.items() if name in found}


ENTRY_POINTS: Mapping[str, EntryPoint] = {
    "frozen session": partial(_from_graphs, freezer="session"),
    "inlined functions": partial(_from_graphs, freezer="functions"),
    "TensorFlow's loader": _from_saved_model,
}

"""Convert a SavedModel to ONNX by tf2onnx: a file for each signature."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from backends.contract import Signature
from backends.form import Format, FormSignature
from converters.onnx_handlers import HANDLERS
from converters.plugin import Converted, EntryPoint, Failed, Task
from converters.repairs import repair

__all__ = ["ENTRY_POINTS", "FORMAT", "PRECISIONS", "VERSIONS"]

FORMAT: Format = "onnx"
PRECISIONS = ("float32",)
VERSIONS = ("tensorflow", "tf2onnx", "onnx", "onnxruntime-gpu")

# The newest that tf2onnx 1.17 writes. With its default, 15, it must spell out some operators that 18 has.
_OPSET = 18

# tf2onnx logs the operators that it does not know, and does not fail.
_UNSUPPORTED = re.compile(r"Tensorflow op \[[^\]]*: ?([A-Za-z0-9_]+)\] is not supported")


def _from_graphs(task: Task, freezer: str) -> Iterator[Converted | Failed]:
    import tensorflow as tf  # noqa: PLC0415 - as all that imports it: entry points run in processes of their own
    from tf2onnx import tf_loader  # noqa: PLC0415

    from converters.freezing import FREEZERS, FrozenSignature, converted  # noqa: PLC0415

    def write(number: int, cut: FrozenSignature) -> Converted | Failed:
        def convert(path: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
            inputs, outputs = _named(cut.inputs), _named(cut.outputs)
            names = list(inputs.values()), list(outputs.values())
            repair(cut.graph_def, FORMAT)
            with tf.Graph().as_default():
                tf.import_graph_def(cut.graph_def, name="")
                optimized = tf_loader.tf_optimize(*names, cut.graph_def)
            _convert(optimized, cut.name, *names, None, path)
            return inputs, outputs

        return _written(task, number, cut.name, convert)

    return converted(task, FREEZERS[freezer], write, _named)


def _named(nodes: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the tensors of nodes with one output."""
    return {alias: f"{name}:0" for alias, name in nodes.items()}


def _from_loader(task: Task) -> Iterator[Converted | Failed]:
    """Convert by tf2onnx's own loader of SavedModels, which knows some hash tables."""
    from tf2onnx import tf_loader  # noqa: PLC0415

    for index, (name, signature) in enumerate(task.signatures.items()):

        def convert(
            path: str, name: str = name, signature: Signature = signature
        ) -> tuple[Mapping[str, str], Mapping[str, str]]:
            graph_def, inputs, outputs, tables, renamed = tf_loader.from_saved_model(
                task.path,
                None,
                None,
                list(task.tags),
                [name],
                return_initialized_tables=True,
                return_tensors_to_rename=True,
            )
            repair(graph_def, FORMAT)
            _convert(graph_def, name, inputs, outputs, tables, path)
            sides = ({renamed[t]: t for t in inputs if t in renamed}, {renamed[t]: t for t in outputs if t in renamed})
            if sides[1].keys() != signature.outputs.keys():
                raise ValueError(f"tf2onnx names the outputs {sorted(sides[1])}, not {sorted(signature.outputs)}")
            return sides

        yield _written(task, index, name, convert)


def _convert(graph_def: Any, name: str, inputs: Sequence[str], outputs: Sequence[str], tables: Any, path: str) -> None:
    """Convert a frozen graph as `tf2onnx.convert.from_graph_def` does, which refuses one without inputs."""
    import tensorflow as tf  # noqa: PLC0415
    from tf2onnx import convert as tool  # noqa: PLC0415
    from tf2onnx.optimizer import back_to_back_optimizer  # noqa: PLC0415

    # It takes casts out of the middle of others although they round: to float16 and back, to float32 and back to whole
    # numbers, from 0.5 to a whole number and on to bool. ONNX Runtime removes those that change nothing.
    back_to_back_optimizer._func_map.pop(("Cast",), None)
    # Else each of its optimisers works on a copy of the graph: 8 GB for ResNet50's 100 MB, instead of 4.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    with tf.device("/cpu:0"):
        tool._convert_common(
            graph_def,
            name=name,
            continue_on_error=True,
            opset=_OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            initialized_tables=tables,
            custom_op_handlers=HANDLERS,
            output_path=path,
        )


def _written(
    task: Task, index: int, name: str, convert: Callable[[str], tuple[Mapping[str, str], Mapping[str, str]]]
) -> Converted | Failed:
    """Convert one signature into its file, and collect what tf2onnx logs about operators."""
    file = f"{task.prefix}{index}.onnx"
    path = os.path.join(task.folder, file)
    heard = _Unsupported()
    logger = logging.getLogger("tf2onnx")
    logger.addHandler(heard)
    try:
        inputs, outputs = convert(path)
        inputs = _present(path, inputs)
    except Exception as error:  # noqa: BLE001 - what tf2onnx raises on graphs it does not understand is nowhere said
        from converters.freezing import first_line  # noqa: PLC0415

        return Failed(name, f"{type(error).__name__}: {first_line(error)}", tuple(sorted(heard.ops)))
    finally:
        logger.removeHandler(heard)
    if heard.ops:
        return Failed(name, f"tf2onnx does not know {', '.join(sorted(heard.ops))}", tuple(sorted(heard.ops)))
    return Converted(name, FormSignature(file, task.signatures[name], inputs, outputs))


def _present(path: str, inputs: Mapping[str, str]) -> Mapping[str, str]:
    """Return the inputs that the file has: those that the graph does not use are optimised away."""
    import onnx  # noqa: PLC0415

    found = {value.name for value in onnx.load(path, load_external_data=False).graph.input}
    return {alias: name for alias, name in inputs.items() if name in found}


class _Unsupported(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.ops: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.ops.update(_UNSUPPORTED.findall(record.getMessage()))


ENTRY_POINTS: Mapping[str, EntryPoint] = {
    "frozen session": partial(_from_graphs, freezer="session"),
    "inlined functions": partial(_from_graphs, freezer="functions"),
    "tf2onnx's loader": _from_loader,
}

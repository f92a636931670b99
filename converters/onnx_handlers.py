"""Handle operators for tf2onnx that it converts wrongly, or not at all.

The handlers change nodes of tf2onnx's graph (`tf2onnx.graph.Graph`). Operators that can be spelled out in others of
TensorFlow's are so before (`converters.repairs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["HANDLERS"]

_FMOD = 1  # of ONNX's Mod: the remainder has the sign of the dividend; without it that of the divisor


def _compared(graph: Any, node: Any, name: str, args: Sequence[Any]) -> None:
    """Compare whole numbers as they are. tf2onnx compares them as float32, which has only 24 of their bits; ONNX
    Runtime can compare them, but for uint16 and the like."""
    from onnx import TensorProto  # noqa: PLC0415 - as all that imports it: entry points run in processes of their own
    from tf2onnx.onnx_opset.logical import GreaterLess  # noqa: PLC0415

    if graph.get_dtype(node.input[0]) not in (TensorProto.INT32, TensorProto.INT64):
        GreaterLess.version_7(graph, node)


def _remainder(graph: Any, node: Any, name: str, args: Sequence[Any]) -> None:
    """Compute the remainder of floats and of whole numbers. tf2onnx has no operator for it, or an inexact one."""
    is_floored = node.type == "FloorMod"
    shapes, dtypes, inputs, outputs = node.output_shapes, node.output_dtypes, list(node.input), list(node.output)
    graph.remove_node(node.name)
    attributes = {"fmod": 0 if is_floored else _FMOD}
    graph.make_node("Mod", inputs, attr=attributes, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _logarithm(graph: Any, node: Any, name: str, args: Sequence[Any]) -> None:
    """Keep the logarithm of doubles; tf2onnx turns them into float32."""


def _selected(graph: Any, node: Any, name: str, args: Sequence[Any]) -> None:
    """Select by Where. tf2onnx multiplies both sides by 0 and 1, and adds them: NaN and infinity on the side that is
    not taken show, although `tf.where` is there to keep them out. It makes a Where only of operands that it knows to
    have them."""
    from onnx import TensorProto  # noqa: PLC0415
    from tf2onnx.onnx_opset.controlflow import Select  # noqa: PLC0415

    if graph.get_dtype(node.output[0]) in (TensorProto.INT8, TensorProto.INT16, TensorProto.BOOL):
        Select.version_9(graph, node)  # ONNX Runtime has no Where of these
        return
    node.set_attr("handles_nan", True)
    Select.version_9(graph, node)
    del node.attr["handles_nan"]


def _scattered(graph: Any, node: Any, name: str, args: Sequence[Any]) -> None:
    """Add up the values that go to the same place, as TensorFlow does. tf2onnx keeps one of them."""
    from onnx import TensorProto  # noqa: PLC0415
    from tf2onnx.onnx_opset.tensor import ScatterND  # noqa: PLC0415

    dtype = graph.get_dtype(node.input[1])
    node.type = "ScatterND"
    ScatterND.version_11(graph, node)
    if dtype not in (TensorProto.BOOL, TensorProto.FLOAT16):  # of which ONNX Runtime has no sums
        node.set_attr("reduction", "add")


def _top(graph: Any, node: Any, name: str, args: Sequence[Any]) -> None:
    """Keep doubles and whole numbers, which ONNX Runtime orders as they are; tf2onnx turns them into float32."""
    from onnx import TensorProto  # noqa: PLC0415
    from tf2onnx.onnx_opset.tensor import TopKV2  # noqa: PLC0415

    dtype = graph.get_dtype(node.output[0])
    is_known = dtype in (TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64)
    node.type = "TopK"
    if is_known:
        graph.set_dtype(node.output[0], TensorProto.FLOAT)  # tf2onnx leaves floats as they are
    TopKV2.any_version_after10(11, graph, node)
    if is_known:
        graph.set_dtype(node.output[0], dtype)


_Handler = Callable[[Any, Any, str, Sequence[Any]], None]

HANDLERS: dict[str, tuple[_Handler, list[Any]]] = {
    "FloorMod": (_remainder, []),
    "Greater": (_compared, []),
    "Less": (_compared, []),
    "Log": (_logarithm, []),
    "Mod": (_remainder, []),
    "ScatterNd": (_scattered, []),
    "Select": (_selected, []),
    "SelectV2": (_selected, []),
    "TopKV2": (_top, []),
    "TruncateMod": (_remainder, []),
}
"""The handlers by TensorFlow's operators, as `tf2onnx.convert` takes them."""

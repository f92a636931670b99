"""The ONNX models that tests serve: small graphs, made by the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BFLOAT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BFLOAT16

Info = onnx.ValueInfoProto
Shape = Sequence[int | str | None] | None


def port(name: str, kind: int = FLOAT, shape: Shape = ("n",)) -> Info:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Info],
    outputs: Sequence[Info],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def op(name: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(name, inputs.split(), outputs.split(), name=f"the_{name}", **attributes)


def constant(name: str, value: object, dtype: str = "float32") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def half_plus(addend: float) -> onnx.ModelProto:
    """y = x / 2 + addend, for any number of x."""
    return model(
        [op("Mul", "x half", "h"), op("Add", "h c", "y")],
        [port("x")],
        [port("y")],
        [constant("half", 0.5), constant("c", addend)],
    )


def linear() -> onnx.ModelProto:
    """y = x W + b for rows of 3, and what is before b."""
    return model(
        [op("MatMul", "x w", "h"), op("Add", "h b", "y")],
        [port("x", FLOAT, ["n", 3])],
        [port("y", FLOAT, ["n", 2]), port("h", FLOAT, ["n", 2])],
        [constant("w", [[1, 2], [3, 4], [5, 6]]), constant("b", [0.5, -0.5])],
    )


def identity(kind: int, shape: Shape = ("n",), output_shape: Shape = ("n",)) -> onnx.ModelProto:
    return model([op("Identity", "x", "y")], [port("x", kind, shape)], [port("y", kind, output_shape)])


def gather() -> onnx.ModelProto:
    """y = x[i]."""
    return model([op("Gather", "x i", "y")], [port("x"), port("i", INT64, ["m"])], [port("y", FLOAT, ["m"])])


def expand() -> onnx.ModelProto:
    """x repeated to a shape: as large as its caller likes."""
    return model([op("Expand", "x s", "y")], [port("x"), port("s", INT64, ["r"])], [port("y", FLOAT, None)])


def normalizer(case: str = "LOWER", **attributes: object) -> onnx.ModelProto:
    """y = x in lower case, as scikit-learn's text vectorizers have it when skl2onnx has converted them."""
    node = op("StringNormalizer", "x", "y", case_change_action=case, **attributes)
    return model([node], [port("x", STRING, ["n"])], [port("y", STRING, ["m"])])


def branching(weights_in_branch: onnx.TensorProto) -> onnx.ModelProto:
    """x plus a constant that lies in the branch of an If."""
    branches = [
        helper.make_graph([op(name, "x c", "r")], name, [], [port("r")], [weights_in_branch]) for name in ("Add", "Sub")
    ]
    node = op("If", "b", "y", then_branch=branches[0], else_branch=branches[1])
    return model([node], [port("x"), port("b", TensorProto.BOOL, [])], [port("y")])


def write(folder: Path, found: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
    """Writes the model into the folder, which it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(found if isinstance(found, bytes) else found.SerializeToString())
    return folder


def external(name: str, count: int, location: str, **about: object) -> onnx.TensorProto:
    """A weight of `count` float32 that lies in another file."""
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **about}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_external_weights(location: str, count: int = 1000, **about: object) -> onnx.ModelProto:
    """y = x + c for rows of `count`; c is in the file `location`."""
    return model(
        [op("Add", "x c", "y")],
        [port("x", FLOAT, ["n", count])],
        [port("y", FLOAT, ["n", count])],
        [external("c", count, location, **about)],
    )

"""TensorFlow's own packages as the other end of the wire, run as a program: they register the names that ours have.

`python -m tests.support.official_protos descriptors` writes the official FileDescriptorSet to standard output;
`… tensors` reads our responses as JSON from standard input, and writes official messages, and what TensorFlow made
of ours, to standard output. Arrays travel as JSON (`to_json`, `from_json`), bytes in base64.
"""

# ruff: noqa: PLC0415 -- tests import the arrays and CORNERS from here; only the program may import TensorFlow

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np

Json = dict[str, Any]


def samples() -> dict[str, np.ndarray]:
    """One array [2, 3] for each served dtype, with its extremes."""
    arrays: dict[str, np.ndarray] = {
        "bool": np.array([True, False, True, True, False, False]),
        "string": np.array([b"", b"a", b"\xff\x00", "café".encode(), b"x" * 300, b"z"], object),
    }
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        bounds = np.iinfo(name)
        arrays[name] = np.array([0, 1, bounds.min, bounds.max, 100, bounds.max - 1], name)
    for name in ("float16", "float32", "float64"):
        floats = np.finfo(name)
        arrays[name] = np.array([0, -1.5, floats.max, floats.tiny, np.inf, np.nan], name)
    arrays["bfloat16"] = np.array([0, -1.5, 3e38, 1e-38, np.inf, np.nan], ml_dtypes.bfloat16)
    for name in ("complex64", "complex128"):
        arrays[name] = np.array([0, 1j, -2.5, 1 + 2j, np.inf, np.nan], name)
    return {name: array.reshape(2, 3) for name, array in arrays.items()}


def to_json(array: np.ndarray) -> Json:
    if array.dtype == object:
        elements: Any = [base64.b64encode(element).decode() for element in array.reshape(-1)]
    else:
        elements = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "elements": elements}


def from_json(value: Json) -> np.ndarray:
    if value["dtype"] == "object":
        array = np.empty(len(value["elements"]), object)
        array[:] = [base64.b64decode(element) for element in value["elements"]]
    else:
        dtype = ml_dtypes.bfloat16 if value["dtype"] == "bfloat16" else value["dtype"]
        array = np.frombuffer(base64.b64decode(value["elements"]), dtype)
    return array.reshape(value["shape"])


def ask(what: str, given: str = "") -> bytes:
    """The standard output of this program."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.official_protos", what],
        input=given.encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    ).stdout


def descriptors() -> bytes:
    from google.protobuf import descriptor_pb2
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

    found: dict[str, Any] = {}

    def add(file: Any) -> None:
        if file.name not in found:
            found[file.name] = file
            for dependency in file.dependencies:
                add(dependency)

    add(model_service_pb2.DESCRIPTOR)
    add(prediction_service_pb2.DESCRIPTOR)
    files = descriptor_pb2.FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(files.file.add())
    return bytes(files.SerializeToString())


# By a name: the fields of a TensorProto whose reading TensorFlow itself is asked for.
CORNERS: dict[str, Json] = {
    "a short list repeats its last element": {"dtype": 1, "shape": [2, 2], "float_val": [1, 2]},
    "an empty list is zeros": {"dtype": 1, "shape": [3]},
    "an empty list is empty strings": {"dtype": 7, "shape": [2]},
    "a short list of strings": {"dtype": 7, "shape": [3], "string_val": [b"a", b"b"]},
    "a short complex list": {"dtype": 8, "shape": [3], "scomplex_val": [1, 2, 3, 4]},
    "a short half list": {"dtype": 19, "shape": [3], "half_val": [0x3C00]},
    "a scalar": {"dtype": 1, "shape": [], "float_val": [2.5]},
    "an empty tensor": {"dtype": 9, "shape": [3, 0]},
    "the content wins over a list": {"dtype": 1, "shape": [1], "float_val": [1], "tensor_content": b"\0\0\x80\x3f"},
    "another dtype's list is ignored": {"dtype": 1, "shape": [2], "int_val": [3], "double_val": [4]},
    "int_val wraps to int8": {"dtype": 6, "shape": [3], "int_val": [300, -129, 127]},
    "int_val wraps to uint16": {"dtype": 17, "shape": [2], "int_val": [-1, 65536]},
    "half_val keeps 16 bits": {"dtype": 19, "shape": [1], "half_val": [0x13C00]},
    "strings in the content": {"dtype": 7, "shape": [3], "tensor_content": b"\x01\x00\x02abc"},
    "a long string in the content": {"dtype": 7, "shape": [1], "tensor_content": b"\xac\x02" + b"y" * 300},
    "content with too many strings": {"dtype": 7, "shape": [2], "tensor_content": b"\x01\x00\x02abc"},
    "content with too few strings": {"dtype": 7, "shape": [3], "tensor_content": b"\x01\x00"},
    "content with a string too short": {"dtype": 7, "shape": [2], "tensor_content": b"\x01\x02a"},
    "content too short": {"dtype": 1, "shape": [2], "tensor_content": b"1234"},
    "content too long": {"dtype": 1, "shape": [2], "tensor_content": b"123456789"},
    "bool content with a 2": {"dtype": 10, "shape": [2], "tensor_content": b"\x02\x00"},
    "a list too long": {"dtype": 1, "shape": [2], "float_val": [1, 2, 3]},
    "a list of varints too long": {"dtype": 9, "shape": [1], "int64_val": [7, 8]},
    "a list of strings too long": {"dtype": 7, "shape": [1], "string_val": [b"a", b"b"]},
    "a complex list too long": {"dtype": 8, "shape": [1], "scomplex_val": [1, 2, 3, 4]},
    "half a complex number": {"dtype": 8, "shape": [2], "scomplex_val": [1, 2, 3]},
    "half a complex number only": {"dtype": 18, "shape": [2], "dcomplex_val": [1]},
    "a list for no elements": {"dtype": 1, "shape": [0], "float_val": [1]},
    "a list of strings for no elements": {"dtype": 7, "shape": [2, 0], "string_val": [b"a"]},
    "content for no elements": {"dtype": 1, "shape": [0], "tensor_content": b"123"},
    "an unknown rank": {"dtype": 1, "unknown_rank": True, "float_val": [1]},
    "an unknown rank with dimensions": {"dtype": 1, "unknown_rank": True, "shape": [2], "float_val": [1]},
    "a negative dimension": {"dtype": 1, "shape": [-1], "float_val": [1]},
    "an overflowing shape": {"dtype": 1, "shape": [2**40, 2**40], "float_val": [1]},
    "an overflowing shape that ends in zero": {"dtype": 1, "shape": [2**62, 2**62, 0]},
    "no dtype": {"dtype": 0, "shape": [1], "float_val": [1]},
}


def corner(message: Any, fields: Json) -> bytes:
    """`fields` of CORNERS as the bytes of `message`, an empty TensorProto of either package."""
    for name, value in fields.items():
        if name == "shape":
            for size in value:
                message.tensor_shape.dim.add(size=size)
        elif name == "unknown_rank":
            message.tensor_shape.unknown_rank = value
        elif isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return bytes(message.SerializeToString())


def tensors(given: Json) -> Json:
    """Requests as the official client writes them, TensorFlow's reading of CORNERS, and of `given` responses."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2
    from tensorflow.python.framework import tensor_util
    from tensorflow_serving.apis import predict_pb2

    def encoded(message: Any) -> str:
        return base64.b64encode(message.SerializeToString()).decode()

    def request(tensor: Any) -> str:
        message = predict_pb2.PredictRequest(inputs={"x": tensor}, output_filter=["b", "a"])
        message.model_spec.name = "m"
        message.model_spec.version.value = 3
        message.model_spec.signature_name = "serve"
        return encoded(message)

    requests = {}
    for name, array in samples().items():
        requests[name] = {"default": request(tf.make_tensor_proto(array))}
        listed = tensor_pb2.TensorProto(dtype=tf.as_dtype(name).as_datatype_enum)
        listed.tensor_shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
        tensor_util.GetNumpyAppendFn(array.dtype)(listed, array.reshape(-1))
        requests[name]["list"] = request(listed)

    corners: dict[str, Json | None] = {}
    for name, fields in CORNERS.items():
        data = corner(tensor_pb2.TensorProto(), fields)
        try:
            corners[name] = to_json(tf.io.parse_tensor(data, tf.as_dtype(fields["dtype"])).numpy())
        except (tf.errors.OpError, TypeError):
            corners[name] = None

    responses = {}
    for name, response in given.items():
        parsed = predict_pb2.PredictResponse.FromString(base64.b64decode(response))
        spec = parsed.model_spec
        responses[name] = {
            "spec": [spec.name, spec.version.value, spec.signature_name],
            "outputs": {key: to_json(tf.make_ndarray(tensor)) for key, tensor in parsed.outputs.items()},
        }
    return {"requests": requests, "corners": corners, "responses": responses}


if __name__ == "__main__":
    if sys.argv[1] == "descriptors":
        sys.stdout.buffer.write(descriptors())
    else:
        print(json.dumps(tensors(json.load(sys.stdin))))

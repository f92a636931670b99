"""Predict over gRPC with grpcio, protobuf and numpy alone: TensorFlow Serving's own client brings TensorFlow with it.

Copy this file and appliance/protocols/protos/dropserve.binpb, the compiled messages, to wherever the client runs.

    python grpc_predict.py half_plus_two 'x=[1.0, 2.0, 5.0]'
"""

import argparse
import json
import os
import sys
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

HERE = os.path.dirname(os.path.abspath(__file__))
PROTOS = os.path.join(HERE, "..", "..", "appliance", "protocols", "protos", "dropserve.binpb")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STRING = 7
# By the number in tensorflow.DataType: the elements, and the field that carries them where there is no tensor_content.
DTYPES: dict[int, tuple[str, str]] = {
    1: ("float32", "float_val"),
    2: ("float64", "double_val"),
    3: ("int32", "int_val"),
    4: ("uint8", "int_val"),
    5: ("int16", "int_val"),
    6: ("int8", "int_val"),
    7: ("object", "string_val"),
    9: ("int64", "int64_val"),
    10: ("bool", "bool_val"),
    17: ("uint16", "int_val"),
    22: ("uint32", "uint32_val"),
    23: ("uint64", "uint64_val"),
}


class Client:
    """Calls one server. Errors are grpc.RpcError, with the server's code and explanation."""

    def __init__(self, target: str, protos: str = PROTOS, seconds: float = 30) -> None:
        with open(protos, "rb") as file:
            files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
        self._pool: Any = descriptor_pool.DescriptorPool()  # its own: TensorFlow, if present, has the same names
        for file_descriptor in files.file:
            self._pool.Add(file_descriptor)
        self._seconds = seconds
        with open(os.path.join(HERE, "grpc_service_config.json"), encoding="utf-8") as file:
            retries = file.read()
        unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(target, [*unbounded, ("grpc.service_config", retries)])

    def _message(self, name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))

    def _call(self, method: str, request: Any, answer: str) -> Any:
        data = self._channel.unary_unary(method)(request.SerializeToString(), timeout=self._seconds)
        return self._message(answer).FromString(data)

    def inputs(self, model: str, signature: str = "serving_default") -> dict[str, int]:
        """The names of the signature's inputs, and the numbers of their dtypes."""
        request = self._message("GetModelMetadataRequest")(metadata_field=["signature_def"])
        request.model_spec.name = model
        packed = self._call(METADATA, request, "GetModelMetadataResponse").metadata["signature_def"]
        signatures = self._message("SignatureDefMap").FromString(packed.value).signature_def
        return {name: info.dtype for name, info in signatures[signature].inputs.items()}

    def predict(self, model: str, inputs: dict[str, np.ndarray], version: int | None = None) -> dict[str, np.ndarray]:
        """The outputs of the signature serving_default. Arrays of strings have the dtype object, and hold bytes."""
        request = self._message("PredictRequest")()
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        for name, array in inputs.items():
            fill_tensor(request.inputs[name], array)
        outputs = self._call(PREDICT, request, "PredictResponse").outputs
        return {name: to_array(tensor) for name, tensor in outputs.items()}


def fill_tensor(tensor: Any, array: np.ndarray) -> None:
    """Writes `array` into a TensorProto."""
    tensor.dtype = next(number for number, (name, _) in DTYPES.items() if np.dtype(name) == array.dtype)
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if tensor.dtype == STRING:
        tensor.string_val.extend(v.encode() if isinstance(v, str) else v for v in array.reshape(-1))
    else:
        tensor.tensor_content = array.tobytes()  # little-endian, rows first


def to_array(tensor: Any) -> np.ndarray:
    """A TensorProto's array, whichever of the two forms the server sent."""
    name, field = DTYPES[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, name).reshape(shape)
    return np.array(getattr(tensor, field), name).reshape(shape)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Predict over gRPC, and print the outputs as JSON.")
    parser.add_argument("model")
    parser.add_argument("inputs", nargs="+", metavar="NAME=JSON", help="an input and its value")
    parser.add_argument("--target", default="localhost:8500", help="the server's gRPC address")
    options = parser.parse_args()

    client = Client(options.target)
    try:
        dtypes = client.inputs(options.model)
        inputs = {}
        for name, _, text in (argument.partition("=") for argument in options.inputs):
            if name not in dtypes:
                print(f"{options.model} has no input {name!r}; it has {', '.join(sorted(dtypes))}", file=sys.stderr)
                return 2
            inputs[name] = np.array(json.loads(text), DTYPES[dtypes[name]][0])
        outputs = client.predict(options.model, inputs)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    print(json.dumps({name: array.tolist() for name, array in outputs.items()}, default=bytes.decode))
    return 0


if __name__ == "__main__":
    sys.exit(main())

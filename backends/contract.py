"""The contract of a backend: all that the rest of the appliance knows of a framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np

from backends.dtypes import BY_NAME, DType
from backends.error_texts import shortened

DEFAULT_SIGNATURE = "serving_default"
"""The signature of a request that names none, and of a model whose format has no signature names."""


class Code(IntEnum):
    """The canonical status codes (`google/rpc/code.proto`), which gRPC and TensorFlow share."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class BackendError(Exception):
    """A framework refused to load or run a model. `code` and `message` reach the client; the message is shortened."""

    def __init__(self, code: Code, message: str) -> None:
        message = shortened(message)
        super().__init__(message)
        self.code = code
        self.message = message


class IncompleteError(Exception):
    """A version folder is not complete (yet). The message names the file and what is missing."""


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One input or output of a signature; JSON has it as an array of its fields.

    `dtype` is a name in `backends.dtypes`. A dimension is -1 if any size fits; `shape` is None if the rank is unknown
    too. `tensor_name` is the tensor in the graph ("serving_default_x:0"), "" if there is none. `is_reference`: its
    exporter gave it the reference type of `dtype` (DT_FLOAT_REF), which variables of TensorFlow 1 have.
    """

    dtype: str
    shape: tuple[int, ...] | None
    tensor_name: str = ""
    is_reference: bool = False

    @property
    def element(self) -> DType:
        """The element type named by `dtype`."""
        return BY_NAME[self.dtype]


@dataclass(frozen=True, slots=True)
class Signature:
    """A function of a model: named inputs, named outputs, and the method name that its exporter gave it.

    `defaults` has the serialized `tensorflow.TensorProto` of each input that a request may leave out; JSON has it in
    base64.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str = "tensorflow/serving/predict"
    defaults: Mapping[str, bytes] = field(default_factory=dict)


class Backend(Protocol):
    """A loaded model version. Several threads may call `run` at once."""

    @property
    def signatures(self) -> Mapping[str, Signature]: ...

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Run `signature`, and return the arrays of `outputs` in that order.

        `inputs` has arrays with exactly the signature's names and dtypes; inputs that have a default may be missing.
        The arrays may be read-only, and must not be used after the call. Raise BackendError if the framework refuses
        the values.
        """
        ...


@runtime_checkable
class Remarked(Protocol):
    """A backend with remarks about itself."""

    @property
    def remarks(self) -> Sequence[str]:
        """What the operator should know, such as why the model is not on the GPU."""
        ...


@runtime_checkable
class Placed(Remarked, Protocol):
    """A backend that chose the device it runs on."""

    @property
    def device(self) -> str:
        """Either "cpu" or "cuda", the device that it runs on."""
        ...


@runtime_checkable
class Changing(Protocol):
    """A backend whose model may have signatures that change lasting state: variables, tables, files."""

    @property
    def changing(self) -> frozenset[str]: ...
    @property
    def outside(self) -> Mapping[str, str]:
        """The changing signatures that act outside of the process, such as on a file → the operator that does."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """A backend whose model has weights that can be read and set. No other thread may use it meanwhile."""

    def weights(self) -> list[np.ndarray]:
        """Return copies of the model's variables of floats; none if it has none, such as a frozen graph."""
        ...

    def set_weights(self, values: Sequence[np.ndarray]) -> None:
        """Set the variables that `weights` gave, in its order."""
        ...


@runtime_checkable
class Partial(Protocol):
    """A backend whose model may have signatures that cannot be served."""

    @property
    def unsupported(self) -> Mapping[str, str]:
        """The signatures that cannot be served → why. None of them is in `signatures`."""
        ...

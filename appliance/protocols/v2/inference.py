"""An inference request and its answer, whatever carries them: their tensors against a signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.protocols.json_text import refusal
from appliance.protocols.v2.contents import Contents
from appliance.protocols.v2.datatypes import BY_DATATYPE, datatype
from backends.contract import Signature

__all__ = ["InferRequest", "InputTensor", "WantedOutput", "check_parameters"]

_QUOTED = 200  # characters of a client's name in an error
_SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One input: its name, the datatype and the shape that the request states, and its elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    contents: Contents


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One requested output. `binary` is None if the request does not say how it is to be sent."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request before its model, and so its signature, is known.

    `signature_name` ("": none) and `timeout_us` (microseconds; 0: none) come from its parameters. No
    `outputs`: all are wanted. `binary_outputs`: those that do not say how are sent as binary data.
    """

    inputs: Sequence[InputTensor]
    id: str = ""
    outputs: Sequence[WantedOutput] = ()
    signature_name: str = ""
    timeout_us: int = 0
    binary_outputs: bool = False

    def arrays(self, signature: Signature, grow: Callable[[int], object] = lambda _: None) -> dict[str, np.ndarray]:
        """Return the inputs by name, with the types of `signature` (strings: `object` arrays of `bytes`).

        Sizes are those that the request states; whether they suit the model is the backend's to say. `grow` is called
        with the bytes of each array that is not a view of the request, before it is made, and may raise. Raise
        ServingError (INVALID_ARGUMENT) if names, types or elements do not fit.
        """
        specs = signature.inputs
        sent: set[str] = set()
        for tensor in self.inputs:
            name = tensor.name
            if name not in specs:
                raise refusal(f"unexpected input {name[:_QUOTED]!r}", f"the signature takes {_listed(specs)}")
            if name in sent:
                raise refusal(f"input {name!r} is sent twice")
            sent.add(name)
        missing = sorted(specs.keys() - sent - signature.defaults.keys())
        if missing:
            raise refusal(f"missing input {missing[0]!r}", f"the signature takes {_listed(specs)}")
        arrays = {}
        for tensor in self.inputs:
            element = specs[tensor.name].element
            if tensor.datatype != datatype(element) or tensor.datatype not in BY_DATATYPE:
                raise refusal(
                    f"input {tensor.name!r} was sent as {tensor.datatype[:_QUOTED] or 'no datatype'}, but the model "
                    f"takes {datatype(element)}"
                )
            try:
                arrays[tensor.name] = tensor.contents.array(element, tensor.shape, grow)
            except ServingError as error:
                if error.code is not Code.INVALID_ARGUMENT:
                    raise
                raise refusal(f"input {tensor.name!r}: {error.message}", error.remedy) from None
        return arrays

    def wanted(self, signature: Signature) -> list[str]:
        """Return the names of the outputs to compute. Raise ServingError (INVALID_ARGUMENT) for an unknown one."""
        names = [output.name for output in self.outputs]
        for index, name in enumerate(names):
            if name not in signature.outputs:
                raise refusal(
                    f"unexpected output {name[:_QUOTED]!r}",
                    f"the signature gives {_listed(signature.outputs)}",
                )
            if name in names[:index]:
                raise refusal(f"output {name!r} is requested twice")
        return names or list(signature.outputs)

    def is_binary(self, name: str) -> bool:
        """Return whether an output is to be sent as binary data, where both are possible."""
        for output in self.outputs:
            if output.name == name and output.binary is not None:
                return output.binary
        return self.binary_outputs


def check_parameters(owner: str, parameters: Mapping[str, Any]) -> None:
    """Raise UNIMPLEMENTED if the parameters of an input or an output ask for what this server does not do."""
    for name in _SHARED_MEMORY:
        if name in parameters:
            raise ServingError(
                Code.UNIMPLEMENTED,
                f"{owner} refers to shared memory, which this server does not read",
                "send the tensor's data with the request",
            )
    if "classification" in parameters:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"{owner} asks for classification, which this server does not do",
            "request the output, and sort its scores",
        )


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"

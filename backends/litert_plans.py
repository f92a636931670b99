"""How a signature runs on an interpreter of LiteRT, and which shapes it accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from backends.contract import BackendError, Code, Signature
from backends.litert_interpreters import Instance
from backends.request_checks import shape_text, wrong_shape

__all__ = ["ByKey", "ByTensor", "Declared", "Mapped", "Plan"]

# Beyond six dimensions XNNPACK gives up, and twelve crash its broadcasting kernels (LiteRT 2.3).
_MAX_RANK = 6
# LiteRT counts the elements of a tensor in 32 bits.
_MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Declared:
    """The declared shape of an input, with -1 for any size."""

    shape: tuple[int, ...]
    strict: bool = False

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise BackendError for a shape that LiteRT must not get, because it computes nonsense on some of them.

        A 1 may be any size, as in TensorFlow Serving: early converters wrote 1 for an unknown size, so its own example
        feeds [3] to an input of [1, 1]. If that leaves no fixed size, the rank is free too. This does not hold if
        `strict`, because our own converters write -1.
        """
        free = (-1,) if self.strict else (-1, 1)
        fixed = [(axis, size) for axis, size in enumerate(self.shape) if size not in free]
        if (fixed or self.strict) and (
            len(shape) != len(self.shape) or any(shape[axis] != size for axis, size in fixed)
        ):
            raise wrong_shape(name, shape, self.shape)
        if len(shape) > max(_MAX_RANK, len(self.shape)):
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"input {name!r} has {len(shape)} dimensions; a TensorFlow Lite model takes at most "
                f"{max(_MAX_RANK, len(self.shape))}",
            )
        elements = 1
        for size in shape:
            elements *= max(size, 1)
        if elements > _MAX_ELEMENTS:
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"input {name!r} has the shape {shape_text(shape)}; a TensorFlow Lite model takes at most "
                f"{_MAX_ELEMENTS:,} elements",
            )


class Plan(Protocol):
    """How to run a signature."""

    @property
    def signature(self) -> Signature: ...

    @property
    def declared(self) -> Mapping[str, Declared]: ...

    @property
    def defaults(self) -> Mapping[str, np.ndarray]: ...

    def run(self, instance: Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True, slots=True)
class ByKey:
    """A signature in the model's own table, with its own subgraph: LiteRT's runner knows its tensors."""

    key: str
    signature: Signature
    declared: Mapping[str, Declared]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)

    def run(self, instance: Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        results = instance.runner(self.key)(**inputs)
        return [results[name] for name in outputs]


@dataclass(frozen=True, slots=True)
class ByTensor:
    """A signature whose aliases name tensors (by number) of the first subgraph."""

    signature: Signature
    declared: Mapping[str, Declared]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)

    def run(self, instance: Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        interpreter = instance.without_runners()
        for name, array in inputs.items():
            interpreter.resize_tensor_input(self.inputs[name], array.shape)  # does nothing if the shape is the same
        interpreter.allocate_tensors()
        for name, array in inputs.items():
            interpreter.set_tensor(self.inputs[name], array)
        interpreter.invoke()
        return [interpreter.get_tensor(self.outputs[name]) for name in outputs]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A signature of the converted SavedModel: `inputs` and `outputs` map its names to those of `plan`."""

    plan: Plan
    signature: Signature
    declared: Mapping[str, Declared]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    defaults: Mapping[str, np.ndarray]

    def run(self, instance: Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        given = {inner: inputs[alias] for alias, inner in self.inputs.items()}
        return self.plan.run(instance, given, [self.outputs[alias] for alias in outputs])

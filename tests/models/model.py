"""What is said of a model of the zoo, and inputs for it. No framework is loaded here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Exporter = Callable[[Any, str], None]
"""Takes the tensorflow module (None for a tool that needs none) and the folder to write."""

Draw = Callable[[int, np.random.Generator], np.ndarray]
"""Makes the value of one input for a batch of so many examples."""

Signatures = Mapping[str, Mapping[str, Draw]]
BATCHES = (1, 3)


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the zoo.

    `how` says in words how it was exported. `signatures` are those that are asked, with their inputs. `refused` is a
    pattern (re.search) of the reason why the version is not served at all; `refused_signatures`, of the answer to a
    request of a signature that cannot be called. `judge` computes the expected answers: "load" (tf.saved_model.load),
    "session" (where only the loader of TensorFlow 1 takes it), "onnx" or "lite". `rest` tells whether
    REST can ask it; `libraries` are files of the tools' packages, the custom operators that the model needs.
    `accelerated_tolerance` is relative, for the answers of its accelerated form.
    """

    name: str
    group: str
    how: str
    signatures: Signatures = field(default_factory=dict)
    refused: str = ""
    refused_signatures: Mapping[str, str] = field(default_factory=dict)
    judge: str = "load"
    batches: Sequence[int] = BATCHES
    rest: bool = True
    libraries: Sequence[str] = ()
    remark: str = ""
    accelerated_tolerance: float = 1e-4  # what acceleration promises (docs/acceleration.md)

    @property
    def can_be_accelerated(self) -> bool:
        """Only SavedModels are: others are served as they are."""
        return not self.refused and self.judge in ("load", "session")

    def inputs(self, signature: str, batch: int) -> dict[str, np.ndarray]:
        """The same values whenever it is asked."""
        seed = hashlib.sha256(f"{self.name} {signature} {batch}".encode()).digest()[:8]
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
        return {alias: draw(batch, rng) for alias, draw in self.signatures[signature].items()}


class Group:
    """The models that one module makes, in the order of the table."""

    def __init__(self, title: str, judge: str = "load", environment: str = "", needs_tensorflow: bool = True) -> None:
        """`environment` names the lock beside this file of the tools that make them; "" is the project's own."""
        self.title = title
        self.environment = environment
        self.needs_tensorflow = needs_tensorflow
        self.models: dict[str, Model] = {}
        self.exporters: dict[str, Exporter] = {}
        self._judge = judge

    def model(self, how: str, signatures: Signatures | None = None, **about: Any) -> Callable[[Exporter], Exporter]:
        """Add the decorated exporter under its own name. Other inputs than `signatures` belong to serving_default."""

        def add(export: Exporter) -> Exporter:
            name = export.__name__
            inputs = about.pop("inputs", None)
            found = dict(signatures or {}) | ({"serving_default": inputs} if inputs is not None else {})
            self.models[name] = Model(name, self.title, how, found, **{"judge": self._judge, **about})
            self.exporters[name] = export
            return export

        return add


# -- inputs


def floats(*shape: int, dtype: str = "float32") -> Draw:
    return lambda n, rng: rng.normal(size=(n, *shape)).astype(dtype)


def uniform(*shape: int, high: float = 1.0) -> Draw:
    return lambda n, rng: rng.uniform(0.0, high, size=(n, *shape)).astype("float32")


def ints(*shape: int, low: int = 0, high: int = 10, dtype: str = "int32") -> Draw:
    return lambda n, rng: rng.integers(low, high, size=(n, *shape)).astype(dtype)


def words(*choices: str, shape: Sequence[int] = ()) -> Draw:
    """Strings out of `choices`."""

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        chosen = rng.integers(len(choices), size=(n, *shape))
        found = np.empty(chosen.shape, object)
        for at in np.ndindex(chosen.shape):
            found[at] = choices[chosen[at]].encode()
        return found

    return draw


def fixed(value: Any, dtype: str) -> Draw:
    """The same value, whatever the batch."""
    return lambda _n, _rng: np.array(value, dtype)

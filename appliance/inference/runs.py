"""What a request runs on a version, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from appliance.core.routes import VersionRoute
from appliance.transport.connection import Arrays
from appliance.transport.wire import Packed, pack_arrays

__all__ = ["Answered", "Check", "OnAnswered", "Run"]


class Run(NamedTuple):
    """One run of a signature: `inputs` by name, and the names of the wanted `outputs`."""

    signature: str
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[str]
    packed: Packed

    @classmethod
    def of(cls, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Run:
        """Return a run with its inputs packed for the connection."""
        return cls(signature, inputs, outputs, pack_arrays(inputs.items()))


Check = Callable[[VersionRoute], Sequence[Run]]
"""Checks a request against the version's signatures, and returns its runs. Raises ServingError if it does not fit."""


class Answered(NamedTuple):
    """The version that ran, and the outputs of each of its runs by name."""

    model: str
    version: int
    outputs: Sequence[Arrays]


OnAnswered = Callable[[Answered | Exception], None]
"""Takes the answer to a request, or its error. It raises nothing."""

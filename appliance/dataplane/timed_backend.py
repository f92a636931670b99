"""A backend whose runs are timed, for the metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from appliance.metrics import WorkerMetrics
from backends.contract import Backend, Signature

__all__ = ["TimedBackend"]


class TimedBackend:
    """`backend` as it is; runs that succeed are recorded, as TensorFlow Serving records them."""

    def __init__(self, backend: Backend, metrics: WorkerMetrics) -> None:
        self._backend = backend
        self._metrics = metrics

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._backend.signatures

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        started = time.perf_counter()
        arrays = self._backend.run(signature, inputs, outputs)
        self._metrics.ran(self._backend.signatures[signature].method_name, time.perf_counter() - started)
        return arrays

"""Runs an inference request of the Open Inference Protocol, whatever carries it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from appliance.core.routes import VersionRoute
from appliance.inference.runs import Run
from appliance.protocols.v2.documents import signature_name_of
from appliance.protocols.v2.inference import InferRequest

__all__ = ["deadline_of", "infer_run"]


def infer_run(request: InferRequest, version: VersionRoute, grow: Callable[[int], object]) -> Sequence[Run]:
    """Return what the request runs on `version`. Raise ServingError if it does not fit; `grow`: see `arrays`."""
    name = signature_name_of(version, request.signature_name)
    signature = version.signatures[name]
    return (Run.of(name, request.arrays(signature, grow), request.wanted(signature)),)


def deadline_of(request: InferRequest, deadline_ns: int) -> int:
    """Return the earlier of `deadline_ns` (CLOCK_MONOTONIC) and the request's own timeout from now."""
    if not request.timeout_us:
        return deadline_ns
    return min(deadline_ns, time.monotonic_ns() + request.timeout_us * 1000)

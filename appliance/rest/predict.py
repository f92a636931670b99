"""What a predict request runs, and its answer: the parts that both lanes share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.core.routes import VersionRoute
from appliance.inference.reservation import Reservation
from appliance.inference.runs import Run
from appliance.protocols.json_output import encode_predict, fewest_bytes, json_bytes
from appliance.protocols.json_pieces import predict_pieces
from appliance.protocols.json_tensors import PredictBody, parse_predict
from appliance.rest.paths import model_path
from backends.contract import DEFAULT_SIGNATURE, Signature

__all__ = ["PREDICT_PATH", "SmallPredict", "encoded", "run_of"]

PREDICT_PATH = model_path(":predict")

_AT_ONCE_BYTES = 1 << 20  # of an answer as JSON; a larger one is written piece by piece
_PAUSE_BYTES = 1 << 16


class SmallPredict:
    """A predict request whose body is parsed at once. Raise ServingError if it is no predict request."""

    __slots__ = ("_body", "_parsed", "row_format")

    def __init__(self, body: bytes) -> None:
        self._body = body
        parsed = parse_predict(body)
        self.row_format = parsed.row_format
        self._parsed: PredictBody | None = parsed

    def check(self, version: VersionRoute) -> Sequence[Run]:
        """Return what the request runs on `version`. Raise ServingError if it does not fit."""
        # What is parsed takes many times the body's memory, so only the body is kept for another attempt.
        request, self._parsed = self._parsed or parse_predict(self._body), None
        return (run_of(request, version),)


def run_of(request: PredictBody, version: VersionRoute) -> Run:
    """Return what the request runs on `version`. Raise ServingError if it does not fit."""
    name = request.signature_name or DEFAULT_SIGNATURE
    signature = _signature(version, name)
    return Run.of(name, request.inputs(signature), list(signature.outputs))


def _signature(version: VersionRoute, name: str) -> Signature:
    signature = version.signatures.get(name)
    if signature is None:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f'Serving signature name: "{name[:200]}" not found in signature def',
            version.why_not(name) or f"the model has {', '.join(sorted(version.signatures)) or 'none'}",
        )
    return signature


async def encoded(outputs: Mapping[str, np.ndarray], row_format: bool, reserved: Reservation) -> bytes:
    """Return the answer as JSON, counted in `reserved`; a large one is written while others are answered.

    Raise ServingError if it is too large, or cannot be written as JSON.
    """
    nbytes = json_bytes(outputs)
    if nbytes <= _AT_ONCE_BYTES:
        reserved.add(nbytes)
        return encode_predict(outputs, row_format)
    reserved.check_answer(fewest_bytes(outputs))  # one string may be all of it
    pieces: list[bytes] = []
    for piece in predict_pieces(outputs, row_format):
        reserved.add_answer(len(piece))
        pieces.append(piece)
        if len(piece) >= _PAUSE_BYTES:
            await asyncio.sleep(0)
    return b"".join(pieces)

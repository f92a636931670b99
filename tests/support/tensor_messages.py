"""Messages with tensors, read and written whole by the product's own parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from appliance.core.servable import ModelSpec
from appliance.protocols.predict_messages import open_predict_request
from appliance.protocols.tensor_protos import encoded_tensor


class PredictMessage(NamedTuple):
    """A PredictRequest."""

    spec: ModelSpec
    signature_name: str
    inputs: dict[str, np.ndarray]
    output_filter: tuple[str, ...]


def decode_predict_request(data: bytes) -> PredictMessage:
    """Reads a serialized PredictRequest; raises ServingError (INVALID_ARGUMENT) whatever is wrong with it."""
    envelope = open_predict_request(data)
    return PredictMessage(envelope.spec, envelope.signature_name, envelope.arrays(), envelope.output_filter)


def encode_tensor(array: np.ndarray, tensor_content: bool = False) -> bytes:
    """The serialized TensorProto of `array`, which may have any layout in memory."""
    return b"".join(encoded_tensor(array, tensor_content))

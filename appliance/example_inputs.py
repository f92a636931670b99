"""From the examples of Classify, Regress and MultiInference to what their signatures take: serialized, in one array."""

from __future__ import annotations

from typing import Any

import numpy as np

from appliance.errors import Code, ServingError

__all__ = ["serialized_examples"]

# A context is repeated in every example, so a small request could ask for terabytes.
EXPANDED_BYTES = 64 << 20
EXPANDED_MULTIPLE = 16


def serialized_examples(message: Any) -> np.ndarray:
    """The examples [n] of a `protos.SerializedInput`, each the bytes of a tensorflow.Example.

    A context goes before each example: where both have a feature, a reader of the joined bytes takes the example's.
    Raises ServingError (INVALID_ARGUMENT) where there are none, or where contexts make too much of them.
    """
    kind = message.WhichOneof("kind")
    listed = getattr(message, kind) if kind else None
    if listed is None or not listed.examples:
        raise ServingError(Code.INVALID_ARGUMENT, "Input is empty.")
    context = b"".join(listed.context) if kind == "example_list_with_context" else b""
    allowed = max(EXPANDED_BYTES, EXPANDED_MULTIPLE * message.ByteSize())
    if len(context) * len(listed.examples) > allowed:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"a context of {len(context):,} bytes in {len(listed.examples):,} examples takes more than {allowed:,}",
            "send fewer examples in a request",
        )
    array = np.empty(len(listed.examples), object)
    for index, example in enumerate(listed.examples):
        array[index] = context + example
    return array

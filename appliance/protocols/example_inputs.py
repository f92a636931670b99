"""The examples of Classify, Regress and MultiInference, serialized into the one array that their signatures take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.core.errors import Code, ServingError

__all__ = ["Examples", "examples_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Serialized `tensorflow.Example`s, and a context of shared features: a serialized Example, or empty."""

    examples: Sequence[bytes]
    context: bytes = b""

    @property
    def nbytes(self) -> int:
        """The size in bytes of all examples once the context has been copied into each."""
        return sum(map(len, self.examples)) + len(self.context) * len(self.examples)

    def check(self, max_bytes: int) -> None:
        """Raise INVALID_ARGUMENT if there is no example, or if they exceed `max_bytes` with the context repeated."""
        if not self.examples:
            raise ServingError(Code.INVALID_ARGUMENT, "Input is empty.", "send at least one example")
        if self.context and self.nbytes > max_bytes:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"The context repeated in {len(self.examples):,} examples takes {self.nbytes:,} bytes",
                f"at most {max_bytes:,} are taken; send fewer examples at once",
            )

    def array(self) -> np.ndarray:
        """Return an array [examples] object of the serialized examples, each after the context.

        Concatenated serialized messages are merged by the parser, and the later features win.
        """
        array = np.empty(len(self.examples), object)
        array[:] = [self.context + example for example in self.examples] if self.context else self.examples
        return array


def examples_of(message: Any) -> Examples:
    """Return the examples of a `protos.SerializedInput`."""
    match message.WhichOneof("kind"):
        case "example_list":
            return Examples(list(message.example_list.examples))
        case "example_list_with_context":
            given = message.example_list_with_context
            return Examples(list(given.examples), b"".join(given.context))
    return Examples(())

"""From the examples of Classify, Regress and MultiInference to what their signatures take: serialized, in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.core.errors import Code, ServingError

__all__ = ["Examples", "examples_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Serialized `tensorflow.Example`s, and a context of features that they share: an Example too, or nothing."""

    examples: Sequence[bytes]
    context: bytes = b""

    @property
    def nbytes(self) -> int:
        """What all examples take once each has the context."""
        return sum(map(len, self.examples)) + len(self.context) * len(self.examples)

    def check(self, max_bytes: int) -> None:
        """Raises ServingError (INVALID_ARGUMENT) where there is no example, or where the context, repeated, takes more
        than `max_bytes`."""
        if not self.examples:
            raise ServingError(Code.INVALID_ARGUMENT, "Input is empty.", "send at least one example")
        if self.context and self.nbytes > max_bytes:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"The context repeated in {len(self.examples):,} examples takes {self.nbytes:,} bytes",
                f"at most {max_bytes:,} are taken; send fewer examples at once",
            )

    def array(self) -> np.ndarray:
        """[examples] object: each example, serialized, behind the context.

        Two serialized messages in a row are their merger, in which the later one's features win.
        """
        array = np.empty(len(self.examples), object)
        array[:] = [self.context + example for example in self.examples] if self.context else self.examples
        return array


def examples_of(message: Any) -> Examples:
    """Of a `protos.SerializedInput`."""
    match message.WhichOneof("kind"):
        case "example_list":
            return Examples(list(message.example_list.examples))
        case "example_list_with_context":
            given = message.example_list_with_context
            return Examples(list(given.examples), b"".join(given.context))
    return Examples(())

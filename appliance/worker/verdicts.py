"""Tells from the error of a made-up request whether the input does not suit the model, or the model is broken.

A model that refuses an unsuitable input works. A model that reports a missing or broken part of itself would fail every
client's request too. In doubt the input is at fault, because what TensorFlow loads is served.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.core.errors import Code
from appliance.core.outcomes import Outcome, Trial

__all__ = ["Failure", "verdict"]

_INPUT = frozenset({Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE})

# With these codes the input is at fault if it names something by a string: a path, a key.
_NAMED = frozenset({Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.ALREADY_EXISTS})

# Messages of TensorFlow 2.21 with the code INVALID_ARGUMENT or NOT_FOUND: this build lacks an op or a kernel, a Python
# function exists only in the process that exported it, the graph lacks a tensor, or XLA's code is for another device.
_BROKEN = re.compile(
    r"No OpKernel was registered|No registered '\S*' OpKernel|Op type not registered"
    r"|Could not find callback with key=|specified in either feed_devices or fetch_devices was not found in the Graph"
    r"|is not among the platforms required by the module"
)
# Messages about a broken model with the code FAILED_PRECONDITION, which inputs get too ("sequence_length(0) <= 1").
_UNSET = re.compile(
    r"uninitiali[sz]ed|not (been )?initiali[sz]ed|Could not find (variable|resource)"
    r"|Error while reading resource|^Resource \S+ does not exist",
    re.IGNORECASE,
)

_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of one made-up request. `text` is the string in its inputs, None if they have none."""

    code: Code
    message: str
    text: bytes | None = None


def _is_for_the_inputs_sake(failure: Failure, others: Sequence[Failure] = ()) -> bool:
    """Return whether the input is at fault; `others` are failures of other inputs of the same signature."""
    if _BROKEN.search(failure.message):
        return False
    if failure.code == Code.FAILED_PRECONDITION:
        return not _UNSET.search(failure.message)
    if failure.code in _NAMED:
        # If a file of the model itself is missing, the message is the same for every text.
        return (
            failure.text is not None
            and not _UNSET.search(failure.message)
            and all(other.message != failure.message for other in others if other.text != failure.text)
        )
    return failure.code in _INPUT


def verdict(failures: Sequence[Failure]) -> Trial:
    """Return the outcome of a signature whose made-up requests have all failed, in this order."""
    if not failures:
        return Trial(Outcome.LATE, Code.UNKNOWN, "no input could be made up")
    refusals = [failure for failure in failures if _is_for_the_inputs_sake(failure, failures)]
    last = (refusals or failures)[-1]
    return Trial(Outcome.REFUSED if refusals else Outcome.FAILED, last.code, _in_short(last.code, last.message))


def _in_short(code: Code, message: str) -> str:
    """Return the first line of `message`, at most 300 characters, for a log or a status."""
    return message.strip().splitlines()[0][:_MAX_MESSAGE] if message.strip() else code.name

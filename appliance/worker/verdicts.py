"""Whose fault it is that a model refuses a request that was made up: the input's, or the server's.

An input that was made up may suit a model ill; what refuses it works. What says that something of the model itself is
missing or broken would say so to every client. In doubt it is the input: what TensorFlow loads is served.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.core.errors import Code
from appliance.core.outcomes import Outcome, Trial

__all__ = ["Failure", "verdict"]

_INPUT = frozenset({Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE})

# These codes are the input's where it names something by a string: a path, a key.
_NAMED = frozenset({Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.ALREADY_EXISTS})

# Of TensorFlow 2.21, which says INVALID_ARGUMENT or NOT_FOUND of these all the same: an op or kernel that this build
# has not, a Python function that stayed in its exporter's process, a tensor that the graph has not, and XLA's code for
# another kind of device.
_BROKEN = re.compile(
    r"No OpKernel was registered|No registered '\S*' OpKernel|Op type not registered"
    r"|Could not find callback with key=|specified in either feed_devices or fetch_devices was not found in the Graph"
    r"|is not among the platforms required by the module"
)
# FAILED_PRECONDITION is said of these, and of inputs too ("sequence_length(0) <= 1").
_UNSET = re.compile(
    r"uninitiali[sz]ed|not (been )?initiali[sz]ed|Could not find (variable|resource)"
    r"|Error while reading resource|^Resource \S+ does not exist",
    re.IGNORECASE,
)

_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Failure:
    """What came of one made-up request. `text` is the string that was in it, None where it takes none."""

    code: Code
    message: str
    text: bytes | None = None


def _is_for_the_inputs_sake(failure: Failure, others: Sequence[Failure] = ()) -> bool:
    """Whether the input is at fault; `others` are what came of other inputs of the same signature."""
    if _BROKEN.search(failure.message):
        return False
    if failure.code == Code.FAILED_PRECONDITION:
        return not _UNSET.search(failure.message)
    if failure.code in _NAMED:
        # A file that the model itself needs is missed in the same words, whatever the text was.
        return (
            failure.text is not None
            and not _UNSET.search(failure.message)
            and all(other.message != failure.message for other in others if other.text != failure.text)
        )
    return failure.code in _INPUT


def verdict(failures: Sequence[Failure]) -> Trial:
    """What comes of a signature of which every made-up request has failed, in this order."""
    if not failures:
        return Trial(Outcome.LATE, Code.UNKNOWN, "no input could be made up")
    refusals = [failure for failure in failures if _is_for_the_inputs_sake(failure, failures)]
    last = (refusals or failures)[-1]
    return Trial(Outcome.REFUSED if refusals else Outcome.FAILED, last.code, _in_short(last.code, last.message))


def _in_short(code: Code, message: str) -> str:
    """What a log or a status has room for: the first line of `message`."""
    return message.strip().splitlines()[0][:_MAX_MESSAGE] if message.strip() else code.name

"""Outcomes of a version's trial requests, which run before it serves: workers report them, the manager judges them.

Plain values: no process, file or clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from appliance.core.errors import Code


class Outcome(StrEnum):
    """What came of one signature's trial requests."""

    ANSWERED = "answered"  # at least one request ran
    REFUSED = "refused"  # the model rejected each input as invalid: it works, but no valid input was found
    LATE = "late"  # a run did not end in time, but nothing suggests a hang; or no time was left to start one
    FAILED = "failed"  # every request failed by the server's fault; `Trial.code` and `Trial.message` are of the last
    UNTRIED = "untried"  # no request was run, because of its effects or cost; `Trial.message` says why


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome for one signature; `code` and `message` are empty if it answered."""

    outcome: Outcome
    code: Code = Code.OK
    message: str = ""


Trials = Mapping[str, Trial]
"""Trials by signature. A missing signature was not tried, because there are too many."""

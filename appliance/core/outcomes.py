"""What became of the requests that a version was tried with before its first client's: values that a worker reports and
the manager judges. No process, file or clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from appliance.core.errors import Code


class Outcome(StrEnum):
    """What came of one signature's trials."""

    ANSWERED = "answered"  # at least one request ran
    REFUSED = "refused"  # the model refused each input for the input's sake: it works, but no input was found for it
    LATE = "late"  # a run was not over in time, and nothing suggests a hang; or no time was left to begin
    FAILED = "failed"  # every request failed for the server's sake: `Trial.code` and `Trial.message` are of the last
    UNTRIED = "untried"  # no request was run, for what it would do or take: `Trial.message` says why


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome for one signature; `code` and `message` are empty if it has answered."""

    outcome: Outcome
    code: Code = Code.OK
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"outcome": self.outcome.value, "code": int(self.code), "message": self.message}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trial:
        return cls(Outcome(value["outcome"]), Code(value["code"]), value["message"])


Trials = Mapping[str, Trial]
"""By signature. A signature that is missing was not tried (there are too many)."""

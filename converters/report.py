"""What became of the acceleration of a version: candidates, proof, timings, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgspec

from backends.domain import FINITE, Domain

__all__ = [
    "Attempt",
    "Candidate",
    "Chosen",
    "Demotion",
    "OutputParity",
    "Report",
    "Searched",
    "SignatureProof",
    "Timing",
    "Verdict",
    "to_plain",
]

Chosen = Literal["tensorflow", "onnx", "tflite"]


class Verdict(StrEnum):
    PROVEN = "proven"
    DIFFERS = "differs"
    INDISTINCT = "indistinct"  # equal, but the outputs hardly vary: that shows nothing
    FAILED = "failed"  # it raised, died or hung where TensorFlow answers
    UNTESTED = "untested"  # TensorFlow took none of the inputs that were made, or answers by chance


@dataclass(frozen=True, slots=True)
class Attempt:
    """One entry point of a converter, tried on those signatures that none before it could convert.

    `failures` says of each other signature why not; `unsupported_ops` are TensorFlow's operators that the converter
    does not know.
    """

    entry_point: str
    converted: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    unsupported_ops: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class OutputParity:
    """How far an output was from TensorFlow's at worst, over all cases.

    `absolute` and `relative` are the largest differences (None: not a number, or infinite on one side); relative ones
    are to the value, or to the root mean square of the output where that is larger. `of_allowed` is the largest share
    that a difference had of what is allowed (None: no share). `case` is where. `variation` is how much TensorFlow's own
    answers varied over the cases, relative to their size; 0: the output was always the same. `noise` is how far they
    move there, relatively, when each input of floats moves by one rounding.
    """

    name: str
    dtype: str
    absolute: float | None
    relative: float | None
    of_allowed: float | None
    case: str
    variation: float
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Searched:
    """What was tried besides the cases, to find a difference: how many `inputs`, in how many `seconds`.

    `of_allowed` is the largest share that a difference had of what is allowed, on the inputs `worst`. Differences that
    roundings of the inputs make of TensorFlow's own answer as well are not counted: they were met `explained` times.
    """

    inputs: int = 0
    seconds: float = 0.0
    of_allowed: float = 0.0
    worst: str = ""
    explained: int = 0


@dataclass(frozen=True, slots=True)
class SignatureProof:
    """A signature compared with TensorFlow. `cases` were compared; `refused` were refused by TensorFlow, not counted.

    `on_refused` says what the candidate did with inputs that TensorFlow refuses: "refused", "answered", or "" where
    there were none. `domain` are the inputs for which it is proven, and `beyond` says what it does elsewhere, for which
    `edges` cases were run. Differences are told on the smallest inputs that were found for them.
    """

    signature: str
    verdict: Verdict
    reason: str
    cases: int = 0
    refused: int = 0
    recorded: int = 0
    outputs: tuple[OutputParity, ...] = ()
    on_refused: str = ""
    edges: int = 0
    domain: Domain = FINITE
    beyond: tuple[str, ...] = ()
    searched: Searched = field(default_factory=Searched)


@dataclass(frozen=True, slots=True)
class Timing:
    """The median of `runs` calls of a signature."""

    signature: str
    batch: int
    milliseconds: float
    runs: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A converted form. `speedup` is over TensorFlow (the geometric mean), `slowest` the least of its parts; 0: not
    measured. `reason` says why it was not chosen, or why it was. `hazards` are what its form is known to get wrong of
    operators in the model, on values of which its proof may have seen none (`converters.hazards`)."""

    name: str
    form: Literal["onnx", "tflite"]
    precision: str
    attempts: tuple[Attempt, ...] = ()
    seconds: float = 0.0
    proofs: tuple[SignatureProof, ...] = ()
    timings: tuple[Timing, ...] = ()
    speedup: float = 0.0
    slowest: float = 0.0
    reason: str = ""
    hazards: tuple[str, ...] = ()

    @property
    def entry_points(self) -> tuple[str, ...]:
        """Those that converted something, in the order in which they were tried."""
        return tuple(attempt.entry_point for attempt in self.attempts if attempt.converted)

    @property
    def converted(self) -> frozenset[str]:
        return frozenset(name for attempt in self.attempts for name in attempt.converted)

    @property
    def unsupported_ops(self) -> tuple[str, ...]:
        return tuple(sorted({op for attempt in self.attempts for op in attempt.unsupported_ops}))


@dataclass(frozen=True, slots=True)
class Demotion:
    """A candidate that was given up since it failed in service; `at` is a time of ISO 8601. As long as `file` is there,
    it is not chosen again; "": nothing keeps that in mind."""

    candidate: str
    at: str
    why: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that is to be said of one version on one machine.

    `candidate` is the name of the chosen candidate, "" for TensorFlow; `artifact` the folder of its files, valid only
    on this machine and while the entry of the cache is held. `threads` is on how many threads each form was measured.
    `others` is the share of the processors that other processes had meanwhile, from 0 to 1; where the timings are
    `disturbed` by them, the next job for the same measures again.
    """

    chosen: Chosen
    reason: str
    candidate: str = ""
    artifact: str = ""
    signatures: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    tensorflow: tuple[Timing, ...] = ()
    threads: int = 0
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    measured_at: str = ""
    from_cache: bool = False
    others: float = 0.0
    disturbed: bool = False
    demotions: tuple[Demotion, ...] = ()


def to_plain(value: Report | Sequence[Candidate]) -> Any:
    """Return `value` as JSON's values. Statistics may be numpy's floats, which become Python's."""
    return msgspec.to_builtins(value, enc_hook=float)

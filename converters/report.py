"""The report of a job: the forms of a version, their proofs and timings, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgspec

from backends.domain import FINITE, Domain
from backends.form import Format

__all__ = [
    "Attempt",
    "Chosen",
    "Demotion",
    "FormReport",
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
    """One entry point of a converter, tried on the signatures that none before it could convert.

    `failures` has those that it did not convert either → why. `unsupported_ops` are TensorFlow's operators that the
    converter does not know.
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
    are to the value, or to the root mean square of the output if that is larger. `of_allowed` is the largest share that
    a difference had of what is allowed (None: no share), and `case` the label of that case. `variation` is how much
    TensorFlow's own answers varied over the cases, relative to their size; 0: the output was always the same. `noise`
    is how far they move, relatively, when each input of floats moves by one rounding.
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
    """What a search tried besides the cases: how many `inputs`, in how many `seconds`.

    `of_allowed` is the largest share that a difference had of what is allowed, on the inputs `worst`. Differences that
    roundings of the inputs explain are not counted; there were `explained` of them.
    """

    inputs: int = 0
    seconds: float = 0.0
    of_allowed: float = 0.0
    worst: str = ""
    explained: int = 0


@dataclass(frozen=True, slots=True)
class SignatureProof:
    """One signature of a form, compared with TensorFlow on `cases`, `recorded` of them from recorded requests.
    TensorFlow refused `refused` other inputs, which were not compared.

    `on_refused` says what the form did with inputs that TensorFlow refuses: "refused", "answered", "died", or "" if
    there were none. `domain` are the inputs for which it is proven; `beyond` says how it differs on others, for which
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


class FormReport(msgspec.Struct, frozen=True):
    """What became of one form: how it was converted, its proofs, its timings.

    `name` is its format, with its precision if that is not float32 ("tflite-int8"). `seconds` is how long it took to
    convert and prove it. `speedup` is over TensorFlow, the geometric mean, and `slowest` the least of its parts; 0: it
    was not measured. `reason` says why it was chosen, or why not. `hazards` are what its format is known to get
    wrong of the model's operators, on values that its proof may not have seen (`converters.hazards`).
    """

    name: str
    format: Format = msgspec.field(name="form")
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


class Demotion(msgspec.Struct, frozen=True):
    """Why the form with the name `form` was given up: it failed in service.

    `at` is when, by the wall clock, in ISO 8601. The form is not chosen again as long as `file` exists; "": there is no
    such file, and the next start of the server may choose it.
    """

    form: str = msgspec.field(name="candidate")
    at: str
    why: str
    file: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a job found for one version on one machine.

    `chosen` is what is to serve the version: "tensorflow", or the format of the form with the name `form`, whose files
    are in `folder` (both "" for TensorFlow); it is valid on this machine, while the entry of the cache is held.
    `forms` are all that were tried, and `tensorflow` are TensorFlow's timings. `threads` is the number of threads that
    each form was measured on. `others` is the share of the processors that other processes took meanwhile, from 0 to 1;
    if the timings are `disturbed` by them, the next job for the version measures again. `seconds` is how long the job
    took, and `measured_at` when it ended, by the wall clock, in ISO 8601.

    The names in JSON are those of the page `/v1/models/NAME/versions/N/acceleration`, which clients read.
    """

    chosen: Chosen
    reason: str
    form: str = msgspec.field(default="", name="candidate")
    folder: str = msgspec.field(default="", name="artifact")
    signatures: tuple[str, ...] = ()
    forms: tuple[FormReport, ...] = msgspec.field(default=(), name="candidates")
    tensorflow: tuple[Timing, ...] = ()
    threads: int = 0
    machine: str = ""
    versions: Mapping[str, str] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    measured_at: str = ""
    from_cache: bool = False
    others: float = 0.0
    disturbed: bool = False
    demotions: tuple[Demotion, ...] = ()


def to_plain(value: Report | Sequence[FormReport]) -> Any:
    """Return `value` as JSON's values. Statistics may be numpy's floats, which become Python's."""
    return msgspec.to_builtins(value, enc_hook=float)

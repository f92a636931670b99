"""Whether answers that a form gave in service are TensorFlow's, judged with the care of a search.

A wrong verdict here gives up a good form for good. So whatever TensorFlow does not answer, or not the same twice, is
left unjudged; and an answer is wrong only if roundings do not explain it. Functions stand for TensorFlow: no process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np

from backends.contract import BackendError, Signature
from backends.domain import ANY, Domain
from backends.samples import Sample
from converters.cases import Case, DiedError, Inputs, fits
from converters.judging import Judge
from converters.mutations import within
from converters.proof import Outputs
from converters.roundings import WeightsMove, noise_of, with_medians

__all__ = ["MAX_DIFFERING", "Judged", "LiveReport", "judge"]

MovedTruth = Callable[[str, Inputs, WeightsMove], Outputs | None]

MAX_DIFFERING = 8
"""So many wrong answers of a batch are looked into; one is enough to give up a form."""

_MAX_USUAL = 16  # samples that tell how large outputs are, and how they move with roundings
_MAX_DEATHS = 2
_NOISE_SECONDS = 10.0


class LiveReport(msgspec.Struct, frozen=True):
    """What came of a batch of samples, in requests.

    `unjudged` has the reasons. `difference` says what was wrong with the first wrong answer, "" if none was; `agreed`
    is the number of the last answer before that, or of all, which was equal (0: none was). `cpu_seconds` is what it
    took, TensorFlow's start included.
    """

    equal: int = 0
    different: int = 0
    unjudged: Mapping[str, int] = msgspec.field(default_factory=dict)
    agreed: int = 0
    difference: str = ""
    cpu_seconds: float = 0.0


@dataclass(slots=True)
class Judged:
    """Samples by what came of them; `differing` says what is wrong, and `unjudged` why there is no verdict."""

    equal: list[Sample] = field(default_factory=list)
    differing: list[tuple[Sample, str]] = field(default_factory=list)
    unjudged: list[tuple[Sample, str]] = field(default_factory=list)

    def report(self) -> LiveReport:
        """Return the counts."""
        first = min((sample.number for sample, _ in self.differing), default=None)
        reasons: dict[str, int] = {}
        for sample, why in self.unjudged:
            reasons[why] = reasons.get(why, 0) + sample.requests
        return LiveReport(
            sum(sample.requests for sample in self.equal),
            sum(sample.requests for sample, _ in self.differing),
            reasons,
            max((sample.number for sample in self.equal if first is None or sample.number < first), default=0),
            next((why for sample, why in self.differing if sample.number == first), ""),
        )


def judge(
    samples: Sequence[Sample],
    signatures: Mapping[str, Signature],
    truth: Callable[[str, Inputs], Outputs],
    precision: str,
    domains: Mapping[str, Domain],
    has_time: Callable[[], bool],
    moved_truth: MovedTruth | None = None,
) -> Judged:
    """Return the verdicts on `samples`.

    `truth` runs a signature by TensorFlow, and `moved_truth` does so with moved weights (see `roundings.RunMoved`);
    they raise BackendError or DiedError. `domains` has what each signature of
    the form is proven for: other inputs are not held against it. Without time, what is left stays unjudged.
    """
    return _Judging(signatures, truth, precision, domains, has_time, moved_truth).run(samples)


class _Recorded:
    """A form that gives the answer that it gave in service. See `judging.Runs`."""

    def __init__(self, answer: Outputs) -> None:
        self._answer = answer

    def run(self, name: str, inputs: Mapping[str, np.ndarray], seconds: float) -> Outputs:
        return self._answer


class _Judging:
    def __init__(
        self,
        signatures: Mapping[str, Signature],
        truth: Callable[[str, Inputs], Outputs],
        precision: str,
        domains: Mapping[str, Domain],
        has_time: Callable[[], bool],
        moved_truth: MovedTruth | None,
    ) -> None:
        self._signatures = signatures
        self._truth = truth
        self._moved_truth = moved_truth
        self._precision = precision
        self._domains = domains
        self._has_time = has_time
        self._deaths = 0
        self._judged = Judged()
        self._cases: dict[str, list[Case]] = {}
        self._noise: dict[str, Sequence[Mapping[str, float]]] = {}

    def run(self, samples: Sequence[Sample]) -> Judged:
        suspects: list[tuple[Sample, Case]] = []
        for sample in samples:
            case = self._case(sample)
            if isinstance(case, str):
                self._leave(sample, case)
                continue
            usual = self._cases.setdefault(sample.signature, [])
            if len(usual) < _MAX_USUAL:
                usual.append(case)
            if self._judge(sample, case).difference("", case.outputs, _answer(sample, case), {}):
                suspects.append((sample, case))
            else:
                self._judged.equal.append(sample)
        # The first wrong answer tells since when there are any.
        for sample, case in sorted(suspects, key=lambda suspect: suspect[0].number):
            self._look_into(sample, case)
        return self._judged

    def _case(self, sample: Sample) -> Case | str:
        """Return the sample with TensorFlow's answer, or why there is none."""
        signature = self._signatures.get(sample.signature)
        if signature is None or not sample.outputs.keys() <= signature.outputs.keys():
            return "TensorFlow does not serve that signature with these outputs"
        if not sample.inputs.keys() <= signature.inputs.keys():
            return "TensorFlow has no such inputs"
        if not within(self._domains.get(sample.signature, ANY), signature, sample.inputs):
            return "the form is not proven for such inputs"
        if not self._has_time():
            return "no processor time was left"
        if self._deaths >= _MAX_DEATHS:
            return "TensorFlow died of others"
        try:
            truth = self._truth(sample.signature, sample.inputs)
        except BackendError:
            return "TensorFlow refuses them"
        except DiedError:
            self._deaths += 1
            return "TensorFlow died of them, or did not end"
        if not fits(truth, signature.outputs):
            return "TensorFlow answers in another shape than it declares"
        return Case("a live request", sample.inputs, truth)

    def _leave(self, sample: Sample, why: str) -> None:
        self._judged.unjudged.append((sample, why))

    def _look_into(self, sample: Sample, case: Case) -> None:
        """Judge an answer that differs, as a search does."""
        if len(self._judged.differing) >= MAX_DIFFERING:
            self._leave(sample, "enough others were wrong")
            return
        if not self._has_time():
            self._leave(sample, "no processor time was left")
            return
        judge = self._judge(sample, case, self._noise_of(sample.signature))
        if judge.is_wrong(sample.inputs):
            why = judge.difference(case.label, case.outputs, _answer(sample, case), {})
            self._judged.differing.append((sample, why))
        elif self._is_steady(judge, case):
            self._judged.equal.append(sample)  # roundings explain it
        else:
            self._leave(sample, "TensorFlow does not answer the same twice")

    def _is_steady(self, judge: Judge, case: Case) -> bool:
        try:
            again = judge.truth(case.inputs)
        except (BackendError, DiedError):
            return False
        return fits(again, judge.signature.outputs) and not judge.difference("", case.outputs, again, {})

    def _judge(self, sample: Sample, case: Case, noise: Sequence[Mapping[str, float]] = ()) -> Judge:
        name = sample.signature
        form = _Recorded(_answer(sample, case))
        truth = partial(self._truth, name)
        moved = None if self._moved_truth is None else partial(self._moved_truth, name)
        return Judge(form, name, self._signatures[name], truth, self._cases[name], noise, self._precision, moved)

    def _noise_of(self, name: str) -> Sequence[Mapping[str, float]]:
        if name not in self._noise:
            cases = self._cases[name]
            measured = noise_of(cases, partial(self._truth, name), time.monotonic() + _NOISE_SECONDS)
            self._noise[name] = with_medians(measured, len(cases))
        return self._noise[name]


def _answer(sample: Sample, case: Case) -> Outputs:
    """Return what the form answered; TensorFlow's for the outputs that the client did not ask for."""
    return {**case.outputs, **sample.outputs}

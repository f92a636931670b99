"""Whether a form is wrong on an input: runs TensorFlow and the form, and tells roundings from what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from backends.agreement import tolerance_of
from backends.contract import BackendError, Signature
from converters.cases import Case, DiedError, Inputs, Run, fits
from converters.proof import Comparison, Outputs, nearest, sizes_of
from converters.roundings import DRAWS, STEPS, TIE_STEPS, UNITS, moved_answers, moves, typical_noise
from converters.ties import with_ties

__all__ = ["Judge", "Runs"]

_CALL_SECONDS = 30.0
# Where an output is smaller than this part of what it is on usual inputs, almost all of it has cancelled, and what is
# left has the roundings of what it was: searched inputs, which come there on purpose, are not judged by it.
_LEFT = 0.01


class Runs(Protocol):
    """What a form is for a proof."""

    def run(self, name: str, inputs: Mapping[str, np.ndarray], seconds: float) -> Mapping[str, np.ndarray]:
        """The outputs. Raises BackendError where the framework refuses, ChildError where the process dies or hangs."""
        ...


class Judge:
    """The judge of one signature of a form. `truth` runs TensorFlow; `noise` is that of `cases`, what the form has to
    be right on."""

    def __init__(
        self,
        form: Runs,
        name: str,
        signature: Signature,
        truth: Run | None,
        cases: Sequence[Case],
        noise: Sequence[Mapping[str, float]],
        precision: str,
    ) -> None:
        self.signature = signature
        self._form = form
        self._name = name
        self._truth = truth
        self._cases = cases
        self._noise = noise
        self._precision = precision

    def truth(self, inputs: Inputs) -> Outputs:
        """TensorFlow's answer. Raises BackendError, DiedError."""
        if self._truth is None:
            raise DiedError("TensorFlow is not there to be asked")
        return self._truth(inputs)

    def answer(self, inputs: Inputs, seconds: float = _CALL_SECONDS) -> Outputs:
        """The form's. Raises BackendError, ChildError."""
        return self._form.run(self._name, inputs, seconds)

    def shares(self, truth: Outputs, answer: Outputs) -> dict[str, np.ndarray]:
        """See `Comparison.shares`."""
        return self._comparison().shares(truth, answer, self._usual, self._least_sizes)

    def difference(
        self,
        label: str,
        truth: Outputs,
        answer: Outputs,
        noise: Mapping[str, float],
        sizes: Mapping[str, float] | None = None,
    ) -> str:
        """What is wrong with `answer`, or ""."""
        comparison = self._comparison()
        comparison.add(label, truth, answer, noise=noise, sizes=sizes)
        return comparison.difference

    def noise(self, case: Case, answer: Outputs, usual: Mapping[str, float], seed: int) -> Mapping[str, float]:
        """By how much the outputs move with roundings: of a hard case that is measured where it matters only."""
        is_finite = all(array.dtype.kind != "f" or np.all(np.isfinite(array)) for array in case.inputs.values())
        if self._truth is None or not is_finite or not self.difference(case.label, case.outputs, answer, usual):
            return usual
        own = moves(case, self._truth, seed, DRAWS)
        return {alias: max(usual.get(alias, 0.0), own.get(alias, 0.0)) for alias in {*usual, *own}}

    def differs(self, inputs: Inputs, label: str = "") -> str:
        """In what the form differs from TensorFlow on inputs that were no case yet, or refuses them; "" where it does
        not, and where TensorFlow refuses them or answers in another shape than it declares. Raises ChildError."""
        case = self._case(label, inputs)
        if case is None:
            return ""
        try:
            answer = self.answer(inputs)
        except BackendError as error:
            return f"it refuses what TensorFlow answers, {label}: {error.message}"
        noise = self.noise(case, answer, self._usual, 0)
        return self.difference(label, case.outputs, answer, noise)

    def is_wrong(self, inputs: Inputs) -> bool:
        """Whether the form differs on searched inputs, by more than what roundings of them make of TensorFlow's own
        answer. Beside a threshold, they make of it either side. Whole numbers and simple fractions of a usual size are
        what they are, on one side. Raises ChildError."""
        case = self._case("", inputs)
        if case is None:
            return False
        try:
            answer = self.answer(inputs)
        except BackendError:
            return True
        if not self.difference("", case.outputs, answer, self._usual, self._least_sizes):
            return False
        return self._is_beyond_roundings(case, answer) and self._is_steady(case)

    def _is_beyond_roundings(self, case: Case, answer: Outputs) -> bool:
        noise = self.noise(case, answer, self._usual, 0)
        spared = self._moved(case, spare_plain=True)
        moved = [*self._moved(case, spare_plain=False), *spared]
        if not self._is_off(case, answer, noise, moved, spared, moved):
            return False
        if not any(array.dtype.kind in "iu" for array in case.outputs.values()):
            return True
        ranked = [*moved, *self._moved(case, spare_plain=False, distances=TIE_STEPS)]
        return self._is_off(case, answer, noise, moved, spared, ranked)

    def _is_off(
        self,
        case: Case,
        answer: Outputs,
        noise: Mapping[str, float],
        moved: Sequence[Outputs],
        spared: Sequence[Outputs],
        ranked: Sequence[Outputs],
    ) -> bool:
        """Whether `answer` is none that roundings explain, by TensorFlow's answers on moved inputs."""
        # With nothing to move, nothing tells how much has cancelled: then it must differ by what matters usually.
        sizes = self._least_sizes if moved else self._sizes
        if self.difference("", self._nearest(case, moved, ranked, answer), answer, noise, sizes):
            return True
        if UNITS[self._precision]:  # weights that are rounded leave no number as it is
            return False
        return bool(self.difference("", self._nearest(case, spared, ranked, answer), answer, noise, self._sizes))

    def _nearest(self, case: Case, moved: Sequence[Outputs], ranked: Sequence[Outputs], answer: Outputs) -> Outputs:
        """What is nearest to `answer` of what `moved` explains, and of what ties do, as TensorFlow has them in
        `ranked`."""
        tolerances = {
            alias: tolerance_of(self._precision, spec.dtype) for alias, spec in self.signature.outputs.items()
        }
        near = nearest(case.outputs, moved, answer)
        ties = with_ties(case.outputs, ranked, answer, tolerances, self._least_sizes)
        return {
            alias: np.where(ties[alias] == answer[alias], answer[alias], array) if array.dtype.kind in "iu" else array
            for alias, array in near.items()
        }

    def _moved(self, case: Case, *, spare_plain: bool, distances: Sequence[float] = STEPS) -> list[Outputs]:
        if self._truth is None:
            return []
        return [
            outputs
            for outputs in moved_answers(
                case.inputs, self._truth, UNITS[self._precision], spare_plain=spare_plain, distances=distances
            )
            if all(outputs[alias].shape == array.shape for alias, array in case.outputs.items())
        ]

    def _is_steady(self, case: Case) -> bool:
        """Whether TensorFlow answers the same again, and not by what happens to lie in memory."""
        again = self._case("", case.inputs)
        return again is not None and not self.difference("", case.outputs, again.outputs, self._usual)

    def _case(self, label: str, inputs: Inputs) -> Case | None:
        try:
            truth = self.truth(inputs)
        except (BackendError, DiedError):
            return None
        return Case(label, inputs, truth) if fits(truth, self.signature.outputs) else None

    @cached_property
    def _sizes(self) -> Mapping[str, float]:
        """How large the outputs of floats are on usual inputs."""
        return sizes_of(case.outputs for case in self._cases if not case.hard)

    @cached_property
    def _least_sizes(self) -> Mapping[str, float]:
        return {alias: _LEFT * size for alias, size in self._sizes.items()}

    @cached_property
    def _usual(self) -> Mapping[str, float]:
        return typical_noise(self._noise)

    def _comparison(self) -> Comparison:
        return Comparison(self._name, self.signature, self._precision)

"""Decide whether a form is wrong on an input: run TensorFlow and the form, and tell roundings from errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from backends.agreement import tolerance_of
from backends.contract import BackendError, Signature
from converters.cases import Case, DiedError, Inputs, Run, fits
from converters.proof import Comparison, Outputs, nearest, places_of, sizes_of, with_unsettled
from converters.roundings import (
    DRAWS,
    STEPS,
    TIE_STEPS,
    UNITS,
    RunMoved,
    moved_answers,
    moved_by_weights,
    moves,
    moves_by_weights,
    typical_noise,
)
from converters.ties import with_ties

__all__ = ["Judge", "Runs"]

_CALL_SECONDS = 30.0
# If an output is smaller than this part of its usual size, almost all of it has cancelled, and the rest has the
# roundings of what it was. A search finds such inputs on purpose, so their outputs count as no smaller.
_LEFT = 0.01


class Runs(Protocol):
    """A form, as a proof uses it."""

    def run(self, name: str, inputs: Mapping[str, np.ndarray], seconds: float) -> Mapping[str, np.ndarray]:
        """Return the outputs. Raise BackendError if the framework refuses the inputs, ChildError if the process dies or
        hangs."""
        ...


@dataclass(frozen=True, slots=True)
class _Moved:
    """TensorFlow's answers on moved inputs and weights: if all numbers move, and if simple ones are spared."""

    all: Sequence[Outputs]
    spared: Sequence[Outputs]


class Judge:
    """The judge of one signature of a form. `truth` runs TensorFlow, and `moved_truth` does with moved weights. `cases`
    are those on which the form must be right, and `noise` is theirs."""

    def __init__(
        self,
        form: Runs,
        name: str,
        signature: Signature,
        truth: Run | None,
        cases: Sequence[Case],
        noise: Sequence[Mapping[str, float]],
        precision: str,
        moved_truth: RunMoved | None = None,
    ) -> None:
        self.signature = signature
        self._form = form
        self._name = name
        self._truth = truth
        self._cases = cases
        self._noise = noise
        self._precision = precision
        self._moved_truth = moved_truth

    def comparison(self) -> Comparison:
        """Return a new comparison of the form with TensorFlow."""
        return Comparison(self._name, self.signature, self._precision, self._places)

    def truth(self, inputs: Inputs) -> Outputs:
        """Return TensorFlow's answer. Raise BackendError, DiedError."""
        if self._truth is None:
            raise DiedError("TensorFlow is not there to be asked")
        return self._truth(inputs)

    def answer(self, inputs: Inputs, seconds: float = _CALL_SECONDS) -> Outputs:
        """Return the form's answer. Raise BackendError, ChildError."""
        return self._form.run(self._name, inputs, seconds)

    def shares(self, truth: Outputs, answer: Outputs) -> dict[str, np.ndarray]:
        """See `Comparison.shares`."""
        return self.comparison().shares(truth, answer, self._usual, self._least_sizes)

    def difference(
        self,
        label: str,
        truth: Outputs,
        answer: Outputs,
        noise: Mapping[str, float],
        sizes: Mapping[str, float] | None = None,
    ) -> str:
        """Return what is wrong with `answer`, "" if nothing is."""
        comparison = self.comparison()
        comparison.add(label, truth, answer, noise=noise, sizes=sizes)
        return comparison.difference

    def noise(self, case: Case, answer: Outputs, usual: Mapping[str, float], seed: int) -> Mapping[str, float]:
        """Return how far roundings move the outputs; more than is known already is measured only if the answer would
        else be wrong.

        Inputs alone tell too little: on images from 0 to 1, ResNet50 with random weights moves by 1e-6 with its pixels
        and by 2e-4 with its weights. Against float64, TensorFlow itself is 1.3e-4 off there, and LiteRT 4.3e-4.
        """
        is_finite = all(array.dtype.kind != "f" or np.all(np.isfinite(array)) for array in case.inputs.values())
        if self._truth is None or not is_finite or not self.difference(case.label, case.outputs, answer, usual):
            return usual
        noise = _larger(usual, moves(case, self._truth, seed, DRAWS))
        if self._moved_truth is None or not self.difference(case.label, case.outputs, answer, noise):
            return noise
        return _larger(noise, moves_by_weights(case, self._moved_truth, seed, DRAWS))

    def differs(self, inputs: Inputs, label: str = "") -> str:
        """Return how the form differs from TensorFlow on inputs that were no case yet, or that it refuses them. Return
        "" if it does not differ, and if TensorFlow refuses the inputs or answers in another shape than it declares.
        Raise ChildError."""
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
        """Return whether the form differs on searched inputs by more than roundings of the inputs change TensorFlow's
        own answer. Beside a threshold, roundings lead to either side; but whole numbers and simple fractions of a usual
        size are exact, and so on one side. Raise ChildError."""
        case = self._case("", inputs)
        if case is None:
            return False
        try:
            answer = self.answer(inputs)
        except BackendError:
            return True
        if not self.difference("", case.outputs, answer, self._usual, self._least_sizes):
            return False
        is_wrong = self._is_beyond_roundings(case, answer) and not self._is_unsettled(case, answer)
        return is_wrong and self._is_steady(case)

    def is_explained(self, case: Case, answer: Outputs) -> bool:
        """Return whether roundings explain each number of an `answer` that differs, as for searched inputs. Without
        inputs of floats, none does; and that TensorFlow's answer is unsettled is no excuse on a case."""
        has_floats = any(array.dtype.kind == "f" and array.size for array in case.inputs.values())
        return has_floats and not self._is_beyond_roundings(case, answer)

    def _is_beyond_roundings(self, case: Case, answer: Outputs) -> bool:
        noise = self.noise(case, answer, self._usual, 0)
        near = _Moved(*[self._moved(case, spare_plain=spare_plain) for spare_plain in (False, True)])
        if not self._is_off(case, answer, noise, near, near):
            return False
        # Moving weights takes long, so it comes late.
        by_weights = [self._moved_by_weights(case, spare_plain=spare_plain) for spare_plain in (False, True)]
        near = _Moved([*near.all, *by_weights[0]], [*near.spared, *by_weights[1]])
        if not self._is_off(case, answer, noise, near, near):
            return False
        if not any(array.dtype.kind in "iub" for array in case.outputs.values()):
            return True
        far = [self._moved(case, spare_plain=spare_plain, distances=TIE_STEPS) for spare_plain in (False, True)]
        return self._is_off(case, answer, noise, near, _Moved([*near.all, *far[0]], [*near.spared, *far[1]]))

    def _is_unsettled(self, case: Case, answer: Outputs) -> bool:
        """Return whether TensorFlow's own answer becomes altogether another one, and so as good as `answer`, when its
        weights move by less than floats may differ by.

        EfficientNetB0 with random weights does so on a white image of 986: TensorFlow, with weights moved by one
        rounding, finds three other classes, each with the probability 1, and float64 finds a fifth.
        """
        moved = self._moved_by_weights(case, spare_plain=True, distances=TIE_STEPS)
        settled = with_unsettled(case.outputs, moved, answer, self._sizes)
        return not self.difference("", settled, answer, self._usual, self._least_sizes)

    def _is_off(
        self, case: Case, answer: Outputs, noise: Mapping[str, float], of_floats: _Moved, of_wholes: _Moved
    ) -> bool:
        """Return whether roundings do not explain `answer`, by TensorFlow's answers on moved inputs: those `of_floats`
        explain floats, those `of_wholes` whole numbers."""
        # If no input can be moved, it is not known how much has cancelled: then the usual size counts.
        sizes = self._least_sizes if of_floats.all else self._sizes
        nearest_of_all = self._nearest(case, of_floats.all, of_wholes.all, of_wholes.all, answer)
        if self.difference("", nearest_of_all, answer, noise, sizes):
            return True
        if UNITS[self._precision]:  # rounded weights change every number
            return False
        nearest_of_spared = self._nearest(case, of_floats.spared, of_wholes.spared, of_wholes.all, answer)
        return bool(self.difference("", nearest_of_spared, answer, noise, self._sizes))

    def _nearest(
        self,
        case: Case,
        of_floats: Sequence[Outputs],
        of_wholes: Sequence[Outputs],
        ranked: Sequence[Outputs],
        answer: Outputs,
    ) -> Outputs:
        """Return the outputs nearest to `answer` that moved inputs explain, or ties, as TensorFlow has them in
        `ranked`."""
        tolerances = {
            alias: tolerance_of(self._precision, spec.dtype) for alias, spec in self.signature.outputs.items()
        }
        near, wholes = nearest(case.outputs, of_floats, answer), nearest(case.outputs, of_wholes, answer)
        ties = with_ties(case.outputs, ranked, answer, tolerances, self._least_sizes)
        found = {}
        for alias, array in near.items():
            found[alias] = wholes[alias] if array.dtype.kind in "iub" else array
            if array.dtype.kind in "iu" and array.shape == answer[alias].shape:
                found[alias] = np.where(ties[alias] == answer[alias], answer[alias], found[alias])
        return found

    def _moved(self, case: Case, *, spare_plain: bool, distances: Sequence[float] = STEPS) -> list[Outputs]:
        if self._truth is None:
            return []
        unit = UNITS[self._precision]
        moved = moved_answers(case.inputs, self._truth, unit, spare_plain=spare_plain, distances=distances)
        return _of_same_shape(case, moved)

    def _moved_by_weights(self, case: Case, *, spare_plain: bool, distances: Sequence[float] = STEPS) -> list[Outputs]:
        if self._moved_truth is None:
            return []
        unit = UNITS[self._precision]
        moved = moved_by_weights(case.inputs, self._moved_truth, unit, spare_plain=spare_plain, distances=distances)
        return _of_same_shape(case, moved)

    def _is_steady(self, case: Case) -> bool:
        """Return whether TensorFlow gives the same answer again: if not, it reads uninitialised memory."""
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
        """The root mean square of each output of floats on usual inputs."""
        return sizes_of(case.outputs for case in self._cases if not case.hard)

    @cached_property
    def _least_sizes(self) -> Mapping[str, float]:
        return {alias: _LEFT * size for alias, size in self._sizes.items()}

    @cached_property
    def _usual(self) -> Mapping[str, float]:
        return typical_noise(self._noise)

    @cached_property
    def _places(self) -> Mapping[str, np.ndarray]:
        return places_of(case.outputs for case in self._cases if not case.hard)


def _larger(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {alias: max(one.get(alias, 0.0), other.get(alias, 0.0)) for alias in {*one, *other}}


def _of_same_shape(case: Case, answers: Iterable[Outputs]) -> list[Outputs]:
    return [
        outputs
        for outputs in answers
        if all(outputs[alias].shape == array.shape for alias, array in case.outputs.items())
    ]

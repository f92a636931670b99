"""Compare a form's answers on one signature with TensorFlow's, case by case, on values alone.

A comparison can miss errors on inputs that it did not see. It does say whether the inputs were telling: an output that
never varies may be equal in a graph that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.agreement import Tolerance, differences, root_mean_square, shares, tolerance_of, wide
from backends.contract import Signature
from backends.dtypes import BY_NUMPY
from converters.report import OutputParity, SignatureProof, Verdict

__all__ = ["Comparison", "Outputs", "nearest", "places_of", "relative_moves", "sizes_of", "with_unsettled"]

Outputs = Mapping[str, np.ndarray]

# An output must vary by more than this many times its tolerance: else that it is equal shows nothing.
_DISTINCT = 10.0
_MAX_POSITIONS = 1 << 20  # of an output whose range is kept element by element
# What an output has at one place of its last dimension counts as no smaller than so many times its usual size there, or
# than the whole output if that is less. Much of a place may have cancelled, and layers have units of many sizes.
_OF_PLACE = 30.0
_MAX_PLACES = 4096
_ALTOGETHER = 0.5  # an answer that is off by this part of its size is another one


class Comparison:
    """One signature of one form, compared case by case. `places` are those of its outputs (see `places_of`)."""

    def __init__(
        self, name: str, signature: Signature, precision: str, places: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._name = name
        self._signature = signature
        self._places = places or {}
        self._outputs = {
            alias: _Output(alias, spec.dtype, bool(spec.shape) and spec.shape is not None and spec.shape[0] == -1)
            for alias, spec in signature.outputs.items()
        }
        self._tolerances = {alias: tolerance_of(precision, spec.dtype) for alias, spec in signature.outputs.items()}
        self._cases = 0
        self._recorded = 0
        self.difference = ""
        """What was wrong first, "" as long as nothing was."""

    def add(
        self,
        case: str,
        truth: Outputs,
        answer: Outputs,
        recorded: bool = False,
        noise: Mapping[str, float] | None = None,
        sizes: Mapping[str, float] | None = None,
    ) -> None:
        """Compare the outputs of one case, which has the label `case`. `noise` is how far TensorFlow's own outputs move
        there (see `relative_moves`). Outputs of floats count as no smaller than `sizes`."""
        noise, sizes = noise or {}, sizes or {}
        self._cases += 1
        self._recorded += recorded
        for alias, output in self._outputs.items():
            tolerance, size = self._tolerances[alias], sizes.get(alias, 0.0)
            wrong = output.add(
                case, truth[alias], answer[alias], tolerance, noise.get(alias, 0.0), size, self._places.get(alias)
            )
            if wrong and not self.difference:
                self.difference = f"output {alias!r} {wrong}, on {case}"

    def shares(
        self, truth: Outputs, answer: Outputs, noise: Mapping[str, float], sizes: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """Return, for each element of each output, the share that its difference has of what is allowed, float64:
        infinite if it must be equal and is not, or has another shape. If there are rows, each counts by itself, so that
        the largest do not hide what is wrong with others. Nothing is kept."""
        return {
            alias: shares(
                truth[alias],
                answer[alias],
                tolerance and tolerance.beside_noise(noise.get(alias, 0.0)),
                sizes.get(alias, 0.0),
                by_rows=True,
                places=self._places.get(alias),
            )
            for alias, tolerance in self._tolerances.items()
        }

    def proof(self, refused: int = 0, on_refused: str = "", failure: str = "") -> SignatureProof:
        """Return the result so far. `failure` says how the form failed where TensorFlow answered."""
        verdict, reason = self._verdict(failure)
        return SignatureProof(
            self._name,
            verdict,
            reason,
            self._cases,
            refused,
            self._recorded,
            tuple(output.parity() for output in self._outputs.values()),
            on_refused,
        )

    def _verdict(self, failure: str) -> tuple[Verdict, str]:
        if failure:
            return Verdict.FAILED, failure
        if self.difference:
            return Verdict.DIFFERS, self.difference
        if not self._cases:
            return Verdict.UNTESTED, "TensorFlow accepted none of the inputs that were made from the signature"
        if not self._signature.inputs:
            return Verdict.PROVEN, "it takes no inputs, and its outputs are equal"
        # Conversions go wrong in floats. A flag or a count may be constant beside outputs that are not.
        still = [alias for alias, output in self._outputs.items() if not output.is_distinct(self._tolerances[alias])]
        floats = [alias for alias in still if self._tolerances[alias] is not None]
        if floats or len(still) == len(self._outputs):
            return Verdict.INDISTINCT, (
                f"output {(floats or still)[0]!r} hardly varied over {self._cases} cases: that it was equal shows "
                "nothing. Recorded warm-up requests with inputs that matter would help"
            )
        return Verdict.PROVEN, f"the outputs {still} were the same in all cases" if still else ""


@dataclass(frozen=True, slots=True)
class _Worst:
    share: float
    absolute: float | None
    relative: float | None
    case: str
    noise: float = 0.0


class _Output:
    """One output: how far it was off at worst, and the range of its values."""

    def __init__(self, alias: str, dtype: str, has_rows: bool) -> None:
        self.alias = alias
        self.dtype = dtype
        self._has_rows = has_rows
        self._worst: _Worst | None = None
        # The least and the largest of each element, and of the means of rows.
        self._elements: tuple[np.ndarray, np.ndarray] | None = None
        self._means: tuple[np.ndarray, np.ndarray] | None = None
        self._by_means = False
        self._size = 0.0  # the largest root mean square
        self._values: set[bytes] = set()  # of what is no number

    def add(
        self,
        case: str,
        truth: np.ndarray,
        answer: np.ndarray,
        tolerance: Tolerance | None,
        noise: float = 0.0,
        size: float = 0.0,
        places: np.ndarray | None = None,
    ) -> str:
        """Return what is wrong with `answer`, "" if nothing is."""
        self._note_range(truth)
        if answer.dtype != truth.dtype or answer.shape != truth.shape:
            self._worst = _Worst(float("inf"), None, None, case)
            return (
                f"is {_kind(answer)} of shape {list(answer.shape)} where TensorFlow's is {_kind(truth)} of shape "
                f"{list(truth.shape)}"
            )
        if tolerance is None:
            return self._add_exact(case, truth, answer)
        return self._add_floats(case, truth, answer, tolerance.beside_noise(noise), noise, size, places)

    def _add_exact(self, case: str, truth: np.ndarray, answer: np.ndarray) -> str:
        wrong = truth != answer
        if not np.any(wrong):
            self._keep(_Worst(0.0, 0.0, 0.0, case))
            return ""
        at = np.unravel_index(int(np.argmax(wrong)), truth.shape)
        absolute = None
        if truth.dtype.kind in "iub":
            absolute = float(np.max(np.abs(truth.astype(np.float64) - answer.astype(np.float64))))
        self._keep(_Worst(float("inf"), absolute, None, case))
        return (
            f"must be equal, and differs in {int(np.count_nonzero(wrong)):,} of {truth.size:,} elements: at "
            f"{_index(at)} it is {_shown(answer[at])} instead of {_shown(truth[at])}"
        )

    def _add_floats(
        self,
        case: str,
        truth: np.ndarray,
        answer: np.ndarray,
        tolerance: Tolerance,
        noise: float,
        size: float,
        places: np.ndarray | None,
    ) -> str:
        found = differences(truth, answer, tolerance, size, places=places)
        if np.any(found.odd):
            at = np.unravel_index(int(np.argmax(found.odd)), truth.shape)
            self._keep(_Worst(float("inf"), None, None, case))
            return f"is {answer[at]!s} instead of {truth[at]!s} at {_index(at)}"
        if not truth.size:
            return ""
        of_allowed = found.shares
        worst = np.unravel_index(int(np.argmax(of_allowed)), truth.shape)
        share, absolute = float(of_allowed[worst]), float(np.max(found.distances))
        some = found.magnitudes > 0
        relative = float(np.max(np.divide(found.distances, found.magnitudes, out=np.zeros(truth.shape), where=some)))
        self._keep(_Worst(share, absolute, relative, case, noise))
        if share <= 1:
            return ""
        return (
            f"is {answer[worst]!s} instead of {truth[worst]!s} at {_index(worst)}: off by "
            f"{found.distances[worst]:.3g}, with {found.allowed[worst]:.3g} allowed"
        )

    def _keep(self, found: _Worst) -> None:
        if self._worst is None or found.share > self._worst.share:
            self._worst = found

    def _note_range(self, truth: np.ndarray) -> None:
        if truth.dtype.kind == "O":
            for element in truth.reshape(-1)[:1000]:
                if len(self._values) < 2:
                    self._values.add(bytes(element))
            return
        if not truth.size:
            return
        numbers = truth.astype(np.complex128 if truth.dtype.kind == "c" else np.float64)
        if numbers.dtype.kind == "c":
            numbers = np.stack([numbers.real, numbers.imag], axis=-1)
        numbers = np.where(np.isfinite(numbers), numbers, 0)
        self._size = max(self._size, root_mean_square(numbers))
        rows = numbers if self._has_rows and numbers.ndim else numbers[None]
        if not rows.size:
            return
        means = rows.reshape(len(rows), -1).mean(axis=1)
        self._means = _widened(self._means, np.min(means), np.max(means))
        # Element by element as long as every row has the same shape; else the rows' means stand for them.
        shape = rows.shape[1:]
        if self._by_means or rows[0].size > _MAX_POSITIONS or (self._elements and self._elements[0].shape != shape):
            self._by_means, self._elements = True, None
        else:
            self._elements = _widened(self._elements, rows.min(axis=0), rows.max(axis=0))

    def _range(self) -> float:
        found = self._elements or self._means
        return 0.0 if found is None else float(np.max(found[1] - found[0]))

    def is_distinct(self, tolerance: Tolerance | None) -> bool:
        """Return whether the output varied by more than differences that pass for equal."""
        if self.dtype == "string":
            return len(self._values) > 1
        if tolerance is None:
            return self._range() > 0
        return self._range() > _DISTINCT * (tolerance.absolute + tolerance.relative * self._size)

    def parity(self) -> OutputParity:
        worst = self._worst or _Worst(0.0, None, None, "")
        variation = float(len(self._values) > 1) if self.dtype == "string" else self._range() / (self._size or 1.0)
        share = worst.share if np.isfinite(worst.share) else None
        return OutputParity(
            self.alias, self.dtype, worst.absolute, worst.relative, share, worst.case, variation, worst.noise
        )


def _widened(
    found: tuple[np.ndarray, np.ndarray] | None, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return (low, high) if found is None else (np.minimum(found[0], low), np.maximum(found[1], high))


def nearest(truth: Outputs, moved: Sequence[Outputs], answer: Outputs) -> dict[str, np.ndarray]:
    """Return, element by element, what is nearest to `answer` among the values that are no farther from `truth` than
    the farthest of `moved`; for values that are not floats, `answer` if it is one of these. An array of another shape
    or element type gives `truth`."""
    return {alias: _nearest(array, [other[alias] for other in moved], answer[alias]) for alias, array in truth.items()}


def _nearest(truth: np.ndarray, moved: Sequence[np.ndarray], answer: np.ndarray) -> np.ndarray:
    moved = [other for other in moved if other.shape == truth.shape]
    if not moved or answer.shape != truth.shape or answer.dtype != truth.dtype:
        return truth
    kind = truth.dtype.kind
    if kind == "c":
        parts = [_nearest(part(truth), [part(m) for m in moved], part(answer)) for part in (np.real, np.imag)]
        return np.asarray(parts[0] + 1j * parts[1]).astype(truth.dtype)
    stacked = np.stack([truth, *moved])
    if kind not in "fV":
        return np.where(np.any(stacked == answer, axis=0), answer, truth)
    others, expected, found = wide(stacked), wide(truth), wide(answer)
    both = np.isfinite(others) & np.isfinite(expected)
    with np.errstate(invalid="ignore"):
        farthest = np.where(both, np.abs(others - expected), 0.0).max(axis=0)
        near = expected + np.clip(found - expected, -farthest, farthest)
    # Roundings may also turn a number into infinity or NaN, and the other way.
    odd = ~np.isfinite(found) | ~np.isfinite(expected)
    is_met = np.any((others == found) | (np.isnan(others) & np.isnan(found)), axis=0)
    is_met |= np.isfinite(found) & np.any(np.isfinite(others), axis=0)
    chosen: np.ndarray = np.where(odd, np.where(is_met, found, expected), near).astype(truth.dtype)
    return chosen


def with_unsettled(
    truth: Outputs, moved: Sequence[Outputs], answer: Outputs, sizes: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Return `truth`, but the rows of `answer` where those of `truth` are unsettled: at least half of `moved` are
    altogether others, off by half of what is there or of the usual `sizes`. Such a row has only to be finite, and no
    farther off than the farthest of `moved`."""
    found = dict(truth)
    for alias, array in truth.items():
        others = [other[alias] for other in moved if other[alias].shape == array.shape]
        is_like = answer[alias].shape == array.shape and answer[alias].dtype == array.dtype
        if array.dtype.kind not in "fV" or not array.size or not others or not is_like:
            continue
        rows = (len(array) if array.ndim else 1, -1)
        expected, got = (np.reshape(wide(each), rows) for each in (array, answer[alias]))
        with np.errstate(invalid="ignore"):
            off = np.abs(np.stack([np.reshape(wide(other), rows) for other in others]) - expected)
            distances = np.where(np.isfinite(off), off, 0.0).max(axis=2)
            distance = np.abs(got - expected).max(axis=1)
        size = np.maximum(np.abs(expected).max(axis=1), sizes.get(alias, 0.0))
        is_unsettled = (distances >= _ALTOGETHER * size).sum(axis=0) * 2 >= len(others)
        is_taken = is_unsettled & (size > 0) & (distance <= distances.max(axis=0))  # False for what is not finite
        taken = is_taken.reshape(-1, *(1,) * (array.ndim - 1)) if array.ndim else is_taken[0]
        found[alias] = np.where(taken, answer[alias], array)
    return found


def sizes_of(answers: Iterable[Outputs]) -> dict[str, float]:
    """Return the root mean square of each output of floats: the median over several answers of those that are not 0."""
    found: dict[str, list[float]] = {}
    for outputs in answers:
        for alias, array in outputs.items():
            if array.dtype.kind in "fcV":
                numbers = wide(array)
                found.setdefault(alias, []).append(root_mean_square(numbers[np.isfinite(numbers)]))
    return {alias: float(np.median([size for size in sizes if size > 0] or [0.0])) for alias, sizes in found.items()}


def places_of(answers: Iterable[Outputs]) -> dict[str, np.ndarray]:
    """Return, for each output of floats with rows of numbers, how large each index of the last dimension usually is,
    from 0 to 1: 30 times its root mean square over that of the whole, the median over several answers. An index that is
    mostly 0 counts as 1: how large it is there tells nothing."""
    found: dict[str, list[np.ndarray]] = {}
    for outputs in answers:
        for alias, array in outputs.items():
            if array.dtype.kind not in "fcV" or array.ndim < 2 or not 1 < array.shape[-1] <= _MAX_PLACES:
                continue
            numbers = np.abs(wide(array)).reshape(-1, array.shape[-1])
            numbers = np.where(np.isfinite(numbers), numbers, 0.0)
            most = float(numbers.max(initial=0.0))
            if most > 0:
                squares = np.square(numbers / most)
                found.setdefault(alias, []).append(np.sqrt(squares.mean(axis=0) / squares.mean()))
    shares = {
        alias: np.median(each, axis=0) for alias, each in found.items() if len({len(places) for places in each}) == 1
    }
    return {alias: np.where(share > 0, np.minimum(1.0, _OF_PLACE * share), 1.0) for alias, share in shares.items()}


def relative_moves(truth: Outputs, moved: Outputs) -> dict[str, float]:
    """Return how far each output of floats is off at most, relative to the value, or to the root mean square of the
    output if that is larger."""
    found = {}
    for alias, array in truth.items():
        if array.dtype.kind not in "fcV" or moved[alias].shape != array.shape or not array.size:
            continue
        expected, got = wide(array), wide(moved[alias])
        finite = np.isfinite(expected) & np.isfinite(got)
        expected, got = expected[finite], got[finite]
        magnitudes = np.maximum(np.abs(expected), root_mean_square(expected))
        differences = np.abs(expected - got)[magnitudes > 0]
        found[alias] = float(np.max(differences / magnitudes[magnitudes > 0], initial=0.0))
    return found


def _kind(array: np.ndarray) -> str:
    return BY_NUMPY[array.dtype].name if array.dtype in BY_NUMPY else str(array.dtype)


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, bytes) else str(value)


def _index(position: tuple[np.intp, ...]) -> str:
    return f"[{', '.join(str(int(axis)) for axis in position)}]"

"""Make the inputs on which a signature is proven: recorded requests, or inputs made from the signature.

A signature does not say which values the model takes, so made inputs are tried on TensorFlow first. Those that it
refuses (an id beyond a vocabulary, an image that is too small) are replaced, and not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import BackendError, Signature, TensorSpec
from backends.domain import ANY, FINITE, Domain
from backends.made_inputs import TooLargeError, made_inputs

__all__ = ["Case", "CaseMaker", "DiedError", "Inputs", "Run", "batched", "filled", "fits", "has_batch"]

Inputs = Mapping[str, np.ndarray]
Run = Callable[[Inputs], Mapping[str, np.ndarray]]
"""Runs TensorFlow. Raises BackendError if it refuses the inputs or dies, or DiedError for a death if it says so."""

# For dimensions of which only the first is the batch: lengths of sequences, then sizes of images.
_SIZES = (7, 16, 32, 64, 128, 224, 1, 3)
_ID_BOUNDS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
_MAX_ID_INPUTS = 8
# A call that takes so many times as long as a plain one, and longer than this, takes as long as its ids are large: they
# are lengths or counts, and larger ones would take all of the proof's time.
_SLOWER = 10.0
_SLOW_SECONDS = 0.05
# One call may be slow because the machine is busy: the fastest of so many counts, but for one that is much slower.
_MEASURED = 3
_HICCUP_SECONDS = 2.0
_STYLES = (
    (1.0, True, "normal", (1, 3, 8)),
    (1.0, False, "from 0 to 1", (2, 9)),
    (255.0, False, "from 0 to 255", (8,)),
    (10.0, True, "large, of both signs", (3,)),
)
_ENOUGH_ROWS = 8
_MAX_RECORDED = 50


class DiedError(Exception):
    """TensorFlow died of inputs, or did not end with them."""


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs, TensorFlow's outputs for them, and a label for reports.

    A `hard` case has values that few clients send. If a form is wrong on it, the form is still proven for the inputs in
    `without`; None: it is not proven.
    """

    label: str
    inputs: Inputs
    outputs: Mapping[str, np.ndarray]
    recorded: bool = False
    hard: bool = False
    without: Domain | None = None


class CaseMaker:
    """Make the cases of one signature. `refused` counts the inputs that TensorFlow refused, and `refused_example` is
    one of them. `slow` has, by input of whole numbers, the number from which on values take too long to be tried."""

    def __init__(
        self,
        signature: Signature,
        run: Run,
        recorded: Sequence[Inputs] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.signature = signature
        self._run = run
        self._clock = clock
        self._recorded = recorded
        self._usual = next((inputs for inputs in recorded if _odd(inputs) is None), None)
        self.refused = 0
        self.refused_example: Inputs | None = None
        self.refusal = ""
        self.sizes: tuple[int, ...] = ()
        self.slow: dict[str, int] = {}
        self._bounds: dict[str, int] = {}
        self._default_bound = _ID_BOUNDS[0]
        self._explored = False
        self.has_made = False

    def cases(self) -> Iterator[Case]:
        """Yield the cases, the most telling first: a caller without time may stop after any."""
        rows = 0
        for index, inputs in enumerate(self._recorded[:_MAX_RECORDED]):
            without = _odd(inputs)
            for label, sized in _resized(self.signature, inputs, f"recorded request {index + 1}"):
                case = self._try(label, sized, True, without)
                if case is not None:
                    if without is None:
                        rows += next((len(array) for array in sized.values() if array.ndim), 1)
                    yield case
        if rows < _ENOUGH_ROWS:
            yield from self._made()
            self.has_made = True

    def plain(self, batch: int) -> Inputs | None:
        """Return ordinary inputs of this batch size: rows of a recorded request, or made ones; None if TensorFlow
        refuses them."""
        if self._usual is not None:
            return batched(self.signature, self._usual, batch)
        self._explore()
        return self._inputs(batch, 0, self.sizes[0], 1.0, True, self._default_bound) if self.sizes else None

    def representative(self, batch: int) -> Inputs | None:
        """Return ordinary inputs of this batch size to measure with; None if TensorFlow refuses them."""
        if self._usual is not None:
            return batched(self.signature, self._usual, batch)
        self._explore()
        for size in self.sizes:
            for float_range, signed in ((1.0, True), (1.0, False)):
                made = self._inputs(batch, 0, size, float_range, signed)
                if made is not None and self._try("", made) is not None:
                    return made
        return None

    def _made(self) -> Iterator[Case]:
        if not self.signature.inputs:
            case = self._try("no inputs", {})
            if case is not None:
                yield case
            return
        self._explore()
        if not self.sizes:
            return
        yield from self._random(self.sizes[0])
        yield from self._edges(self.sizes[0])
        for other in self.sizes[1:]:
            yield from self._one(f"batch 2, {other} for each unknown size", self._inputs(2, 1, other, 1.0, True))

    def _random(self, size: int) -> Iterator[Case]:
        has_floats = any(spec.element.numpy.kind in "fcV" for spec in self.signature.inputs.values())
        seed = 0
        for float_range, signed, label, batches in _STYLES if has_floats else _STYLES[:2]:
            for batch in batches:
                for _ in range(2):  # what TensorFlow refuses is replaced once
                    seed += 1
                    said = (
                        f"floats {label}, batch {batch}, seed {seed}" if has_floats else f"batch {batch}, seed {seed}"
                    )
                    found = list(self._one(said, self._inputs(batch, seed, size, float_range, signed)))
                    yield from found
                    if found:
                        break

    def _edges(self, size: int) -> Iterator[Case]:
        for value, label in ((0, "all 0"), (1, "all 1"), (-1, "all -1")):
            yield from self._one(label, self._filled(value, size))
        for alias, bound in self._bounds.items():
            largest = f"{alias!r} with {bound - 1:,}, the largest that TensorFlow took of those tried"
            yield from self._one(largest, self._with_id(alias, bound - 1))

    def _one(self, label: str, inputs: Inputs | None) -> Iterator[Case]:
        case = None if inputs is None else self._try(label, inputs)
        if case is not None:
            yield case

    def _explore(self) -> None:
        """Find out, once, which sizes and ids TensorFlow takes."""
        if not self._explored:
            self._explored = True
            self._find_sizes()
            if self.sizes:
                self._find_bounds()

    def _find_sizes(self) -> None:
        """Find up to two sizes for unknown dimensions that TensorFlow takes. It also takes images that are too small,
        and answers with uninitialised memory (2.21, if the second of two convolutions has nothing to compute). The
        shape of the answer shows that: such sizes come last."""
        unknown = any(spec.shape is not None and -1 in spec.shape[1:] for spec in self.signature.inputs.values())
        found: list[int] = []
        odd: list[int] = []
        for size in _SIZES if unknown else _SIZES[:1]:
            for bound in (10, 2, 1):
                inputs = self._inputs(2, 0, size, 1.0, False, bound)
                case = None if inputs is None else self._try("", inputs)
                if case is not None:
                    (found if fits(case.outputs, self.signature.outputs) else odd).append(size)
                    self._default_bound = bound
                    break
            if len(found) == 2:
                break
        self.sizes = tuple(found or odd[:2])

    def _find_bounds(self) -> None:
        """Find out how many ids, counted from 0, TensorFlow takes in each input of whole numbers, in about the time of
        others: a loop whose rounds an id counts gets no more rounds than that."""
        for alias, spec in list(self.signature.inputs.items())[:_MAX_ID_INPUTS]:
            if spec.element.numpy.kind not in "iu" or spec.dtype == "uint8":
                continue
            largest = int(np.iinfo(spec.element.numpy).max) + 1
            good, bad = self._default_bound, 0
            plain, _ = self._timed(alias, good - 1)
            for bound in _ID_BOUNDS:
                if bound <= good:
                    continue
                if bound > largest:
                    break
                seconds, is_taken = self._timed(alias, bound - 1)
                if not is_taken:
                    bad = bound
                    break
                if self._is_slow(alias, bound - 1, seconds, max(_SLOWER * plain, _SLOW_SECONDS)):
                    self.slow[alias] = bound - 1
                    break
                good = bound
            while bad and bad - good > 1:
                middle = (good + bad) // 2
                _, is_taken = self._timed(alias, middle - 1)
                if is_taken:
                    good = middle
                else:
                    bad = middle
            self._bounds[alias] = good

    def _is_slow(self, alias: str, value: int, seconds: float, most: float) -> bool:
        """Return whether TensorFlow takes longer than `most` seconds with `value` in an input each time; it took
        `seconds` once."""
        for _ in range(_MEASURED - 1):
            if not most < seconds < _HICCUP_SECONDS:
                break
            seconds, _ = self._timed(alias, value)
        return seconds > most

    def _timed(self, alias: str, value: int) -> tuple[float, bool]:
        """Return how many seconds TensorFlow took with `value` in an input, and whether it accepted it."""
        inputs = self._with_id(alias, value)
        begun = self._clock()
        case = self._try("", inputs)
        return self._clock() - begun, case is not None

    def _with_id(self, alias: str, value: int) -> Inputs:
        """Return ordinary inputs, one of which has `value` in its first element."""
        inputs = dict(self._inputs(2, 0, self.sizes[0], 1.0, False, self._default_bound) or {})
        array = inputs[alias].copy()
        if array.size:
            array.reshape(-1)[0] = value
        inputs[alias] = array
        return inputs

    def _inputs(
        self, batch: int, seed: int, size: int, float_range: float, signed: bool, bound: int | None = None
    ) -> Inputs | None:
        try:
            made = made_inputs(
                self.signature,
                batch,
                seed,
                size,
                id_range=10 if bound is None else bound,
                float_range=float_range,
                signed=signed,
                strings=(b"", b"a", b"some words"),
            )
        except TooLargeError as error:
            self.refusal = str(error)
            return None
        if bound is None:
            for position, (alias, limit) in enumerate(self._bounds.items()):
                random = np.random.default_rng([seed, position])
                spec = self.signature.inputs[alias]
                made[alias] = random.integers(limit, size=made[alias].shape).astype(spec.element.numpy)
        return made

    def _filled(self, value: int, size: int) -> Inputs:
        return filled(self.signature, self._inputs(2, 0, size, 1.0, False, self._default_bound) or {}, value)

    def _try(self, label: str, inputs: Inputs, recorded: bool = False, without: Domain | None = None) -> Case | None:
        try:
            return Case(label, inputs, self._run(inputs), recorded, without=without)
        except BackendError as error:
            self.refused += 1
            self.refusal = error.message
            if self.refused_example is None:
                self.refused_example = inputs
            return None


def _odd(inputs: Inputs) -> Domain | None:
    """Return the inputs for which a form that is wrong on `inputs` may still be proven; None if nothing about them is
    unusual."""
    without = ANY
    for array in inputs.values():
        if not array.size:
            without &= Domain(empty=False)
        elif array.dtype.kind in "fcV" and not np.all(np.isfinite(array)):
            without &= Domain(largest=FINITE.largest)
    return None if without == ANY else without


def filled(signature: Signature, inputs: Inputs, value: int) -> Inputs:
    """Return `inputs` with `value` in each element. A `value` below 0 is put into floats only: whole numbers below 0
    are a case of their own."""
    return {alias: _filled(array, value, signature.inputs[alias]) for alias, array in inputs.items()}


def _filled(array: np.ndarray, value: int, spec: TensorSpec) -> np.ndarray:
    kind = spec.element.numpy.kind
    if kind == "O" or (value < 0 and kind in "iub"):
        return array
    return np.full_like(array, bool(value) if kind == "b" else 255 * value if spec.dtype == "uint8" else value)


def fits(outputs: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]) -> bool:
    """Return whether the shapes of `outputs` are those that the signature declares."""
    return all(
        shape is None
        or (array.ndim == len(shape) and all(size in (-1, n) for size, n in zip(shape, array.shape, strict=True)))
        for shape, array in ((specs[alias].shape, array) for alias, array in outputs.items() if alias in specs)
    )


def has_batch(signature: Signature) -> bool:
    """Return whether each input has a first dimension of any size."""
    return bool(signature.inputs) and all(spec.shape and spec.shape[0] == -1 for spec in signature.inputs.values())


def batched(signature: Signature, inputs: Inputs, batch: int) -> Inputs:
    """Return the rows of `inputs`, repeated or cut off to `batch`; `inputs` if they have no rows."""
    if not has_batch(signature) or not inputs or any(not array.ndim or not len(array) for array in inputs.values()):
        return inputs
    return {alias: array[np.arange(batch) % len(array)] for alias, array in inputs.items()}


def _resized(signature: Signature, inputs: Inputs, label: str) -> Iterator[tuple[str, Inputs]]:
    yield label, inputs
    rows = {len(array) for array in inputs.values() if array.ndim}
    if has_batch(signature) and rows == {1}:  # a client may batch what was recorded one by one
        yield f"{label}, 3 times", batched(signature, inputs, 3)

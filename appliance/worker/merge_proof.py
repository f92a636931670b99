"""Whether requests of a signature may run together: shown by trial that f(concat(a, b)) is concat(f(a), f(b)).

A model may look across its batch (a softmax or a mean over dimension 0, a cumulative sum, tf.unique, batch
normalisation left in training mode), may answer in another order, or may keep state. Each trial runs two requests alone
and as one, and compares. What is not shown counts as refuted: requests of the signature then run alone.

A trial can miss what hangs on particular values that its inputs do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

import numpy as np

from backends.contract import BackendError, Signature, TensorSpec

__all__ = ["Verdict", "has_rows", "prove", "trial_rows"]

Inputs = Mapping[str, np.ndarray]
Run = Callable[[Inputs], Sequence[np.ndarray]]
"""Runs one request, and gives all outputs of the signature, in its order. Raises BackendError."""
Draw = Callable[[int, int], Inputs]
"""Inputs of so many rows, different for each seed: 0 is the plainest, and known to run."""

_PAIRS = ((1, 1), (1, 2), (3, 1), (2, 5))
_MAX_ROWS = 64

# How far the answers may lie apart. Kernels differ with the batch size, and so do the orders in which they sum: a
# float32 sum of 1,000 products is off by about 30 roundings (6e-8 each), and layers add up. Measured with TensorFlow
# 2.21 on a CPU (2026-11): five dense layers of 4,096 units 3e-6, ResNet50 6e-7. What looks across the batch shows in
# the first digits. Types of 16 bits: two roundings. The bound is of the value and of the output's root mean square
# together: a sum near 0 has the rounding errors of what cancelled in it.
_TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1.5e-5, "complex64": 1.5e-5}
_TOLERANCE_OF_DOUBLES = 1e-12


class Verdict(Enum):
    PROVEN = "proven"
    REFUTED = "refuted"
    UNDECIDED = "undecided"  # the model refused inputs, or its answers are too much alike to tell


def has_rows(signature: Signature) -> bool:
    """Whether every input and output has a first dimension of unknown size: what merging needs at least.

    No signature with defaults has: of a request that leaves out an input, the rows of that one are not to be seen.
    """

    def rows(spec: TensorSpec) -> bool:
        return bool(spec.shape) and spec.shape is not None and spec.shape[0] == -1

    specs = [*signature.inputs.values(), *signature.outputs.values()]
    if not signature.inputs or not signature.outputs or signature.defaults:
        return False
    return all(rows(spec) for spec in specs)


def trial_rows(max_rows: int) -> tuple[tuple[int, int], ...]:
    """The sizes of the two requests of each trial, where merged ones have at most `max_rows` rows."""
    largest = min(max_rows, _MAX_ROWS)
    extra = ((largest // 2, largest - largest // 2),) if largest > max(map(sum, _PAIRS)) else ()
    return _PAIRS + extra


def prove(run: Run, draw: Draw, max_rows: int) -> Verdict:
    """Tries whether merging shows. Whatever `run` raises besides BackendError goes to the caller.

    PROVEN needs that every trial came out equal, that the same request got the same answer first and last, and that
    each output told rows apart in some trial: answers that are all alike would hide a wrong order.
    """
    first: tuple[Inputs, Sequence[np.ndarray]] | None = None
    told_apart: set[int] = set()
    for seed, (left_rows, right_rows) in enumerate(trial_rows(max_rows)):
        rows = left_rows + right_rows
        whole = {name: np.array(array) for name, array in draw(rows, seed).items()}
        if seed:
            for array in whole.values():
                array[-1] = array[0]  # the same row in both requests, which a tf.unique would join
        left = {name: array[:left_rows].copy() for name, array in whole.items()}
        right = {name: array[left_rows:].copy() for name, array in whole.items()}
        kept = {} if seed else {name: array.copy() for name, array in left.items()}  # a backend may use up its inputs
        try:
            alone = [run(left), run(right)]
        except BackendError:
            return Verdict.UNDECIDED
        try:
            merged = run(whole)
        except BackendError:
            return Verdict.REFUTED
        for index, (left_answer, right_answer, answer) in enumerate(zip(*alone, merged, strict=True)):
            if not _is_joined(left_answer, right_answer, answer, left_rows, right_rows):
                return Verdict.REFUTED
            if not _close(answer, np.roll(answer, 1, axis=0)):
                told_apart.add(index)
        if first is None:
            first = kept, alone[0]
    assert first is not None
    inputs, answers = first
    try:
        again = run(inputs)
    except BackendError:
        return Verdict.REFUTED
    if not all(
        before.shape == after.shape and _close(before, after) for before, after in zip(answers, again, strict=True)
    ):
        return Verdict.REFUTED
    return Verdict.PROVEN if len(told_apart) == len(answers) else Verdict.UNDECIDED


def _is_joined(left: np.ndarray, right: np.ndarray, whole: np.ndarray, left_rows: int, right_rows: int) -> bool:
    if left.shape[:1] != (left_rows,) or right.shape[:1] != (right_rows,):
        return False
    if whole.shape != (left_rows + right_rows, *left.shape[1:]) or left.shape[1:] != right.shape[1:]:
        return False
    return _close(np.concatenate([left, right]), whole)


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one shape have the same values: floats within the tolerance, all else exactly."""
    if one.dtype.name == "bfloat16" or one.dtype.kind in "fc":
        tolerance = _TOLERANCE.get(one.dtype.name, _TOLERANCE_OF_DOUBLES)
        wide = np.dtype(np.complex128 if one.dtype.kind == "c" else np.float64)
        one, other = one.astype(wide), other.astype(wide)
        magnitudes = np.abs(one[np.isfinite(one)])
        scale = float(magnitudes.max(initial=0.0))
        typical = scale * float(np.sqrt(np.mean(np.square(magnitudes / scale)))) if scale > 0 else 0.0
        return bool(np.isclose(one, other, rtol=tolerance, atol=tolerance * typical, equal_nan=True).all())
    return bool(np.array_equal(one, other))

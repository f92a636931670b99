"""Shows by trial whether requests of a signature may run together: that f(concat(a, b)) is concat(f(a), f(b)).

A model may look across its batch (a softmax or a mean over dimension 0, a cumulative sum, tf.unique, batch
normalisation left in training mode), may answer in another order, or may keep state. Each trial runs two requests alone
and as one, and compares. What is not shown counts as refuted: requests of the signature then run alone.

A trial can miss what depends on values that its inputs do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

import numpy as np

from backends.agreement import agree
from backends.contract import BackendError, Signature, TensorSpec

__all__ = ["Verdict", "has_rows", "prove", "trial_rows"]

Inputs = Mapping[str, np.ndarray]
Run = Callable[[Inputs], Sequence[np.ndarray]]
"""Runs one request, and returns all outputs of the signature, in its order. Raises BackendError."""
Draw = Callable[[int, int], Inputs]
"""Returns inputs of so many rows, different for each seed. Those of seed 0 are plain, and have run before."""

_PAIRS = ((1, 1), (1, 2), (3, 1), (2, 5))
_MAX_ROWS = 64


class Verdict(Enum):
    PROVEN = "proven"
    REFUTED = "refuted"
    UNDECIDED = "undecided"  # the model refused inputs, or its answers are too much alike to tell


def has_rows(signature: Signature) -> bool:
    """Return whether every input and output has a first dimension of unknown size, without which nothing is merged.

    A signature with defaults has none: a request may leave out an input, and then does not show its rows.
    """

    def rows(spec: TensorSpec) -> bool:
        return bool(spec.shape) and spec.shape is not None and spec.shape[0] == -1

    specs = [*signature.inputs.values(), *signature.outputs.values()]
    if not signature.inputs or not signature.outputs or signature.defaults:
        return False
    return all(rows(spec) for spec in specs)


def trial_rows(max_rows: int) -> tuple[tuple[int, int], ...]:
    """Return the rows of the two requests of each trial, if merged requests have at most `max_rows` rows."""
    largest = min(max_rows, _MAX_ROWS)
    extra = ((largest // 2, largest - largest // 2),) if largest > max(map(sum, _PAIRS)) else ()
    return _PAIRS + extra


def prove(run: Run, draw: Draw, max_rows: int) -> Verdict:
    """Try whether merging changes the answers. What `run` raises besides BackendError is raised.

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
            if not agree(answer, np.roll(answer, 1, axis=0), "merged"):
                told_apart.add(index)
        if first is None:
            first = kept, alone[0]
    assert first is not None
    inputs, answers = first
    try:
        again = run(inputs)
    except BackendError:
        return Verdict.REFUTED
    if not all(agree(before, after, "merged") for before, after in zip(answers, again, strict=True)):
        return Verdict.REFUTED
    return Verdict.PROVEN if len(told_apart) == len(answers) else Verdict.UNDECIDED


def _is_joined(left: np.ndarray, right: np.ndarray, whole: np.ndarray, left_rows: int, right_rows: int) -> bool:
    if left.shape[:1] != (left_rows,) or right.shape[:1] != (right_rows,):
        return False
    if whole.shape != (left_rows + right_rows, *left.shape[1:]) or left.shape[1:] != right.shape[1:]:
        return False
    return agree(np.concatenate([left, right]), whole, "merged")

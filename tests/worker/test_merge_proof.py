"""Which functions are shown to answer merged requests as they answer each alone. The functions are numpy's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from appliance.worker.merge_proof import Verdict, has_rows, prove, trial_rows
from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.made_inputs import made_inputs

Function = Callable[[np.ndarray], Any]

VECTOR = Signature({"x": TensorSpec("float32", (-1,))}, {})
MATRIX = Signature({"x": TensorSpec("float32", (-1, 4))}, {})
IDS = Signature({"x": TensorSpec("int64", (-1,))}, {})
TEXTS = Signature({"x": TensorSpec("string", (-1,))}, {})


def verdict(function: Function, signature: Signature = VECTOR, max_rows: int = 8) -> Verdict:
    def run(inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        answers = function(inputs["x"])
        return answers if isinstance(answers, tuple) else (answers,)

    def draw(rows: int, seed: int) -> Mapping[str, np.ndarray]:
        return made_inputs(signature, rows, seed, strings=(b"a", b"bb", b"") if seed else (b"",))

    return prove(run, draw, max_rows)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def counter() -> Function:
    runs = itertools.count()
    return lambda x: x + np.float32(next(runs))


def noise(scale: float) -> Function:
    random = np.random.Generator(np.random.PCG64(1))
    return lambda x: (x + scale * random.standard_normal(x.shape)).astype(np.float32)


def upper(x: np.ndarray) -> np.ndarray:
    return np.array([element.upper() for element in x], object)


def refuse_more_than(rows: int) -> Function:
    def limited(x: np.ndarray) -> np.ndarray:
        if len(x) > rows:
            raise BackendError(Code.INVALID_ARGUMENT, f"the batch size is {rows}")
        return x

    return limited


def pad_to_longest(x: np.ndarray) -> np.ndarray:
    width = int(x.max(initial=0)) + 1
    return (np.arange(width)[None, :] < x[:, None]).astype(np.int32)


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (lambda x: x / 2 + 2, VECTOR),
        (lambda x: softmax(x, axis=1), MATRIX),
        (lambda x: x.sum(axis=1), MATRIX),
        (lambda x: (x * 2, x.sum(axis=1)), MATRIX),
        (lambda x: x.astype(np.complex64) * 1j, VECTOR),
        (lambda x: np.where(x > 0.5, np.nan, x), VECTOR),
        (lambda x: x > 0.5, VECTOR),
        (lambda x: x * x, IDS),
        (upper, TEXTS),
        # Another order of summing, as kernels have for other batch sizes.
        (lambda x: (x @ np.ones((4, 3), np.float32)) * np.float32(1 + 1e-7 * len(x)), MATRIX),
        (lambda x: (x * (1 + len(x) % 2 * 1e-3)).astype(np.float16), VECTOR),
        (lambda x: (x * (1 + len(x) % 2 * 1e-3)).astype(ml_dtypes.bfloat16), VECTOR),
    ],
)
def test_functions_of_single_rows_may_be_merged(function: Function, signature: Signature) -> None:
    assert verdict(function, signature) is Verdict.PROVEN


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        pytest.param(lambda x: softmax(x, axis=0), VECTOR, id="softmax over the batch"),
        pytest.param(lambda x: softmax(x, axis=0), MATRIX, id="softmax over the batch of a matrix"),
        pytest.param(lambda x: x - x.mean(), VECTOR, id="minus the batch's mean"),
        pytest.param(lambda x: x + np.float32(1e-3) * x.mean(), VECTOR, id="a little of the batch's mean"),
        pytest.param(lambda x: x / x.max(), VECTOR, id="over the batch's maximum"),
        pytest.param(lambda x: (x - x.mean(0)) / (x.std(0) + 1e-3), MATRIX, id="batch normalisation in training"),
        pytest.param(np.cumsum, VECTOR, id="cumulative sum"),
        pytest.param(lambda x: x[::-1].copy(), VECTOR, id="reversed rows"),
        pytest.param(lambda x: np.roll(x, 1), VECTOR, id="shifted rows"),
        pytest.param(np.sort, VECTOR, id="sorted rows"),
        pytest.param(np.argsort, VECTOR, id="order of rows"),
        pytest.param(np.unique, VECTOR, id="unique floats"),
        pytest.param(np.unique, IDS, id="unique ids"),
        pytest.param(lambda x: np.unique(x, return_inverse=True)[1], IDS, id="indices of unique ids"),
        pytest.param(lambda x: np.full(len(x), len(x)), VECTOR, id="batch size"),
        pytest.param(lambda x: np.arange(len(x)), VECTOR, id="row number"),
        pytest.param(lambda x: np.concatenate([x, x]), VECTOR, id="twice as many rows"),
        pytest.param(lambda x: x.sum(), VECTOR, id="a scalar"),
        pytest.param(lambda x: x[:, None] * x[None, :], VECTOR, id="each row with each"),
        pytest.param(pad_to_longest, IDS, id="padded to the longest"),
        pytest.param(lambda x: (x, x[::-1].copy()), VECTOR, id="the second output reversed"),
        pytest.param(counter(), VECTOR, id="counter"),
        pytest.param(noise(1e-2), VECTOR, id="noise"),
        pytest.param(refuse_more_than(1), VECTOR, id="a fixed batch size"),
        pytest.param(lambda x: x[:4] if len(x) > 4 else x, VECTOR, id="cut off after four"),
        pytest.param(lambda x: upper(x[::-1]), TEXTS, id="strings reversed"),
        pytest.param(lambda x: x.astype(np.float64) * (1 + 1e-9 * len(x)), VECTOR, id="doubles that differ"),
        pytest.param(
            lambda x: (x * 1000).astype(np.int64) + (len(x) > 6), VECTOR, id="whole numbers that differ by one"
        ),
        pytest.param(lambda x: x if len(x) < 8 else x[::-1].copy(), VECTOR, id="the largest batch reversed"),
    ],
)
def test_what_looks_across_the_batch_is_refuted(function: Function, signature: Signature) -> None:
    assert verdict(function, signature) is Verdict.REFUTED


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        pytest.param(lambda x: np.full(len(x), 0.5, np.float32), VECTOR, id="a constant"),
        pytest.param(lambda x: (x, np.full(len(x), b"label", object)), VECTOR, id="one output a constant"),
        pytest.param(lambda x: 1 + x * np.float32(1e-9), VECTOR, id="rows that differ by less than the tolerance"),
        pytest.param(refuse_more_than(0), VECTOR, id="refuses everything"),
        pytest.param(refuse_more_than(3), VECTOR, id="refuses some requests that come alone"),
    ],
)
def test_what_cannot_be_told_is_not_proven(function: Function, signature: Signature) -> None:
    assert verdict(function, signature) is not Verdict.PROVEN


def test_a_state_that_shows_late_is_refuted() -> None:
    runs = itertools.count()
    last = 3 * len(trial_rows(8))

    assert verdict(lambda x: x + (next(runs) >= last)) is Verdict.REFUTED


def test_trials_reach_the_largest_merged_size() -> None:
    assert max(map(sum, trial_rows(8))) == 8
    assert max(map(sum, trial_rows(1))) == 7
    assert max(map(sum, trial_rows(65536))) == 64


def test_inputs_that_a_run_uses_up_do_not_spoil_the_trials() -> None:
    def consume(x: np.ndarray) -> np.ndarray:
        answer = x * 2
        x[:] = 0
        return answer

    assert verdict(consume) is Verdict.PROVEN


def test_a_bug_of_the_caller_is_not_taken_for_a_refusal() -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        verdict(broken)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([(-1,)], [(-1,)], True),
        ([(-1, 3), (-1, -1)], [(-1,), (-1, 2)], True),
        ([(2, 3)], [(-1,)], False),
        ([(-1,)], [(2,)], False),
        ([(-1,)], [()], False),
        ([()], [(-1,)], False),
        ([None], [(-1,)], False),
        ([(-1,)], [None], False),
        ([(-1,), (3,)], [(-1,)], False),
        ([], [(-1,)], False),
        ([(-1,)], [], False),
    ],
)
def test_every_input_and_output_needs_an_unknown_first_dimension(
    inputs: list[Any], outputs: list[Any], expected: bool
) -> None:
    def specs(shapes: list[Any]) -> dict[str, TensorSpec]:
        return {str(number): TensorSpec("float32", shape) for number, shape in enumerate(shapes)}

    assert has_rows(Signature(specs(inputs), specs(outputs))) is expected
    assert not has_rows(Signature(specs(inputs), specs(outputs), defaults={"0": b""}))

"""The search for inputs on which a form differs, and what a proof makes of them: functions stand for both sides.

Each search ends by a clock that goes on by a millisecond a look: how fast the machine is changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.domain import ANY, Domain
from converters.cases import Case, CaseMaker, DiedError, Run
from converters.child import ChildError
from converters.judging import Judge
from converters.narrowing import USUAL, narrowed, tamed
from converters.roundings import RunMoved, WeightsMove, moved_weights, noise_of, with_medians
from converters.search import Search, Suspect
from converters.sections import Section

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of overflows, which are meant

Arrays = Mapping[str, np.ndarray]
Function = Callable[..., np.ndarray]

FLOATS = Signature({"x": TensorSpec("float32", (-1, 4))}, {"y": TensorSpec("float32", (-1, 4))})
ONE = Signature({"x": TensorSpec("float32", (-1, 4))}, {"y": TensorSpec("float32", (-1, 1))})
CLASSES = Signature({"x": TensorSpec("float32", (-1, 4))}, {"y": TensorSpec("int64", (-1,))})
IDS = Signature({"x": TensorSpec("int64", (-1,))}, {"y": TensorSpec("int64", (-1,))})
PAIRS = Signature(
    {"x": TensorSpec("int64", (-1,)), "z": TensorSpec("int64", (-1,))}, {"y": TensorSpec("float32", (-1,))}
)
VECTOR = Signature({"x": TensorSpec("float32", (6,))}, {"y": TensorSpec("float32", (6,))})
SEQUENCES = Signature({"x": TensorSpec("float32", (-1, -1))}, {"y": TensorSpec("float32", (-1,))})

WEIGHTS = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
TABLE = np.random.default_rng(2).normal(size=(3000, 4)).astype(np.float32)

SHORT = 0.4  # seconds of a search that is to find nothing


class Stand:
    def __init__(self, function: Function) -> None:
        self._function = function

    def run(self, _: str, inputs: Arrays, __: float) -> dict[str, np.ndarray]:
        return {"y": self._function(**inputs)}


def searching(
    signature: Signature,
    truth: Function,
    answer: Function,
    domain: Domain = ANY,
    precision: str = "float32",
    risk: Run | None = None,
) -> Search:
    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": truth(**inputs)}

    cases = list(CaseMaker(signature, run).cases())
    noise = with_medians(noise_of(cases, run, float("inf")), len(cases))
    judge = Judge(Stand(answer), "s", signature, risk or run, cases, noise, precision)
    ticks = itertools.count()
    return Search(judge, cases, [], domain, 1, clock=lambda: next(ticks) * 1e-3)


def found(signature: Signature, truth: Function, answer: Function, **options: Any) -> Suspect | None:
    return searching(signature, truth, answer, **options).run(5.0)


def in_table(*ids: np.ndarray) -> None:
    for each in ids:
        if each.size and (each.min() < 0 or each.max() >= len(TABLE)):
            raise BackendError(Code.INVALID_ARGUMENT, "there is no such id")


def score(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    in_table(x, z)
    return np.sum(TABLE[x] * TABLE[z], axis=1)


# -- what is found


def test_one_id_of_a_table_is_found() -> None:
    def triple(x: np.ndarray) -> np.ndarray:
        in_table(x)
        return x * 3

    suspect = found(IDS, triple, lambda x: np.where(x == 1789, 0, x * 3))
    assert suspect is not None
    assert suspect.inputs["x"].tolist() == [1789]


def test_two_ids_that_are_wrong_together_are_found() -> None:
    def wrong(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where((x > 2000) & (z == 7), 1, score(x, z)).astype(np.float32)

    suspect = found(PAIRS, score, wrong)
    assert suspect is not None
    assert suspect.inputs["z"].tolist() == [7]


@pytest.mark.parametrize("limit", [7.0, 7.002])
def test_a_threshold_behind_arithmetic_is_found(limit: float) -> None:
    def above(x: np.ndarray, limit: float = 7.0) -> np.ndarray:
        return np.where(2 * x + 1 > limit, x, 0).astype(np.float32)

    if limit == 7.0:  # at least for more than
        assert found(FLOATS, above, lambda x: np.where(2 * x + 1 >= 7.0, x, 0).astype(np.float32)) is not None
    else:
        assert found(FLOATS, above, lambda x: above(x, limit)) is not None


def test_halves_and_equals_are_found() -> None:
    assert found(FLOATS, lambda x: np.round(x, 0), lambda x: np.floor(x + np.float32(0.5))) is not None
    assert found(CLASSES, lambda x: np.argmax(x, 1), lambda x: 3 - np.argmax(x[:, ::-1], 1)) is not None


def test_an_error_in_a_column_of_small_numbers_beside_one_of_large_ones_is_found() -> None:
    def beside_large(last: Function) -> Function:
        return lambda x: np.stack([x[:, 0], x[:, 1], x[:, 2] * 1e3 + 1.6e9, last(x[:, 3])], axis=1).astype(np.float32)

    halves_up = beside_large(lambda x: np.floor(x + np.float32(0.5)))
    suspect = found(FLOATS, beside_large(lambda x: np.round(x, 0)), halves_up, domain=USUAL)
    assert suspect is not None
    assert suspect.inputs["x"][0, 3] % 1 == 0.5


def _tanh_layer(x: np.ndarray) -> np.ndarray:
    """Values up to 137, beyond 127 for few inputs."""
    return np.tanh(x @ WEIGHTS[:, :4]) @ np.diag([137.0, 100.0, 50.0, 1.0]).astype(np.float32)


def _rounded_layer(x: np.ndarray) -> np.ndarray:
    return np.round(np.tanh(x @ WEIGHTS[:, :4]), 1)


INSIDE: Mapping[str, tuple[Signature, Function, Function]] = {
    "a cast beyond 127": (
        FLOATS,
        lambda x: _tanh_layer(x).astype(np.int64).astype(np.int8).astype(np.float32),
        lambda x: np.trunc(np.minimum(_tanh_layer(x), 127)).astype(np.float32),
    ),
    "a root of 0": (
        ONE,
        lambda x: 1 / np.std(x, axis=1, keepdims=True),
        lambda x: np.where(np.ptp(x, axis=1, keepdims=True) == 0, np.nan, 1 / np.std(x, axis=1, keepdims=True)),
    ),
    "equals": (
        CLASSES,
        lambda x: np.argmax(_rounded_layer(x), axis=1),
        lambda x: 3 - np.argmax(_rounded_layer(x)[:, ::-1], axis=1),
    ),
    "a divisor of 0": (
        PAIRS,
        lambda x, z: np.where(x + z == 777, 0, 1000.0 * x / np.where(x + z == 777, 1, x + z - 777)).astype(np.float32),
        lambda x, z: np.where(x + z == 777, 1, 1000.0 * x / np.where(x + z == 777, 1, x + z - 777)).astype(np.float32),
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_values_inside_the_graph_that_go_wrong_are_found_without_an_aim(name: str) -> None:
    assert found(*INSIDE[name]) is not None


def test_a_length_and_a_number_of_rows_are_found() -> None:
    def total(x: np.ndarray) -> np.ndarray:
        return np.sum(x, axis=1)

    suspect = found(SEQUENCES, total, lambda x: -total(x) if x.shape[1] == 11 else total(x))
    assert suspect is not None
    assert suspect.inputs["x"].shape[1] == 11
    suspect = found(FLOATS, lambda x: 2 * x, lambda x: 2 * x if len(x) < 100 else -x)
    assert suspect is not None
    assert len(suspect.inputs["x"]) >= 100


def test_inputs_without_rows_are_searched_too() -> None:
    assert found(VECTOR, lambda x: 2 * x, lambda x: np.where((x > 20).sum() > 1, x, 2 * x)) is not None


def test_whole_numbers_of_another_shape_are_wrong() -> None:
    suspect = found(CLASSES, lambda x: np.argmax(x, axis=1), lambda x: np.zeros((len(x), 4, 2), np.int64))
    assert suspect is not None


def test_a_form_that_refuses_or_dies_is_found() -> None:
    def refuses(x: np.ndarray) -> np.ndarray:
        if (x == 0.5).any():
            raise BackendError(Code.INVALID_ARGUMENT, "no halves")
        return 2 * x

    def dies(x: np.ndarray) -> np.ndarray:
        if (x == 0.5).any():
            raise ChildError("it was killed by SIGSEGV")
        return 2 * x

    for answer, failure in ((refuses, ""), (dies, "it was killed by SIGSEGV")):
        suspect = found(FLOATS, lambda x: 2 * x, answer)
        assert suspect is not None
        assert (suspect.inputs["x"] == 0.5).any()
        assert suspect.failure == failure


def test_a_form_that_died_once_is_asked_again() -> None:
    deaths: list[np.ndarray] = []

    def dies_once(x: np.ndarray) -> np.ndarray:
        if not deaths:
            deaths.append(x)
            raise ChildError("it was killed by SIGKILL (was the machine out of memory?)")
        return 2 * x

    assert searching(FLOATS, lambda x: 2 * x, dies_once).run(SHORT) is None
    assert len(deaths) == 1


# -- what is not


def in_doubles(function: Function) -> Function:
    """The same with other roundings."""
    return lambda **inputs: function(**{name: array.astype(np.float64) for name, array in inputs.items()})


def rounded(function: Function) -> Function:
    return lambda **inputs: function(**inputs).astype(np.float32)


def deep(x: np.ndarray) -> np.ndarray:
    for seed in range(6):
        weights = np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32).astype(x.dtype)
        x = np.tanh(x @ weights + x.dtype.type(0.1))
    return np.sum(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("signature", "function"),
    [
        (ONE, lambda x: x @ WEIGHTS[:, :1]),
        (ONE, deep),
        (CLASSES, lambda x: np.argmax(x @ WEIGHTS, axis=1)),
        (CLASSES, lambda x: (x @ WEIGHTS[:, 0] > 0.3).astype(np.int64)),
        (FLOATS, lambda x: np.floor(x @ WEIGHTS[:, :4])),
        (FLOATS, lambda x: (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + x.dtype.type(1e-6))),
    ],
    ids=[
        "a sum near 0",
        "layers",
        "the largest",
        "a threshold",
        "steps",
        "a normalisation",
    ],
)
def test_what_roundings_do_is_no_difference(signature: Signature, function: Function) -> None:
    answer = in_doubles(function) if signature is CLASSES else rounded(in_doubles(function))
    search = searching(signature, function, answer, domain=USUAL)
    assert search.run(SHORT) is None
    assert search.tried > 100


def is_wrong(limit: float, other: float, value: float) -> bool:
    """Whether a form with another limit is wrong on a value."""

    def beyond(limit: float) -> Function:
        return lambda x: (x[:, 0] > np.float32(limit)).astype(np.int64)

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": beyond(limit)(**inputs)}

    cases = list(CaseMaker(CLASSES, run).cases())
    noise = with_medians(noise_of(cases, run, float("inf")), len(cases))
    judge = Judge(Stand(beyond(other)), "s", CLASSES, run, cases, noise, "float32")
    return judge.is_wrong({"x": np.array([[value, 0, 0, 0]], np.float32)})


def test_whole_numbers_may_be_those_of_either_side_of_a_threshold_within_what_floats_may_differ_by() -> None:
    assert not is_wrong(3.3, 3.3 * (1 + 4e-6), 3.3 * (1 + 2e-6))  # layers round more than an input does
    assert not is_wrong(3.3, 3.3 * (1 + 4e-5), 3.3 * (1 + 2e-5))
    assert is_wrong(3.3, 3.3 * (1 + 4e-3), 3.3 * (1 + 2e-3))
    assert is_wrong(3.25, 3.25 * (1 - 1e-6), 3.25)  # what is simple is not rounded


def test_a_form_of_weights_of_eight_bits_is_not_searched_for_what_those_round() -> None:
    steps = np.abs(WEIGHTS).max() / 127
    short = (np.round(WEIGHTS / steps) * steps)[:, :4].astype(np.float32)

    def right(x: np.ndarray) -> np.ndarray:
        return x @ WEIGHTS[:, :4]

    assert searching(FLOATS, right, lambda x: x @ short, USUAL, "int8").run(SHORT) is None
    assert found(FLOATS, right, lambda x: x @ short, domain=USUAL) is not None


def test_what_tensorflow_refuses_or_does_not_survive_is_no_difference() -> None:
    def picky(inputs: Arrays) -> dict[str, np.ndarray]:
        if (inputs["x"] > 5).any():
            raise BackendError(Code.INVALID_ARGUMENT, "too much")
        if (inputs["x"] < -5).any():
            raise DiedError("it took too much memory")
        return {"y": inputs["x"] * 2}

    wrong = searching(FLOATS, lambda x: 2 * x, lambda x: np.where(np.abs(x) > 5, 0, 2 * x), risk=picky)
    assert wrong.run(SHORT) is None


def test_answers_that_change_from_call_to_call_are_no_difference() -> None:
    random = np.random.default_rng(0)

    def by_chance(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2 + random.normal(size=inputs["x"].shape).astype(np.float32)}

    assert searching(FLOATS, lambda x: 2 * x, lambda x: 2 * x, risk=by_chance).run(SHORT) is None


def test_nothing_is_tried_out_of_the_domain() -> None:
    domain = Domain(largest=100.0, least_whole=0, largest_whole=9, subnormal=False)
    seen: list[np.ndarray] = []

    def double(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return 2 * x

    assert searching(FLOATS, double, lambda x: 2 * x, domain).run(SHORT) is None
    begun = sum(len(case.inputs["x"]) for case in CaseMaker(FLOATS, lambda inputs: {"y": inputs["x"]}).cases())
    searched = np.concatenate(seen[-len(seen) // 2 :]).astype(np.float64)
    assert len(searched) > begun
    assert np.abs(searched).max() <= 100
    assert not ((searched != 0) & (np.abs(searched) < np.finfo(np.float32).smallest_normal)).any()


# -- how it goes


def test_a_search_repeats_itself() -> None:
    def run() -> tuple[int, float, list[Any]]:
        search = searching(ONE, deep, rounded(in_doubles(deep)))
        search.run(SHORT)
        return search.tried, search.worst, search.worst_row["x"].tolist()

    first = run()
    assert first == run()
    assert 0 < first[1] <= 1


OFFSETS = [np.float32(1000.1), np.float32(-1000)]


def test_roundings_of_the_layers_explain_what_those_of_a_small_input_do_not() -> None:
    def truth(inputs: Arrays, weights: Sequence[np.ndarray] = OFFSETS) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] + weights[0] + weights[1]}

    def moved(inputs: Arrays, move: WeightsMove) -> dict[str, np.ndarray]:
        return truth(inputs, moved_weights(OFFSETS, move))

    cases = [Case("a", {"x": np.eye(4, dtype=np.float32)}, truth({"x": np.eye(4, dtype=np.float32)}))]
    small = {"x": np.full((1, 4), 1.0001e-5, np.float32)}

    def is_wrong(answer: Function, moved_truth: RunMoved | None) -> bool:
        return Judge(Stand(answer), "s", FLOATS, truth, cases, [{}], "float32", moved_truth).is_wrong(small)

    def in_another_order(x: np.ndarray) -> np.ndarray:
        return x + (OFFSETS[0] + OFFSETS[1]) - np.float32(6e-5)

    assert is_wrong(in_another_order, None)
    assert not is_wrong(in_another_order, moved)
    assert is_wrong(in_another_order, lambda _, __: None)  # a model without weights
    assert is_wrong(lambda x: x + np.float32(0.11), moved)


def test_an_answer_that_small_changes_of_the_weights_turn_into_another_is_as_good_as_another() -> None:
    close = 0.1 * (1 + np.arange(4) * 30 * np.finfo(np.float32).eps)  # the last is the largest, by 30 roundings

    def is_wrong(answer: object, weights: np.ndarray) -> bool:
        def run(inputs: Arrays, weights: np.ndarray) -> dict[str, np.ndarray]:
            return {"y": np.eye(4, dtype=np.float32)[np.argmax(inputs["x"] + weights, axis=1)]}

        def moved(inputs: Arrays, move: WeightsMove) -> dict[str, np.ndarray]:
            return run(inputs, moved_weights([weights.astype(np.float32)], move)[0])

        usual = {"x": np.eye(4, dtype=np.float32)}
        judge = Judge(
            Stand(lambda x: np.tile(np.array(answer, np.float32), (len(x), 1))),
            *("s", FLOATS, lambda inputs: run(inputs, weights.astype(np.float32))),
            *([Case("a", usual, run(usual, weights))], [{}], "float32", moved),
        )
        return judge.is_wrong({"x": np.full((1, 4), 1e-9, np.float32)})

    assert not is_wrong([0, 1, 0, 0], close)
    assert is_wrong([0, 2, 0, 0], close)  # farther off than any of TensorFlow's
    assert is_wrong([0, np.nan, 0, 0], close)
    assert is_wrong([0, 1, 0, 0], np.array([0.1, 0.2, 0.3, 0.4]))
    assert is_wrong([0, 1, 0, 0], np.array([1.0, 1.0, 1.0, 1.0]))  # exact, so the first of equals is TensorFlow's


def test_the_longest_call_is_a_small_part_of_the_time() -> None:
    counts: list[int] = []

    def slow(inputs: Arrays) -> dict[str, np.ndarray]:
        counts.append(len(inputs["x"]))
        now[0] += 0.02 * counts[-1]
        return {"y": inputs["x"] * 2}

    now = [0.0]
    cases = [Case("a", {"x": np.ones((3, 4), np.float32)}, {"y": np.full((3, 4), 2, np.float32)})]
    judge = Judge(Stand(lambda x: 2 * x), "s", FLOATS, slow, cases, [{}], "float32")
    assert Search(judge, cases, [], ANY, 1, clock=lambda: now[0]).run(4.0) is None
    assert max(counts) <= 10
    assert now[0] < 4.5


def test_a_place_where_an_answer_jumps_is_closed_in_on() -> None:
    random = np.random.default_rng(0)
    section = Section(np.float32(-700), np.float32(900), 32)
    while section.points:
        points = np.array(section.points)
        if not section.closed_in({"y": np.where(points > 3.3, points + 1, points)}, random):
            break
    assert np.float32(3.3) in section.beside[:2]
    assert max(section.beside) > 4
    smooth = Section(np.float32(-700), np.float32(900), 32)
    calls = 0
    while smooth.points and calls < 50:
        calls += 1
        points = np.array(smooth.points)
        smooth.closed_in({"y": np.maximum(points, 0) + np.square(points)}, random)
    assert calls == 1
    assert smooth.beside == []


# -- what is left out


@pytest.mark.parametrize(
    ("values", "domain"),
    [
        ([2e6, 1, 0, 0], Domain(largest=1e6)),
        ([3000, 1, 0, 0], Domain(largest=1000.0)),
        ([np.nan, 1, 0, 0], Domain(largest=float(np.finfo(np.float64).max))),
        ([1e-40, 1, 0, 0], Domain(subnormal=False)),
        ([7, 1, 0, 0], None),
    ],
)
def test_the_widest_domain_without_the_wrong_inputs_is_found(values: list[float], domain: Domain | None) -> None:
    right = [{"x": np.full((2, 4), 255, np.float32)}]
    assert narrowed(FLOATS, {"x": np.array([values], np.float32)}, right) == domain


def test_ids_that_the_usual_cases_have_are_not_left_out() -> None:
    right = [{"x": np.array([0, 2999])}]
    assert narrowed(IDS, {"x": np.array([1789])}, right) is None
    assert narrowed(IDS, {"x": np.array([100_000])}, right) == Domain(largest_whole=2**16 + 1)
    assert narrowed(IDS, {"x": np.array([-5])}, right) == Domain(least_whole=0)


def test_odd_numbers_are_replaced_by_plain_ones() -> None:
    odd = {"x": np.array([[np.nan, 1e9, 1e-40, 3]], np.float32)}
    assert tamed(FLOATS, odd, USUAL)["x"].tolist() == [[1, 1, 0, 3]]
    assert np.isnan(tamed(FLOATS, odd, ANY)["x"][0, 0])
    assert tamed(IDS, {"x": np.array([-3, 5, 70_000])}, USUAL)["x"].tolist() == [0, 5, 257]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64", "int8", "uint8", "uint64", "bool"])
def test_inputs_of_any_element_type_are_searched(dtype: str) -> None:
    signature = Signature({"x": TensorSpec(dtype, (-1, 3))}, {"y": TensorSpec("bool", (-1, 3))})
    one = np.ones(1, signature.inputs["x"].element.numpy)[0]
    search = searching(signature, lambda x: x == one, lambda x: x == one)
    assert search.run(SHORT) is None
    assert search.tried > 100
    wrong = searching(signature, lambda x: x == one, lambda x: (x == one) & ~(x == one).all(axis=1, keepdims=True))
    assert wrong.run(5.0) is not None
    tame = tamed(signature, {"x": np.full((2, 3), one)}, USUAL)["x"]
    assert (tame.dtype, tame.tolist()) == (one.dtype, [[one] * 3] * 2)

"""The comparison of answers, and the cases on which answers are compared: all without a framework."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import frames
from backends.agreement import Tolerance, tolerance_of
from backends.contract import BackendError, Code, Signature, TensorSpec
from converters.cases import Case, CaseMaker, batched
from converters.proof import Comparison, nearest, places_of, relative_moves, sizes_of, with_unsettled
from converters.report import SignatureProof, Verdict
from converters.roundings import WeightsMove, moved_answers, moved_weights

X = {"x": TensorSpec("float32", (-1, 3))}


def outputs(dtype: str = "float32", shape: tuple[int, ...] | None = (-1, 4)) -> Signature:
    return Signature(X, {"y": TensorSpec(dtype, shape)})


def rows(seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((5, 4)).astype(dtype)


def compared(
    truth: np.ndarray, answer: np.ndarray, signature: Signature | None = None, precision: str = "float32"
) -> SignatureProof:
    comparison = Comparison("s", signature or outputs(), precision)
    comparison.add("a case", {"y": truth}, {"y": answer})
    return comparison.proof()


# -- equal, or not


def test_equal_answers_that_vary_are_a_proof() -> None:
    proof = compared(rows(), rows())
    assert (proof.verdict, proof.reason, proof.cases) == (Verdict.PROVEN, "", 1)
    assert proof.outputs[0].relative == 0.0
    assert proof.outputs[0].variation > 1


@pytest.mark.parametrize(("error", "verdict"), [(0.9e-4, Verdict.PROVEN), (1.2e-4, Verdict.DIFFERS)])
def test_the_tolerance_is_relative_to_the_value(error: float, verdict: Verdict) -> None:
    truth = rows()
    answer = truth.copy()
    answer[3, 2] = 50.0
    truth[3, 2] = 50.0 * (1 + error)
    assert compared(truth, answer).verdict is verdict


def test_near_zero_the_tolerance_is_relative_to_the_whole_output() -> None:
    truth, answer = rows(), rows()
    truth[0, 0], answer[0, 0] = 0.0, 5e-5
    assert compared(truth, answer).verdict is Verdict.PROVEN
    answer[0, 0] = 5e-4
    assert compared(truth, answer).verdict is Verdict.DIFFERS


def test_the_reason_says_which_output_differs_by_how_much_on_which_case() -> None:
    answer = rows()
    answer[3, 2] += 0.5
    comparison = Comparison("s", outputs(), "float32")
    comparison.add("floats normal, batch 1", {"y": rows(1)}, {"y": rows(1)})
    comparison.add("all 0", {"y": rows()}, {"y": answer})
    proof = comparison.proof()
    assert proof.verdict is Verdict.DIFFERS
    assert "output 'y' is" in proof.reason
    assert "at [3, 2]: off by 0.5" in proof.reason
    assert proof.reason.endswith("on all 0")
    assert proof.outputs[0].case == "all 0"
    assert proof.outputs[0].absolute == pytest.approx(0.5)


@pytest.mark.parametrize("precision", ["tf32", "float16", "int8"])
def test_lower_precisions_may_differ_more(precision: str) -> None:
    answer = rows() * np.float32(1.005)
    assert compared(rows(), answer).verdict is Verdict.DIFFERS
    assert compared(rows(), answer, precision=precision).verdict is Verdict.PROVEN


def test_doubles_must_be_doubles() -> None:
    truth = rows(dtype="float64")
    signature = outputs("float64")
    assert compared(truth, truth * (1 + 1e-12), signature).verdict is Verdict.PROVEN
    assert compared(truth, truth.astype(np.float32).astype(np.float64), signature).verdict is Verdict.DIFFERS


def test_only_floats_have_a_tolerance() -> None:
    assert tolerance_of("float32", "float32") == Tolerance(1e-4, 1e-7)
    assert tolerance_of("float32", "int64") is None
    assert tolerance_of("float32", "string") is None


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64", "bool"])
def test_whole_numbers_must_be_equal(dtype: str) -> None:
    truth = (rows() > 0) if dtype == "bool" else (np.abs(rows()) * 100).astype(dtype)
    assert compared(truth, truth.copy(), outputs(dtype)).verdict is Verdict.PROVEN
    answer = truth.copy()
    answer[1, 1] ^= True if dtype == "bool" else 1
    proof = compared(truth, answer, outputs(dtype))
    assert proof.verdict is Verdict.DIFFERS
    assert "must be equal, and differs in 1 of 20 elements: at [1, 1]" in proof.reason


def test_strings_must_be_equal() -> None:
    truth = np.array([b"a", b"b"], object)
    assert compared(truth, truth.copy(), outputs("string", (-1,))).verdict is Verdict.PROVEN
    assert compared(truth, truth[::-1], outputs("string", (-1,))).verdict is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("expected", "found", "verdict"),
    [
        (np.nan, np.nan, Verdict.PROVEN),
        (np.inf, np.inf, Verdict.PROVEN),
        (-np.inf, -np.inf, Verdict.PROVEN),
        (np.nan, 0.0, Verdict.DIFFERS),
        (0.0, np.nan, Verdict.DIFFERS),
        (np.inf, -np.inf, Verdict.DIFFERS),
        (np.inf, np.nan, Verdict.DIFFERS),
        (np.inf, 3e38, Verdict.DIFFERS),
        (3e38, np.inf, Verdict.DIFFERS),
    ],
)
def test_nan_and_infinity_must_agree(expected: float, found: float, verdict: Verdict) -> None:
    truth, answer = rows(), rows()
    truth[0, 0], answer[0, 0] = expected, found
    assert compared(truth, answer).verdict is verdict


def test_another_shape_or_type_differs() -> None:
    assert "of shape [4, 5] where TensorFlow's is float32 of shape [5, 4]" in compared(rows(), rows().T).reason
    assert "is float64 of shape" in compared(rows(), rows().astype(np.float64)).reason


def test_complex_numbers_and_halves_and_empty_arrays_are_compared() -> None:
    truth = (rows() + 1j * rows(1)).astype(np.complex64)
    assert compared(truth, truth * np.float32(1 + 1e-6), outputs("complex64")).verdict is Verdict.PROVEN
    assert compared(truth, truth.conj(), outputs("complex64")).verdict is Verdict.DIFFERS
    half = rows(dtype="float16")
    assert compared(half, np.nextafter(half, np.float16(9)), outputs("float16")).verdict is Verdict.PROVEN
    comparison = Comparison("s", outputs(), "float32")
    comparison.add("empty", {"y": rows()[:0]}, {"y": rows()[:0]})
    assert comparison.proof().verdict is Verdict.INDISTINCT


@given(st.integers(0, 2**32 - 1), st.floats(2e-3, 10.0), st.integers(0, 19))
def test_any_element_that_is_off_by_more_is_found(seed: int, error: float, at: int) -> None:
    truth = rows(seed)
    answer = truth.copy()
    answer.reshape(-1)[at] += np.float32(error)
    assert compared(truth, answer).verdict is Verdict.DIFFERS


# -- what shows nothing


@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, np.nan])
def test_a_constant_output_proves_nothing(value: float) -> None:
    truth = np.full((5, 4), value, np.float32)
    proof = compared(truth, truth.copy())
    assert proof.verdict is Verdict.INDISTINCT
    assert "output 'y' hardly varied" in proof.reason
    assert proof.outputs[0].variation == 0


def test_an_output_that_differs_within_but_not_between_rows_proves_nothing() -> None:
    truth = np.tile(rows()[:1], (5, 1))
    assert compared(truth, truth.copy()).verdict is Verdict.INDISTINCT


def test_variation_between_cases_counts() -> None:
    comparison = Comparison("s", outputs(), "float32")
    for seed in (0, 1):
        comparison.add("one row", {"y": rows(seed)[:1]}, {"y": rows(seed)[:1]})
    assert comparison.proof().verdict is Verdict.PROVEN


def test_rows_of_many_shapes_are_told_apart_by_their_means() -> None:
    comparison = Comparison("s", outputs(shape=(-1, -1)), "float32")
    for size in (2, 3):
        comparison.add("a size", {"y": np.full((1, size), size, np.float32)}, {"y": np.full((1, size), size, "f4")})
    assert comparison.proof().verdict is Verdict.PROVEN


def test_a_count_may_be_constant_beside_floats_that_vary() -> None:
    signature = Signature(X, {"y": TensorSpec("float32", (-1, 4)), "n": TensorSpec("int32", ())})
    comparison = Comparison("s", signature, "float32")
    answer = {"y": rows(), "n": np.array(4, np.int32)}
    comparison.add("a case", answer, answer)
    proof = comparison.proof()
    assert proof.verdict is Verdict.PROVEN
    assert "['n'] were the same in all cases" in proof.reason


def test_no_cases_prove_nothing_and_failures_are_told() -> None:
    assert Comparison("s", outputs(), "float32").proof().verdict is Verdict.UNTESTED
    proof = Comparison("s", outputs(), "float32").proof(failure="it died")
    assert (proof.verdict, proof.reason) == (Verdict.FAILED, "it died")


def test_what_takes_no_inputs_need_not_vary() -> None:
    signature = Signature({}, {"y": TensorSpec("int64", ())})
    assert compared(np.array(42), np.array(42), signature).verdict is Verdict.PROVEN
    assert compared(np.array(42), np.array(41), signature).verdict is Verdict.DIFFERS


# -- models that amplify roundings


def test_the_tolerance_grows_with_what_a_rounding_does_but_not_without_bound() -> None:
    tolerance = Tolerance(1e-4, 1e-7)
    assert tolerance.beside_noise(1e-6) == tolerance
    assert tolerance.beside_noise(1e-4) == Tolerance(8e-4, 1e-7)
    assert tolerance.beside_noise(1.0).relative == pytest.approx(3e-3)
    answer = rows() * np.float32(1.0005)
    for noise, verdict in ((1e-4, Verdict.PROVEN), (1e-5, Verdict.DIFFERS)):
        comparison = Comparison("s", outputs(), "float32")
        comparison.add("a case", {"y": rows()}, {"y": answer}, noise={"y": noise})
        assert comparison.proof().verdict is verdict
        assert comparison.proof().outputs[0].noise == noise


def test_moves_are_relative_to_the_output() -> None:
    truth = {"y": rows(), "n": np.array([1])}
    moved = {"y": rows() * np.float32(1.001), "n": np.array([2])}
    moves = relative_moves(truth, moved)
    assert moves.keys() == {"y"}
    assert moves["y"] == pytest.approx(1e-3, rel=1e-2)


def test_only_rows_that_half_of_the_moved_answers_change_altogether_are_unsettled() -> None:
    truth = {"y": np.array([[1, 0], [0.2, 0.8], [0.001, 0]], np.float32)}
    moved = [{"y": truth["y"] + np.array(step, np.float32)} for step in ([[0], [0], [0]], [[-1], [0.01], [0.002]])]
    answer = {"y": np.array([[0, 1], [0.8, 0.2], [0, 0.001]], np.float32)}
    (unsettled,) = with_unsettled(truth, moved, answer, {"y": 0.1}).values()
    assert unsettled.tolist() == np.array([[0, 1], [0.2, 0.8], [0.001, 0]], np.float32).tolist()
    assert with_unsettled(truth, [moved[0], *moved], answer, {"y": 0.1})["y"].tolist() == truth["y"].tolist()
    scalar = with_unsettled({"y": np.float32(1)}, [{"y": np.float32(0)}], {"y": np.float32(0.5)}, {})
    assert scalar["y"].tolist() == 0.5


def near(truth: object, moved: list[object], answer: object, dtype: str = "float32") -> list[object]:
    arrays = [{"y": np.array(value, dtype)} for value in moved]
    found: list[object] = nearest({"y": np.array(truth, dtype)}, arrays, {"y": np.array(answer, dtype)})["y"].tolist()
    return found


def test_an_answer_within_what_roundings_move_is_as_good_as_the_truth() -> None:
    assert near([1, 1, 1], [[2, 1, 0.5], [1, 1, 1]], [1.5, 1.5, 1.25]) == [1.5, 1, 1.25]
    assert near([1.0], [[2.0]], [5.0]) == [2.0]
    assert near([3], [[7], [4]], [7], "int64") == [7]
    assert near([3], [[7], [4]], [5], "int64") == [3]  # what lies between two labels is neither
    assert near([True], [[True]], [False], "bool") == [True]
    assert near([True], [[False]], [False], "bool") == [False]
    assert near([1 + 1j], [[2 + 1j]], [1.5 + 2j], "complex64") == [1.5 + 1j]


def test_roundings_may_make_infinity_but_not_another_one() -> None:
    assert near([3e38], [[np.inf]], [np.inf]) == [np.inf]
    assert near([3e38], [[np.inf]], [-np.inf]) == [float(np.float32(3e38))]
    assert np.isnan(near([1.0], [[np.nan]], [np.nan])).all()
    assert near([np.inf], [[1.0]], [2.0]) == [2.0]
    assert near([np.inf], [[np.inf]], [2.0]) == [np.inf]


def test_what_is_another_shape_or_type_is_not_explained_by_roundings() -> None:
    truth, answer = {"y": np.ones(2, np.float32)}, {"y": np.ones(3, np.float32)}
    assert nearest(truth, [truth], answer)["y"] is truth["y"]
    assert nearest(truth, [truth], {"y": np.ones(2)})["y"] is truth["y"]


def test_answers_are_as_large_as_most_of_them() -> None:
    answers = [{"y": np.full(4, size, np.float32), "n": np.array([9])} for size in (0, 1, 2, 1000)]
    assert sizes_of(answers) == {"y": 2.0}


def test_a_column_of_large_numbers_does_not_hide_what_is_wrong_with_one_of_small_ones() -> None:
    truth = rows() * np.array([1e9, 1.0, 1.0, 1.0], np.float32)
    places = places_of([{"y": truth}, {"y": 2 * truth}])
    assert places["y"][0] == 1
    assert (places["y"][1:] < 1e-6).all()
    comparison = Comparison("s", outputs(), "float32", places)
    comparison.add("roundings", {"y": truth}, {"y": truth * np.float32(1 + 1e-5)})
    assert not comparison.difference
    answer = truth.copy()
    answer[3, 2] += 0.5
    comparison.add("a case", {"y": truth}, {"y": answer})
    assert "at [3, 2]" in comparison.difference
    assert comparison.shares({"y": truth}, {"y": answer}, {}, {})["y"][3, 2] > 1


def test_columns_of_about_one_size_or_mostly_zero_count_as_the_whole_output_does() -> None:
    truth = rows() * np.array([1.0, 0.5, 4.0, 0.0], np.float32)
    assert places_of([{"y": truth}])["y"].tolist() == [1, 1, 1, 1]
    assert places_of([{"y": rows()[:, 0], "n": np.ones((2, 2), np.int32)}]) == {}
    assert places_of([{"y": rows()}, {"y": rows()[:, :2]}]) == {}


def moved(values: list[list[float]], unit: float = 0.0, *, spare_plain: bool) -> np.ndarray:
    inputs = {"x": np.array(values, np.float32), "ids": np.array([3])}
    return np.array([found["x"] for found in moved_answers(inputs, lambda x: x, unit, spare_plain=spare_plain)])


def test_inputs_are_moved_by_one_and_by_eight_roundings_of_their_row_but_not_what_is_plain() -> None:
    found = moved([[1.0, 0.0, 0.3], [1e6, 2.5, 0.3]], spare_plain=False)
    assert len(found) == 10
    distances = np.abs(found.astype(np.float64) - [[1.0, 0.0, 0.3], [1e6, 2.5, 0.3]])
    assert 0 < distances[:, 0].max() < 2e-6
    assert distances[:, 1].min() > 0.05
    spared = moved([[1.0, 0.0, 0.3]], spare_plain=True)
    assert (spared[:, 0, :2] == [1, 0]).all()
    assert (spared[:, 0, 2] != np.float32(0.3)).all()
    assert len(moved([[1.0, 0.0, -2.25]], spare_plain=True)) == 0
    coarse = moved([[1.0, 0.0, 0.3]], 2**-7, spare_plain=False)
    assert np.abs(coarse[:, 0, 0] - 1).max() == 2**-4


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_weights_move_by_roundings_but_not_zeros_and_not_what_is_plain(dtype: type) -> None:
    weights = np.array([0.0, 1.0, -2.5, 0.3, 1e3, 0.7], dtype)
    (found,) = moved_weights([weights], WeightsMove(1))
    assert found.dtype == weights.dtype
    assert (found != weights).tolist() == [False, True, True, True, True, True]
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert np.abs((found[1:].astype(float) - weights[1:].astype(float)) / weights[1:].astype(float)).max() <= 2 * eps
    (spared,) = moved_weights([weights], WeightsMove(1, spare_plain=True))
    assert (spared != weights)[:3].tolist() == [False, False, False]
    assert spared[5] != weights[5]


# -- cases


IDS = Signature({"ids": TensorSpec("int32", (-1, -1))}, {"y": TensorSpec("float32", (-1,))})


def embedding(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if inputs["ids"].size and (inputs["ids"].max() >= 4321 or inputs["ids"].min() < 0):
        raise BackendError(Code.INVALID_ARGUMENT, "indices are not in [0, 4321)")
    return {"y": inputs["ids"].mean(axis=1).astype(np.float32)}


def test_the_bound_of_a_vocabulary_is_found_and_tried() -> None:
    maker = CaseMaker(IDS, embedding)
    cases = list(maker.cases())
    largest = max(int(case.inputs["ids"].max()) for case in cases)
    assert largest == 4320
    assert any("4,320" in case.label for case in cases)
    assert maker.refused > 0
    assert maker.refused_example is not None
    assert maker.refused_example["ids"].max() >= 4321
    assert min(int(case.inputs["ids"].min()) for case in cases) == 0


class Looping:
    """A model that goes round as often as its largest id says; each round takes ten microseconds of its own clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.most = 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rounds = int(inputs["ids"].max(initial=0))
        self.most = max(self.most, rounds)
        self.now += 1e-3 + 1e-5 * rounds
        return {"y": inputs["ids"].mean(axis=1).astype(np.float32)}


def test_ids_by_which_a_model_loops_are_no_larger_than_what_takes_little_time() -> None:
    looping = Looping()
    maker = CaseMaker(IDS, looping.run, clock=lambda: looping.now)
    cases = list(maker.cases())
    assert maker.slow == {"ids": 9_999}
    assert looping.most == 9_999  # the first that was slow
    assert max(int(case.inputs["ids"].max()) for case in cases) == 999


def test_a_call_that_is_slow_by_chance_sets_no_bound() -> None:
    now, calls = [0.0], [0]

    def with_hiccups(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls[0] += 1
        now[0] += 0.3 if inputs["ids"].max(initial=0) > 9 and calls[0] % 2 else 1e-3
        return embedding(inputs)

    maker = CaseMaker(IDS, with_hiccups, clock=lambda: now[0])
    assert max(int(case.inputs["ids"].max()) for case in maker.cases()) == 4320
    assert maker.slow == {}


def test_a_call_that_is_slow_with_any_id_sets_no_bound() -> None:
    looping = Looping()

    def slowly(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        looping.now += 1.0
        return embedding(inputs)

    cases = list(CaseMaker(IDS, slowly, clock=lambda: looping.now).cases())
    assert max(int(case.inputs["ids"].max()) for case in cases) == 4320


def test_cases_have_several_batch_sizes_and_two_sizes_for_unknown_dimensions() -> None:
    cases = list(CaseMaker(IDS, embedding).cases())
    shapes = {case.inputs["ids"].shape for case in cases}
    assert {rows for rows, _ in shapes} >= {1, 3, 8}
    assert len({length for _, length in shapes}) == 2


def test_images_that_are_too_small_are_replaced_by_larger_ones() -> None:
    signature = Signature({"image": TensorSpec("float32", (-1, -1, -1, 3))}, {"y": TensorSpec("float32", (-1,))})

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if inputs["image"].shape[1] < 30:
            raise BackendError(Code.INVALID_ARGUMENT, "negative dimension")
        return {"y": inputs["image"].mean(axis=(1, 2, 3))}

    maker = CaseMaker(signature, run)
    cases = list(maker.cases())
    assert maker.sizes == (32, 64)
    values = np.concatenate([case.inputs["image"].reshape(-1)[:100] for case in cases])
    assert (values < -5).any()
    assert (values > 200).any()
    assert any(not case.inputs["image"].any() for case in cases)
    representative = maker.representative(8)
    assert representative is not None
    assert representative["image"].shape == (8, 32, 32, 3)


def test_a_model_that_takes_nothing_has_no_cases() -> None:
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise BackendError(Code.INVALID_ARGUMENT, "never")

    maker = CaseMaker(IDS, run)
    assert list(maker.cases()) == []
    assert maker.representative(1) is None
    assert maker.refusal == "never"


def recorded_cases(recorded: list[Mapping[str, np.ndarray]]) -> list[Case]:
    signature = Signature(X, {"y": TensorSpec("float32", (-1,))})
    return list(CaseMaker(signature, lambda inputs: {"y": inputs["x"].sum(axis=1)}, recorded).cases())


def test_recorded_requests_go_before_made_ones_and_replace_them_where_they_are_enough() -> None:
    many = np.arange(30, dtype=np.float32).reshape(10, 3)
    assert [case.recorded for case in recorded_cases([{"x": many}])] == [True]
    few = recorded_cases([{"x": many[:1]}])
    assert [case.recorded for case in few[:2]] == [True, True]
    assert few[1].inputs["x"].shape == (3, 3)
    assert not few[2].recorded


def test_sizes_at_which_tensorflow_answers_in_a_shape_that_the_model_has_not_come_last() -> None:
    def sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            batch, size = inputs["x"].shape
            return {"y": np.zeros((batch, 4 if size >= 16 else 8), np.float32)}

        maker = CaseMaker(Signature({"x": TensorSpec("float32", (-1, -1))}, {"y": TensorSpec("float32", shape)}), run)
        next(maker.cases())
        return maker.sizes

    assert sizes((-1, 4)) == (16, 32)
    assert sizes((-1, -1)) == (7, 16)
    assert sizes((-1, 5)) == (7, 16)  # it says so of no size


def test_rows_are_repeated_to_a_batch() -> None:
    signature = Signature(X, {})
    found = batched(signature, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, 5)
    assert found["x"][:, 0].tolist() == [0, 3, 0, 3, 0]
    scalar = Signature({"x": TensorSpec("float32", ())}, {})
    assert batched(scalar, {"x": np.array(1.0)}, 5)["x"].shape == ()


def test_arrays_survive_their_frames() -> None:
    sent = [{"x": rows(), "s": np.array([[b"one"], [b""]], object)}, {"n": np.array(3, np.int64)}, {"e": rows()[:0]}]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for number, arrays in enumerate(sent):
            frames.send(ours, {"number": number}, arrays)
            frame = frames.receive(theirs)
            assert frame is not None
            assert frame[0] == {"number": number}
            assert frame[1].keys() == arrays.keys()
            for name, array in arrays.items():
                assert frame[1][name].dtype == array.dtype
                assert frame[1][name].tolist() == array.tolist()
                assert frame[1][name].shape == array.shape
        ours.close()
        assert frames.receive(theirs) is None

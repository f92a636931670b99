"""The cases that look for trouble, and what a proof makes of them: functions stand for TensorFlow and for the form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.domain import ANY, FINITE, Domain
from converters.cases import Case, CaseMaker, DiedError
from converters.child import ChildError
from converters.edges import float_edges, whole_edges
from converters.evidence import Evidence, gather
from converters.hard_cases import HardCases
from converters.proof import Comparison
from converters.proving import Bounds, Proof
from converters.report import SignatureProof, Verdict
from converters.roundings import WeightsMove, moved_weights

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of overflows, which are meant

Arrays = Mapping[str, np.ndarray]
Function = Callable[[np.ndarray], np.ndarray]

IDS = Signature({"x": TensorSpec("int64", (-1,))}, {"y": TensorSpec("int64", (-1,))})
IDS_TO_FLOATS = Signature(IDS.inputs, {"y": TensorSpec("float32", (-1,))})
FLOATS = Signature({"x": TensorSpec("float32", (-1, 4))}, {"y": TensorSpec("float32", (-1, 4))})
SEQUENCES = Signature({"x": TensorSpec("float32", (-1, -1, 2))}, {"y": TensorSpec("float32", (-1, 2))})
SCALAR = Signature({"x": TensorSpec("int32", ())}, {"y": TensorSpec("int32", ())})


def hard_cases(signature: Signature, function: Function, *numbers: float) -> tuple[HardCases, list[Case]]:
    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": function(inputs["x"])}

    maker = CaseMaker(signature, run)
    list(maker.cases())
    hard = HardCases(maker, run, numbers)
    return hard, list(hard.cases())


def values(cases: list[Case]) -> set[int]:
    return {int(value) for case in cases for value in case.inputs["x"].reshape(-1)}


class Stand:
    """A function in a form's place; `deaths` counts how often it was started again."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self.deaths = 0

    def run(self, _: str, inputs: Arrays, __: float) -> dict[str, np.ndarray]:
        try:
            return {"y": self._function(inputs["x"])}
        except ChildError:
            self.deaths += 1
            raise


def evidence_of(signature: Signature, truth: Function, *numbers: float) -> Evidence:
    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": truth(inputs["x"])}

    maker = CaseMaker(signature, run)
    cases = list(maker.cases())
    hard = HardCases(maker, run, numbers)
    cases += hard.cases()
    return Evidence(
        signature, tuple(cases), maker, tuple({} for _ in cases), None, tuple(hard.refused), hard.domain, run
    )


def proof_by(evidence: Evidence, answer: Function, search_seconds: float) -> SignatureProof:
    bounds = Bounds(search_seconds, search_seconds)
    return Proof(Stand(answer), "s", evidence, "float32").run(float("inf"), bounds)


def proven(
    signature: Signature, truth: Function, answer: Function, *numbers: float, search_seconds: float = 0.0
) -> SignatureProof:
    return proof_by(evidence_of(signature, truth, *numbers), answer, search_seconds)


# -- the values


def test_whole_numbers_lie_around_powers_of_two_and_the_graphs_own_numbers_of_both_signs() -> None:
    found = {int(v) for edges in whole_edges(np.dtype(np.int64), [1009, np.inf, 1e30]) for v in edges.values}
    for bits in (8, 16, 32, 53):
        assert {2**bits - 1, 2**bits, 2**bits + 1, -(2**bits) - 1, -(2**bits)} <= found
    assert {0, -1, 1, 2**63 - 1, -(2**63), 1008, 1009, 1010, -1009} <= found
    assert {int(v) for edges in whole_edges(np.dtype(np.uint8), []) for v in edges.values} >= {0, 127, 128, 255}


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_floats_are_zeros_tiny_subnormal_huge_and_none(name: str) -> None:
    dtype = TensorSpec(name, ()).element.numpy
    edges = list(float_edges(dtype, [6.0, 2e4, np.nan, -np.inf, 1e300]))
    found = np.concatenate([found.values for found in edges])
    magnitudes = np.abs(found).astype(np.float64)
    assert np.isnan(magnitudes).any()
    assert np.isinf(magnitudes).any()
    assert (magnitudes == 0).any()
    assert any(found.without is not None and not found.without.subnormal for found in edges)
    assert magnitudes[np.isfinite(magnitudes)].max() > 6e4
    for found_edges in edges:
        if found_edges.without is None:  # what any form must be right on is nothing out of the usual
            assert np.abs(found_edges.values).max() <= 1000
    assert (np.abs(magnitudes - 6.0) < 0.1).any()


# -- the cases


def test_negative_and_large_whole_numbers_are_tried_where_tensorflow_takes_them() -> None:
    hard, cases = hard_cases(IDS, lambda x: x * 2, 1009)
    assert {-1, 0, 1009, -1009, 2**31, 2**32 + 1, -(2**63), 2**63 - 1} <= values(cases)
    assert hard.domain == ANY
    assert {len(case.inputs["x"]) for case in cases} >= {0, 33}


def test_what_tensorflow_refuses_together_is_tried_in_parts() -> None:
    def gather(x: np.ndarray) -> np.ndarray:
        if x.size and (x.min() < 0 or x.max() >= 130):
            raise BackendError(Code.INVALID_ARGUMENT, "out of range")
        return x * 2

    hard, cases = hard_cases(IDS, gather)
    assert max(values(cases)) == 129
    assert min(values(cases)) == 0
    assert any("-1" in refused.label for refused in hard.refused)


@pytest.mark.parametrize("columns", [2, 3, 4, 6])
def test_each_column_gets_odd_values_and_rows_have_different_ones(columns: int) -> None:
    def columns_with(cases: list[Case], value: float) -> set[int]:
        found = [np.flatnonzero((case.inputs["x"] == value).any(axis=0)) for case in cases if len(case.inputs["x"])]
        return set(np.concatenate(found).tolist())

    every = set(range(columns))
    floats = Signature({"x": TensorSpec("float32", (-1, columns))}, {"y": TensorSpec("float32", (-1, columns))})
    _, cases = hard_cases(floats, lambda x: x * 2)
    for value in (0.5, 1.5, 2.5, -0.5, -1.5, 3.5, 1e6, -1e6, np.inf):
        assert columns_with(cases, value) == every
    of_nan = [case.inputs["x"] for case in cases if "nan" in case.label]
    assert all(np.isnan(x).any(axis=0).all() for x in of_nan)
    wholes = Signature({"x": TensorSpec("int64", (-1, columns))}, {"y": TensorSpec("int64", (-1, columns))})
    _, cases = hard_cases(wholes, lambda x: x * 2)
    assert columns_with(cases, 2**31) == columns_with(cases, -(2**31) - 1) == every
    assert any(np.ptp(case.inputs["x"], axis=1).all() for case in cases if "bits" in case.label)


def test_all_colours_of_an_image_get_odd_values() -> None:
    images = Signature({"x": TensorSpec("float32", (-1, 5, 6, 3))}, {"y": TensorSpec("float32", (-1, 5, 6, 3))})
    _, cases = hard_cases(images, lambda x: x * 2)
    for value in (2.5, -1e6, np.inf):
        met = [(case.inputs["x"] == value).any(axis=(0, 1, 2)) for case in cases if len(case.inputs["x"])]
        assert np.any(met, axis=0).all()


def test_a_scalar_gets_its_values_one_by_one() -> None:
    _, cases = hard_cases(SCALAR, lambda x: x + 1)
    assert {-1, 0, 127, -(2**31), 2**31 - 1} <= values(cases)


def test_what_tensorflow_does_not_survive_ends_its_kind_and_is_left_out() -> None:
    died: list[int] = []

    def lengths(x: np.ndarray) -> np.ndarray:
        if x.size and x.max() > 100_000:
            died.append(int(x.max()))
            raise DiedError("it took too much memory")
        return x * 2

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        if inputs["x"].max(initial=0) > 100:
            raise BackendError(Code.INVALID_ARGUMENT, "too many")
        return {"y": inputs["x"] * 2}

    maker = CaseMaker(IDS, run)
    list(maker.cases())
    hard = HardCases(maker, lambda inputs: {"y": lengths(inputs["x"])}, [])
    cases = list(hard.cases())
    assert len(died) == len(hard.deaths) == 1
    assert hard.domain == Domain(largest_whole=2**16 + 1)
    assert min(values(cases)) == -(2**63)  # smaller ones, and other kinds, go on


def test_many_recorded_rows_do_not_keep_the_edges_from_being_tried() -> None:
    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}

    maker = CaseMaker(FLOATS, run, [{"x": np.ones((20, 4), np.float32)}])
    assert [case.recorded for case in maker.cases()] == [True]
    labels = [case.label for case in HardCases(maker, run, []).cases()]
    assert {"all 0", "all -1", "batch 0", "batch 2", "batch 9", "batch 33"} <= set(labels)
    assert any("nan" in label for label in labels)


def test_a_recorded_request_that_is_odd_itself_says_for_what_a_form_is_proven() -> None:
    odd = np.ones((3, 4), np.float32)
    odd[1, 1] = np.nan
    recorded = [{"x": odd[:0]}, {"x": odd}, {"x": np.eye(4, dtype=np.float32)}]
    maker = CaseMaker(FLOATS, lambda inputs: {"y": inputs["x"]}, recorded)
    cases = list(maker.cases())
    assert [case.without for case in cases[:2]] == [Domain(empty=False), Domain(largest=FINITE.largest)]
    assert not any(case.without for case in cases[2:])
    assert len(cases) > 3  # odd ones do not count as enough
    plain = maker.plain(4)
    assert plain is not None
    assert (plain["x"] == np.eye(4)).all()


def test_each_open_dimension_is_tried_at_none_one_two_odd_and_large() -> None:
    _, cases = hard_cases(SEQUENCES, lambda x: x.sum(axis=1))
    assert {case.inputs["x"].shape[1] for case in cases} >= {0, 1, 2, 5, 129}


def test_answers_out_of_memory_that_nobody_wrote_are_no_cases() -> None:
    counts = iter(range(1000))

    def convolution(x: np.ndarray) -> np.ndarray:
        return x.sum(axis=1) if x.shape[1] > 2 else np.full((len(x), 2), next(counts), np.float32)

    _, cases = hard_cases(SEQUENCES, convolution)
    assert {case.inputs["x"].shape[1] for case in cases} & {1, 2} == set()


# -- what they show of a form


def test_a_form_that_is_right_on_all_is_proven_for_all() -> None:
    proof = proven(IDS, lambda x: x * 3, lambda x: x * 3)
    assert (proof.verdict, proof.domain, proof.beyond) == (Verdict.PROVEN, ANY, ())
    assert proof.edges > 5


@pytest.mark.parametrize(
    ("wrong", "domain"),
    [
        (lambda x: np.fmod(x, 1009), Domain(least_whole=0)),
        (lambda x: np.where(x > 2**40, 0, x % 1009), Domain(largest_whole=2**32 + 1)),
        (
            lambda x: x.astype(np.int32).astype(np.int64) % 1009,
            Domain(largest_whole=2**16 + 1, least_whole=-(2**16) - 1),
        ),
    ],
    ids=["truncates", "overflows", "is narrow"],
)
def test_a_form_that_is_wrong_on_some_whole_numbers_is_not_proven_for_those(wrong: Function, domain: Domain) -> None:
    proof = proven(IDS, lambda x: x % 1009, wrong, 1009)
    assert (proof.verdict, proof.domain) == (Verdict.PROVEN, domain)
    assert "instead of" in proof.beyond[0]


def test_a_form_that_is_wrong_beside_a_number_of_the_graph_is_not_proven() -> None:
    proof = proven(IDS, lambda x: np.where(x == 97, 0, x), lambda x: x, 97)
    assert proof.verdict is Verdict.DIFFERS


def test_a_form_that_is_wrong_on_nan_alone_is_proven_for_finite_inputs() -> None:
    proof = proven(FLOATS, lambda x: np.maximum(x, 0), lambda x: np.fmax(x, 0))
    assert (proof.verdict, proof.domain) == (Verdict.PROVEN, Domain(largest=FINITE.largest))


def test_a_form_that_has_subnormal_floats_where_tensorflow_has_zeros_is_proven_for_the_others() -> None:
    def is_positive(x: np.ndarray, least: float = 0.0) -> np.ndarray:
        return np.where(x > least, x + 1, x).astype(np.float32)

    least = float(np.nextafter(np.finfo(np.float32).smallest_normal, np.float32(0)))
    proof = proven(FLOATS, lambda x: is_positive(x, least), is_positive)
    assert proof.verdict is Verdict.PROVEN
    assert proof.domain == Domain(subnormal=False)


def test_nan_that_the_graph_makes_of_finite_inputs_must_agree() -> None:
    def root(x: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.sqrt(x)

    assert proven(FLOATS, root, lambda x: np.nan_to_num(root(x))).verdict is Verdict.DIFFERS


def test_a_form_that_is_wrong_behind_a_rare_threshold_is_proven_below_it() -> None:
    proof = proven(FLOATS, lambda x: np.where(x > 1e6, 2 * x, x), lambda x: x, 1e6)
    assert proof.domain == Domain(largest=1e6)


def test_a_form_that_dies_of_no_rows_is_proven_for_rows_alone() -> None:
    def no_rows(x: np.ndarray) -> np.ndarray:
        if not len(x):
            raise ChildError("the form was killed by SIGABRT")
        return x * 2

    proof = proven(FLOATS, lambda x: x * 2, no_rows)
    assert (proof.verdict, proof.domain) == (Verdict.PROVEN, Domain(empty=False))
    assert "SIGABRT" in proof.beyond[0]


def test_a_form_that_answers_what_tensorflow_refuses_is_not_proven_for_it() -> None:
    def checked(x: np.ndarray) -> np.ndarray:
        if not np.isfinite(x).all():
            raise BackendError(Code.INVALID_ARGUMENT, "Tensor had NaN values")
        return x * 2

    proof = proven(FLOATS, checked, lambda x: x * 2)
    assert proof.domain == Domain(largest=FINITE.largest)
    assert "answers what TensorFlow refuses" in proof.beyond[0]
    assert proven(FLOATS, checked, checked).domain == ANY


def test_small_ids_that_tensorflow_refuses_and_a_form_answers_are_left_to_tensorflow() -> None:
    def of_ten(x: np.ndarray) -> np.ndarray:
        if x.size and (x.min() < 0 or x.max() > 9):
            raise BackendError(Code.INVALID_ARGUMENT, "there are ten")
        return x * 3

    proof = proven(IDS, of_ten, lambda x: np.clip(x, 0, 9) * 3)
    assert proof.verdict is Verdict.PROVEN
    assert (proof.domain.least_whole, proof.domain.largest_whole) == (0, 9)
    assert proven(IDS, of_ten, of_ten).domain.largest_whole is None


def test_a_proof_without_time_for_hard_cases_is_one_for_ordinary_inputs() -> None:
    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * 2}

    maker = CaseMaker(FLOATS, run)
    cases = tuple(maker.cases())
    evidence = Evidence(FLOATS, cases, maker, tuple({} for _ in cases), None)
    assert Proof(Stand(lambda x: x * 2), "s", evidence, "float32").run(float("inf")).domain == FINITE


def test_hard_values_do_not_make_up_for_outputs_that_never_vary() -> None:
    comparison = Comparison("s", IDS, "float32")
    comparison.add("a case", {"y": np.array([1])}, {"y": np.array([1])})
    assert comparison.proof().verdict is Verdict.INDISTINCT
    assert proven(IDS, lambda x: x // 2**40, lambda x: x // 2**40).verdict is Verdict.INDISTINCT


def test_a_form_must_round_halves_as_tensorflow_does() -> None:
    proof = proven(FLOATS, lambda x: np.round(x, 0), lambda x: np.floor(x + np.float32(0.5)))
    assert proof.verdict is Verdict.DIFFERS
    assert "halves" in proof.reason


def test_large_floats_are_tried_beside_zeros_too() -> None:
    """Factors overflow and meet a 0 in one order, and not in another."""

    def product(x: np.ndarray) -> np.ndarray:
        return np.repeat((x[:, :1] * x[:, 3:]) * (x[:, 1:2] * x[:, 2:3]), 4, axis=1)

    with np.errstate(all="ignore"):
        _, cases = hard_cases(FLOATS, product)
    finite = [case for case in cases if np.isfinite(case.inputs["x"]).all()]
    assert any(np.isnan(case.outputs["y"]).any() for case in finite)


def test_a_form_must_be_right_on_the_defaults_of_what_a_request_leaves_out() -> None:
    default = b"\x08\x01\x12\x00\x22\x04" + np.float32(7.3).tobytes()  # a TensorProto
    scalar = Signature({"x": TensorSpec("float32", ())}, {"y": TensorSpec("float32", ())}, defaults={"x": default})
    proof = proven(scalar, lambda x: x * 2, lambda x: np.where(x == np.float32(7.3), -x, x * 2).astype(np.float32))
    assert proof.verdict is Verdict.DIFFERS
    assert "from the defaults of 'x'" in proof.reason


class TensorFlow:
    """A function in the place of `processes.Reference`."""

    def __init__(self, signature: Signature, function: Function) -> None:
        self.signatures = {"s": signature}
        self._function = function

    def run(self, _: str, inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": self._function(inputs["x"])}

    def risk(self, name: str, inputs: Arrays, _: float) -> dict[str, np.ndarray]:
        return self.run(name, inputs)

    def risk_moved(self, _: str, __: Arrays, ___: object) -> None:
        return None  # a function has no weights


def test_an_answer_that_varies_only_at_the_graphs_own_numbers_can_be_proven() -> None:
    def prices(x: np.ndarray) -> np.ndarray:
        return np.where(x == 117, np.float32(2.5), np.float32(-1))

    (evidence,) = gather(TensorFlow(IDS_TO_FLOATS, prices), {}, 5.0, [117]).values()
    assert evidence.problem is None
    assert proof_by(evidence, prices, 0.0).verdict is Verdict.PROVEN
    assert proof_by(evidence, lambda x: np.full(x.shape, np.float32(-1)), 0.0).verdict is Verdict.DIFFERS
    (evidence,) = gather(TensorFlow(IDS_TO_FLOATS, prices), {}, 5.0, []).values()
    assert evidence.problem is not None
    assert evidence.problem.verdict is Verdict.INDISTINCT


# -- what the search shows besides


def test_a_search_of_few_inputs_goes_on_within_its_bounds() -> None:
    def triple(x: np.ndarray) -> np.ndarray:
        return x * 3

    proof = Proof(Stand(triple), "s", evidence_of(FLOATS, triple), "float32").run(float("inf"), Bounds(1e-6, 60.0))
    assert proof.searched.inputs >= 2000
    proof = Proof(Stand(triple), "s", evidence_of(FLOATS, triple), "float32").run(float("inf"), Bounds(1e-6, 1e-6))
    assert proof.searched.inputs < 2000


def test_a_form_that_is_wrong_on_one_id_is_not_proven_and_the_report_names_it() -> None:
    def table(x: np.ndarray) -> np.ndarray:
        if x.size and (x.min() < 0 or x.max() >= 3000):
            raise BackendError(Code.INVALID_ARGUMENT, "there is no such id")
        return x * 3

    def wrong(x: np.ndarray) -> np.ndarray:
        return np.where(x == 1789, 0, table(x))

    assert proven(IDS, table, wrong).verdict is Verdict.PROVEN  # by the cases alone
    proof = proven(IDS, table, wrong, search_seconds=60.0)
    assert proof.verdict is Verdict.DIFFERS
    assert "it is 0 instead of 5367, on x = [1789], the smallest input that was found" in proof.reason
    assert proof.searched.inputs > 1000


def test_what_a_search_found_one_form_wrong_on_is_tried_on_the_next() -> None:
    def wrong(x: np.ndarray) -> np.ndarray:
        return np.where(x == 1789, 0, x * 3)

    def dying(x: np.ndarray) -> np.ndarray:
        if (x == 1789).any():
            raise ChildError("it was killed by SIGSEGV")
        return x * 3

    no_time = 1e-9
    evidence = evidence_of(IDS, lambda x: x * 3)
    assert proof_by(evidence, wrong, no_time).verdict is Verdict.PROVEN  # nothing was found yet
    assert proof_by(evidence, wrong, 60.0).verdict is Verdict.DIFFERS
    again = proof_by(evidence, wrong, no_time)
    assert (again.verdict, again.searched.inputs) == (Verdict.DIFFERS, 1)
    assert "on x = [1789]" in again.reason
    dead = proof_by(evidence, dying, no_time)
    assert dead.verdict is Verdict.FAILED
    assert "SIGSEGV" in dead.reason
    assert proof_by(evidence, lambda x: x * 3, no_time).verdict is Verdict.PROVEN
    assert [inputs["x"].tolist() for inputs in evidence.counterexamples] == [[1789]]


def test_a_form_that_the_search_finds_wrong_beyond_usual_floats_is_proven_for_those() -> None:
    def wrong(x: np.ndarray) -> np.ndarray:
        return np.where((x[:, :1] > 2000) & (x[:, 1:2] > 2000) & (x[:, 2:3] < -2000), 0, 2 * x).astype(np.float32)

    proof = proven(FLOATS, lambda x: 2 * x, wrong, search_seconds=2.0)
    assert (proof.verdict, proof.domain.largest) == (Verdict.PROVEN, 1000.0)
    assert any("searched inputs" in why for why in proof.beyond)
    assert 0 <= proof.searched.of_allowed <= 1


def test_an_odd_case_on_which_something_else_is_wrong_proves_nothing_for_the_rest() -> None:
    def wrong(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x).max(axis=1, keepdims=True) > 300, 0, 2 * x).astype(np.float32)

    proof = proven(FLOATS, lambda x: 2 * x, wrong)
    assert proof.verdict is Verdict.DIFFERS
    assert "the smallest input that was found from some floats of up to 1e+04" in proof.reason


def test_the_smallest_input_lies_within_what_the_form_is_proven_for_otherwise() -> None:
    def wrong(x: np.ndarray) -> np.ndarray:
        return np.where((x < 0) | (x == 1789), 7, x * 3)

    proof = proven(IDS, lambda x: x * 3, wrong, search_seconds=60.0)
    assert proof.verdict is Verdict.DIFFERS
    assert "on x = [1789], the smallest" in proof.reason
    assert "on x = [-1], the smallest" in proof.beyond[0]


# -- roundings


@pytest.mark.parametrize(("off", "verdict"), [(5e-4, Verdict.PROVEN), (0.1, Verdict.DIFFERS)])
def test_roundings_of_weights_explain_a_difference_on_usual_inputs(off: float, verdict: Verdict) -> None:
    weights = np.array([1000.0, -1000.0] * 32, np.float32)  # which cancel: their roundings are large beside the rest

    def layer(x: np.ndarray, weights: np.ndarray = weights) -> np.ndarray:
        return x + np.float32(5.0 + weights.sum(dtype=np.float64))

    def moved(inputs: Arrays, move: WeightsMove) -> Arrays:
        return {"y": layer(inputs["x"], moved_weights([weights], move)[0])}

    evidence = dataclasses.replace(evidence_of(FLOATS, layer), risk_moved=moved)
    assert proof_by(evidence, lambda x: layer(x) + np.float32(off), 0.0).verdict is verdict


@pytest.mark.parametrize(("off", "verdict"), [(0.02, Verdict.PROVEN), (1.0, Verdict.DIFFERS)])
def test_roundings_are_known_of_each_number_where_others_are_larger(off: float, verdict: Verdict) -> None:
    weights = np.array([10_000.0, -10_000.0] * 32, np.float32)

    def layer(x: np.ndarray, weights: np.ndarray = weights) -> np.ndarray:
        """Columns of a million, which roundings hardly move, and one of about 1, which they move by 1e-2."""
        found = np.clip(x, -1, 1) * np.float32(1e5) + np.float32(1e6)
        found[:, 3] = np.clip(x[:, 3], -1, 1) + np.float32(2.0 + weights.sum(dtype=np.float64))
        return found

    def moved(inputs: Arrays, move: WeightsMove) -> Arrays:
        return {"y": layer(inputs["x"], moved_weights([weights], move)[0])}

    def form(x: np.ndarray) -> np.ndarray:
        return layer(x) + np.array([0, 0, 0, off], np.float32)

    evidence = dataclasses.replace(evidence_of(FLOATS, layer), risk_moved=moved)
    assert proof_by(evidence, form, 0.0).verdict is verdict

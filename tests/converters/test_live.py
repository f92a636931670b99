"""Verdicts on answers that a form gave in service: errors are found, and right forms are never given up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from appliance.conversion.text import Live, live_text
from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.domain import FINITE, Domain
from backends.samples import Sample
from converters.cases import DiedError
from converters.live import MAX_DIFFERING, Judged, judge
from converters.report import FormReport, Report, SignatureProof, Verdict

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of overflows, which are meant

Arrays = Mapping[str, np.ndarray]
Model = Callable[..., Arrays]

ROWS = TensorSpec("float32", (-1, 4))
FLOATS = Signature({"x": ROWS}, {"y": ROWS})
RANKED = Signature({"x": ROWS}, {"scores": ROWS, "label": TensorSpec("int64", (-1,))})
TEXTS = Signature({"x": TensorSpec("string", (-1,))}, {"y": TensorSpec("string", (-1,))})

RANDOM = np.random.default_rng(3)
USUAL = [RANDOM.normal(size=(2, 4)).astype(np.float32) for _ in range(6)]


def samples_of(form: Model, inputs: Sequence[np.ndarray], *wanted: str) -> list[Sample]:
    """The samples of a form that has answered these, numbered from 1; only of the outputs that are `wanted`, if any."""
    found = []
    for number, array in enumerate(inputs, 1):
        outputs = {name: out for name, out in form(array).items() if name in (wanted or (name,))}
        found.append(Sample(number, 1, "s", {"x": array}, outputs))
    return found


def judged(
    signature: Signature,
    truth: Model,
    samples: Sequence[Sample],
    precision: str = "float32",
    domain: Domain | None = None,
    has_time: Callable[[], bool] = lambda: True,
) -> Judged:
    domains = {} if domain is None else {"s": domain}
    return judge(samples, {"s": signature}, lambda _, inputs: truth(**inputs), precision, domains, has_time)


def double(x: np.ndarray) -> Arrays:
    return {"y": (x * 2).astype(np.float32)}


def with_error(x: np.ndarray) -> Arrays:
    """Wrong on rows that begin with 31."""
    return {"y": np.where(x[:, :1] == 31, -2 * x, 2 * x).astype(np.float32)}


RARE = np.array([[31, 1, 2, 3]], np.float32)


# -- what is wrong


def test_one_wrong_answer_among_others_is_found_with_when_they_last_agreed() -> None:
    found = judged(FLOATS, double, samples_of(with_error, [*USUAL, RARE, USUAL[0]]))
    report = found.report()
    assert (report.equal, report.different, report.agreed) == (7, 1, 6)
    assert report.difference == (
        "output 'y' is -62.0 instead of 62.0 at [0, 0]: off by 124, with 0.0062 allowed, on a live request"
    )
    ((sample, _),) = found.differing
    assert sample.inputs["x"] is RARE


def test_a_wrong_answer_alone_is_found() -> None:
    assert judged(FLOATS, double, samples_of(with_error, [RARE])).report().different == 1


def test_the_first_wrong_answer_counts_whatever_the_order() -> None:
    samples = samples_of(with_error, [USUAL[0], RARE, USUAL[1], RARE])
    report = judged(FLOATS, double, samples[::-1]).report()
    assert (report.agreed, report.different, report.equal) == (1, 2, 2)


def test_a_form_that_is_always_wrong_is_looked_into_so_often_only() -> None:
    report = judged(FLOATS, double, samples_of(lambda x: {"y": 3 * x}, USUAL * 3)).report()
    assert (report.equal, report.different, report.agreed) == (0, MAX_DIFFERING, 0)
    assert report.unjudged == {"enough others were wrong": 18 - MAX_DIFFERING}


def test_requests_are_counted_and_not_runs() -> None:
    x = np.concatenate([USUAL[0], USUAL[1]])
    report = judged(FLOATS, double, [Sample(5, 5, "s", {"x": x}, double(x)), Sample(6, 1, "s", {"x": x}, double(x))])
    assert (report.report().equal, report.report().agreed) == (6, 6)


def test_an_output_that_was_not_asked_for_is_not_held_against_it() -> None:
    def ranked(x: np.ndarray) -> Arrays:
        return {"scores": x * np.float32(2), "label": np.argmax(x, 1)}

    def wrong_label(x: np.ndarray) -> Arrays:
        return {"scores": x * np.float32(2), "label": np.argmin(x, 1)}

    assert judged(RANKED, ranked, samples_of(wrong_label, USUAL, "scores")).report().equal == len(USUAL)
    assert judged(RANKED, ranked, samples_of(wrong_label, USUAL, "label")).report().different > 0


# -- what is right


ODD: Mapping[str, Sequence[np.ndarray]] = {
    "NaN and infinity": [np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)],
    "huge values": [np.full((2, 4), 3e38, np.float32), np.full((1, 4), -1e30, np.float32)],
    "nothing": [np.zeros((0, 4), np.float32)],
    "zeros": [np.zeros((3, 4), np.float32), -np.zeros((3, 4), np.float32)],
    "subnormal values": [np.full((2, 4), 1e-40, np.float32)],
    "many rows": [RANDOM.normal(size=(300, 4)).astype(np.float32)],
}


@pytest.mark.parametrize("kind", ODD)
def test_the_same_answers_are_equal_on_odd_inputs(kind: str) -> None:
    inputs = ODD[kind]
    report = judged(FLOATS, double, samples_of(double, inputs)).report()
    assert (report.equal, report.different, report.unjudged) == (len(inputs), 0, {})
    assert judged(FLOATS, double, samples_of(double, [*USUAL, *inputs])).report().equal == len(inputs) + len(USUAL)


def test_other_roundings_are_no_error() -> None:
    weights = RANDOM.normal(size=(4, 4)).astype(np.float32)

    def exact(x: np.ndarray) -> Arrays:
        return {"y": (x.astype(np.float64) @ weights).astype(np.float32)}

    def rounded(x: np.ndarray) -> Arrays:
        return {"y": (x @ weights * np.float32(1.00003)).astype(np.float32)}

    assert judged(FLOATS, exact, samples_of(rounded, USUAL)).report().equal == len(USUAL)


def test_what_almost_cancels_is_no_error() -> None:
    """As in a search: what is left of numbers that cancel has the roundings of what they were."""

    def difference(x: np.ndarray) -> Arrays:
        return {"y": np.repeat(x[:, :1] - x[:, 1:2], 4, 1)}

    def otherwise(x: np.ndarray) -> Arrays:
        return {"y": np.repeat(x[:, :1] - x[:, 1:2] + x[:, :1] * np.float32(1.2e-7), 4, 1)}

    close = np.array([[1234.5677, 1234.5676, 0, 0]], np.float32)
    assert judged(FLOATS, difference, samples_of(otherwise, [*USUAL, close])).report().different == 0


def test_another_order_of_equals_is_no_error() -> None:
    def ranked(x: np.ndarray) -> Arrays:
        return {"scores": x, "label": np.argmax(x, 1)}

    def last(x: np.ndarray) -> Arrays:
        return {"scores": x, "label": 3 - np.argmax(x[:, ::-1], 1)}

    ties = [np.array([[0.25, equal, 1.0, 0.5]], np.float32) for equal in (1.0, 1.0 + 2.0**-23)]
    assert judged(RANKED, ranked, samples_of(last, [*USUAL, *ties])).report().different == 0
    assert judged(RANKED, ranked, samples_of(last, [*USUAL, *ties], "label")).report().different == 0
    nearly = [Sample(1, 1, "s", {"x": ties[1]}, {"scores": ties[1], "label": np.array([2])})]
    assert judged(RANKED, ranked, nearly).report().different == 0


def test_a_threshold_beside_which_roundings_decide_is_no_error() -> None:
    def above(x: np.ndarray, limit: float = 0.3) -> Arrays:
        return {"y": np.where(x * np.float32(1 / 3) > np.float32(limit / 3), x, 0).astype(np.float32)}

    beside = np.array([[0.3, 0.1, 0.2, 0.7]], np.float32)
    form = lambda x: {"y": np.where(x > np.float32(0.29999998), x, 0).astype(np.float32)}  # noqa: E731
    assert judged(FLOATS, above, samples_of(form, [*USUAL, beside])).report().different == 0


def test_a_form_of_lower_precision_has_its_tolerance() -> None:
    samples = samples_of(lambda x: {"y": (x * np.float32(2.005)).astype(np.float32)}, USUAL)
    assert judged(FLOATS, double, samples, "float16").report().equal == len(USUAL)
    assert judged(FLOATS, double, samples, "int8").report().equal == len(USUAL)
    assert judged(FLOATS, double, samples).report().different > 0


def test_a_model_that_answers_by_chance_is_not_judged() -> None:
    noise = np.random.default_rng(9)
    report = judged(
        FLOATS,
        lambda x: {"y": noise.normal(size=x.shape).astype(np.float32)},
        samples_of(lambda x: {"y": noise.normal(size=x.shape).astype(np.float32)}, USUAL),
    ).report()
    assert (report.equal, report.different) == (0, 0)
    assert report.unjudged == {"TensorFlow does not answer the same twice": len(USUAL)}


def test_texts_must_be_equal() -> None:
    texts = [np.array([b"one", b""], object), np.array([], object), np.array([b"\xff" * 9], object)]

    def upper(x: np.ndarray) -> Arrays:
        return {"y": np.array([text.upper() for text in x], object)}

    assert judged(TEXTS, upper, samples_of(upper, texts)).report().equal == 3
    report = judged(TEXTS, upper, samples_of(lambda x: {"y": x}, texts)).report()
    assert (report.equal, report.different) == (2, 1)


# -- what is not judged


def refusing(error: Exception) -> Model:
    def run(x: np.ndarray) -> Any:
        raise error

    return run


def test_what_tensorflow_refuses_is_not_judged() -> None:
    refusal = BackendError(Code.INVALID_ARGUMENT, "no")
    report = judged(FLOATS, refusing(refusal), samples_of(double, USUAL)).report()
    assert (report.equal, report.different, report.unjudged) == (0, 0, {"TensorFlow refuses them": len(USUAL)})


def test_what_kills_tensorflow_is_not_judged_and_it_is_not_killed_for_ever() -> None:
    deaths = itertools.count(1)

    def dying(x: np.ndarray) -> Arrays:
        next(deaths)
        raise DiedError("dead")

    report = judged(FLOATS, dying, samples_of(double, USUAL)).report()
    assert report.unjudged == {
        "TensorFlow died of them, or did not end": 2,
        "TensorFlow died of others": len(USUAL) - 2,
    }
    assert next(deaths) == 3


def test_a_death_while_a_difference_is_looked_into_is_no_difference() -> None:
    calls = itertools.count(1)

    def dying(x: np.ndarray) -> Arrays:
        if next(calls) > 1:
            raise DiedError("dead")
        return double(x)

    report = judged(FLOATS, dying, samples_of(with_error, [RARE])).report()
    assert (report.equal, report.different) == (0, 0)


def test_what_the_form_was_not_proven_for_is_not_judged() -> None:
    odd = np.full((1, 4), np.nan, np.float32)
    report = judged(FLOATS, double, samples_of(lambda x: {"y": x * 0 + 5}, [odd]), domain=FINITE).report()
    assert (report.different, report.unjudged) == (0, {"the form is not proven for such inputs": 1})


def test_without_time_nothing_more_is_run() -> None:
    left = iter([True, True, False, False, False, False])
    report = judged(FLOATS, double, samples_of(double, USUAL), has_time=lambda: next(left)).report()
    assert (report.equal, report.unjudged) == (2, {"no processor time was left": 4})


def test_another_shape_than_declared_is_not_judged() -> None:
    report = judged(FLOATS, lambda x: {"y": x[:, :2]}, samples_of(double, USUAL)).report()
    assert report.unjudged == {"TensorFlow answers in another shape than it declares": len(USUAL)}
    other = Sample(1, 1, "gone", {}, {})
    assert judged(FLOATS, double, [other]).report().unjudged != {}


# -- what people read


def test_people_are_told_what_was_proven_and_what_came_of_it_in_service() -> None:
    proof = SignatureProof("s", Verdict.PROVEN, "", cases=300, edges=11)
    forms = (FormReport("tflite", "tflite", "float32"), FormReport("onnx", "onnx", "float32", proofs=(proof,)))
    report = Report("onnx", "why", "onnx", forms=forms)
    assert live_text(report, Live(4120)) == "proven on 311 cases, then equal on 4,120 of 4,120 live requests"
    assert live_text(report, Live(7, 1, {"TensorFlow refuses them": 2}, "memory is short")).splitlines() == [
        "proven on 311 cases, then equal on 7 of 8 live requests",
        "  2 were not judged: TensorFlow refuses them",
        "  nothing is verified now: memory is short",
    ]

"""The gate before traffic, and the differences of signatures: values in, verdicts out."""

from __future__ import annotations

import pytest

from appliance.core.errors import Code
from appliance.core.outcomes import Outcome, Trial
from appliance.lifecycle.release import Gate, refusal, signature_changes
from backends.contract import Signature, TensorSpec

ANSWERED = Trial(Outcome.ANSWERED)
REFUSED = Trial(Outcome.REFUSED, Code.INVALID_ARGUMENT, "a shape that no input has")
LATE = Trial(Outcome.LATE, Code.DEADLINE_EXCEEDED, "serving_default still ran after 30 s")
UNTRIED = Trial(Outcome.UNTRIED, Code.UNAVAILABLE, "it changes the model, and no time was left")
FAILED = Trial(Outcome.FAILED, Code.FAILED_PRECONDITION, "Table not initialized.")


def signature(outputs: str = "y", defaults: str = "", **inputs: TensorSpec) -> Signature:
    return Signature(
        inputs, {name: TensorSpec("float32", (-1,)) for name in outputs}, defaults=dict.fromkeys(defaults, b"")
    )


ROWS = TensorSpec("float32", (-1, 4))


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("gate", list(Gate))
def test_a_version_whose_signatures_answered_or_refused_their_inputs_takes_over(gate: Gate, replaces: bool) -> None:
    assert refusal({"a": ANSWERED, "b": REFUSED}, gate, replaces) is None
    assert refusal({"a": REFUSED}, gate, replaces) is None
    assert refusal({"a": ANSWERED, "b": LATE}, gate, replaces) is None


@pytest.mark.parametrize(
    ("gate", "replaces", "passes"),
    [
        (Gate.STRICT, True, False),
        (Gate.STRICT, False, False),
        (Gate.ONLY_REPLACING, True, False),
        (Gate.ONLY_REPLACING, False, True),
        (Gate.OFF, True, True),
        (Gate.OFF, False, True),
    ],
)
def test_a_signature_that_cannot_answer_fails_the_version_as_the_gate_says(
    gate: Gate, replaces: bool, passes: bool
) -> None:
    found = refusal({"a": ANSWERED, "b": FAILED}, gate, replaces)
    assert (found is None) == passes
    if found is not None:
        assert (found.code, found.reason) == (
            Code.FAILED_PRECONDITION,
            'signature "b" cannot answer: Table not initialized.',
        )
    assert (refusal({}, gate, replaces) is None) == passes


def test_a_version_that_answered_nothing_in_time_serves_alone_and_replaces_none() -> None:
    trials = {"a": LATE, "b": LATE}
    assert refusal(trials, Gate.STRICT, replaces=False) is None
    found = refusal(trials, Gate.ONLY_REPLACING, replaces=True)
    assert found is not None
    assert found.code is Code.DEADLINE_EXCEEDED
    assert "still ran after 30 s" in found.reason
    assert "warmup_timeout_seconds" in found.reason


@pytest.mark.parametrize("gate", list(Gate))
def test_signatures_that_were_not_tried_refuse_nothing(gate: Gate) -> None:
    assert refusal({"a": UNTRIED, "b": UNTRIED}, gate, replaces=True) is None
    assert refusal({"a": ANSWERED, "b": UNTRIED}, gate, replaces=True) is None


def test_what_was_not_tried_does_not_speak_for_what_was() -> None:
    late = refusal({"a": LATE, "b": UNTRIED}, Gate.STRICT, replaces=True)
    assert late is not None
    assert late.code is Code.DEADLINE_EXCEEDED
    assert refusal({"a": FAILED, "b": UNTRIED}, Gate.STRICT, replaces=False) is not None


def test_of_a_version_without_a_signature_that_can_be_served_it_is_said_why() -> None:
    found = refusal({}, Gate.STRICT, replaces=True, unsupported={"f": "the tensor 'x' is not dense (sparse)"})
    assert found is not None
    assert found.reason == (
        "it has no signature that can be served: export it with one (serving_default); "
        "'f' cannot be: the tensor 'x' is not dense (sparse)"
    )


def test_of_many_signatures_that_cannot_answer_three_are_named() -> None:
    found = refusal(dict.fromkeys("abcde", FAILED), Gate.STRICT, replaces=True)
    assert found is not None
    assert found.reason.count("cannot answer") == 3
    assert "2 more signatures" in found.reason


def test_a_version_that_was_not_tried_is_not_refused() -> None:
    assert refusal(None, Gate.STRICT, replaces=True) is None


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (signature(x=ROWS), ()),
        (signature(x=TensorSpec("float32", (-1, 8))), ()),  # sizes are the model's business
        (signature(x=TensorSpec("float32", None)), ()),
        (signature(x=ROWS, z=ROWS, defaults="z"), ()),
        (signature("yw", x=ROWS), ()),
        (signature(x=TensorSpec("float64", (-1, 4))), ('input "x" of signature "f" is float64, and was float32',)),
        (signature(x=TensorSpec("float32", (-1,))), ('input "x" of signature "f" has rank 1, and had rank 2',)),
        (
            signature(z=ROWS),
            ('input "x" of signature "f" is gone', 'input "z" of signature "f" is new, and has no default'),
        ),
        (signature("w", x=ROWS), ('output "y" of signature "f" is gone',)),
    ],
)
def test_what_clients_will_miss_in_a_signature_is_told(new: Signature, told: tuple[str, ...]) -> None:
    assert signature_changes({"f": signature(x=ROWS)}, {"f": new, "g": new}) == told


def test_a_signature_that_is_gone_and_a_rank_that_is_fixed_now_are_told() -> None:
    assert signature_changes({"f": signature(x=ROWS)}, {}) == ('signature "f" is gone',)
    old = {"f": signature(x=TensorSpec("float32", None))}
    assert signature_changes(old, {"f": signature(x=ROWS)}) == (
        'input "x" of signature "f" has rank 2, and had any rank',
    )

"""Which form is chosen, and why not another; and that timings are taken in turns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.choice import choose
from converters.load import OthersLoad, others_share
from converters.measure import Call, measure
from converters.report import (
    Attempt,
    Demotion,
    FormReport,
    OutputParity,
    Report,
    SignatureProof,
    Timing,
    Verdict,
    to_plain,
)

Form = Literal["onnx", "tflite"]


def timings(one: float, eight: float, signature: str = "s") -> tuple[Timing, ...]:
    return Timing(signature, 1, one, 5), Timing(signature, 8, eight, 5)


TENSORFLOW = timings(10.0, 40.0)
PROVEN = SignatureProof("s", Verdict.PROVEN, "", 3)


def form(name: Form, taken: tuple[Timing, ...] = (), proofs: tuple[SignatureProof, ...] = (PROVEN,)) -> FormReport:
    return FormReport(name, name, "float32", proofs=proofs, timings=taken)


def test_the_fastest_proven_form_is_chosen() -> None:
    choice = choose([form("onnx", timings(5, 20)), form("tflite", timings(4, 20))], TENSORFLOW, ["s"], 1.1)
    assert (choice.chosen, choice.form) == ("tflite", "tflite")
    assert choice.forms[0].speedup == pytest.approx(2.0)
    assert choice.forms[0].reason == "tflite is faster"
    assert choice.forms[1].speedup == pytest.approx(5**0.5)
    assert choice.forms[1].slowest == pytest.approx(2.0)


def test_a_gain_below_the_margin_changes_nothing() -> None:
    choice = choose([form("onnx", timings(9.5, 38))], TENSORFLOW, ["s"], 1.1)
    assert choice.chosen == "tensorflow"
    assert choice.reason == "onnx: it is 1.05 times as fast as TensorFlow, less than acceleration_min_speedup, 1.1"


def test_a_form_that_is_slower_at_one_batch_size_is_not_chosen() -> None:
    choice = choose([form("onnx", timings(1, 41))], TENSORFLOW, ["s"], 1.1)
    assert choice.chosen == "tensorflow"
    assert "'s' at batch 8 is 0.98 times as fast" in choice.reason


def test_a_margin_below_one_lets_slower_forms_pass() -> None:
    assert choose([form("onnx", timings(11, 44))], TENSORFLOW, ["s"], 0.5).chosen == "onnx"


def test_one_signature_that_is_not_proven_keeps_all_on_tensorflow() -> None:
    differs = SignatureProof("t", Verdict.DIFFERS, "output 'y' is 1 instead of 2, on all 0", 3)
    choice = choose([form("onnx", timings(1, 1), (PROVEN, differs))], TENSORFLOW, ["s", "t"], 1.1)
    assert choice.chosen == "tensorflow"
    assert choice.reason == ("onnx: signature 't' is not proven (differs): output 'y' is 1 instead of 2, on all 0")


def test_one_signature_that_was_not_converted_keeps_all_on_tensorflow() -> None:
    attempts = (
        Attempt("a", ("s",), {"t": "no such operator"}),
        Attempt("b", (), {"t": "no such operator"}),
        Attempt("c", (), {"t": "it crashed"}),
    )
    known = FormReport("onnx", "onnx", "float32", attempts, proofs=(PROVEN,), timings=timings(1, 1))
    choice = choose([known], TENSORFLOW, ["s", "t"], 1.1)
    assert choice.chosen == "tensorflow"
    assert choice.reason.endswith("'t' was not converted: no such operator (by a, b); it crashed (by c)")


def test_what_was_not_measured_is_not_chosen() -> None:
    choice = choose([form("onnx"), form("tflite", timings(5, 20))], TENSORFLOW, ["s"], 1.1)
    assert choice.chosen == "tflite"
    assert choice.forms[0].reason == "it was not measured"
    assert choose([], TENSORFLOW, ["s"], 1.1).reason == "nothing was tried"


milliseconds = st.floats(0.001, 1000.0)
pairs = st.tuples(milliseconds, milliseconds)


@given(pairs, st.lists(pairs, max_size=4), st.floats(1.0, 3.0))
def test_nothing_slower_than_tensorflow_is_ever_chosen(
    truth: tuple[float, float], taken: Sequence[tuple[float, float]], margin: float
) -> None:
    forms = [FormReport(f"c{n}", "onnx", "float32", (), 0.0, (PROVEN,), timings(*t)) for n, t in enumerate(taken)]
    choice = choose(forms, timings(*truth), ["s"], margin)
    if choice.form:
        one, eight = taken[int(choice.form[1:])]
        assert one <= truth[0]
        assert eight <= truth[1]
        assert (truth[0] / one * truth[1] / eight) ** 0.5 >= margin * (1 - 1e-9)


def test_what_has_failed_in_service_is_not_chosen_again() -> None:
    forms = [form("onnx", timings(5, 20)), form("tflite", timings(4, 20))]
    first = choose(forms, TENSORFLOW, ["s"], 1.1)
    again = choose(first.forms, TENSORFLOW, ["s"], 1.1, {"tflite": "it failed"})
    assert (again.chosen, again.form) == ("onnx", "onnx")
    assert again.forms[1].reason == "it failed"
    neither = choose(again.forms, TENSORFLOW, ["s"], 1.1, {"tflite": "it failed", "onnx": "it died"})
    assert (neither.chosen, neither.reason) == ("tensorflow", "onnx: it died; tflite: it failed")


def test_who_is_judged_again_is_judged_alike() -> None:
    differs = SignatureProof("s", Verdict.DIFFERS, "output 'y' is 1 instead of 2", 3)
    forms = [
        form("onnx", timings(5, 20)),
        form("tflite", timings(9.9, 40)),
        form("tflite", proofs=(differs,)),
        form("tflite", proofs=()),
        form("tflite"),
    ]
    first = choose(forms, TENSORFLOW, ["s"], 1.1)
    assert choose(first.forms, TENSORFLOW, ["s"], 1.1) == first


# -- measuring


def test_forms_take_turns_and_the_median_counts() -> None:
    order: list[str] = []
    clock = [0.0]

    def call_of(name: str, nanoseconds: Sequence[int]) -> Call:
        def call(calls: int) -> list[int]:
            order.append(name)
            clock[0] += 0.001
            return [nanoseconds[len(order) % len(nanoseconds)]] * calls

        return call

    calls = {("s", 1): {"a": call_of("a", [10**9]), "b": call_of("b", [2 * 10**9, 2 * 10**9, 9 * 10**9])}}
    found = measure(calls, 0.0, now=lambda: clock[0])
    assert found["a"] == [Timing("s", 1, 1000.0, 5)]
    assert found["b"][0].milliseconds == 2000.0
    rounds = order[4:]
    assert len(rounds) == 10
    assert {tuple(rounds[at : at + 2]) for at in range(0, 10, 2)} == {("a", "b"), ("b", "a")}


def test_measuring_ends_when_its_time_is_up() -> None:
    clock = [0.0]

    def call(calls: int) -> list[int]:
        clock[0] += 1.0
        return [10**9] * calls

    found = measure({("s", 1): {"a": call}, ("s", 8): {"a": call}}, 30.0, now=lambda: clock[0])
    assert [timing.batch for timing in found["a"]] == [1, 8]
    assert clock[0] <= 34


def test_what_others_took_of_the_processors_is_what_was_used_but_not_by_us() -> None:
    before = (1000, 400, 100)  # of all cores: ticks, those that were used, and those by us
    assert others_share(before, (1200, 500, 180)) == pytest.approx(0.1)
    assert others_share(before, (1200, 600, 300)) == 0.0
    assert others_share(before, (1200, 590, 300)) == 0.0  # our own are counted a tick later
    assert others_share(before, (1200, 600, 100)) == 1.0
    assert others_share((0, 0, 0), (0, 0, 0)) == 0.0  # a kernel that does not say


def test_what_a_process_of_ours_takes_does_not_count() -> None:
    program = "import time\ninput()\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        with_it, without_it = OthersLoad([os.getpid()]), OthersLoad([os.getpid(), worker.pid])
        worker.stdin.write(b"\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == b"done\n"
        assert 0.0 <= without_it.share() < with_it.share() <= 1.0


# -- the report


def test_a_report_survives_json() -> None:
    parity = OutputParity("y", "float32", None, 1e-6, 0.01, "all 0", 1.5)
    proof = SignatureProof("s", Verdict.PROVEN, "", 3, 1, 0, (parity,), "refused")
    attempt = Attempt("frozen session", ("s",), {"t": "no"}, ("Igamma",), 0.5)
    known = FormReport("onnx", "onnx", "float32", (attempt,), 1.0, (proof,), timings(1, 2), 2.0, 1.5, "why")
    report = Report("onnx", "why", "onnx", "/a", ("s",), (known,), TENSORFLOW, 2, "cpu", {"onnx": "1"}, 3.0)
    assert msgspec.convert(to_plain(report), Report) == report
    for broken in ({"chosen": "magic", "reason": ""}, {"chosen": "onnx", "reason": 3}, {"chosen": "onnx"}, [], None):
        with pytest.raises(
            ValueError,
            match=r"^Expected `(object|str)`|^Invalid enum value 'magic'|^Object missing required field `reason`",
        ):
            msgspec.convert(broken, Report)


def test_a_report_has_the_names_in_json_that_clients_read() -> None:
    known = FormReport("tflite-int8", "tflite", "int8")
    report = Report("tflite", "why", known.name, "/a", forms=(known,), demotions=(Demotion("onnx", "now", "it died"),))
    found = to_plain(report)
    assert (found["chosen"], found["candidate"], found["artifact"]) == ("tflite", "tflite-int8", "/a")
    assert found["candidates"][0]["name"] == "tflite-int8"
    assert found["candidates"][0]["form"] == "tflite"
    assert found["demotions"][0]["candidate"] == "onnx"

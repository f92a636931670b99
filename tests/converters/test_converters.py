"""Real models through real jobs: converted, proven, measured, chosen; and what stays on TensorFlow, with why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.conversion.text import report_text
from backends import litert_backend
from backends.contract import BackendError, Code
from backends.domain import FINITE, Domain
from backends.form import read_form
from converters.report import FormReport, Report, Verdict
from tests.support.acceleration_jobs import ROOT, Outcome, run_job
from tests.support.acceleration_models import acceleration_zoo
from tests.support.server import eventually

pytestmark = pytest.mark.timeout(300)

Jobs = Callable[[str], Outcome]

ALL_PRECISIONS = ("float32", "float16", "int8")
BROKEN_MEMORY = 1500 << 20

JOBS: dict[str, dict[str, Any]] = {
    "conv": {"precisions": ALL_PRECISIONS},
    "any_size": {"policy": "tflite"},
    "lstm": {"policy": "onnx"},
    "embedding": {},
    "saturated": {},
    "by_chance": {},
    "counts": {},
    "unknown_operator": {},
    "pairs": {"policy": "onnx"},
    "whole": {"policy": "onnx"},
    "rectified": {"policy": "tflite"},
    "ranking": {"min_search_seconds": 1.5, "search_seconds": 4.5},
    "keras2": {},
    "keras3": {"policy": "tflite"},
    "keras3_saved": {"policy": "tflite"},
    "keras3_trained": {"policy": "onnx"},
    "multi_io": {},
    "fails": {"policy": "onnx"},
    "crash_on_positive": {"policy": "onnx"},
    "half_plus_two": {},
}


PROVEN = (
    "conv",
    "any_size",
    "lstm",
    "embedding",
    "ranking",
    "keras2",
    "keras3",
    "keras3_saved",
    "keras3_trained",
    "multi_io",
)


@pytest.fixture(scope="session")
def jobs(zoo: Path) -> Iterator[Jobs]:
    """The outcome of a job of `JOBS`, or of "broken". They all run, three at a time:
    one of them mostly hangs."""
    models = acceleration_zoo()

    def run(name: str, options: dict[str, Any]) -> Outcome:
        return run_job(models / name if (models / name).exists() else zoo / name, **options)

    with ThreadPoolExecutor(3) as pool:
        broken = {
            "converters": {"broken": "tests.support.broken_converter"},
            "timeout_seconds": 10.0,
            "memory_bytes": BROKEN_MEMORY,
        }
        outcomes: dict[str, Future[Outcome]] = {"broken": pool.submit(run, "conv", broken)}
        outcomes |= {name: pool.submit(run, name, options) for name, options in JOBS.items()}
        yield lambda name: outcomes[name].result()


def form_of(report: Report, name: str) -> FormReport:
    return next(found for found in report.forms if found.name == name)


# -- what is converted


@pytest.mark.parametrize("name", PROVEN)
def test_a_model_gets_a_proven_form(jobs: Jobs, name: str) -> None:
    outcome = jobs(name)
    report = outcome.report
    assert report.chosen in {"onnx", "tflite"}, report.reason
    chosen = form_of(report, report.form)
    assert {proof.signature for proof in chosen.proofs} == set(report.signatures)
    for proof in chosen.proofs:
        assert proof.verdict is Verdict.PROVEN
        assert proof.cases >= 1
        for output in proof.outputs:
            assert output.relative is not None
            assert output.relative <= (1e-4 if chosen.precision == "float32" else 1e-1)
            assert output.variation > 0.1 or proof.signature == "constant"
    described = read_form(report.folder)
    assert described.format == report.chosen
    assert set(described.signatures) == set(report.signatures)
    assert Path(report.folder).is_relative_to(outcome.work_dir)


def test_the_places_of_the_largest_may_be_others_where_those_are_equal(jobs: Jobs) -> None:
    """Roundings, and what is 0 to TensorFlow alone, give equals another order in each framework: no form is refused."""
    for name in ("onnx", "tflite"):
        found = form_of(jobs("ranking").report, name)
        assert [proof.verdict for proof in found.proofs] == [Verdict.PROVEN] * 3, found
        assert all(proof.searched.inputs > 100 for proof in found.proofs)


def test_every_form_and_tensorflow_are_measured_at_one_and_at_eight(jobs: Jobs) -> None:
    report = jobs("conv").report
    assert [c.name for c in report.forms] == ["onnx", "tflite", "tflite-float16", "tflite-int8"]
    for timings in [report.tensorflow, *(c.timings for c in report.forms if c.speedup)]:
        assert [(t.signature, t.batch) for t in timings] == [("serving_default", 1), ("serving_default", 8)]
        assert all(t.milliseconds > 0 and t.runs >= 5 for t in timings)
    chosen = form_of(report, report.form)
    assert chosen.speedup == max(c.speedup for c in report.forms) > 0


def test_lower_precisions_are_other_numbers_within_their_tolerances(jobs: Jobs) -> None:
    report = jobs("conv").report
    worst = {c.name: c.proofs[0].outputs[0].relative for c in report.forms}
    assert all(c.proofs[0].verdict is Verdict.PROVEN for c in report.forms)
    assert worst["tflite"] is not None
    assert worst["tflite-float16"] is not None
    assert worst["tflite"] * 10 < worst["tflite-float16"]


def test_a_convolution_over_images_of_any_size_is_served_at_any_size(jobs: Jobs) -> None:
    backend = litert_backend.load(jobs("any_size").report.folder, interpreters=1)
    signature = backend.signatures["serving_default"]
    (name,), (output,) = signature.inputs, signature.outputs
    for shape, expected in (
        ((1, 20, 24, 3), (1, 4, 5, 4)),
        ((3, 9, 31, 3), (3, 1, 6, 4)),
        ((2, 64, 8, 3), (2, 15, 1, 4)),
    ):
        (answer,) = backend.run("serving_default", {name: np.ones(shape, np.float32)}, [output])
        assert answer.shape == expected
    with pytest.raises(BackendError) as refused:
        backend.run("serving_default", {name: np.ones((1, 4, 4, 3), np.float32)}, [output])
    assert refused.value.code == Code.INVALID_ARGUMENT


def test_signatures_that_compute_the_same_share_a_file(jobs: Jobs) -> None:
    keras3 = read_form(jobs("keras3").report.folder)  # its exports have serve and serving_default
    assert len(keras3.signatures) == 2
    assert len({entry.file for entry in keras3.signatures.values()}) == 1
    multi_io = read_form(jobs("multi_io").report.folder)
    assert len({entry.file for entry in multi_io.signatures.values()}) == len(multi_io.signatures) == 3


def test_a_policy_names_the_only_form_that_is_tried(jobs: Jobs) -> None:
    assert [c.name for c in jobs("lstm").report.forms] == ["onnx"]
    assert [c.name for c in jobs("keras3").report.forms] == ["tflite"]


def test_the_report_names_the_entry_point_that_worked_and_why_others_did_not(jobs: Jobs) -> None:
    onnx = form_of(jobs("embedding").report, "onnx")
    assert onnx.entry_points == ("inlined functions",)
    assert onnx.attempts[0].entry_point == "frozen session"
    assert "expected type resource" in onnx.attempts[0].failures["serving_default"]


def test_ids_beyond_the_vocabulary_are_refused_by_the_form_as_by_tensorflow(jobs: Jobs) -> None:
    report = jobs("embedding").report
    proof = form_of(report, "onnx").proofs[0]
    assert proof.refused > 0
    assert proof.on_refused == "refused"
    assert proof.verdict is Verdict.PROVEN


@pytest.mark.parametrize(
    ("name", "form", "without"),
    [
        ("whole", "onnx", Domain(empty=False)),  # negative ones are right: see `converters.repairs`
        ("embedding", "onnx", Domain(least_whole=0)),
        ("rectified", "tflite", Domain(largest=FINITE.largest)),
        ("lstm", "onnx", Domain(largest=FINITE.largest, empty=False)),
    ],
)
def test_a_form_that_is_wrong_out_of_the_usual_is_proven_for_the_rest(
    jobs: Jobs, name: str, form: str, without: Domain
) -> None:
    found = form_of(jobs(name).report, form)
    for proof in found.proofs:
        assert proof.verdict is Verdict.PROVEN
        assert proof.domain & without == proof.domain
        assert proof.beyond
        assert (proof.domain.least_whole is None) == (without.least_whole is None)
    text = report_text(jobs(name).report)
    assert f"TensorFlow answers {found.proofs[0].domain.left_out()}" in text
    assert found.proofs[0].beyond[0] in text


def test_the_numbers_of_a_graph_are_read() -> None:
    program = """
import sys
from converters.constants import constants_of
print(*constants_of(sys.argv[1], ["serve"]))
"""
    command = [sys.executable, "-c", program, str(acceleration_zoo() / "whole")]
    read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"1009", "10", str(2**32), "86400000"} <= set(read)


def test_a_form_that_answers_what_tensorflow_refuses_is_remarked_on(jobs: Jobs) -> None:
    proof = form_of(jobs("fails").report, "onnx").proofs[0]
    assert (proof.verdict, proof.on_refused) == (Verdict.PROVEN, "answered")
    assert proof.refused > 0


def test_recorded_requests_are_the_cases_beside_the_edges() -> None:
    outcome = run_job(acceleration_zoo() / "conv", policy="tflite", work_module="tests.support.recorded_rows")
    proof = outcome.report.forms[0].proofs[0]
    assert proof.verdict is Verdict.PROVEN
    assert proof.recorded == 3  # what was recorded alone is batched too
    assert proof.cases > 3
    assert proof.edges > 0


# -- what stays on TensorFlow


def test_outputs_that_never_vary_prove_nothing(jobs: Jobs) -> None:
    report = jobs("saturated").report
    assert report.chosen == "tensorflow"
    assert "output 'y' hardly varied" in report.reason
    assert report.forms == ()


def test_answers_by_chance_prove_nothing(jobs: Jobs) -> None:
    report = jobs("by_chance").report
    assert report.chosen == "tensorflow"
    assert "differ from call to call" in report.reason


def test_what_changes_variables_or_files_is_not_run_and_stays_on_tensorflow(jobs: Jobs) -> None:
    outcome = jobs("counts")
    assert outcome.report.chosen == "tensorflow"
    assert "'serving_default' changes variables, tables or files, which a form would not" in outcome.report.reason
    assert "running TensorFlow on the cases of the proof" not in outcome.progress


def test_operators_that_no_converter_knows_are_named(jobs: Jobs) -> None:
    report = jobs("unknown_operator").report
    assert (report.chosen, report.form, report.folder) == ("tensorflow", "", "")
    for found in report.forms:
        assert found.unsupported_ops == ("Igamma",)
        assert f"{found.name}: signature 'serving_default' was not converted" in report.reason


def test_strings_are_not_even_tried(jobs: Jobs) -> None:
    report = jobs("half_plus_two").report
    assert report.chosen == "tensorflow"
    assert "'classify_x_to_label' has the input 'inputs' of strings" in report.reason
    assert report.forms == ()


def test_inputs_that_kill_tensorflow_count_as_refused(jobs: Jobs) -> None:
    report = jobs("crash_on_positive").report
    assert report.chosen == "tensorflow"
    assert "SIGABRT" in report.reason or "died" in report.reason


def test_that_tensorflow_refused_the_inputs_for_measuring_is_said(jobs: Jobs) -> None:
    report = jobs("pairs").report
    assert report.chosen == "tensorflow"
    assert "onnx: it was not measured, since TensorFlow refused the inputs that were made for that" in report.reason
    assert "('serving_default' at batch 1)" in report.reason


def test_nothing_is_served_that_is_not_faster_by_the_margin(jobs: Jobs) -> None:
    report = run_job(acceleration_zoo() / "conv", policy="tflite", min_speedup=1000.0).report
    assert report.chosen == "tensorflow"
    assert "less than acceleration_min_speedup, 1000" in report.reason


# -- converters that go wrong


def test_a_converter_that_crashes_hangs_eats_or_lies_costs_nothing_else(jobs: Jobs) -> None:
    outcome = jobs("broken")
    attempts = {attempt.entry_point: attempt for attempt in outcome.report.forms[0].attempts}
    reasons = {name: attempt.failures.get("serving_default", "") for name, attempt in attempts.items()}
    assert "the converter broken (raise) ended with status 1" in reasons["raise"]
    assert "cannot convert 1 signatures" in reasons["raise"]
    assert "was killed by SIGSEGV" in reasons["crash"]
    assert "did not end within its 10 s" in reasons["hang"]
    assert f"more than a conversion may ({BROKEN_MEMORY:,})" in reasons["eat memory"]
    assert "it does not load" in reasons["write garbage"]
    assert "not proven (differs): output" in reasons["change one weight"]
    assert outcome.report.forms[0].entry_points == ("work",)
    assert outcome.report.chosen == "onnx"


def test_what_a_converter_started_dies_with_it(jobs: Jobs) -> None:
    pid = int((jobs("broken").work_dir / "sleeper").read_text())
    eventually(lambda: not is_alive(pid), "the end of what the hanging converter started")


def is_alive(pid: int) -> bool:
    """Also where nobody reaps orphans, a killed one is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_children_die_with_their_job() -> None:
    program = """
import sys
from converters.child import Limits, start
child = start("a runner", "/dev/null", Limits(600.0, 1 << 30))
print(child.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        child = int(job.stdout.readline())
        assert is_alive(child)
        job.kill()
    eventually(lambda: not is_alive(child), "the end of the child")


def test_children_give_way_to_everything_else() -> None:
    program = """
import os
from converters.child import become_child
become_child(os.getppid(), yielding=True)
print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.nice(0), open("/proc/self/oom_score_adj").read().strip())
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True", "19", "900"]


# -- for people


def test_the_report_reads_as_a_table(jobs: Jobs) -> None:
    text = report_text(jobs("conv").report)
    lines = text.splitlines()
    assert lines[0].endswith("at least)")
    assert any(line.startswith("tensorflow") and " ms" in line for line in lines)
    assert any(line.startswith("tflite-int8") and "1 of 1" in line for line in lines)
    assert any(line.startswith("    searched ") and "at worst 0." in line for line in lines)
    assert "operators that it does not know: Igamma" in report_text(jobs("unknown_operator").report)

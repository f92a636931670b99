"""Trials of signatures before the first client's request: on a small backend in numpy, and on the whole server."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from appliance.config.model_options import ModelOptions
from appliance.core.errors import Code
from appliance.core.outcomes import Outcome, Trial
from appliance.host.memory import available_bytes
from appliance.supervisor.stderr import LastWords
from appliance.worker.attempts import attempts
from appliance.worker.running import Activity, hangs
from appliance.worker.trials import COPY, PROOF, Fatal, check_memory, check_memory_for_copy, try_out
from appliance.worker.warmup import WarmupReport, try_others, warm_up
from backends.contract import BackendError, Signature, TensorSpec
from tests.support.server import ROOT, Server, eventually

ALONE = ModelOptions(merge_waiting_requests=False)
Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


class NumpyBackend:
    """A backend of numpy functions; `runs` keeps what it was asked for."""

    def __init__(self, **functions: tuple[TensorSpec, Run]) -> None:
        self.signatures = {name: Signature({"x": spec}, {"y": spec}) for name, (spec, _) in functions.items()}
        self.runs: list[tuple[str, np.ndarray]] = []
        self._functions = {name: function for name, (_, function) in functions.items()}

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        self.runs.append((signature, inputs["x"]))
        return self._functions[signature](inputs)


VECTOR = TensorSpec("float32", (-1,))
MATRIX = TensorSpec("float32", (-1, -1))


def identity(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [inputs["x"]]


def failing(code: Code, message: str) -> Run:
    def fail(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        raise BackendError(code, message)

    return fail


def tried(backend: NumpyBackend, seconds: float = 60.0, fatal: Fatal = Fatal()) -> dict[str, Trial]:  # noqa: B008
    trials = try_out(backend, list(backend.signatures), time.monotonic() + seconds, fatal)
    return {trial.name: trial.outcome() for trial in trials}


def outcomes(trials: Mapping[str, Trial]) -> dict[str, Outcome]:
    return {name: trial.outcome for name, trial in trials.items()}


# -- what comes of a signature


def test_each_signature_gets_an_outcome_of_its_own() -> None:
    backend = NumpyBackend(
        answers=(VECTOR, identity),
        picky=(VECTOR, failing(Code.INVALID_ARGUMENT, "not such an x")),
        unset=(VECTOR, failing(Code.FAILED_PRECONDITION, "Table not initialized.")),
        broken=(VECTOR, lambda inputs: [inputs["z"]]),
    )
    assert tried(backend) == {
        "answers": Trial(Outcome.ANSWERED),
        "picky": Trial(Outcome.REFUSED, Code.INVALID_ARGUMENT, "not such an x"),
        "unset": Trial(Outcome.FAILED, Code.FAILED_PRECONDITION, "Table not initialized."),
        "broken": Trial(Outcome.FAILED, Code.INTERNAL, "KeyError: 'z'"),
    }


def test_inputs_too_large_to_make_are_no_fault_of_the_model() -> None:
    backend = NumpyBackend(wide=(TensorSpec("float32", (-1, 1 << 30)), identity))
    assert outcomes(tried(backend)) == {"wide": Outcome.REFUSED}
    assert backend.runs == []


def test_a_fixed_batch_is_kept_in_every_attempt() -> None:
    backend = NumpyBackend(fixed=(TensorSpec("float32", (4, -1)), failing(Code.INVALID_ARGUMENT, "no")))
    tried(backend)
    assert {x.shape[0] for _, x in backend.runs} == {4}


@pytest.mark.parametrize(
    ("spec", "suits"),
    [
        (TensorSpec("float32", (-1, -1, -1, 3)), lambda x: x.shape[1] >= 200),
        (TensorSpec("float32", (-1, 7)), lambda x: len(x) >= 5),
        (TensorSpec("float32", (-1,)), lambda x: not x.any()),
        (TensorSpec("float32", None), lambda x: x.ndim == 4 and x.shape[3] == 3),
        (TensorSpec("float32", None), lambda x: x.ndim == 0),
        (TensorSpec("float32", (1, -1)), lambda x: x.shape[1] >= 512),
        (TensorSpec("float32", (-1,)), lambda x: len(x) >= 15_600),
        (TensorSpec("int64", (-1, 20)), lambda x: x.max() < 2),
        (TensorSpec("string", (-1,)), lambda x: x[0].startswith(b"\x89PNG")),
        (TensorSpec("string", ()), lambda x: x[()].startswith(b"RIFF")),
    ],
)
def test_some_attempt_suits_models_of_many_kinds(spec: TensorSpec, suits: Callable[[np.ndarray], bool]) -> None:
    def choosy(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not suits(inputs["x"]):
            raise BackendError(Code.INVALID_ARGUMENT, "not such an x")
        return [inputs["x"]]

    assert outcomes(tried(NumpyBackend(a=(spec, choosy)))) == {"a": Outcome.ANSWERED}


@pytest.mark.parametrize("dtype", ["float32", "int64", "string", "bool", "uint8", "complex64"])
def test_attempts_are_few_and_the_same_each_time(dtype: str) -> None:
    signature = Signature({"x": TensorSpec(dtype, (-1, -1)), "y": TensorSpec("float32", None)}, {})
    found = list(attempts(signature))
    assert found == list(attempts(signature))
    assert len(found) <= 40


# -- time


def test_a_hang_fails_and_keeps_no_other_from_being_tried() -> None:
    release = threading.Event()

    def hang(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        release.wait(60)
        return identity(inputs)

    backend = NumpyBackend(a=(VECTOR, hang), b=(VECTOR, identity), c=(VECTOR, identity))
    found = tried(backend, 3.0)
    release.set()
    assert outcomes(found) == {"a": Outcome.FAILED, "b": Outcome.ANSWERED, "c": Outcome.ANSWERED}
    assert found["a"].code is Code.DEADLINE_EXCEEDED
    assert found["a"].message.endswith("and used no processor: it hangs")


def test_what_computes_for_too_long_is_late() -> None:
    stop = threading.Event()

    def compute(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        while not stop.is_set():
            np.sum(np.arange(100_000))
        return identity(inputs)

    found = tried(NumpyBackend(a=(VECTOR, compute)), 1.5)
    stop.set()
    assert outcomes(found) == {"a": Outcome.LATE}


def test_what_ends_late_has_answered_all_the_same() -> None:
    other = threading.Event()

    def wait(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        other.wait(60)
        return identity(inputs)

    def tell(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        other.set()
        return identity(inputs)

    backend = NumpyBackend(a=(VECTOR, wait), b=(VECTOR, tell))
    assert outcomes(tried(backend, 4.0)) == {"a": Outcome.ANSWERED, "b": Outcome.ANSWERED}


def test_without_time_nothing_is_begun() -> None:
    backend = NumpyBackend(a=(VECTOR, identity))
    assert outcomes(tried(backend, -1.0)) == {"a": Outcome.LATE}
    assert backend.runs == []


@pytest.mark.parametrize(
    ("change", "is_hang"),
    [
        ({}, True),
        ({"ran": 10.4}, True),
        ({"ran": 10.6}, False),
        ({"waited": 5.6}, False),  # for a processor that others have
        ({"waited": 3.0}, True),  # a thread has ended
        ({"reading": True}, False),
    ],
)
def test_a_process_hangs_that_neither_computes_nor_waits_for_a_processor_or_a_disk(
    change: Mapping[str, float], is_hang: bool
) -> None:
    before = Activity(moment=100.0, ran=10.0, waited=5.0, reading=False)
    after = replace(before, moment=110.0)
    assert hangs(before, replace(after, **change)) is is_hang  # type: ignore[arg-type]  # of two types


# -- signatures that change what lasts


class Counter(NumpyBackend):
    changing = frozenset({"count"})
    outside: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__(a=(VECTOR, identity), count=(VECTOR, identity))


def test_what_changes_the_model_is_tried_on_a_copy(tmp_path: Path) -> None:
    served, copy = Counter(), Counter()
    told: list[tuple[str, int]] = []
    report = warm_up(served, str(tmp_path), ModelOptions())
    assert report.message == "count changes what the model keeps"
    found = try_others(served, report.trials, ModelOptions(), load=lambda: copy, announce=lambda *at: told.append(at))
    assert outcomes({**report.trials, **found}) == {"a": Outcome.ANSWERED, "count": Outcome.ANSWERED}
    assert {name for name, _ in served.runs} == {"a"}
    assert [name for name, _ in copy.runs] == ["count"]
    assert told == [("count", COPY), ("count", 1)]


def test_where_no_copy_can_be_had_it_is_not_tried() -> None:
    def load() -> Counter:
        raise BackendError(Code.RESOURCE_EXHAUSTED, "no memory")

    (trial,) = try_others(Counter(), {"a"}, ModelOptions(), load=load).values()
    assert (trial.outcome, trial.message.rpartition(": ")[2]) == (Outcome.UNTRIED, "no memory")
    fatal = Fatal([("count", COPY, "killed by SIGKILL (9)")])
    (trial,) = try_others(Counter(), {"a"}, ModelOptions(), fatal=fatal, load=Counter).values()
    assert trial.outcome is Outcome.UNTRIED
    (trial,) = try_others(Counter(), {"a"}, ModelOptions(), seconds_left=-1.0, load=Counter).values()
    assert trial.outcome is Outcome.UNTRIED


def test_no_copy_is_loaded_where_memory_is_short() -> None:
    available = available_bytes()
    assert available is not None
    check_memory(available // 4)
    with pytest.raises(BackendError, match=r"about \d+ MiB, and only \d+ MiB of memory are available") as raised:
        check_memory(available * 2)
    assert raised.value.code is Code.RESOURCE_EXHAUSTED


def test_the_files_of_a_version_tell_what_a_copy_takes(tmp_path: Path) -> None:
    available = available_bytes()
    assert available is not None
    (tmp_path / "variables").mkdir()
    weights = tmp_path / "variables" / "variables.data-00000-of-00001"
    weights.touch()
    check_memory_for_copy(str(tmp_path), 1 << 20)
    os.truncate(weights, available)  # nothing is on the disk
    with pytest.raises(BackendError, match="another copy of the model takes about"):
        check_memory_for_copy(str(tmp_path), 1 << 20)


def test_where_loading_the_copy_takes_the_time_it_is_not_tried() -> None:
    options = ModelOptions(warmup_timeout_seconds=0.05)

    def load() -> Counter:
        deadline = time.monotonic() + options.warmup_timeout_seconds
        eventually(lambda: time.monotonic() > deadline, "the time is up")
        return Counter()

    (trial,) = try_others(Counter(), {"a"}, options, load=load).values()
    assert trial.outcome is Outcome.UNTRIED
    assert trial.message == "it changes the model, and no time was left for its trial"


def test_what_acts_outside_of_the_process_is_run_by_nothing(tmp_path: Path) -> None:
    def forbidden() -> Counter:
        raise AssertionError("a copy isolates no files")

    class Writer(Counter):
        outside: Mapping[str, str] = {"count": "WriteFile"}

    backend = Writer()
    report = warm_up(backend, str(tmp_path), ModelOptions())
    assert report.message == "count acts outside of the server by WriteFile"
    found = try_others(backend, report.trials, ModelOptions(), load=forbidden)
    assert outcomes(found) == {"count": Outcome.UNTRIED}
    assert "WriteFile" in found["count"].message
    assert {name for name, _ in backend.runs} == {"a"}


# -- attempts that a process has died of


def test_a_fatal_attempt_is_left_out_and_another_may_answer() -> None:
    backend = NumpyBackend(a=(MATRIX, identity))
    assert outcomes(tried(backend, fatal=Fatal([("a", 1, "killed by SIGABRT (6)")]))) == {"a": Outcome.ANSWERED}
    assert [x.shape for _, x in backend.runs] == [(1, 8)]


def test_where_all_attempts_are_fatal_the_signature_has_failed() -> None:
    backend = NumpyBackend(a=(TensorSpec("bool", ()), identity), b=(VECTOR, identity))
    found = tried(backend, fatal=Fatal([("a", 1, "killed by SIGSEGV (11)")]))
    assert found["a"] == Trial(
        Outcome.FAILED, Code.INTERNAL, "its process died of a made-up input: killed by SIGSEGV (11)"
    )
    assert found["b"].outcome is Outcome.ANSWERED


def test_after_three_deaths_nothing_new_is_tried_at_a_signature() -> None:
    no = failing(Code.INVALID_ARGUMENT, "no")
    backend = NumpyBackend(a=(MATRIX, no), b=(VECTOR, identity))
    found = tried(backend, fatal=Fatal([("a", number, "killed") for number in (1, 3, 4)]))
    assert outcomes(found) == {"a": Outcome.REFUSED, "b": Outcome.ANSWERED}
    assert [x.shape for name, x in backend.runs if name == "a"] == [(1, 8)]


def test_after_five_deaths_nothing_is_tried() -> None:
    backend = NumpyBackend(a=(MATRIX, identity), b=(MATRIX, identity))
    fatal = Fatal([("a", number, "killed") for number in (1, 2, 3, 4, 5)])
    assert outcomes(tried(backend, fatal=fatal)) == {"a": Outcome.FAILED, "b": Outcome.LATE}
    assert backend.runs == []


def test_a_fatal_proof_is_left_out_and_says_nothing_of_the_signature(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    backend = NumpyBackend(a=(VECTOR, identity))
    fatal = Fatal([("a", PROOF, "killed")])
    report = warm_up(backend, str(tmp_path), ModelOptions(), 60.0, fatal, lambda *at: told.append(at))
    assert outcomes(report.trials) == {"a": Outcome.ANSWERED}
    assert report.mergeable == frozenset()
    assert told == [("a", 1)]
    told.clear()
    assert warm_up(backend, str(tmp_path), ModelOptions(), announce=lambda *at: told.append(at)).mergeable == {"a"}
    assert told == [("a", 1), ("a", PROOF)]


def test_the_line_that_says_why_counts_as_last_words() -> None:
    words = LastWords()
    for line in (
        "loading",
        "F0000 00:00:1 ops.cc:7] Check failed: a == b",
        "*** Check failure stack trace: ***",
        "@ 0x7f",
    ):
        words.hear(line)
    assert words.text == "F0000 00:00:1 ops.cc:7] Check failed: a == b"
    words = LastWords()
    words.hear("one")
    words.hear("two")
    assert words.text == "two"


# -- with and without warm-up


@pytest.mark.parametrize("options", [ModelOptions(enable_model_warmup=False), ModelOptions(warmup_timeout_seconds=0)])
def test_without_warm_up_each_signature_is_run_once(tmp_path: Path, options: ModelOptions) -> None:
    backend = NumpyBackend(b=(VECTOR, identity), a=(VECTOR, failing(Code.INTERNAL, "no")))
    assert warm_up(backend, str(tmp_path), options) == WarmupReport()
    assert outcomes(try_others(backend, (), options)) == {"a": Outcome.FAILED, "b": Outcome.ANSWERED}
    assert [name for name, _ in backend.runs].count("b") == 1


def test_signatures_without_a_recorded_request_are_tried(tmp_path: Path) -> None:
    backend = NumpyBackend(a=(VECTOR, identity), b=(VECTOR, identity))
    assert outcomes(try_others(backend, {"a"}, ALONE)) == {"b": Outcome.ANSWERED}
    assert [name for name, _ in backend.runs] == ["b"]


# -- the server


MODELS = (
    "unset_table",
    "no_kernel",
    "crash_always",
    "crash_on_one",
    "crash_on_three_rows",
    "hangs",
    "endless",
    "on_device_training",
    "writes_files",
    "image_bytes",
    "half_plus_two",
)


@pytest.fixture(scope="module")
def log(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a server has to say of `MODELS`."""
    root = tmp_path_factory.mktemp("trials")
    (root / "working").mkdir()

    class InFolder(Server):
        cwd = root / "working"
        environment: Mapping[str, str] = {"PYTHONPATH": str(ROOT)}

    for name in MODELS:
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "1").symlink_to(zoo / name)
    (root / "models/cold").mkdir()
    (root / "models/cold/1").symlink_to(zoo / "unset_table")
    config = """
        release_gate = "only-replacing"
        max_num_load_retries = 0
        [models.cold]
        enable_model_warmup = false
        [models.writes_files]
        release_gate = "strict"
        [models.hangs]
        warmup_timeout_seconds = 8.0
        [models.endless]
        warmup_timeout_seconds = 1.5
    """
    (root / "dropserve.toml").write_text(config)
    with InFolder(model_root=root / "models", config=root / "dropserve.toml") as server:
        for name in (*MODELS, "cold"):
            server.wait_for(name, 1)
        assert os.listdir(InFolder.cwd) == []  # where a made-up name or a constant one would be
        return server.log()


def of(log: str, model: str, what: str) -> list[str]:
    """What the log's lines of `model` say after `what`."""
    return [line.partition(what)[2] for line in log.splitlines() if f" {model}/1: " in line and what in line]


FAILS = "signature serving_default fails whatever it is asked: "


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("unset_table", "FAILED_PRECONDITION: Table not initialized."),
        ("cold", "FAILED_PRECONDITION: Table not initialized."),
        ("no_kernel", "INVALID_ARGUMENT: No OpKernel was registered to support Op 'CudnnRNN'"),
        ("crash_always", "INTERNAL: its process died of a made-up input: killed by SIGABRT (6); its last words: F"),
        ("hangs", "DEADLINE_EXCEEDED: a made-up request had not ended after"),
    ],
)
def test_what_answers_nothing_is_told_with_the_reason(log: str, model: str, why: str) -> None:
    (told,) = of(log, model, FAILS)
    assert told.startswith(why)


@pytest.mark.parametrize(
    "model",
    [
        "crash_on_one",
        "crash_on_three_rows",
        "endless",
        "on_device_training",
        "writes_files",
        "image_bytes",
        "half_plus_two",
    ],
)
def test_what_may_work_has_not_failed(log: str, model: str) -> None:
    assert of(log, model, "fails whatever it is asked") == []


def test_a_process_that_a_made_up_input_ended_starts_again_without_that_input(log: str) -> None:
    told = "while made-up inputs warmed it up ("
    assert len(of(log, "crash_always", told)) == 3
    (at,) = of(log, "crash_on_one", told)
    assert at.startswith("attempt 1 at serving_default")
    (at,) = of(log, "crash_on_three_rows", told)
    assert at.startswith("the trials of merging serving_default")
    assert "Abort_op intentional failure; any x" in of(log, "crash_always", FAILS)[0]


def test_what_is_refused_or_late_is_told(log: str) -> None:
    (restore,) = of(log, "on_device_training", "signature restore was not seen to answer (")
    assert restore.startswith("Unsuccessful TensorSliceReader constructor")
    (late,) = of(log, "endless", "left out of the warm-up: ")
    assert late == "serving_default still runs in the background when the time was up"


@pytest.mark.parametrize(
    ("signature", "op"), [("save", "SaveV2"), ("note", "WriteFile"), ("tell", "PrintV2 to a file")]
)
def test_what_writes_files_is_served_and_not_tried(log: str, signature: str, op: str) -> None:
    (told,) = of(log, "writes_files", f"signature {signature} was not tried: ")
    assert told == f"it acts outside of the server (by {op}), which made-up requests must not"


def test_without_warm_up_there_is_a_trial_and_no_warm_up(log: str) -> None:
    assert of(log, "cold", "warmed up") == []


def test_what_has_served_is_not_tried_again_when_it_restarts(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/1").symlink_to(zoo / "on_device_training")
    with Server(model_root=tmp_path) as server:
        server.wait_for("m", 1)
        (worker,) = server.pids("ds-worker")
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: server.log().count(" warmed up with ") == 2, "it warms up again")
        server.wait_for("m", 1)
        assert len(of(server.log(), "m", "signature restore was not seen to answer (")) == 1

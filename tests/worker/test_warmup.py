"""Warm-up: recorded requests, made-up inputs, and which signatures it lets merge.

Imports TensorFlow into the tests' own process, for the models of the zoo; where a test has to see or hold each run, the
backend is a small one in numpy.
"""

from __future__ import annotations

import shutil
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config.model_options import ModelOptions
from appliance.core.outcomes import Outcome
from appliance.protocols import protos
from appliance.protocols.warmup_records import recorded_requests, records_path
from appliance.worker.trials import PROOF, Fatal
from appliance.worker.warmup import WarmupReport, source_of, try_others, warm_up
from backends import tensorflow_backend
from backends.contract import Backend, BackendError, Changing, Code, Signature, TensorSpec
from backends.crc32c import masked_crc32c
from tests.support import warmup_files
from tests.support.server import Server
from tests.support.warmup_files import RECORDS, put

ALONE = ModelOptions(merge_waiting_requests=False)
VECTOR = TensorSpec("float32", (-1,))
Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


class NumpyBackend:
    """A backend of numpy functions: `runs` and `fetched` keep what it was asked for."""

    def __init__(self, **functions: tuple[Signature, Run]) -> None:
        self.signatures = {name: signature for name, (signature, _) in functions.items()}
        self.runs: list[tuple[str, Mapping[str, np.ndarray]]] = []
        self.fetched: list[tuple[str, ...]] = []
        self._functions = {name: function for name, (_, function) in functions.items()}

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        self.runs.append((signature, inputs))
        self.fetched.append(tuple(outputs))
        return self._functions[signature](inputs)


def identity(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [inputs["x"]]


def nothing(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return []


def refuse(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    raise BackendError(Code.INVALID_ARGUMENT, "nothing suits me\nfor long reasons")


def one(spec: TensorSpec = VECTOR) -> Signature:
    return Signature({"x": spec}, {"y": spec})


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warmup-files")
    warmup_files.write(folder)
    return folder


@pytest.fixture(scope="module")
def load(zoo: Path) -> Callable[[str], Backend]:
    return lambda name: tensorflow_backend.load(str(zoo / name))


@pytest.fixture
def recorded(files: Path, tmp_path: Path) -> Callable[..., WarmupReport]:
    """Warms a backend up with one of the files."""

    def warm(name: str, backend: Backend, options: ModelOptions = ALONE) -> WarmupReport:
        put(files / name, tmp_path)
        return warm_up(backend, str(tmp_path), options)

    return warm


def next_run(backend: Backend) -> int:
    """How many runs the zoo's model `runs` has behind it, with this one."""
    return int(backend.run("serving_default", {"x": np.zeros(1, np.float32)}, ["y", "run"])[1][0])


# -- recorded requests


def test_each_recorded_request_is_run_once(
    load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]
) -> None:
    backend = load("runs")
    report = recorded("predicts", backend)
    assert (report.requests, report.source, report.message) == (3, "recorded", "")
    assert next_run(backend) == 4


def test_each_recorded_request_is_run_as_often_as_asked(
    load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]
) -> None:
    backend = load("runs")
    options = ModelOptions(merge_waiting_requests=False, num_request_iterations_for_warmup=5)
    assert recorded("predicts", backend, options).requests == 15
    assert next_run(backend) == 16


def test_recorded_values_reach_the_model_in_either_form(recorded: Callable[..., WarmupReport]) -> None:
    backend = NumpyBackend(serving_default=(one(), identity))
    recorded("predicts", backend)
    assert [inputs["x"].tolist() for _, inputs in backend.runs] == [[1, 2], [2, 3], [1]]


def test_strings_reach_the_model(recorded: Callable[..., WarmupReport]) -> None:
    spec = TensorSpec("string", (-1,))
    backend = NumpyBackend(serving_default=(Signature({"text": spec}, {"y": spec}), lambda inputs: [inputs["text"]]))
    recorded("texts", backend)
    assert [inputs["text"].tolist() for _, inputs in backend.runs] == [[b"a", b"\xff\0"]]


def test_classify_regress_and_multi_inference_are_run(
    load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]
) -> None:
    assert recorded("half_plus_two", load("half_plus_two")).requests == 5


def test_examples_come_serialized_and_with_their_context(recorded: Callable[..., WarmupReport]) -> None:
    examples, floats = TensorSpec("string", (-1,)), TensorSpec("float32", (-1, 2))
    classify = Signature({"inputs": examples}, {"scores": floats}, "tensorflow/serving/classify")
    regress = Signature({"inputs": examples}, {"outputs": VECTOR}, "tensorflow/serving/regress")
    backend = NumpyBackend(
        serving_default=(one(), identity),
        classify_x_to_label=(classify, nothing),
        classify_x_to_y=(classify, nothing),
        regress_x_to_y=(regress, nothing),
    )
    recorded("half_plus_two", backend)
    asked = [
        (name, [protos.Example.FromString(e).features.feature["x"].float_list.value[-1] for e in inputs["inputs"]])
        for name, inputs in backend.runs
        if "inputs" in inputs
    ]
    assert asked == [
        ("classify_x_to_label", [1, 2]),
        ("regress_x_to_y", [3]),
        ("regress_x_to_y", [1, 2]),
        ("classify_x_to_y", [1, 2]),
    ]


def test_an_output_filter_is_kept_and_without_one_all_outputs_are_fetched(
    recorded: Callable[..., WarmupReport],
) -> None:
    signature = Signature({"x": VECTOR}, {"y": VECTOR, "z": VECTOR})
    backend = NumpyBackend(serving_default=(signature, nothing))
    recorded("filtered", backend)
    recorded("predicts", backend)
    assert backend.fetched == [("y",), *[("y", "z")] * 3]


def test_a_recorded_request_may_leave_out_what_has_a_default(recorded: Callable[..., WarmupReport]) -> None:
    signature = Signature({"x": VECTOR, "k": TensorSpec("int32", ())}, {"y": VECTOR}, defaults={"k": b""})
    backend = NumpyBackend(serving_default=(signature, identity))
    assert recorded("predicts", backend, ModelOptions()).requests == 3
    with pytest.raises(BackendError, match=r"Sent extra: {z}. Missing but required: {x}\.$"):
        recorded("wrong_input", backend)


def test_a_recorded_request_without_inputs_is_run(
    load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]
) -> None:
    assert recorded("without_inputs", load("multi_io"), ModelOptions()).requests == 1


def test_logs_of_no_kind_are_passed_over(load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]) -> None:
    assert recorded("passed_over", load("tiny_tf2")).requests == 1


def test_an_empty_file_runs_nothing(load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]) -> None:
    report = recorded("empty", load("tiny_tf2"))
    assert (report.requests, report.source) == (0, "recorded")


def test_a_thousand_records_are_allowed(load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]) -> None:
    assert recorded("thousand", load("tiny_tf2")).requests == 1000


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("too_many", Code.INVALID_ARGUMENT, r"^Number of warmup records exceeds the maximum \(1000\) at {file}$"),
        ("session_run", Code.UNIMPLEMENTED, r"^warm-up request 1 of {file} failed: Unsupported log_type for warmup: 5"),
        ("wrong_input", Code.INVALID_ARGUMENT, r"^warm-up request 2 of {file} failed: input size does not match"),
        ("wrong_input", Code.INVALID_ARGUMENT, r"Sent extra: {{z}}. Missing but required: {{x}}\.$"),
        ("wrong_dtype", Code.INVALID_ARGUMENT, r"of {file} failed: Input \"x\" has elements of float64; .* DT_FLOAT$"),
        ("wrong_output", Code.INVALID_ARGUMENT, r"output tensor alias not found in signature: nope .* {{y}}\.$"),
        ("same_output_twice", Code.INVALID_ARGUMENT, r"failed: duplicate output tensor alias: y$"),
        ("no_signature", Code.INVALID_ARGUMENT, r"failed: No signature was found with the name: nope$"),
        ("same_task_twice", Code.INVALID_ARGUMENT, r"failed: Duplicate evaluation of signature: regress_x_to_y$"),
        (
            "unknown_method",
            Code.UNIMPLEMENTED,
            r"failed: Unsupported signature method_name: tensorflow/serving/predict",
        ),
        ("no_log", Code.INVALID_ARGUMENT, r"^Failed to parse warmup record: record 2 of {file} is no PredictionLog$"),
    ],
)
def test_what_cannot_be_run_fails_the_load_and_names_the_record(
    load: Callable[[str], Backend],
    recorded: Callable[..., WarmupReport],
    tmp_path: Path,
    file: str,
    code: Code,
    message: str,
) -> None:
    with pytest.raises(BackendError, match=message.format(file=tmp_path / RECORDS)) as caught:
        recorded(file, load("half_plus_two"))
    assert caught.value.code == code


def test_a_request_that_the_model_refuses_fails_the_load(
    load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]
) -> None:
    with pytest.raises(BackendError, match=r"^warm-up request 2 of .* failed: .*x must not be negative"):
        recorded("negative", load("fails"))


def test_an_unknown_signature_fails_the_load(recorded: Callable[..., WarmupReport]) -> None:
    with pytest.raises(BackendError, match=r'Serving signature key "serving_default" not found\.$') as caught:
        recorded("predicts", NumpyBackend(other=(one(), identity)))
    assert caught.value.code == Code.FAILED_PRECONDITION


def damaged(files: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> BackendError:
    path = tmp_path / "file"
    path.write_bytes(change((files / "predicts").read_bytes()))
    with pytest.raises(BackendError, match=r"Please verify your warmup data is in TFRecord format\.$") as caught:
        list(recorded_requests(str(path)))
    assert caught.value.code == Code.DATA_LOSS
    assert str(path) in caught.value.message
    return caught.value


def test_a_file_that_is_cut_off_is_refused(files: Path, tmp_path: Path) -> None:
    size = (files / "predicts").stat().st_size
    for kept in (1, 11, 12, 40, size - 1):
        error = damaged(files, tmp_path, lambda content, kept=kept: content[:kept])
        assert "truncated record at" in error.message


def test_a_changed_byte_is_noticed_wherever_it_is(files: Path, tmp_path: Path) -> None:
    size = (files / "predicts").stat().st_size
    for position in range(size):
        damaged(
            files, tmp_path, lambda content, at=position: content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]
        )


def test_a_length_beyond_the_file_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    for length in (1 << 30, 1 << 40, 2**64 - 1):
        head = struct.pack("<Q", length)
        path = tmp_path / "file"
        path.write_bytes(head + struct.pack("<I", masked_crc32c(head)) + bytes(100))
        with pytest.raises(BackendError, match="record 1 of") as caught:
            list(recorded_requests(str(path)))
        assert caught.value.code == Code.DATA_LOSS


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_record_is_run_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    head = struct.pack("<Q", len(data))
    (folder / "assets.extra").mkdir()
    (folder / RECORDS).write_bytes(
        head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data))
    )
    message = str(folder)
    try:
        warm_up(NumpyBackend(serving_default=(one(), identity)), str(folder), ALONE)
    except BackendError as error:
        message = error.message
    shutil.rmtree(folder)
    assert str(folder) in message


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECORDS).mkdir(parents=True)
    with pytest.raises(BackendError, match=r"is not a file|Is a directory"):
        warm_up(NumpyBackend(), str(tmp_path), ALONE)


# -- made-up inputs


def test_every_signature_is_run_once_with_one_row(tmp_path: Path) -> None:
    backend = NumpyBackend(a=(one(), identity), serving_default=(one(TensorSpec("float32", (-1, 3))), identity))
    report = warm_up(backend, str(tmp_path), ALONE)
    assert (report.requests, report.source, report.message) == (2, "made", "")
    assert [(name, inputs["x"].shape) for name, inputs in backend.runs] == [("serving_default", (1, 3)), ("a", (1,))]


@pytest.mark.parametrize("options", [ModelOptions(enable_model_warmup=False), ModelOptions(warmup_timeout_seconds=0)])
def test_no_warm_up_runs_nothing_and_merges_nothing(tmp_path: Path, options: ModelOptions) -> None:
    backend = NumpyBackend(serving_default=(one(), identity))
    assert source_of(str(tmp_path), options) == "none"
    assert warm_up(backend, str(tmp_path), options) == WarmupReport()
    assert backend.runs == []


def test_without_warm_up_a_malformed_file_is_not_read(files: Path, tmp_path: Path) -> None:
    put(files / "session_run", tmp_path)
    assert warm_up(NumpyBackend(), str(tmp_path), ModelOptions(enable_model_warmup=False)) == WarmupReport()


def test_a_refusal_fails_nothing_and_is_told(tmp_path: Path) -> None:
    backend = NumpyBackend(serving_default=(one(), identity), picky=(one(), refuse))
    report = warm_up(backend, str(tmp_path), ALONE)
    assert report.requests == 1
    assert report.message == "picky refused made-up inputs: nothing suits me"


def test_whatever_a_model_raises_is_its_refusal(tmp_path: Path) -> None:
    report = warm_up(NumpyBackend(broken=(one(), lambda inputs: [inputs["y"]])), str(tmp_path), ALONE)
    assert report.message == "broken refused made-up inputs: KeyError: 'y'"


def test_inputs_with_a_default_are_left_out(tmp_path: Path) -> None:
    signature = Signature({"x": VECTOR, "k": TensorSpec("int32", ())}, {"y": VECTOR}, defaults={"k": b""})
    backend = NumpyBackend(serving_default=(signature, identity))
    report = warm_up(backend, str(tmp_path), ModelOptions())
    assert [[*inputs] for _, inputs in backend.runs] == [["x"]]
    assert report.mergeable == frozenset()


def test_sizes_of_unknown_dimensions_are_tried(tmp_path: Path) -> None:
    def wide(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return refuse(inputs) if inputs["x"].shape[1] < 30 else identity(inputs)

    backend = NumpyBackend(serving_default=(one(TensorSpec("float32", (-1, -1))), wide))
    assert warm_up(backend, str(tmp_path), ALONE).message == ""
    assert [inputs["x"].shape for _, inputs in backend.runs] == [(1, 1), (1, 8), (1, 32)]


def test_smaller_ids_are_tried(tmp_path: Path) -> None:
    def embedding(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return refuse(inputs) if inputs["x"].max() >= 2 else identity(inputs)

    backend = NumpyBackend(serving_default=(one(TensorSpec("int64", (-1, 50))), embedding))
    assert warm_up(backend, str(tmp_path), ALONE).message == ""


def test_inputs_that_are_too_large_are_not_made(tmp_path: Path) -> None:
    backend = NumpyBackend(serving_default=(one(TensorSpec("float32", (-1, 1 << 30))), identity))
    assert "bytes at batch size 1, more than" in warm_up(backend, str(tmp_path), ALONE).message
    assert backend.runs == []


def test_a_run_that_hangs_ends_the_warm_up_in_time(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        release.wait(60)
        return identity(inputs)

    backend = NumpyBackend(a=(one(), identity), b=(one(), hang), c=(one(), identity))
    report = warm_up(backend, str(tmp_path), ModelOptions(warmup_timeout_seconds=0.2))
    release.set()
    assert report.requests == 1
    assert report.message == "b still runs in the background when the time was up, 1 more were left out"
    assert report.mergeable == frozenset()


def test_the_time_that_a_load_has_left_bounds_the_warm_up(tmp_path: Path) -> None:
    backend = NumpyBackend(a=(one(), identity))
    report = warm_up(backend, str(tmp_path), ModelOptions(), seconds_left=-1.0)
    assert report.message == "a was not begun when the time was up"
    assert backend.runs == []


def test_signatures_are_bounded_in_number(tmp_path: Path) -> None:
    backend = NumpyBackend(**{f"s{number:03}": (one(), identity) for number in range(70)})
    report = warm_up(backend, str(tmp_path), ALONE)
    assert report.requests == 64
    assert report.message == "6 of 70 signatures were left out"


@pytest.mark.parametrize(
    "name", ["half_plus_two", "dtypes", "keras2", "keras3", "scalars", "strings", "multi_io", "gate"]
)
def test_models_of_many_kinds_take_what_is_made(load: Callable[[str], Backend], tmp_path: Path, name: str) -> None:
    backend = load(name)
    report = warm_up(backend, str(tmp_path), ALONE)
    assert report.message == ""
    assert report.requests == len(backend.signatures)


def test_warm_up_trains_no_model(load: Callable[[str], Backend], tmp_path: Path) -> None:
    backend = load("on_device_training")
    report = warm_up(backend, str(tmp_path), ModelOptions())
    assert report.message == "restore changes what the model keeps; train changes what the model keeps"
    others = try_others(backend, report.trials, ModelOptions(), load=lambda: load("on_device_training"))
    assert {name: trial.outcome for name, trial in others.items()} == {
        "restore": Outcome.REFUSED,
        "train": Outcome.ANSWERED,
    }
    assert backend.run("infer", {"x": np.ones(1, np.float32)}, ["y"])[0].tolist() == [2.0]


@pytest.mark.parametrize(
    ("model", "changing"),
    [
        ("on_device_training", {"train", "restore"}),
        ("runs", {"serving_default"}),
        ("half_plus_two", set()),
        ("keras2", set()),
        ("keras3", set()),
        ("unset_table", set()),
        ("hangs", {"serving_default"}),
        ("draws", {"serving_default"}),
        ("writes_files", {"save", "note", "tell"}),
    ],
)
def test_signatures_that_change_their_model_are_known(
    load: Callable[[str], Backend], model: str, changing: set[str]
) -> None:
    backend = load(model)
    assert isinstance(backend, Changing)
    assert backend.changing == changing
    outside = {"save": "SaveV2", "note": "WriteFile", "tell": "PrintV2 to a file"} if model == "writes_files" else {}
    assert backend.outside == outside


# -- merging


@pytest.mark.parametrize(
    ("model", "mergeable"),
    [
        ("half_plus_two", {"serving_default", "classify_x_to_y", "regress_x_to_y"}),
        ("multi_io", {"serving_default", "swapped"}),
        ("keras2", {"serving_default"}),
        ("strings", {"serving_default"}),
        ("batch_softmax", set()),
        ("runs", set()),
        ("scalars", set()),
        ("gate", set()),
    ],
)
def test_only_models_that_answer_rows_one_by_one_may_be_merged(
    load: Callable[[str], Backend], tmp_path: Path, model: str, mergeable: set[str]
) -> None:
    assert warm_up(load(model), str(tmp_path), ModelOptions()).mergeable == mergeable


@pytest.mark.parametrize("options", [ALONE, ModelOptions(enable_batching=True)])
def test_nothing_is_tried_where_the_answer_is_not_asked_for(tmp_path: Path, options: ModelOptions) -> None:
    backend = NumpyBackend(serving_default=(one(), identity))
    assert warm_up(backend, str(tmp_path), options).mergeable == frozenset()
    assert len(backend.runs) == 1


def test_recorded_rows_are_tried_too(recorded: Callable[..., WarmupReport]) -> None:
    # Made-up floats are below 1, the recorded ones are not: only these show that the answer hangs on the batch.
    def above_one(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        x = inputs["x"]
        return [x - x.mean() if x.max() > 1.5 else x]

    backend = NumpyBackend(serving_default=(one(), above_one))
    assert recorded("predicts", backend, ModelOptions()).mergeable == frozenset()
    backend = NumpyBackend(serving_default=(one(), identity))
    assert recorded("predicts", backend, ModelOptions()).mergeable == {"serving_default"}


def test_where_too_many_processes_have_died_nothing_is_proven(files: Path, tmp_path: Path) -> None:
    put(files / "predicts", tmp_path)
    backend = NumpyBackend(serving_default=(one(), identity))
    deaths = Fatal([(f"other{number}", PROOF, "killed by SIGABRT (6)") for number in range(5)])
    told: list[tuple[str, int]] = []
    report = warm_up(backend, str(tmp_path), ModelOptions(), 60.0, deaths, lambda *at: told.append(at))
    assert (report.source, report.mergeable, told) == ("recorded", frozenset(), [])


def test_recorded_examples_prove_what_parses_them(
    load: Callable[[str], Backend], recorded: Callable[..., WarmupReport]
) -> None:
    report = recorded("half_plus_two", load("half_plus_two"), ModelOptions())
    assert report.mergeable == {"serving_default", "classify_x_to_y", "regress_x_to_y"}


def test_floats_that_are_taken_for_ids_prove_it_too(tmp_path: Path) -> None:
    table = np.arange(10, dtype=np.float32) ** 2

    def embedding(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [table[inputs["x"].astype(np.int64)]]

    backend = NumpyBackend(serving_default=(one(), embedding))
    assert warm_up(backend, str(tmp_path), ModelOptions()).mergeable == {"serving_default"}
    backend = NumpyBackend(serving_default=(one(), lambda inputs: [embedding(inputs)[0][::-1].copy()]))
    assert warm_up(backend, str(tmp_path), ModelOptions()).mergeable == frozenset()


def test_a_model_too_slow_for_its_trials_is_not_merged_and_costs_one_run(tmp_path: Path) -> None:
    never = threading.Event()

    def slow(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        never.wait(0.3)
        return identity(inputs)

    backend = NumpyBackend(serving_default=(one(), slow))
    assert warm_up(backend, str(tmp_path), ModelOptions()).mergeable == frozenset()
    assert len(backend.runs) == 2


# -- the server


def test_the_server_runs_recorded_requests_before_a_version_is_available(
    drop: Callable[..., Path], files: Path, tmp_path: Path
) -> None:
    version = drop("counted", source="runs")
    put(files / "predicts", version)
    root = tmp_path / "models"
    with Server(
        model_root=root, num_request_iterations_for_warmup=4, merge_waiting_requests=False, max_num_load_retries=0
    ) as server:
        server.wait_for("counted", 1)
        _, answer = server.predict("counted", {"instances": [5.0]})
        assert answer == {"predictions": [{"y": 5.0, "run": 13}]}
        assert "counted/1: warmed up with 12 requests in" in server.log()


def test_a_bad_record_fails_its_version_and_the_old_one_stays(
    drop: Callable[..., Path], files: Path, tmp_path: Path
) -> None:
    drop("m", 1)
    with Server(model_root=tmp_path / "models", max_num_load_retries=0) as server:
        server.wait_for("m", 1)
        bad = drop("m", ".2", source="half_plus_three")
        put(files / "wrong_input", bad)
        bad.rename(bad.with_name("2"))
        reason = server.wait_for("m", 2, "failed")
        assert "warm-up request 2 of" in reason
        assert str(RECORDS) in reason
        assert "Sent extra: {z}" in reason
        assert server.predict("m", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_model_that_made_up_inputs_crash_is_served_all_the_same(drop: Callable[..., Path], tmp_path: Path) -> None:
    drop("m", source="crash_on_positive")
    with Server(model_root=tmp_path / "models", max_num_load_retries=0) as server:
        server.wait_for("m", 1)
        assert "while made-up inputs warmed it up (attempt 1 at serving_default); it starts again" in server.log()
        assert server.predict("m", {"instances": [-1.0]}) == (200, {"predictions": [-1.0]})


def test_a_softmax_over_the_batch_is_not_merged_and_a_row_by_row_model_is(
    drop: Callable[..., Path], tmp_path: Path
) -> None:
    drop("across", source="batch_softmax")
    drop("rows")
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("across", 1)
        server.wait_for("rows", 1)
        log = server.log()
        (across,) = [line for line in log.splitlines() if "across/1: warmed up" in line]
        (rows,) = [line for line in log.splitlines() if "rows/1: warmed up" in line]
        assert "merged" not in across
        assert "requests may be merged: classify_x_to_y, regress_x_to_y, serving_default" in rows


def test_where_recorded_requests_lie() -> None:
    path = Path("assets.extra", "tf_serving_warmup_requests")
    assert path == RECORDS
    assert records_path("/nowhere") is None

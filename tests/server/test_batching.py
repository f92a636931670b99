"""`enable_batching` and the merging of requests that wait, with real servers, models and parameter files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from appliance.config.batching_parameters import PER_MODEL_FILE
from appliance.protocols import protos
from tests.support.server import ROOT, Server, eventually

Drop = Callable[..., Path]
LONG = "batch_timeout_micros { value: 60000000 }"

# Model → the SavedModel of the zoo, and its batching parameters (None: without batching).
MODELS: dict[str, tuple[str, str | None]] = {
    "merged": ("gate", f"max_batch_size {{ value: 4 }} {LONG}"),
    "timed": ("gate", "batch_timeout_micros { value: 300000 }"),
    "padded": ("gate", "max_batch_size { value: 8 } allowed_batch_sizes: 2 allowed_batch_sizes: 8"),
    "full": ("gate", "max_batch_size { value: 1 } max_enqueued_batches { value: 1 } num_batch_threads { value: 1 }"),
    "split": (
        "gate",
        (
            "max_batch_size { value: 100 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 4 } allowed_batch_sizes: 2 allowed_batch_sizes: 4"
        ),
    ),
    "drained": ("gate", LONG),
    "pairs": ("half_plus_two", "max_batch_size { value: 2 } batch_timeout_micros { value: 300000 }"),
    "lengths": ("half_plus_two", f"max_batch_size {{ value: 2 }} pad_variable_length_inputs: true {LONG}"),
    "multi_io": ("multi_io", ""),
    "scalars": ("scalars", ""),
    "fails": ("fails", f"max_batch_size {{ value: 3 }} {LONG}"),
    "own": ("gate", "max_batch_size { value: 1 }"),
    "bad": ("gate", ""),
    "slow": ("slow", None),
    "softmax": ("batch_softmax", None),
}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server of all `MODELS`, each with parameters of its own."""
    root = tmp_path_factory.mktemp("batching")
    config = ["enable_batching = true"]
    for name, (source, parameters) in MODELS.items():
        shutil.copytree(zoo / source, root / "models" / name / "1")
        config.append(f"[models.{name}]")
        if parameters is None:
            config += ["enable_batching = false", "max_concurrent_requests = 1"]
        else:
            (root / f"{name}.txt").write_text(parameters)
            config.append(f'batching_parameters_file = "{root / name}.txt"')
        if name in ("own", "bad"):
            config.append("enable_per_model_batching_parameters = true")
        if source == "gate":
            config.append("enable_model_warmup = false")
    (root / "models/own/1" / PER_MODEL_FILE).write_text(f"max_batch_size {{ value: 2 }} {LONG}")
    (root / "models/bad/1" / PER_MODEL_FILE).write_text("max_batch_size { value: 0 }")
    (root / "dropserve.toml").write_text("\n".join(config))
    with Server(model_root=root / "models", config=root / "dropserve.toml") as running:
        for name in MODELS:
            running.wait_for(name, 1, "failed" if name == "bad" else "available")
        yield running


def batching_server(tmp_path: Path, parameters: str) -> Server:
    """A server of its own, for what ends it or a worker of it."""
    path = tmp_path / "batching.txt"
    path.write_text(parameters)
    return Server(
        model_root=tmp_path / "models", enable_batching=True, batching_parameters_file=path, enable_model_warmup=False
    )


def test_requests_are_merged_to_a_full_batch(server: Server, pool: ThreadPoolExecutor) -> None:
    answers = [pool.submit(server.predict, "merged", {"instances": rows}) for rows in ([""], ["", ""], [""])]
    expected = [(200, {"predictions": [4] * rows}) for rows in (1, 2, 1)]
    assert [answer.result(30) for answer in answers] == expected


def test_a_lone_request_runs_when_its_time_is_over(server: Server) -> None:
    began = time.monotonic()
    assert server.predict("timed", {"instances": [""]}) == (200, {"predictions": [1]})
    assert time.monotonic() - began >= 0.3


def test_a_batch_is_padded_to_an_allowed_size(server: Server) -> None:
    assert server.predict("padded", {"instances": [""] * 3}) == (200, {"predictions": [8] * 3})
    assert server.predict("padded", {"instances": [""] * 2}) == (200, {"predictions": [2] * 2})


def test_what_tensorflow_serving_cannot_batch_is_refused_in_its_words(server: Server) -> None:
    def error(model: str, document: Any) -> tuple[int, str]:
        status, body = server.predict(model, document)
        return status, body["error"]

    status, message = error("pairs", {"instances": [1.0] * 5})
    assert (status, message) == (400, "Task size 5 is larger than maximum input batch size 2")
    status, message = error("multi_io", {"inputs": {"a": [[1, 2, 3]], "b": [1, 2]}})
    assert (status, message) == (400, "Batching Run() input tensors must have equal 0th-dimension size")
    status, message = error("scalars", {"inputs": {"x": 1.0, "n": 1, "s": "a"}})
    assert (status, message) == (400, "Batching Run() input tensors must have at least one dimension")


def test_a_full_queue_is_429_and_resource_exhausted(server: Server, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    gate = tmp_path / "open"
    body = json.dumps({"instances": [str(gate)]}).encode()
    answers = [pool.submit(server.http, "POST", "/v1/models/full:predict", body) for _ in range(3)]
    eventually(lambda: any(answer.done() for answer in answers), "one is refused")
    (refused,) = [answer for answer in answers if answer.done()]
    status, document, headers = refused.result()
    assert status == 429
    assert document["error"] == (
        "The batch scheduling queue to which this task was submitted is full; currently 1 batches enqueued and "
        "max_enqueued_batches is 1"
    )
    assert headers["retry-after"] == "1"
    with pytest.raises(grpc.RpcError) as caught, grpc_predict(server) as call:
        call("full", "path", np.array([str(gate).encode()], object))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    gate.touch()
    assert sorted(answer.result(30)[0] for answer in answers) == [200, 200, 429]


@contextmanager
def grpc_predict(server: Server) -> Iterator[Callable[[str, str, np.ndarray], np.ndarray]]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        method = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        def predict(model: str, name: str, array: np.ndarray) -> np.ndarray:
            request = protos.PredictRequest()
            request.model_spec.name = model
            tensor = request.inputs[name]
            for size in array.shape:
                tensor.tensor_shape.dim.add(size=size)
            if array.dtype == object:
                tensor.dtype = protos.DataType.Value("DT_STRING")
                tensor.string_val.extend(array.reshape(-1).tolist())
            else:
                tensor.dtype = protos.DataType.Value("DT_FLOAT")
                tensor.tensor_content = array.tobytes()
            answer = protos.PredictResponse.FromString(method(request.SerializeToString(), timeout=60))
            (output,) = answer.outputs.values()
            shape = [dim.size for dim in output.tensor_shape.dim]
            return np.array(output.float_val, np.float32).reshape(shape)

        yield predict


def test_requests_of_other_shapes_do_not_harm_each_other(server: Server, pool: ThreadPoolExecutor) -> None:
    with grpc_predict(server) as predict:
        inputs = [np.full((1, width), width, np.float32) for width in (2, 3, 2, 5)]
        answers = [pool.submit(predict, "pairs", "x", x) for x in inputs]
        for x, answer in zip(inputs, answers, strict=True):
            assert np.array_equal(answer.result(30), x / 2 + 2)


def test_variable_lengths_are_padded_to_the_longest(server: Server, pool: ThreadPoolExecutor) -> None:
    with grpc_predict(server) as predict:
        short = pool.submit(predict, "lengths", "x", np.array([[4, 8]], np.float32))
        long = pool.submit(predict, "lengths", "x", np.array([[1, 2, 3]], np.float32))
        assert long.result(30).tolist() == [[2.5, 3, 3.5]]
        assert short.result(30).tolist() == [[4, 6, 4]]  # the first element pads, as in TensorFlow Serving


def test_large_tensors_are_merged_from_shared_memory(server: Server, pool: ThreadPoolExecutor) -> None:
    with grpc_predict(server) as predict:
        inputs = [np.arange(600_000, dtype=np.float32).reshape(1, -1) + offset for offset in (0, 7)]
        answers = [pool.submit(predict, "pairs", "x", x) for x in inputs]
        for x, answer in zip(inputs, answers, strict=True):
            assert np.array_equal(answer.result(30), x / 2 + 2)


def test_a_large_request_is_split_where_the_parameters_say_so(server: Server) -> None:
    assert server.predict("split", {"instances": [""] * 9}) == (200, {"predictions": [4] * 8 + [2]})


def test_a_bad_request_of_a_batch_fails_alone(server: Server, pool: ThreadPoolExecutor) -> None:
    answers = [pool.submit(server.predict, "fails", {"instances": [x]}) for x in (4.0, -1.0, 9.0)]
    good, (status, bad), also_good = (answer.result(30) for answer in answers)
    assert good == (200, {"predictions": [2.0]})
    assert also_good == (200, {"predictions": [3.0]})
    assert status == 400
    assert "x must not be negative" in bad["error"]


def test_unloading_a_version_answers_what_waits_for_a_batch(
    server: Server, zoo: Path, pool: ThreadPoolExecutor
) -> None:
    answers = [pool.submit(server.predict, "drained", {"instances": [""]}) for _ in range(3)]
    eventually(lambda: waiting(server, "drained", 1) == 3, "three requests wait")
    root = Path(next(flag for flag in server.arguments if flag.startswith("--model_root=")).partition("=")[2])
    shutil.copytree(zoo / "gate", root / "drained" / ".incoming")
    os.rename(root / "drained" / ".incoming", root / "drained" / "2")
    assert [answer.result(30) for answer in answers] == [(200, {"predictions": [3]})] * 3


def test_a_versions_own_parameters_go_before_the_common_ones(server: Server, pool: ThreadPoolExecutor) -> None:
    answers = [pool.submit(server.predict, "own", {"instances": [""]}) for _ in range(2)]
    assert [answer.result(30) for answer in answers] == [(200, {"predictions": [2]})] * 2


def test_a_versions_bad_parameters_fail_that_version_only(server: Server) -> None:
    (_, reason) = server.versions("bad")[1]
    assert "max_batch_size must be positive; was 0" in reason


def test_stopping_the_server_answers_what_waits_for_a_batch(
    drop: Drop, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    drop("gate", source="gate")
    with batching_server(tmp_path, "batch_timeout_micros { value: 3000000 }") as server:
        server.wait_for("gate", 1)
        answers = [pool.submit(server.predict, "gate", {"instances": [""]}) for _ in range(3)]
        eventually(lambda: waiting(server, "gate", 1) == 3, "three requests wait")
        assert server.stop() == 0
        assert [answer.result(30) for answer in answers] == [(200, {"predictions": [3]})] * 3


def metric(server: Server, name: str, **labels: str) -> float:
    """The value of the series that has these labels; 0 where there is none."""
    _, page, _ = server.http("GET", "/metrics")
    for series, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", page.decode(), re.MULTILINE):
        if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', series)).items():
            return float(value)
    return 0.0


def waiting(server: Server, model: str, version: int) -> int:
    return int(metric(server, "dropserve_queue_requests", model=model, version=str(version)))


def test_a_worker_that_is_killed_while_a_batch_runs_fails_that_batch_only(
    drop: Drop, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    drop("gate", source="gate")
    with batching_server(tmp_path, f"max_batch_size {{ value: 2 }} {LONG}") as server:
        server.wait_for("gate", 1)
        closed = {"instances": [str(tmp_path / "never")]}
        answers = [pool.submit(server.predict, "gate", closed) for _ in range(2)]
        running = {"model": "gate", "version": "1"}
        eventually(lambda: metric(server, "dropserve_runs_in_progress", **running) == 1, "the batch runs")
        (worker,) = server.pids("ds-worker")
        os.kill(worker, signal.SIGKILL)
        assert [answer.result(30)[0] for answer in answers] == [503, 503]
        eventually(lambda: server.pids("ds-worker") not in ([], [worker]), "the worker is replaced")
        server.wait_for("gate", 1)
        again = [pool.submit(server.predict, "gate", {"instances": [""]}) for _ in range(2)]
        assert [answer.result(30) for answer in again] == [(200, {"predictions": [2]})] * 2


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("max_batch_size: 4", "write the number as max_batch_size { value: 32 }"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 2", "Last entry in allowed_batch_sizes must match"),
    ],
)
def test_a_bad_common_file_stops_the_start(tmp_path: Path, parameters: str, words: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "batching.txt").write_text(parameters)
    flags = [
        f"--model_root={tmp_path / 'models'}",
        "--rest_api_port=0",
        "--port=0",
        "--enable_batching=true",
        f"--batching_parameters_file={tmp_path / 'batching.txt'}",
    ]
    command = [sys.executable, "-m", "appliance", "serve", *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert words in ended.stderr


# -- merging without a flag ------------------------------------------------------------------------------------------


def ask_together(server: Server, model: str, document: Any, clients: int, each: int) -> list[tuple[int, Any]]:
    """The answers that `clients` got who asked at the same time, `each` times in a row."""
    barrier = threading.Barrier(clients)

    def client() -> list[tuple[int, Any]]:
        barrier.wait(30)
        return [server.predict(model, document) for _ in range(each)]

    with ThreadPoolExecutor(clients) as executor:
        futures = [executor.submit(client) for _ in range(clients)]
        return [answer for future in futures for answer in future.result(60)]


def test_requests_that_wait_are_merged_without_any_flag(server: Server) -> None:
    before = metric(server, "dropserve_batch_requests_count", model="slow")
    answers = ask_together(server, "slow", {"instances": [300]}, clients=6, each=4)
    assert answers == [(200, {"predictions": [300]})] * 24
    runs = metric(server, "dropserve_batch_requests_count", model="slow") - before
    assert 0 < runs < 24


def test_a_softmax_over_the_batch_answers_as_it_does_alone(server: Server) -> None:
    alone = server.predict("softmax", {"instances": [0.0, 1.0]})
    assert alone[0] == 200
    assert ask_together(server, "softmax", {"instances": [0.0, 1.0]}, clients=8, each=25) == [alone] * 200
    runs, requests = (metric(server, f"dropserve_batch_requests_{kind}", model="softmax") for kind in ("count", "sum"))
    assert runs == requests

"""/metrics, and TensorFlow Serving's page, of real servers whose processes are killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.config.monitoring_config import DEFAULT_PATH, parse_monitoring_config, read_monitoring_config
from appliance.core.errors import ConfigError
from appliance.protocols import protos
from tests.support.server import ROOT, Server, eventually

ENABLED = "prometheus_config { enable: true }"


# -- the config file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (ENABLED, DEFAULT_PATH),
        ("", ""),
        ("prometheus_config {}", ""),
        ('prometheus_config { path: "/metrics" }', ""),
        ('# As people write it.\nprometheus_config: {\n  enable: true,\n  path: "/m/p"\n}\n', "/m/p"),
        ('prometheus_config { enable: true path: "m/p" }', "/m/p"),
    ],
)
def test_the_config_file_says_where_the_metrics_are(text: str, path: str) -> None:
    assert parse_monitoring_config(text, "monitoring.config") == path


@pytest.mark.parametrize("text", ["enable: true", "prometheus_config { enabled: true }", "prometheus_config {"])
def test_a_config_file_that_does_not_parse_says_where_and_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_monitoring_config(text, "monitoring.config")
    assert caught.value.message.startswith(
        "monitoring.config: Error parsing text-format tensorflow.serving.MonitoringConfig: 1:"
    )
    assert "prometheus_config { enable: true path:" in caught.value.remedy


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert read_monitoring_config("") == ""
    with pytest.raises(ConfigError, match=r"cannot read the monitoring_config_file .*/none: No such file"):
        read_monitoring_config(str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_monitoring_config(str(tmp_path / "binary"))


def test_the_sample_parses() -> None:
    sample = ROOT / "etc" / "monitoring.config"
    assert read_monitoring_config(str(sample)) == DEFAULT_PATH


def test_a_config_file_that_does_not_parse_stops_the_start_where_rest_is_served(
    drop: Callable[..., Path], tmp_path: Path
) -> None:
    drop("m")
    (tmp_path / "bad").write_text("nonsense")
    command = [sys.executable, "-m", "appliance", "serve", f"--model_root={tmp_path / 'models'}", "--port=0"]
    command += [f"--monitoring_config_file={tmp_path / 'bad'}", f"--runtime_dir={tmp_path / 'run'}"]
    ended = subprocess.run(
        [*command, "--rest_api_port=0"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert "Error parsing text-format tensorflow.serving.MonitoringConfig" in ended.stderr


def test_without_rest_the_config_file_is_not_read(drop: Callable[..., Path], tmp_path: Path) -> None:
    drop("m")
    missing = tmp_path / "none"
    with Server(model_root=tmp_path / "models", rest_api_port=-1, monitoring_config_file=missing) as server:
        assert predict_by_grpc(server, "none") == "NOT_FOUND"


# -- the pages -------------------------------------------------------------------------------------------------

Samples = dict[str, list[tuple[dict[str, str], float]]]


def page(server: Server, path: str = "/metrics") -> Samples:
    status, body, headers = server.http("GET", path)
    assert status == 200, body
    assert headers["content-type"].startswith("text/plain")
    found: Samples = {}
    # Not with the parser of tests/metrics/test_metrics.py, which calls every counter "…_total".
    for name, labels, number in re.findall(r"^([a-z_:]+)(?:\{(.*)\})? (\S+)$", body.decode(), re.MULTILINE):
        found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(number)))
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples that carry these labels."""
    return sum(number for found, number in samples.get(name, []) if labels.items() <= found.items())


def predict_by_grpc(server: Server, model: str) -> str:
    """One Predict over a connection of its own; the status code."""
    request = protos.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].float_val.append(1.0)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        try:
            call(request.SerializeToString(), timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)  # type: ignore[attr-defined]  # grpc's errors are calls too
    return "OK"


def ok_predicts(server: Server, protocol: str) -> float:
    return value(page(server), "dropserve_requests_total", protocol=protocol, method="predict", code="OK")


@pytest.fixture
def served(drop: Callable[..., Path], tmp_path: Path) -> Any:
    """Starts a server of `m`, versions 1 (and what the test drops), with several fronts of each kind."""

    def serve(**options: Any) -> Server:
        drop("m", 1)
        return Server(model_root=tmp_path / "models", rest_workers=2, grpc_workers=2, **options)

    return serve


def test_counts_are_right_over_all_fronts_whichever_is_asked(served: Any, tmp_path: Path) -> None:
    (tmp_path / "monitoring").write_text(ENABLED)
    with served(monitoring_config_file=tmp_path / "monitoring") as server:
        server.wait_for("m", 1)
        for _ in range(20):
            assert server.predict("m", {"instances": [[1.0], [2.0]]})[0] == 200
            assert predict_by_grpc(server, "m") == "OK"
        assert server.predict("m", b"{")[0] == 400
        assert predict_by_grpc(server, "none") == "NOT_FOUND"
        for _ in range(8):  # each asks any one of the fronts
            own = page(server)
            for protocol in ("rest", "grpc"):
                labels = {"protocol": protocol, "model": "m", "method": "predict"}
                assert value(own, "dropserve_requests_total", code="OK", **labels) == 20
            assert value(own, "dropserve_requests_total", protocol="rest", code="INVALID_ARGUMENT", model="m") == 1
            assert value(own, "dropserve_requests_total", protocol="grpc", code="NOT_FOUND", model="") == 1
            assert value(own, "dropserve_request_duration_seconds_count", method="predict", model="m") == 41
            assert value(own, "dropserve_run_duration_seconds_count", model="m") == 40
            assert value(own, "dropserve_batch_rows_sum", model="m") == 60
            assert value(own, "dropserve_versions", model="m", version="1", state="available") == 1
            assert value(own, "dropserve_processes", role="rest") == 2
            assert value(own, "dropserve_processes", role="grpc") == 2
            assert value(own, "dropserve_process_resident_memory_bytes", role="worker", model="m", version="1") > 1e7
            assert value(own, "dropserve_inflight_request_bytes") == 0
            theirs = page(server, DEFAULT_PATH)
            assert value(theirs, ":tensorflow:serving:request_count", model_name="m", status="OK") == 40
            assert value(theirs, ":tensorflow:serving:request_count", status="NOT_FOUND", model_name="") == 1
            for api, entrypoint in (("predict", "REST"), ("Predict", "GRPC")):
                labels = {"model_name": "m", "API": api, "entrypoint": entrypoint}
                assert value(theirs, ":tensorflow:serving:request_latency_count", **labels) == 20
            labels = {"model_name": "m", "API": "Predict", "runtime": "TF1"}
            assert value(theirs, ":tensorflow:serving:runtime_latency_count", **labels) == 40
            path = str(tmp_path / "models" / "m" / "1")
            labels = {"model_path": path, "status": "success"}
            assert value(theirs, ":tensorflow:cc:saved_model:load_attempt_count", **labels) == 1
            assert value(theirs, ":tensorflow:cc:saved_model:load_latency", model_path=path) > 0


def test_examples_are_counted_by_either_protocol(served: Any, tmp_path: Path) -> None:
    (tmp_path / "monitoring").write_text(ENABLED)
    with served(monitoring_config_file=tmp_path / "monitoring") as server:
        server.wait_for("m", 1)
        body = b'{"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]}'
        status, answer, _ = server.http("POST", "/v1/models/m:regress", body)
        assert (status, answer) == (200, {"results": [2.5, 3.0, 3.5]})
        theirs = page(server, DEFAULT_PATH)
        assert value(theirs, ":tensorflow:serving:request_example_count_total", model="m") == 3
        assert value(theirs, ":tensorflow:serving:request_example_counts_count", model="m") == 1
        assert value(theirs, ":tensorflow:serving:request_latency_count", API="regress", entrypoint="REST") == 1
        assert value(theirs, ":tensorflow:serving:runtime_latency_count", API="Regress") == 1


def test_no_count_is_lost_when_a_worker_and_a_front_are_killed(served: Any) -> None:
    with served() as server:
        server.wait_for("m", 1)
        for _ in range(10):
            assert server.predict("m", {"instances": [1.0]})[0] == 200
        (worker,) = server.pids("ds-worker")
        os.kill(worker, signal.SIGKILL)

        def answers() -> bool:
            return (
                server.pids("ds-worker") not in ([], [worker]) and server.predict("m", {"instances": [1.0]})[0] == 200
            )

        eventually(answers, "the next worker answers")
        for pid in server.pids("ds-rest"):
            os.kill(pid, signal.SIGKILL)
        os.kill(server.pids("ds-grpc")[0], signal.SIGKILL)

        def metrics() -> Samples | None:
            try:
                found = page(server)
            except OSError:
                return None
            return found if value(found, "dropserve_processes") == 6 else None  # 2 and 2, worker, supervisor

        found = eventually(metrics, "all processes are there again")
        assert value(found, "dropserve_requests_total", method="predict", code="OK", model="m") == 11
        assert value(found, "dropserve_run_duration_seconds_count", model="m") == 11
        assert value(found, "dropserve_worker_restarts_total", model="m") == 1
        assert value(found, "dropserve_loads_total", model="m", result="ok") == 2
        memory = [
            labels for labels, _ in found["dropserve_process_resident_memory_bytes"] if labels["role"] == "worker"
        ]
        assert memory == [{"role": "worker", "model": "m", "version": "1"}]

        (folder,) = Path(server.runtime_dir).glob("run/*/metrics")
        eventually(lambda: len(os.listdir(folder)) == 7, "the files of the dead are folded: base, and one a process")
        assert ok_predicts(server, "rest") == 11


def test_totals_outlive_the_version_that_made_them(served: Any, drop: Callable[..., Path], tmp_path: Path) -> None:
    with served() as server:
        server.wait_for("m", 1)
        for _ in range(5):
            assert server.predict("m", {"instances": [1.0]})[0] == 200
        shutil.rmtree(drop("m", 2).parent / "1")
        server.wait_for("m", 2)
        eventually(lambda: len(server.pids("ds-worker")) == 1, "the old version's worker has gone")
        assert server.predict("m", {"instances": [1.0]})[0] == 200
        found = page(server)
        assert value(found, "dropserve_run_duration_seconds_count", model="m") == 6
        assert value(found, "dropserve_worker_restarts_total") == 0
        assert value(found, "dropserve_versions", version="2", state="available") == 1
        assert value(found, "dropserve_versions", version="1", state="available") == 0
        assert [labels["version"] for labels, _ in found["dropserve_queue_requests"]] == ["2"]


def test_clients_cannot_make_up_labels(served: Any) -> None:
    with served() as server:
        server.wait_for("m", 1)
        folder = next(Path(server.runtime_dir).glob("run/*/metrics"))

        def ask(start: int) -> int:
            for number in range(start, start + 30):
                server.predict(f"none-{number}", {"instances": [1.0]})
                server.http("GET", f"/none-{number}")
                server.http("GET", f"/v1/models/none-{number}/metadata")
                predict_by_grpc(server, f"none-{number}")
            return sum(path.stat().st_size for path in folder.iterdir())

        sizes = ask(0), ask(1000)
        assert sizes[0] == sizes[1]
        found = page(server)
        assert {labels["model"] for labels, _ in found["dropserve_requests_total"]} <= {"", "m"}
        assert value(found, "dropserve_requests_total", model="", method="predict", code="NOT_FOUND") == 120


def test_metrics_answer_while_a_worker_hangs(served: Any) -> None:
    with served(rest_api_timeout_in_ms=500) as server:
        server.wait_for("m", 1)
        (worker,) = server.pids("ds-worker")
        os.kill(worker, signal.SIGSTOP)
        try:
            assert server.predict("m", {"instances": [1.0]})[0] == 504
            found = page(server)  # the worker is still stopped: nobody asks it
            assert value(found, "dropserve_requests_total", model="m", code="DEADLINE_EXCEEDED") == 1
            assert value(found, "dropserve_process_resident_memory_bytes", role="worker") > 0
        finally:
            os.kill(worker, signal.SIGCONT)


def test_the_path_of_tensorflow_serving_is_off_unless_it_is_asked_for(served: Any) -> None:
    with served() as server:
        assert server.http("GET", DEFAULT_PATH)[0] == 404
        status, body, headers = server.http("HEAD", "/metrics")
        assert (status, body) == (200, b"")
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert server.http("POST", "/metrics", b"x")[0] == 404


@pytest.mark.parametrize("path", ["/deep/er", "/metrics"])
def test_the_path_is_that_of_the_config_file(served: Any, tmp_path: Path, path: str) -> None:
    (tmp_path / "monitoring").write_text(f'prometheus_config {{ enable: true path: "{path}" }}')
    with served(monitoring_config_file=tmp_path / "monitoring") as server:
        server.wait_for("m", 1)
        assert server.predict("m", {"instances": [1.0]})[0] == 200
        assert value(page(server, path), ":tensorflow:serving:request_count", model_name="m") == 1
        assert value(page(server), "dropserve_requests_total", method="predict", model="m") == 1
        if path != "/metrics":
            assert ":tensorflow:serving:request_count" not in page(server)
            assert server.http("GET", DEFAULT_PATH)[0] == 404

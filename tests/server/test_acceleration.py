"""A served version is converted, proven, measured, and served by what is fastest; and goes back where that fails."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.conversion.job import accelerate
from backends.form import read_form
from converters.files import file_hash
from converters.report import Report
from tests.support import warmup_files
from tests.support.acceleration_models import acceleration_zoo
from tests.support.planted_converter import UNSEEN, plant
from tests.support.server import KEY_FILE, ROOT, Server, eventually

Drop = Callable[..., Path]
ALWAYS = {"acceleration_min_speedup": 0.0}  # which form is faster depends on the machine; these tests need one


def acceleration(server: Server, model: str, version: int = 1) -> dict[str, Any]:
    status, document = server.get(f"/v1/models/{model}/versions/{version}/acceleration")
    assert status == 200
    return dict(document)


def wait_until_serving(server: Server, model: str, serving: str, version: int = 1) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found = acceleration(server, model, version)
        return found if found["serving"] == serving else None

    try:
        return dict(eventually(reached, f"{model} is served by {serving}", 150) or {})
    except AssertionError as error:
        raise AssertionError(f"{error}\n{acceleration(server, model, version)}\n{server.log()[-4000:]}") from None


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def served(drop: Drop, tmp_path: Path, cache: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server over the models that were dropped; all share a cache, so that each model is converted once."""
    servers: list[Server] = []

    def start(**options: Any) -> Server:
        defaults = {"model_root": tmp_path / "models", "cache_dir": cache, "acceleration": "auto"}
        server = Server(**{**defaults, **options})
        servers.append(server)
        return server.__enter__()

    yield start
    for server in servers:
        server.__exit__()


def test_a_version_goes_from_tensorflow_to_its_form_under_load_without_a_failed_request(
    tmp_path: Path, served: Callable[..., Server]
) -> None:
    base = tmp_path / "models" / "conv"
    base.mkdir(parents=True)
    rng = np.random.default_rng(7)
    fresh = [rng.normal(size=(rng.integers(1, 4), 16, 16, 3)).round(4).tolist() for _ in range(200)]
    server = served(settle_seconds=0.0, wait_for_acceleration=False, **ALWAYS)
    shutil.copytree(acceleration_zoo() / "conv", base / ".1")
    (base / ".1").rename(base / "1")
    server.wait_for("conv", 1)
    expected = [server.predict("conv", {"instances": rows})[1]["predictions"] for rows in fresh]
    by_tensorflow = acceleration(server, "conv")["serving"] == "its own model"
    failed: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        connection = server.connection()
        while not stop.is_set():
            index = random.randrange(len(fresh))
            connection.request("POST", "/v1/models/conv:predict", json.dumps({"instances": fresh[index]}))
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200 or not np.allclose(answer["predictions"], expected[index], 1e-4, 1e-6):
                failed.append((response.status, answer))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        report = eventually(
            lambda: (a := acceleration(server, "conv"))["serving"] != "its own model" and a, "a form", 150
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failed == []
    assert by_tensorflow
    assert report["chosen"] in ("onnx", "tflite")
    again = [server.predict("conv", {"instances": rows})[1]["predictions"] for rows in fresh]
    for index, answer in enumerate(again):
        np.testing.assert_allclose(answer, expected[index], rtol=1e-4, atol=1e-6)
    # TensorFlow's worker is gone, and its memory with it.
    (worker,) = eventually(lambda: len(pids := server.pids("ds-worker")) == 1 and pids, "one worker is left")
    assert "tensorflow" not in Path(f"/proc/{worker}/maps").read_text().lower()


def test_a_restart_converts_nothing_again(drop: Drop, served: Callable[..., Server]) -> None:
    drop("a", source="tiny_tf2")
    first = served(acceleration="onnx", **ALWAYS)
    before = wait_until_serving(first, "a", "onnx")["candidates"][0]
    assert first.stop() == 0
    after = wait_until_serving(served(acceleration="onnx", **ALWAYS), "a", "onnx")["candidates"][0]
    # With the seconds that it took; measured may it be again, where the machine was busy.
    assert (after["attempts"], after["proofs"]) == (before["attempts"], before["proofs"])


def rewritten(entry: Path) -> None:
    """Rewrites the ONNX form of an entry, and all that tells its hashes, as whoever may write in the folder can."""
    (form,) = (entry / "forms" / "onnx").glob("*.onnx")
    description = read_form(str(form.parent))
    (signature,) = description.signatures.values()
    plant(str(form), signature.inputs, signature.outputs["y"], UNSEEN)
    listing = json.loads((entry / "files.json").read_text().partition("\n")[2])
    listing[f"forms/onnx/{form.name}"] = [form.stat().st_size, file_hash(str(form))]
    text = json.dumps(listing)
    (entry / "files.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def test_a_form_that_was_rewritten_in_the_cache_is_not_served(
    drop: Drop, served: Callable[..., Server], cache: Path, tmp_path: Path
) -> None:
    drop("a", source="tiny_tf2")
    own = shutil.copytree(cache, tmp_path / "own-cache")
    options = {"acceleration": "onnx", "cache_dir": own, **ALWAYS}
    first = served(**options)
    entry = Path(wait_until_serving(first, "a", "onnx")["artifact"]).parents[1]
    assert entry.is_relative_to(own)
    assert first.stop() == 0
    rewritten(entry)
    second = served(**options)
    found = wait_until_serving(second, "a", "onnx")  # another one, made and proven anew
    assert not found["from_cache"]
    assert "files.json does not carry this server's seal" in second.log()
    answer = second.predict("a", {"instances": [math.pi]})
    assert answer == (200, {"predictions": [pytest.approx(math.pi / 2 + 2, rel=1e-6)]})


def test_what_cannot_be_converted_stays_on_tensorflow_and_the_report_says_why(
    drop: Drop, served: Callable[..., Server]
) -> None:
    drop("a", source="strings")
    server = served()
    server.wait_for("a", 1)
    report = eventually(lambda: (r := acceleration(server, "a"))["state"] == "done" and r, "a report", 150)
    assert report["chosen"] == "tensorflow"
    assert report["reason"]
    assert report["serving"] == "its own model"


def test_the_command_tells_of_each_version_what_serves_it_and_why(drop: Drop, served: Callable[..., Server]) -> None:
    drop("a", source="tiny_tf2")
    drop("b", source="strings")
    server = served(acceleration="onnx", **ALWAYS)
    wait_until_serving(server, "a", "onnx")
    eventually(lambda: acceleration(server, "b")["state"] == "done", "a report of b", 150)
    command = [sys.executable, "-m", "appliance", "models", "--detail", f"--url=http://127.0.0.1:{server.rest_port}"]
    text = subprocess.check_output(command, cwd=ROOT, text=True)
    assert "a/1: served by onnx" in text
    assert "b/1: served by its own model" in text
    assert acceleration(server, "b")["reason"] in text
    document = json.loads(subprocess.check_output([*command, "--json"], cwd=ROOT, text=True))
    chosen = {model["name"]: model["versions"][0]["acceleration"]["chosen"] for model in document["models"]}
    assert chosen == {"a": "onnx", "b": "tensorflow"}


def test_recorded_requests_are_part_of_the_proof(drop: Drop, served: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "recorded").mkdir()
    warmup_files.write(tmp_path / "recorded")
    version = drop(".a", source="tiny_tf2")
    warmup_files.put(tmp_path / "recorded" / "predicts", version)
    (tmp_path / "models" / ".a").rename(tmp_path / "models" / "a")
    server = served(acceleration="onnx", **ALWAYS)
    (form,) = wait_until_serving(server, "a", "onnx")["candidates"]
    assert form["proofs"][0]["recorded"] > 0


def test_the_command_proves_on_recorded_requests_too_and_a_server_finds_its_result(
    drop: Drop, served: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "recorded").mkdir()
    warmup_files.write(tmp_path / "recorded")
    version = drop(".a", source="tiny_tf2")
    warmup_files.put(tmp_path / "recorded" / "predicts", version)
    own = tmp_path / "own-cache"
    options = ModelOptions(acceleration="onnx", **ALWAYS)
    report = accelerate(options, str(version), FormCache(str(own), 1 << 30, KEY_FILE), lambda _: None)
    (form,) = report.forms
    assert form.proofs[0].recorded > 0
    (tmp_path / "models" / ".a").rename(tmp_path / "models" / "a")
    server = served(acceleration="onnx", cache_dir=own, **ALWAYS)
    shown = wait_until_serving(server, "a", "onnx")
    assert msgspec.convert(shown, Report).forms[0].attempts == form.attempts


def test_off_converts_nothing(drop: Drop, served: Callable[..., Server], tmp_path: Path) -> None:
    drop("a", source="tiny_tf2")
    left = tmp_path / "own-cache" / "jobs" / "job-of-a-killed-server"
    left.mkdir(parents=True)
    os.utime(left, (1, 1))
    server = served(acceleration="off", cache_dir=tmp_path / "own-cache")
    server.wait_for("a", 1)
    assert acceleration(server, "a")["state"] == "none"
    assert left.exists()  # only who runs jobs clears up after them


def test_an_input_that_tensorflow_refuses_too_is_the_clients_error_and_demotes_nothing(
    drop: Drop, served: Callable[..., Server]
) -> None:
    drop("a", source="keras3")
    server = served(acceleration="onnx", **ALWAYS)
    wait_until_serving(server, "a", "onnx")
    status, answer = server.predict("a", {"instances": [[1.0, 2.0, 3.0]]})
    assert status == 400
    assert "[1,3]" in answer["error"]  # TensorFlow's words for the matrices that do not fit
    assert acceleration(server, "a")["serving"] == "onnx"
    assert server.predict("a", {"instances": [[1.0, 2.0, 3.0, 4.0]]})[0] == 200


def test_a_form_that_refuses_what_tensorflow_answers_is_demoted_and_the_request_is_answered(
    drop: Drop, served: Callable[..., Server], cache: Path, tmp_path: Path
) -> None:
    drop("a", source="tiny_tf2")
    own = shutil.copytree(cache, tmp_path / "own-cache")
    left = own / "jobs" / "job-of-a-killed-server"
    left.mkdir(parents=True)
    os.utime(left, (1, 1))
    options = {"acceleration": "onnx", "cache_dir": own, **ALWAYS}
    server = served(**options)
    wait_until_serving(server, "a", "onnx")
    assert not left.exists()
    # The signature says [-1]; TensorFlow does not compare, the ONNX graph does.
    assert server.predict("a", {"instances": [[1.0, 2.0], [3.0, 5.0]]}) == (
        200,
        {"predictions": [[2.5, 3.0], [3.5, 4.5]]},
    )
    report = wait_until_serving(server, "a", "its own model")
    assert "onnx failed where TensorFlow answers" in report["demoted"]
    assert "is given up" in server.log()
    assert server.predict("a", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [2.5, 3.0, 4.5]})
    # A restart does not forget it, unless it is told to.
    said = eventually(lambda: "remove" in (text := acceleration(server, "a")["demoted"]) and text, "it is kept")
    assert server.stop() == 0
    server = served(**options)
    server.wait_for("a", 1)
    report = eventually(lambda: (r := acceleration(server, "a"))["state"] == "done" and r, "a report", 150)
    assert (report["serving"], report["chosen"], report["demoted"]) == ("its own model", "tensorflow", said)
    assert "onnx: it failed in service" in report["reason"]
    assert server.stop() == 0
    file = Path(report["demotions"][0]["file"])
    assert f"remove {file} and start the server again" in said
    file.unlink()
    assert wait_until_serving(served(**options), "a", "onnx")["demoted"] == ""


@pytest.mark.parametrize(("number", "is_kept"), [(signal.SIGKILL, False), (signal.SIGSEGV, True)])
def test_a_form_whose_worker_dies_is_demoted_and_a_crash_of_its_own_is_kept_in_mind(
    drop: Drop, served: Callable[..., Server], cache: Path, tmp_path: Path, number: signal.Signals, is_kept: bool
) -> None:
    drop("a", source="tiny_tf2")
    own = shutil.copytree(cache, tmp_path / "own-cache")
    server = served(acceleration="onnx", cache_dir=own, **ALWAYS)
    wait_until_serving(server, "a", "onnx")
    (worker,) = eventually(lambda: len(pids := server.pids("ds-worker")) == 1 and pids, "one worker is left")
    os.kill(worker, number)
    said = wait_until_serving(server, "a", "its own model")["demoted"]
    assert f"died: killed by {number.name}" in said
    remedy = "to try it again, remove" if is_kept else "to try it again, start the server again"
    eventually(lambda: remedy in acceleration(server, "a")["demoted"], remedy)
    assert bool(list(own.rglob("demoted-*"))) == is_kept
    server.wait_for("a", 1)
    assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_version_can_wait_for_its_form_before_it_is_available(drop: Drop, served: Callable[..., Server]) -> None:
    drop("a", source="tiny_tf2")
    server = served(acceleration="onnx", wait_for_acceleration=True, **ALWAYS)
    server.wait_for("a", 1)
    assert acceleration(server, "a")["serving"] == "onnx"
    assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_report_of_a_model_that_is_not_there_is_not_found(served: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert served().get("/v1/models/none/versions/1/acceleration")[0] == 404

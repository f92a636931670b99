"""A request that ends its worker again is refused, of whatever protocol; all others are answered."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.test_nothing_is_lost import ENDLESS, cpu_ticks, drop, grpc_predict, predict_request
from tests.support.server import Server, eventually

MODELS = ("convolution", "crash_on_five", "crash_on_negative", "crash_on_seven", "slow")
IMAGE = [[[1.0]] * 8] * 8
FIVE = {"instances": [[0.0] * 5]}
TWO_FIVES = {"instances": [[1.0] * 5] * 2}
SEVEN = {"instances": [[0.0] * 7]}
TWO_SEVENS = {"instances": [[1.0] * 7] * 2}


# What runs where a core has nothing else to do may take its time.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, zoo: Path) -> Path:
    root = tmp_path_factory.mktemp("models")
    for model in MODELS:
        drop(zoo, root, model, model)
    incoming = root / "large" / ".incoming"
    shutil.copytree(zoo / "half_plus_two", incoming)
    with open(incoming / "notes", "wb") as file:
        file.truncate(1 << 42)  # more than any memory; no disk is needed for it
    os.rename(incoming, root / "large" / "1")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with Server(model_root=root, crash_window_seconds=0) as server:
        for model in MODELS:
            server.wait_for(model, 1)
        yield server


def refused(server: Server, model: str, version: int = 1) -> list[str]:
    _, document = server.get("/v1/models")
    (found,) = (entry["versions"] for entry in document["models"] if entry["name"] == model)
    return next(list(one["refused"]) for one in found if int(one["version"]) == version)


def ask(server: Server, model: str, document: Any) -> tuple[int, Any]:
    """Asks until every front knows that the worker is back."""

    def answered() -> tuple[int, Any] | None:
        status, answer = server.predict(model, document)
        is_away = status == 503 and "ended while it held the request" not in answer["error"]
        return None if is_away else (status, answer)

    return eventually(answered, f"{model} is back")


def deaths(server: Server, model: str) -> int:
    """How often a worker of the model has died, as far as the supervisor knows."""
    return len(re.findall(rf"{model}/\d+: restarting: its worker died", server.log()))


def kill_by(server: Server, model: str, document: Any) -> None:
    """Asks what ends the worker; returns when the supervisor knows, so that the next worker is asked next."""
    before = deaths(server, model)
    status, answer = ask(server, model, document)
    assert status == 503, answer
    assert "ended while it held the request" in answer["error"]
    eventually(lambda: deaths(server, model) > before, f"the worker of {model} has died")


def counted(server: Server, metric: str) -> float:
    found = re.findall(rf"^{metric} (\S+)$", server.get("/metrics")[1].decode(), re.MULTILINE)
    return float(found[0]) if found else 0.0


def _code(predict: Any, model: str, columns: int) -> grpc.StatusCode:
    """What comes of rows of so many zeros."""
    try:
        predict(predict_request(model, "x", np.zeros((3, columns), np.float32)))
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return grpc.StatusCode.OK


def test_the_second_death_has_a_kind_refused_over_rest_and_grpc_and_a_new_version_is_free_of_it(
    server: Server, root: Path, zoo: Path
) -> None:
    model = "crash_on_five"
    kill_by(server, model, FIVE)
    assert refused(server, model) == []
    kill_by(server, model, TWO_FIVES)
    (told,) = eventually(lambda: refused(server, model), "it is refused")
    assert "x: float32 [any, 5] have ended this version's process twice (SIGABRT: " in told
    status, answer = ask(server, model, FIVE)
    assert status == 400
    assert told in answer["error"]
    with grpc_predict(server) as predict:
        eventually(lambda: _code(predict, model, 8) is grpc.StatusCode.OK, "gRPC's fronts know that the worker is back")
        assert _code(predict, model, 5) is grpc.StatusCode.INVALID_ARGUMENT
    row = [1.0] * 8
    assert ask(server, model, {"instances": [row]}) == (200, {"predictions": [row]})
    drop(zoo, root, model, model, 2)
    server.wait_for(model, 2)
    kill_by(server, model, FIVE)


def test_of_a_kind_that_the_signature_admits_only_the_very_inputs_are_refused(server: Server) -> None:
    model = "crash_on_seven"
    kill_by(server, model, SEVEN)
    kill_by(server, model, TWO_SEVENS)
    (told,) = eventually(lambda: refused(server, model), "it is refused")
    assert re.search("x: float32 .any, 7. and the inputs of digest [0-9a-f]{32} have ended", told)
    assert ask(server, model, TWO_SEVENS)[0] == 400
    kill_by(server, model, SEVEN)
    eventually(lambda: len(refused(server, model)) == 2, "the other is refused too")
    assert ask(server, model, SEVEN)[0] == 400
    assert ask(server, model, {"instances": [[1.0, 2.0]]}) == (200, {"predictions": [[1.0, 2.0]]})


def test_of_a_kind_that_was_answered_only_the_very_inputs_are_refused(server: Server) -> None:
    model = "crash_on_negative"
    assert server.predict(model, {"instances": [1.0, 2.0]}) == (200, {"predictions": [1.0, 2.0]})
    kill_by(server, model, {"instances": [-1.0]})
    assert ask(server, model, {"instances": [3.0]}) == (200, {"predictions": [3.0]})
    kill_by(server, model, {"instances": [-1.0]})
    (told,) = eventually(lambda: refused(server, model), "it is refused")
    assert re.search("x: float32 .any. and the inputs of digest [0-9a-f]{32} have ended", told)
    status, answer = ask(server, model, {"instances": [-1.0]})
    assert (status, told in answer["error"]) == (400, True)
    assert ask(server, model, {"instances": [1.0]}) == (200, {"predictions": [1.0]})


def test_only_a_signal_of_its_own_making_that_meets_a_running_request_counts(server: Server) -> None:
    def killed_with(number: signal.Signals) -> None:
        """Kills the worker while it runs a request."""
        assert ask(server, "slow", {"instances": [1]}) == (200, {"predictions": [1]})
        died = deaths(server, "slow")
        before = {pid: cpu_ticks(pid) for pid in server.pids("ds-worker")}
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(ask(server, "slow", ENDLESS)[0]))
        client.start()
        busy = eventually(lambda: [pid for pid, ticks in before.items() if cpu_ticks(pid) > ticks + 20], "it runs")
        os.kill(busy[0], number)
        client.join(60)
        assert answers == [503]
        eventually(lambda: deaths(server, "slow") > died, "the supervisor knows")

    killed_with(signal.SIGKILL)
    killed_with(signal.SIGSEGV)
    assert refused(server, "slow") == []
    killed_with(signal.SIGSEGV)
    (told,) = eventually(lambda: refused(server, "slow"), "it is refused")
    assert "twice (SIGSEGV)" in told
    assert ask(server, "slow", ENDLESS)[0] == 400
    assert ask(server, "slow", {"instances": [1]}) == (200, {"predictions": [1]})


def test_what_ends_a_process_is_found_before_a_client_asks_it(server: Server) -> None:
    eventually(lambda: len(refused(server, "convolution")) == 4, "the trial has found the ranks below 4", 240)
    told = refused(server, "convolution")
    assert "x: float32 [any] end the process that runs them, as a trial has shown (SIGABRT: Check failed: " in told[0]
    assert told[0] in server.log()
    before = server.pids("ds-worker")
    for wrong in ([1.0], [1.0, 2.0], IMAGE):
        status, answer = server.predict("convolution", {"instances": wrong})
        assert status == 400
        assert "Refused by model convolution version 1" in answer["error"]
        assert "the signature takes x: float32 [any, 8, 8, 1]" in answer["error"]
    # What contradicts the signature and TensorFlow answers is answered.
    assert server.predict("convolution", {"instances": [IMAGE]})[0] == 200
    assert server.predict("convolution", {"instances": [[IMAGE]]})[0] == 200
    assert server.predict("convolution", {"instances": [IMAGE[:5]]})[0] == 200
    assert server.pids("ds-worker") == before
    assert counted(server, r'dropserve_refused_requests_total{model="convolution"}') == 3


def test_no_copy_is_loaded_that_memory_may_not_hold_and_the_status_says_so(server: Server) -> None:
    def remarks() -> list[str]:
        _, document = server.get("/v1/models")
        (found,) = (entry["versions"] for entry in document["models"] if entry["name"] == "large")
        return list(found[0]["remarks"])

    (told,) = eventually(remarks, "the trial was left out", 240)
    assert re.search("shapes that contradict .* were not tried: another copy .* MiB of memory are available", told)
    assert server.predict("large", {"instances": [1.0]}) == (200, {"predictions": [2.5]})

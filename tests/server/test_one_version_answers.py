"""A request is resolved, checked and answered by one version, also where that version drains under it.

The race is forced: version 1's worker is stopped before it reads the request, which is larger than a socket's buffer,
so that a part of it stays with the front. Version 2 takes over meanwhile. Then the front is stopped and the worker goes
on: it is told to drain before it has the whole request, and ends without having run it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from appliance.protocols import protos
from tests.support.grpc_calls import method, request
from tests.support.server import Server, eventually

ROWS = 100_000  # 400 KB as float32: below what goes through shared memory, above what a socket holds
EXAMPLES = 30_000
SERVICE = "/tensorflow.serving.PredictionService/"
CHANNEL = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Scene:
    """A server with a model of which version 1 is served, and what one request to it is answered."""

    def __init__(self, server: Server, zoo: Path, base: Path) -> None:
        self.server, self._zoo, self._base = server, zoo, base
        self.worker = server.pids("ds-worker")[0]

    def answered(self, ask: Callable[[], Any], protocol: str, second: str) -> Any:
        """What `ask` gets where version 1 drains under it, and version 2, the model `second` of the zoo, takes over."""
        (front,) = self.server.pids({"rest": "ds-rest", "grpc": "ds-grpc"}[protocol])
        answers: list[Any] = []
        client = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
        with stopped(self.worker):
            client.start()
            eventually(lambda: self._inflight(protocol) > 300_000, "the request is on its way")
            shutil.copytree(self._zoo / second, self._base / ".2")
            os.rename(self._base / ".2", self._base / "2")
            self.server.wait_for("half", 2)
            self.server.wait_for("half", 1, "draining")
            os.kill(front, signal.SIGSTOP)
        try:
            eventually(lambda: not self._lives(self.worker), "the worker of version 1 has ended")
            assert answers == []
        finally:
            os.kill(front, signal.SIGCONT)
        client.join(60)
        assert len(answers) == 1, "the client never got an answer"
        return answers[0]

    def _inflight(self, protocol: str) -> float:
        page = self.server.get("/metrics")[1].decode()
        found = re.search(rf'^dropserve_inflight_request_bytes{{protocol="{protocol}"}} (\S+)', page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    @staticmethod
    def _lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def scene(zoo: Path, tmp_path: Path) -> Iterator[Scene]:
    base = tmp_path / "models" / "half"
    shutil.copytree(zoo / "half_plus_two", base / "1")
    with Server(model_root=base.parent, rest_workers=1, grpc_workers=1) as server:
        server.wait_for("half", 1)
        yield Scene(server, zoo, base)


def example(x: float) -> Any:
    message = protos.Example()
    message.features.feature["x"].float_list.value.append(x)
    return message


def of_examples(kind: Any, signature: str) -> Any:
    message = kind()
    message.model_spec.name, message.model_spec.signature_name = "half", signature
    message.input.example_list.examples.extend([example(1.0)] * EXAMPLES)
    return message


def asking(server: Server, name: str, message: Any, response: Any) -> Callable[[], Any]:
    """Calls a method of gRPC: its response, or the error."""

    def ask() -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", CHANNEL) as channel:
            try:
                return method(channel, SERVICE + name, response)(message, timeout=60)
            except grpc.RpcError as error:
                return error

    return ask


def posting(server: Server, path: str, document: Any) -> Callable[[], Any]:
    body = json.dumps(document).encode()
    return lambda: server.http("POST", f"/v1/models/half:{path}", body)[:2]


def test_an_answer_to_predict_is_labelled_with_the_version_that_ran(scene: Scene) -> None:
    message = request("half", x=np.ones(ROWS, "f4"))
    answer = scene.answered(asking(scene.server, "Predict", message, protos.PredictResponse), "grpc", "half_plus_three")
    assert answer.model_spec.version.value == 2
    assert set(answer.outputs["y"].float_val) == {3.5}


def test_a_request_is_checked_against_the_version_that_would_run_it(scene: Scene) -> None:
    message = request("half", x=np.ones(ROWS, "f4"))
    ask = asking(scene.server, "Predict", message, protos.PredictResponse)
    answer = scene.answered(ask, "grpc", "half_plus_renamed")
    assert isinstance(answer, grpc.RpcError)
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Signature input alias: z" in answer.details() or "input size does not match" in answer.details()


def test_rows_over_rest_are_named_as_the_version_that_runs_names_them(scene: Scene) -> None:
    ask = posting(scene.server, "predict", {"instances": [1.0] * ROWS})
    status, answer = scene.answered(ask, "rest", "half_plus_renamed")
    assert status == 200
    assert set(answer["predictions"]) == {3.5}


@pytest.mark.parametrize(
    ("path", "signature", "result"),
    [("classify", "classify_x_to_y", [["", 3.5], ["", -3.5]]), ("regress", "regress_x_to_y", 3.5)],
)
def test_examples_over_rest_are_answered_by_one_version(scene: Scene, path: str, signature: str, result: Any) -> None:
    ask = posting(scene.server, path, {"signature_name": signature, "examples": [{"x": 1.0}] * EXAMPLES})
    status, answer = scene.answered(ask, "rest", "half_plus_three")
    assert status == 200
    assert answer["results"] == [result] * EXAMPLES


def test_classify_and_its_label_are_of_one_version(scene: Scene) -> None:
    message = of_examples(protos.ClassificationRequest, "classify_x_to_y")
    answer = scene.answered(
        asking(scene.server, "Classify", message, protos.ClassificationResponse), "grpc", "half_plus_three"
    )
    assert answer.model_spec.version.value == 2
    assert {each.classes[0].score for each in answer.result.classifications} == {3.5}


def test_regress_and_its_label_are_of_one_version(scene: Scene) -> None:
    message = of_examples(protos.RegressionRequest, "regress_x_to_y")
    answer = scene.answered(
        asking(scene.server, "Regress", message, protos.RegressionResponse), "grpc", "half_plus_three"
    )
    assert answer.model_spec.version.value == 2
    assert {each.value for each in answer.result.regressions} == {3.5}


def test_all_tasks_of_a_multi_inference_are_of_one_version(scene: Scene) -> None:
    message = protos.MultiInferenceRequest()
    message.input.example_list.examples.extend([example(1.0)] * EXAMPLES)
    for kind, signature in (("classify", "classify_x_to_y"), ("regress", "regress_x_to_y")):
        task = message.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name, task.model_spec.signature_name = "half", signature
    answer = scene.answered(
        asking(scene.server, "MultiInference", message, protos.MultiInferenceResponse), "grpc", "half_plus_three"
    )
    assert [each.model_spec.version.value for each in answer.results] == [2, 2]
    assert {each.classes[0].score for each in answer.results[0].classification_result.classifications} == {3.5}
    assert {each.value for each in answer.results[1].regression_result.regressions} == {3.5}

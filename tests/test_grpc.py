"""gRPC as the official client sees it, and health and reflection, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.server import ROOT, Server, eventually


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    socket_path = str(tmp_path_factory.mktemp("s") / "grpc")
    for name in ("half_plus_two", "strings"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(model_root=root, grpc_socket_path=socket_path) as running:
        running.wait_for("half_plus_two", 1)
        running.wait_for("strings", 1)
        running.socket_path = socket_path
        yield running


@pytest.fixture(scope="module")
def answers(server: Server) -> dict[str, Any]:
    """What the official stubs got."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.official_client", str(server.grpc_port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


EXPECTED = {"spec": ["half_plus_two", 1, "serving_default"], "outputs": {"y": ["2.5", "3.0", "4.5"]}}


@pytest.mark.parametrize("encoding", ["float_val", "content", "version"])
def test_predict_answers_every_encoding_with_the_resolved_version(answers: dict[str, Any], encoding: str) -> None:
    assert answers[encoding] == {**EXPECTED, "typed": {"y": True}}


def test_a_short_value_list_repeats_its_last_element(answers: dict[str, Any]) -> None:
    assert answers["repeated"]["outputs"] == {"y": ["4.0", "4.0", "4.0"]}


def test_sixteen_mebibytes_come_back_right(answers: dict[str, Any]) -> None:
    assert answers["large"] is True


def test_strings_travel(answers: dict[str, Any]) -> None:
    assert answers["strings"]["spec"] == ["strings", 1, "serving_default"]
    assert any("a" in values for values in answers["strings"]["outputs"].values())
    assert any("\xff\x00z" in values for values in answers["strings"]["outputs"].values())


def test_model_status_and_metadata_are_what_the_official_client_reads(answers: dict[str, Any]) -> None:
    assert answers["status"]["model_version_status"][0]["state"] == "AVAILABLE"
    assert (
        answers["metadata"]["signatureDef" if "signatureDef" in answers["metadata"] else "signature_def"][
            "serving_default"
        ]["inputs"]["x"]["dtype"]
        == "DT_FLOAT"
    )


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("unknown model", "NOT_FOUND", "Servable not found for request: Latest(unknown)"),
        ("unknown version", "NOT_FOUND", "Servable not found for request: Specific(half_plus_two, 7)"),
        ("unknown signature", "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        ("wrong input", "INVALID_ARGUMENT", "Sent extra: {z}. Missing but required: {x}."),
        ("wrong dtype", "INVALID_ARGUMENT", "DT_FLOAT"),
        ("unknown output", "INVALID_ARGUMENT", "nope"),
        ("same output twice", "INVALID_ARGUMENT", "y"),
        ("classify", "UNIMPLEMENTED", ""),
    ],
)
def test_errors_have_the_codes_of_the_contract(answers: dict[str, Any], case: str, code: str, words: str) -> None:
    found, details = answers["errors"][case]
    assert found == code
    assert words in details


def test_the_health_service_says_serving_once_ready(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            request = health_pb2.HealthCheckRequest(service=service)
            eventually(lambda request=request: stub.Check(request, timeout=10).status == serving, "SERVING")


def test_reflection_lists_the_services_and_describes_them(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorflow.serving.PredictionService"),
        ]
        listed, described = list(stub.ServerReflectionInfo(iter(requests), timeout=10))
        names = {service.name for service in listed.list_services_response.service}
        assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= names
        assert described.file_descriptor_response.file_descriptor_proto


def test_the_unix_socket_serves_too(server: Server) -> None:
    with grpc.insecure_channel(f"unix:{server.socket_path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status

"""gRPC as the official client sees it, and health and reflection, against a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.official_protos import samples
from tests.support.server import Server, eventually

SERVICES = ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
MODELS = ("half_plus_two", "strings", "defaults", "multi_io", "dtypes")


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    socket_path = str(tmp_path_factory.mktemp("s") / "grpc")
    for name in MODELS:
        shutil.copytree(zoo / name, root / name / "1")
    with Server(model_root=root, grpc_socket_path=socket_path) as running:
        for name in MODELS:
            running.wait_for(name, 1)
        running.socket_path = socket_path
        yield running


@pytest.fixture(scope="module")
def answers(server: Server) -> dict[str, Any]:
    """What the official stubs got."""
    return server.ask_official("tests.support.official_client")


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
        (
            "wrong input",
            "INVALID_ARGUMENT",
            (
                "Signature input alias: x(feed name: x:0) not found in request and no default value provided. "
                "Inputs expected to be in the request {z}, or default input alias set: "
            ),
        ),
        ("other name", "INVALID_ARGUMENT", "Signature input alias: b(feed name: serving_default_b:0) not found"),
        (
            "one input too few",
            "INVALID_ARGUMENT",
            (
                "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
                "Missing but required: {b}."
            ),
        ),
        (
            "default and an extra input",
            "INVALID_ARGUMENT",
            "Inputs contains invalid name. Used request inputs: x, request input: x,z",
        ),
        ("no default", "INVALID_ARGUMENT", "Signature input alias: x(feed name: serving_default_x:0) not found"),
        ("wrong dtype", "INVALID_ARGUMENT", "Expects arg[0] to be float but int64 is provided; send the input x as"),
        ("wrong dtype of two", "INVALID_ARGUMENT", "Expects arg[1] to be int32 but float is provided"),
        ("unknown output", "INVALID_ARGUMENT", "output tensor alias not found in signature: nope Outputs expected"),
        ("same output twice", "INVALID_ARGUMENT", "duplicate output tensor alias: y"),
        ("bad tensor", "INVALID_ARGUMENT", "tensor parsing error: x: the shape [-1] has a negative dimension"),
        ("huge claim", "INVALID_ARGUMENT", "tensor parsing error: x: the shape [10000000000000] takes more than"),
        ("unknown label", "INVALID_ARGUMENT", "Unrecognized servable version label: canary"),
        ("no model spec", "INVALID_ARGUMENT", "Missing ModelSpec"),
        ("no model name", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ("metadata without a spec", "INVALID_ARGUMENT", "Missing ModelSpec"),
        (
            "metadata of nothing",
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        ("metadata of something else", "INVALID_ARGUMENT", "Metadata field graph is not supported"),
        ("metadata of an unknown model", "NOT_FOUND", "Servable not found for request: Latest(unknown)"),
        ("status without a spec", "INVALID_ARGUMENT", "Missing ModelSpec"),
        ("status of an unknown model", "NOT_FOUND", "Could not find any versions of model unknown"),
        ("status of an unknown version", "NOT_FOUND", "Could not find version 7 of model half_plus_two"),
        ("reload by TCP", "PERMISSION_DENIED", "--allow_remote_reload"),
    ],
)
def test_errors_have_the_codes_and_words_of_the_contract(
    answers: dict[str, Any], case: str, code: str, words: str
) -> None:
    found, details = answers["errors"][case]
    assert found == code
    assert details.startswith(words) if code != "PERMISSION_DENIED" and words[0].isupper() else words in details


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("bad tensor of an unknown model", "NOT_FOUND", "Servable not found"),
        ("bad tensor of an unknown signature", "FAILED_PRECONDITION", "Serving signature key"),
        ("bad tensor of an unknown input", "INVALID_ARGUMENT", "Signature input alias: x"),
        ("bad tensor", "INVALID_ARGUMENT", "tensor parsing error: x"),  # the output is unknown too
        ("wrong dtype and output", "INVALID_ARGUMENT", "output tensor alias not found"),
    ],
)
def test_of_two_mistakes_the_one_is_told_that_tensorflow_serving_looks_at_first(
    answers: dict[str, Any], case: str, code: str, words: str
) -> None:
    found, details = answers["errors"][case]
    assert found == code
    assert details.startswith(words)


def test_long_error_messages_are_cut(answers: dict[str, Any]) -> None:
    code, details = answers["errors"]["long message"]
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("input size does not match signature: 2!=1 len({x,zzz")
    assert len(details) == 1024 + len("...TRUNCATED")
    assert details.endswith("z...TRUNCATED")


def test_every_dtype_is_read_from_its_list_and_from_content(answers: dict[str, Any]) -> None:
    expected = {
        name: [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in array.reshape(-1).tolist()]
        for name, array in samples().items()
    }
    assert answers["lists"] == expected
    assert answers["contents"] == expected


def test_values_beyond_the_shape_are_dropped(answers: dict[str, Any]) -> None:
    assert answers["excess"] == {"total": ["4.0"], "scaled": ["1.0", "1.0", "1.0"]}


def test_an_output_filter_chooses_outputs(answers: dict[str, Any]) -> None:
    assert answers["filtered"] == {"length": ["2"], "upper": ["AB"]}


def test_inputs_that_are_missing_take_their_defaults(answers: dict[str, Any]) -> None:
    assert answers["defaults"]["all"] == {"y": ["2.0", "4.0", "10.0"], "label": ["m", "m", "m"]}
    assert answers["defaults"]["one"] == {"y": ["3.0", "6.0", "15.0"], "label": ["m", "m", "m"]}
    assert answers["defaults"]["none"] == {"y": ["3.0", "6.0", "15.0"], "label": ["km", "km", "km"]}
    assert answers["defaults"]["metadata"] == {"scale": ["2.0"], "unit": ["m"]}


def test_rest_asks_for_every_input_as_tensorflow_serving_does(server: Server) -> None:
    full = {"x": [1.0, 2.0], "scale": 3.0, "unit": "km"}
    assert server.predict("defaults", {"inputs": full})[1]["outputs"]["y"] == [3.0, 6.0]
    status, body = server.predict("defaults", {"inputs": {"x": [1.0]}})
    assert (status, body) == (400, {"error": "Missing named input: scale in 'inputs' object."})


def test_the_health_service_says_serving_once_ready(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ("", *SERVICES, *(service.rpartition(".")[2] for service in SERVICES)):
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

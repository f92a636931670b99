"""The Open Inference Protocol v2 on a real server, by hand: what no client lets one send. The clients: test_clients."""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from appliance.protocols import protos
from tests.support.server import Server

MODELS = ("half_plus_two", "multi_io", "dtypes", "strings", "scalars")
SERVICE = "/inference.GRPCInferenceService/"
X = {"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 5]}
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [3], "data": [2.5, 3.0, 4.5]}


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        shutil.copytree(zoo / name, root / name / "1")
    shutil.copytree(zoo / "half_plus_three", root / "half_plus_two" / "2")
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "saved_model.pb").write_bytes(b"nothing")
    config = tmp_path_factory.mktemp("config") / "models.config"
    entries = [
        f'config {{ name: "{name}" base_path: "{root / name}" model_platform: "tensorflow" '
        f"model_version_policy {{ all {{}} }} {labels} }}"
        for name in (*MODELS, "broken")
        for labels in ['version_labels { key: "stable" value: 1 }' if name == "half_plus_two" else ""]
    ]
    config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
    with Server(model_config_file=config, max_num_load_retries=0) as running:
        for name in MODELS:
            running.wait_for(name, 1)
        running.wait_for("half_plus_two", 2)
        running.wait_for("broken", 1, "failed")
        yield running


def infer(
    server: Server, path: str, document: Any, tail: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    sizes = {"Inference-Header-Content-Length": str(len(head))} if tail else {}
    return server.http("POST", f"/v2/models/{path}/infer", head + tail, {**sizes, **(headers or {})})


@pytest.mark.parametrize(
    ("path", "version", "added"),
    [
        ("half_plus_two", "2", 3.0),
        ("half_plus_two/versions/1", "1", 2.0),
        ("half_plus_two/versions/2", "2", 3.0),
        ("half_plus_two/versions/stable", "1", 2.0),
    ],
)
def test_a_version_is_chosen_by_number_by_label_or_by_the_server(
    server: Server, path: str, version: str, added: float
) -> None:
    status, answer, headers = infer(server, path, {"id": "q", "inputs": [X]})
    expected = {**OUTPUT, "data": [0.5 + added, 1 + added, 2.5 + added]}
    assert (status, answer) == (
        200,
        {"model_name": "half_plus_two", "model_version": version, "id": "q", "outputs": [expected]},
    )
    assert headers["content-type"] == "application/json"


def test_binary_data_goes_in_and_out(server: Server) -> None:
    array = np.array([1, 2, 5], np.float32)
    tensor = {**X, "parameters": {"binary_data_size": 12}}
    del tensor["data"]
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    status, body, headers = infer(server, "half_plus_two/versions/1", document, array.tobytes())
    size = int(headers["inference-header-content-length"])
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    assert json.loads(body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert np.frombuffer(body[size:], np.float32).tolist() == [2.5, 3.0, 4.5]


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_inflated(server: Server, encoding: str, compress: Any) -> None:
    body = compress(json.dumps({"inputs": [X]}).encode())
    status, answer, _ = infer(server, "half_plus_two/versions/1", body, headers={"Content-Encoding": encoding})
    assert (status, answer["outputs"]) == (200, [OUTPUT])


def test_a_signature_is_chosen_by_parameter(server: Server) -> None:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [[1, 2, 3]]},
        {"name": "b", "datatype": "INT32", "shape": [1], "data": [10]},
    ]
    document = {
        "inputs": inputs,
        "outputs": [{"name": "same_b"}, {"name": "scaled"}],
        "parameters": {"signature_name": "swapped"},
    }
    status, answer, _ = infer(server, "multi_io", document)
    assert status == 200
    assert [(output["name"], output["data"]) for output in answer["outputs"]] == [("same_b", [10]), ("scaled", [16.0])]
    status, answer, _ = infer(server, "multi_io", {**document, "parameters": {"signature_name": "absent"}})
    assert status == 400
    assert "no signature 'absent'; it has constant, serving_default, swapped" in answer["error"]


def test_scalars_have_an_empty_shape(server: Server) -> None:
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [], "data": [1.5]},
        {"name": "n", "datatype": "INT64", "shape": [], "data": [7]},
        {"name": "s", "datatype": "BYTES", "shape": [], "data": ["hé"]},
    ]
    status, answer, _ = infer(server, "scalars", {"inputs": inputs})
    assert status == 200
    assert {output["name"]: (output["shape"], output["data"]) for output in answer["outputs"]} == {
        "y": ([], [3.0]),
        "m": ([], [8]),
        "t": ([], ["hé!"]),
    }


@pytest.mark.parametrize("form", ["json", "binary", "strings"])
def test_large_bodies_are_answered_too(server: Server, form: str) -> None:
    rows = 300_000
    document: dict[str, Any] = {"parameters": {"binary_data_output": form == "binary"}}
    if form == "strings":
        tail = b"\x03\0\0\0abc" * rows
        tensor = {"name": "text", "datatype": "BYTES", "shape": [rows], "parameters": {"binary_data_size": len(tail)}}
        document["outputs"] = [{"name": "length"}]
        status, answer, _ = infer(server, "strings", {**document, "inputs": [tensor]}, tail)
        assert (status, set(answer["outputs"][0]["data"])) == (200, {3})
        return
    values = np.arange(rows, dtype=np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows]}
    tail = b""
    if form == "json":
        tensor["data"] = values.tolist()
    else:
        tail = values.tobytes()
        tensor["parameters"] = {"binary_data_size": len(tail)}
    status, answer, headers = infer(server, "half_plus_two/versions/1", {**document, "inputs": [tensor]}, tail)
    assert status == 200
    if form == "json":
        found = np.array(answer["outputs"][0]["data"], np.float32)
    else:
        found = np.frombuffer(answer[int(headers["inference-header-content-length"]) :], np.float32)
    assert np.array_equal(found, values / 2 + 2)


@pytest.mark.parametrize(
    ("path", "document", "tail", "headers", "status", "reason"),
    [
        ("absent", {"inputs": [X]}, b"", {}, 404, "Servable not found for request: Latest(absent)"),
        ("half_plus_two/versions/9", {"inputs": [X]}, b"", {}, 404, "Specific(half_plus_two, 9)"),
        ("half_plus_two/versions/none", {"inputs": [X]}, b"", {}, 400, "label"),
        ("half_plus_two/versions/99999999999999999999", {"inputs": [X]}, b"", {}, 400, "too large"),
        ("broken", {"inputs": [X]}, b"", {}, 404, "Servable not found"),
        ("half_plus_two", b"{", b"", {}, 400, "JSON Parse error"),
        ("half_plus_two", b"[]", b"", {}, 400, "Is not object"),
        ("half_plus_two", {}, b"", {}, 400, "the request has no inputs"),
        ("half_plus_two", {"inputs": [X]}, b"12", {}, 400, "2 bytes follow the last binary tensor"),
        ("half_plus_two", {"inputs": [X]}, b"", {"Inference-Header-Content-Length": "5x"}, 400, "'5x'"),
        ("half_plus_two", {"inputs": [X]}, b"", {"Inference-Header-Content-Length": "9999"}, 400, "is 9,999"),
        ("half_plus_two", {"inputs": [X]}, b"", {"Content-Encoding": "deflate"}, 400, "The body is not deflate"),
        ("half_plus_two", {"inputs": [X]}, b"", {"Content-Encoding": "br"}, 400, "send gzip or deflate"),
        ("strings", {"inputs": [{**X, "name": "text"}]}, b"", {}, 400, "sent as FP32, but the model takes BYTES"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_reason(
    server: Server, path: str, document: Any, tail: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    found, answer, _ = infer(server, path, document, tail, headers)
    assert (found, reason in answer["error"]) == (status, True), answer


def test_bytes_that_are_not_text_are_refused_as_json(server: Server) -> None:
    tail = b"\x01\0\0\0\xff"
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    document = {"inputs": [tensor], "outputs": [{"name": "echo_bytes"}]}
    status, answer, _ = infer(server, "strings", document, tail)
    assert status == 400
    assert "not UTF-8" in answer["error"]
    document["parameters"] = {"binary_data_output": True}
    status, body, headers = infer(server, "strings", document, tail)
    assert (status, body[int(headers["inference-header-content-length"]) :]) == (200, tail)


@pytest.mark.parametrize(
    ("path", "status", "answer"),
    [
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2/models", 200, {"models": sorted([*MODELS, "broken"])}),
        ("/v2/models/half_plus_two/ready", 200, {"name": "half_plus_two", "ready": True}),
        ("/v2/models/half_plus_two/versions/1/ready", 200, {"name": "half_plus_two", "ready": True}),
    ],
)
def test_questions_are_answered(server: Server, path: str, status: int, answer: Any) -> None:
    assert server.get(path) == (status, answer)


@pytest.mark.parametrize(("path", "status"), [("broken", 503), ("half_plus_two/versions/7", 503), ("absent", 404)])
def test_a_model_that_is_not_ready_says_why(server: Server, path: str, status: int) -> None:
    found, answer = server.get(f"/v2/models/{path}/ready")
    assert (found, "not found" in answer["error"]) == (status, True)


def test_metadata_describes_a_signature(server: Server) -> None:
    status, answer = server.get("/v2/models/multi_io?signature_name=constant")
    assert (status, answer["inputs"]) == (200, [])
    assert answer["outputs"] == [{"name": "answer", "datatype": "INT64", "shape": []}]
    assert server.get("/v2/models/half_plus_two/versions/1")[1]["versions"] == ["2", "1"]
    status, answer = server.get("/v2/models/multi_io?signature_name=absent")
    assert (status, "it has constant, serving_default, swapped" in answer["error"]) == (400, True)
    assert server.get("/v2/models/multi_io/config")[1]["input"][0]["data_type"] == "TYPE_FP32"


def test_the_index_has_each_version_with_its_state_and_reason(server: Server) -> None:
    _, rows, _ = server.http("POST", "/v2/repository/index")
    states = {(row["name"], row["version"]): row["state"] for row in rows}
    assert states[("half_plus_two", "1")] == states[("half_plus_two", "2")] == "READY"
    assert states[("broken", "1")] == "UNAVAILABLE"
    assert next(row["reason"] for row in rows if row["name"] == "broken")
    _, rows, _ = server.http("POST", "/v2/repository/index", b'{"ready": true}')
    assert {row["name"] for row in rows} == set(MODELS)


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v2/repository/models/m/load", 400, "copy a version folder"),
        ("POST", "/v2/repository/models/m/unload", 400, "copy a version folder"),
        ("GET", "/v2/trace/setting", 501, "no trace extension"),
        ("POST", "/v2/models/m/trace/setting", 501, "no trace extension"),
        ("GET", "/v2/logging", 501, "no logging extension"),
        ("GET", "/v2/systemsharedmemory/status", 501, "no system shared memory extension"),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501, "no cuda shared memory extension"),
        ("POST", "/v2/models/m/generate", 501, "no generate extension"),
        ("GET", "/v2/models/m/versions/1/stats", 501, "no statistics extension"),
        ("POST", "/v2/repository/index", 200, ""),
        ("GET", "/v2/nothing", 404, "Not found"),
    ],
)
def test_what_is_not_there_is_said(server: Server, method: str, path: str, status: int, reason: str) -> None:
    found, answer, _ = server.http(method, path)
    assert found == status
    assert status == 200 or reason in answer["error"]


def test_extensions_that_are_not_there_are_not_listed(server: Server) -> None:
    listed = set(server.get("/v2")[1]["extensions"])
    assert listed >= {"binary_tensor_data", "model_configuration", "model_repository"}
    assert not listed & {"trace", "logging", "system_shared_memory", "cuda_shared_memory", "generate"}


# -- gRPC -----------------------------------------------------------------------------------------------------------


def call(server: Server, method: str, data: bytes, timeout: float = 30) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        answer: bytes = channel.unary_unary(SERVICE + method)(data, timeout=timeout)
        return answer


def test_typed_contents_are_answered_with_raw_ones(server: Server) -> None:
    message = protos.ModelInferRequest(model_name="half_plus_two", model_version="stable", id="9")
    message.inputs.add(name="x", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
    answer = protos.ModelInferResponse.FromString(call(server, "ModelInfer", message.SerializeToString()))
    assert (answer.model_version, answer.id, answer.outputs[0].HasField("contents")) == ("1", "9", False)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2.5, 3.0]


@pytest.mark.parametrize(
    ("method", "data", "code"),
    [
        ("ModelInfer", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("ModelInfer", b"", grpc.StatusCode.INVALID_ARGUMENT),
        ("ModelInfer", b"\x0a\x06absent", grpc.StatusCode.NOT_FOUND),
        ("ModelMetadata", b"\x0a\x06absent", grpc.StatusCode.NOT_FOUND),
        ("ModelMetadata", b"\x0a\x7fx", grpc.StatusCode.INVALID_ARGUMENT),
        ("RepositoryModelUnload", b"", grpc.StatusCode.FAILED_PRECONDITION),
        ("TraceSetting", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("SystemSharedMemoryStatus", b"", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_a_call_that_cannot_be_answered_fails(server: Server, method: str, data: bytes, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server, method, data)
    assert caught.value.code() is code


def test_requests_are_counted_as_inference(server: Server) -> None:
    before = server.get("/metrics")[1].decode()
    infer(server, "half_plus_two", {"inputs": [X]})
    after = server.get("/metrics")[1].decode()

    def count(page: str) -> float:
        wanted = 'dropserve_requests_total{protocol="rest",model="half_plus_two",method="infer",code="OK"} '
        return float(next((line for line in page.splitlines() if line.startswith(wanted)), "0 0").split()[-1])

    assert count(after) == count(before) + 1

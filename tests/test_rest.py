"""REST as a client sees it, against a real server."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Server


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in ("half_plus_two", "multi_io", "strings", "dtypes", "fails", "scalars", "keras2", "keras3"):
        shutil.copytree(zoo / name, root / name / "1")
    shutil.copytree(zoo / "half_plus_three", root / "half_plus_two" / "00000002")
    with Server(model_root=root) as running:
        for name in ("multi_io", "strings", "dtypes", "fails", "scalars", "keras2", "keras3"):
            running.wait_for(name, 1)
        running.wait_for("half_plus_two", 2)
        yield running


def test_rows_are_answered_in_rows(server: Server) -> None:
    assert server.predict("half_plus_two", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [3.5, 4.0, 5.5]})


def test_columns_are_answered_in_columns(server: Server) -> None:
    assert server.predict("half_plus_two", {"inputs": [1.0, 2.0]}) == (200, {"outputs": [3.5, 4.0]})


def test_a_version_in_the_path_is_the_one_that_answers(server: Server) -> None:
    assert server.predict("half_plus_two", {"instances": [1.0]}, "/versions/2") == (200, {"predictions": [3.5]})
    status, body = server.predict("half_plus_two", {"instances": [1.0]}, "/versions/1")
    assert status == 404
    assert "Specific(half_plus_two, 1)" in body["error"]


def test_paths_are_matched_whatever_their_case(server: Server) -> None:
    status, body, _ = server.http("POST", "/V1/Models/half_plus_two:PREDICT", b'{"instances": [1.0]}')
    assert (status, body) == (200, {"predictions": [3.5]})


def test_nan_and_infinities_travel_both_ways(server: Server) -> None:
    status, body = server.predict("half_plus_two", b'{"instances": [NaN, Infinity, -Infinity]}')
    assert status == 200
    first, second, third = body["predictions"]
    assert math.isnan(first)
    assert (second, third) == (math.inf, -math.inf)


def test_a_gzip_body_is_inflated(server: Server) -> None:
    body = gzip.compress(b'{"instances": [1.0]}')
    status, answer, _ = server.http("POST", "/v1/models/half_plus_two:predict", body, {"Content-Encoding": "gzip"})
    assert (status, answer) == (200, {"predictions": [3.5]})


def test_a_chunked_body_is_taken(server: Server) -> None:
    connection = server.connection()
    chunks = iter([b'{"instances"', b": [1.0]}"])
    connection.request("POST", "/v1/models/half_plus_two:predict", chunks, encode_chunked=True)
    response = connection.getresponse()
    assert json.loads(response.read()) == {"predictions": [3.5]}
    connection.close()


def test_keep_alive_survives_bodies_over_64_kib(server: Server) -> None:
    connection = server.connection()
    body = json.dumps({"instances": [1.0] * 50_000}).encode()
    for _ in range(50):
        connection.request("POST", "/v1/models/half_plus_two:predict", body)
        response = connection.getresponse()
        assert response.status == 200
        assert len(json.loads(response.read())["predictions"]) == 50_000
        assert connection.sock is not None, "the server closed a keep-alive connection"
    connection.close()


def test_payloads_of_many_mebibytes_go_through_shared_memory_unharmed(server: Server) -> None:
    values = [float(i % 1000) for i in range(2_000_000)]
    for _ in range(3):
        status, body = server.predict("half_plus_two", {"inputs": values})
        assert status == 200
        assert body["outputs"][:3] == [3.0, 3.5, 4.0]
        assert body["outputs"][-1] == 999 / 2 + 3
        assert len(body["outputs"]) == len(values)


def test_an_error_of_the_graph_is_the_clients(server: Server) -> None:
    status, body = server.predict("fails", {"instances": [-1.0]})
    assert status == 400
    assert body["error"]


def test_status_lists_the_versions(server: Server) -> None:
    status, body = server.get("/v1/models/half_plus_two")
    assert status == 200
    assert body == {
        "model_version_status": [
            {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }


def test_metadata_describes_the_signatures(server: Server) -> None:
    status, body = server.get("/v1/models/half_plus_two/metadata")
    assert status == 200
    assert body["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "2"}
    signature = body["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["unknown_rank"] is False


def test_all_models_are_listed(server: Server) -> None:
    status, body = server.get("/v1/models")
    assert status == 200
    assert {m["name"] for m in body["models"]} >= {"half_plus_two", "multi_io", "keras2"}


def test_alive_and_ready(server: Server) -> None:
    assert server.get("/healthz")[0] == 200
    assert server.get("/readyz")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/v1/x", None, 400, "Malformed request: GET /v1/x"),
        ("DELETE", "/v1/models/half_plus_two", None, 400, "Malformed request: DELETE"),
        ("GET", "/elsewhere", None, 404, "Not found"),
        ("GET", "/v1/models/unknown", None, 404, "Could not find any versions of model unknown"),
        ("GET", "/v1/models/half_plus_two/versions/9", None, 404, "Could not find version 9"),
        ("POST", "/v1/models/unknown:predict", b'{"instances": [1]}', 404, "Latest(unknown)"),
        ("POST", "/v1/models/unknown:predict", b"{", 400, "JSON"),
        ("POST", "/v1/models/..:predict", b'{"instances": [1]}', 404, "Latest(..)"),
        ("POST", "/v1/models/%2e%2f:predict", b'{"instances": [1]}', 404, "Latest(./)"),
        ("POST", "/v1/models/half_plus_two/labels/stable:predict", b'{"instances": [1]}', 400, "label: stable"),
        ("POST", f"/v1/models/half_plus_two/versions/{'9' * 30}:predict", b"{}", 400, "Missing"),
        (
            "POST",
            "/v1/models/half_plus_two:predict",
            b'{"signature_name": "x", "instances": [1]}',
            400,
            '"x" not found',
        ),
        ("POST", "/v1/models/half_plus_two:classify", b"{}", 501, "classify"),
    ],
)
def test_what_cannot_be_served_says_why(
    server: Server, method: str, path: str, body: bytes | None, status: int, words: str
) -> None:
    found, answer, headers = server.http(method, path, body)
    assert found == status
    assert words in answer["error"]
    assert headers["content-type"].startswith("application/json")

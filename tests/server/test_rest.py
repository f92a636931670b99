"""REST as a client sees it, against a real server."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server


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


@pytest.mark.parametrize("size", [1, 100, 70_000])
def test_a_body_in_chunks_of_any_size_is_taken(server: Server, size: int) -> None:
    body = json.dumps({"instances": [1.0] * 20_000}).encode()[: 30_000 if size == 1 else None]
    body = body if body.endswith(b"}") else body[: body.rindex(b",")] + b"]}"
    chunks = (body[start : start + size] for start in range(0, len(body), size))
    connection = server.connection()
    connection.request("POST", "/v1/models/half_plus_two:predict", chunks, encode_chunked=True)
    response = connection.getresponse()
    assert json.loads(response.read()) == {"predictions": [3.5] * body.count(b"1.0")}
    connection.close()


def test_a_token_and_a_query_are_ignored(server: Server) -> None:
    status, answer, _ = server.http(
        "POST",
        "/v1/models/half_plus_two:predict?key=value",
        b'{"instances": [1.0]}',
        {"Authorization": "Bearer anything", "Content-Type": "text/plain"},
    )
    assert (status, answer) == (200, {"predictions": [3.5]})


def test_leading_zeros_of_a_version_count_for_nothing(server: Server) -> None:
    path = f"/versions/{'0' * 40}2"
    assert server.predict("half_plus_two", {"instances": [1.0]}, path) == (200, {"predictions": [3.5]})


def test_a_status_request_ignores_a_label(server: Server) -> None:
    assert server.get("/v1/models/half_plus_two/labels/any") == server.get("/v1/models/half_plus_two")


# ---- Compression


def test_a_large_answer_is_compressed_for_a_client_that_accepts_it(server: Server) -> None:
    body = json.dumps({"instances": [1.0] * 30_000}).encode()
    path = "/v1/models/half_plus_two:predict"
    connection = server.connection()
    for accepted in ("gzip, deflate, br", None, "gzip"):  # on one connection
        connection.request("POST", path, body, {"Accept-Encoding": accepted} if accepted else {})
        response = connection.getresponse()
        data = response.read()
        assert response.getheader("vary") == "Accept-Encoding"
        assert response.getheader("content-length") == str(len(data))
        assert response.getheader("content-encoding") == ("gzip" if accepted else None)
        plain = gzip.decompress(data) if accepted else data
        assert len(plain) > 100_000
        assert (len(data) < len(plain) / 2) is (accepted is not None)
        assert json.loads(plain) == {"predictions": [3.5] * 30_000}
    connection.close()


def test_a_small_answer_is_compressed_only_where_nothing_else_will_do(server: Server) -> None:
    path = "/v1/models/half_plus_two"
    _, _, headers = server.http("GET", path, None, {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in headers
    assert "vary" not in headers
    connection = server.connection()
    connection.request("GET", path, None, {"Accept-Encoding": "gzip, identity;q=0"})
    response = connection.getresponse()
    assert response.getheader("content-encoding") == "gzip"
    assert "model_version_status" in json.loads(gzip.decompress(response.read()))
    connection.close()


def test_head_has_the_headers_of_get(server: Server) -> None:
    path = "/v1/models/multi_io/metadata"
    found = []
    connection = server.connection()
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, path, None, {"Accept-Encoding": "gzip"})
        response = connection.getresponse()
        data = response.read()
        assert (len(data) > 0) is (method == "GET")
        found.append({name: value for name, value in response.getheaders() if name != "date"})
    connection.close()
    assert found[0] == found[1] == found[2]
    assert found[0]["content-encoding"] == "gzip"


def test_errors_are_compressed_too(server: Server) -> None:
    connection = server.connection()
    connection.request("GET", f"/elsewhere/{'x' * 2000}", None, {"Accept-Encoding": "gzip"})
    response = connection.getresponse()
    assert response.status == 404
    assert response.getheader("content-encoding") == "gzip"
    assert "Not found" in json.loads(gzip.decompress(response.read()))["error"]
    connection.close()


# ---- Other origins

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}


def test_without_the_option_no_answer_speaks_of_other_origins(server: Server) -> None:
    for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/models/half_plus_two:predict")):
        _, _, headers = server.http(method, path, None, {"Origin": "https://example.com"})
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.fixture(scope="module")
def open_server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that web pages may call, which knows labels."""
    root = tmp_path_factory.mktemp("open")
    shutil.copytree(zoo / "half_plus_two", root / "m" / "1")
    shutil.copytree(zoo / "half_plus_three", root / "m" / "2")
    config = root / "models.config"
    config.write_text(
        f'''model_config_list {{ config {{
            name: "m" base_path: "{root / "m"}" model_platform: "tensorflow" model_version_policy {{ all {{}} }}
            version_labels {{ key: "stable" value: 1 }} version_labels {{ key: "a b" value: 2 }}
        }} }}'''
    )
    with Server(model_config_file=config, rest_api_enable_cors_support=True) as running:
        running.wait_for("m", 1)
        running.wait_for("m", 2)
        yield running


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/models/m:predict", b'{"instances": [1.0]}', 200),
        ("POST", "/v1/models/m:predict", b"{", 400),
        ("GET", "/v1/models/m/metadata", None, 200),
        ("HEAD", "/v1/models/m", None, 200),
        ("GET", "/v1/models/unknown", None, 404),
        ("GET", "/elsewhere", None, 404),
        ("GET", "/readyz", None, 200),
    ],
)
def test_every_answer_lets_other_origins_read_it(
    open_server: Server, method: str, path: str, body: bytes | None, status: int
) -> None:
    connection = open_server.connection()
    connection.request(method, path, body, {"Origin": "https://example.com"})
    response = connection.getresponse()
    response.read()
    assert response.status == status
    headers = {name.lower(): value for name, value in response.getheaders()}
    assert {name: value for name, value in headers.items() if name.startswith("access-control")} == CORS
    connection.close()


def test_a_browser_may_ask_before_it_posts(open_server: Server) -> None:
    connection = open_server.connection()
    asked = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    for path in ("/v1/models/m:predict", "/v1/models/m/metadata"):
        connection.request("OPTIONS", path, None, asked)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
        headers = {name.lower(): value for name, value in response.getheaders()}
        assert CORS.items() <= headers.items()
    connection.close()


def test_options_without_an_origin_is_refused(open_server: Server) -> None:
    status, answer, headers = open_server.http("OPTIONS", "/v1/models/m:predict")
    assert status == 400
    assert "Origin header is missing in CORS preflight" in answer["error"]
    assert CORS.items() <= headers.items()


@pytest.mark.parametrize(("label", "version", "y"), [("stable", "1", 2.5), ("a%20b", "2", 3.5)])
def test_a_label_in_the_path_is_the_version_that_answers(
    open_server: Server, label: str, version: str, y: float
) -> None:
    path = f"/labels/{label}"
    assert open_server.predict("m", {"instances": [1.0]}, path) == (200, {"predictions": [y]})
    document = {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}]}
    status, answer, _ = open_server.http("POST", f"/v1/models/m{path}:regress", json.dumps(document).encode())
    assert (status, answer) == (200, {"results": [y]})
    status, answer = open_server.get(f"/v1/models/m{path}/metadata")
    assert (status, answer["model_spec"]["version"]) == (200, version)


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
        ("POST", "/v1/models/unknown:predict", b"{}", 404, "Latest(unknown)"),
        ("POST", "/v1/models/half_plus_two:predict", b"{}", 400, "Missing 'inputs' or 'instances' key"),
        (
            "POST",
            f"/v1/models/half_plus_two/versions/{'9' * 30}:predict",
            b"{",
            400,
            f"Failed to convert version: {'9' * 30} to numeric.",
        ),
        (
            "GET",
            f"/v1/models/half_plus_two/versions/{2**63}",
            None,
            400,
            f"Failed to convert version: {2**63} to numeric",
        ),
        ("GET", f"/v1/models/half_plus_two/versions/{2**63 - 1}", None, 404, f"Could not find version {2**63 - 1}"),
        ("GET", "/v1/models/half_plus_two/versions/-1", None, 400, "Malformed request: GET"),
        ("GET", "/v1/models/half_plus_two/versions/2/labels/x", None, 400, "Malformed request: GET"),
        ("GET", "/v1/models/half_plus_two/labels/x/metadata", None, 400, "Unrecognized servable version label: x"),
        ("GET", "/v1/models/unknown/metadata", None, 404, "Servable not found for request: Latest(unknown)"),
        ("GET", "/v1/models/half_plus_two/metadata/more", None, 400, "Malformed request: GET"),
        ("GET", "/v1/models/versions/1", None, 400, "Missing model name in request."),
        ("GET", "/v1/models/gr%C3%BCn", None, 404, "Could not find any versions of model grün"),
        ("GET", "/v1/models/half_plus_two:predict", None, 400, "Malformed request: GET"),
        ("POST", "/v1/models/half_plus_two", b"{}", 400, "Malformed request: POST /v1/models/half_plus_two"),
        ("POST", "/v1/models/half_plus_two:explain", b"{}", 400, "Malformed request: POST"),
        ("PUT", "/v1/models/half_plus_two:predict", b"{}", 400, "Malformed request: PUT"),
        ("OPTIONS", "/v1/models/half_plus_two:predict", None, 400, "Malformed request: OPTIONS"),
        ("OPTIONS", "/elsewhere", None, 404, "Not found"),
        (
            "POST",
            "/v1/models/half_plus_two:predict",
            b'{"signature_name": "x", "instances": [1]}',
            400,
            '"x" not found',
        ),
    ],
)
def test_what_cannot_be_served_says_why(
    server: Server, method: str, path: str, body: bytes | None, status: int, words: str
) -> None:
    found, answer, headers = server.http(method, path, body)
    assert found == status
    assert words in answer["error"]
    assert headers["content-type"].startswith("application/json")

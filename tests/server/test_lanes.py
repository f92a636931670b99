"""The two lanes of REST against a real server: the same bytes, in order, and nothing left in flight."""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.support.onnx_models import STRING, gather, half_plus, identity, linear, write
from tests.support.server import Server, eventually

MODELS = {"half": half_plus(2.0), "rows": linear(), "strings": identity(STRING), "gather": gather()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        write(root / name / "1", model.SerializeToString())
    with Server(model_root=root, rest_workers=1, access_log=True) as server:
        for name in MODELS:
            server.wait_for(name, 1)
        yield server


def fast(path: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST /v1/models/{path}:predict HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def slow(path: str, body: bytes, headers: str = "") -> bytes:
    """The same request in a way that only the slow lane takes."""
    return fast(path, body, headers + "content-encoding: identity\r\n")


def exchanged(server: Server, data: bytes, answers: int) -> list[tuple[bytes, bytes]]:
    """Head (without the date) and body of each answer to what is sent at once."""
    found = []
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as sock:
        sock.sendall(data)
        stream = sock.makefile("rb")
        for _ in range(answers):
            head = b"".join(iter(stream.readline, b"\r\n"))
            size = int(re.search(rb"content-length: (\d+)", head)[1])
            found.append((re.sub(rb"date: .*\r\n", b"", head), stream.read(size)))
    return found


def in_flight(server: Server) -> float:
    page = server.http("GET", "/metrics")[1].decode()
    return float(re.search(r'^dropserve_inflight_request_bytes\{protocol="rest"\} (\S+)', page, re.MULTILINE)[1])


NUMBERS = json.dumps({"instances": [1.0] * 15_000}).encode()
REQUESTS = {
    "rows": ("half", b'{"instances": [1.0, 2.0]}'),
    "columns": ("half", b'{"inputs": {"x": [1.0, 2.0]}}'),
    "several outputs": ("rows", b'{"instances": [[1, 2, 3], [4, 5, 6]]}'),
    "strings": ("strings", '{"instances": ["grün", ""]}'.encode()),
    "no finite number": ("half", b'{"instances": [NaN, Infinity]}'),
    "a version": ("half/versions/1", b'{"instances": [1.0]}'),
    "an answer of more than 64 KiB": ("half", NUMBERS),
    "an answer of some KiB": ("half", json.dumps({"instances": [1.25] * 1000}).encode()),
    "no such version": ("half/versions/2", b'{"instances": [1.0]}'),
    "no such label": ("half/labels/x", b'{"instances": [1.0]}'),
    "no such model": ("none", b'{"instances": [1.0]}'),
    "no such signature": ("half", b'{"signature_name": "x", "instances": [1.0]}'),
    "no JSON": ("half", b'{"instances": ['),
    "a wrong type": ("half", b'{"instances": ["a"]}'),
    "a wrong input": ("half", b'{"inputs": {"z": [1.0]}}'),
    "a wrong shape": ("rows", b'{"instances": [[1, 2]]}'),
    "an error of the graph": ("gather", b'{"inputs": {"x": [1.0], "i": [7]}}'),
    "bytes that are no text": ("strings", b'{"instances": [{"b64": "/w=="}]}'),
}
HEADERS = {
    "none": "",
    "gzip": "accept-encoding: gzip, deflate\r\n",
    "gzip only": "accept-encoding: gzip, identity;q=0\r\n",
    "close": "connection: close\r\n",
}


@pytest.mark.parametrize("name", REQUESTS)
def test_both_lanes_send_the_same_answer(server: Server, name: str) -> None:
    path, body = REQUESTS[name]
    for headers in HEADERS.values():
        ((head, answer),) = exchanged(server, fast(path, body, headers), 1)
        assert [(head, answer)] == exchanged(server, slow(path, body, headers), 1)
        document = json.loads(gzip.decompress(answer) if b"content-encoding: gzip" in head else answer)
        assert (b" 200 OK\r\n" in head) is ("error" not in document)
    eventually(lambda: in_flight(server) == 0, "nothing is in flight")


def test_requests_of_both_lanes_are_answered_in_order(server: Server) -> None:
    sent = b""
    for value in range(30):
        make = slow if value % 3 == 1 else fast
        sent += make("half", b'{"instances": [%d]}' % value if value % 5 else NUMBERS)
    answers = [json.loads(body)["predictions"][0] for _, body in exchanged(server, sent, 30)]
    assert answers == [value / 2 + 2 if value % 5 else 2.5 for value in range(30)]


def test_a_connection_serves_both_lanes_in_turn(server: Server) -> None:
    connection = server.connection()
    for value in range(20):
        headers = {"content-encoding": "identity"} if value % 2 else {}
        connection.request("POST", "/v1/models/half:predict", b'{"instances": [%d]}' % value, headers)
        assert json.loads(connection.getresponse().read()) == {"predictions": [value / 2 + 2]}
        connection.request("GET", "/v1/models/half")
        assert b"AVAILABLE" in connection.getresponse().read()
    connection.close()


def test_an_old_client_gets_its_answer_and_the_end_of_the_connection(server: Server) -> None:
    for make in (fast, slow):
        request = make("half", b'{"instances": [1.0]}').replace(b"HTTP/1.1", b"HTTP/1.0")
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as sock:
            sock.sendall(request)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b'{"predictions":[2.5]}')


def test_clients_that_go_leave_nothing_in_flight(server: Server) -> None:
    for body in (b'{"instances": [1.0]}', NUMBERS):
        request = fast("half", body)
        for nbytes in (len(request) - 1, len(request), 90):
            for _ in range(10):
                with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as sock:
                    sock.sendall(request[:nbytes])
    eventually(lambda: in_flight(server) == 0, "nothing is in flight")
    assert server.predict("half", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_client_that_asks_on_before_it_reads_gets_all_answers_whole(server: Server) -> None:
    request = fast("half", json.dumps({"instances": [1.0] * 5000}).encode())
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", server.rest_port))
        sock.setblocking(False)
        sent = 0
        while True:  # until no more of it is taken
            try:
                sent += sock.send(request[sent % len(request) :])
            except BlockingIOError:
                break
        sock.setblocking(True)
        stream = sock.makefile("rb")
        for _ in range(sent // len(request)):
            head = b"".join(iter(stream.readline, b"\r\n"))
            body = stream.read(int(re.search(rb"content-length: (\d+)", head)[1]))
            assert json.loads(body) == {"predictions": [2.5] * 5000}

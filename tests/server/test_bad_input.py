"""Whatever bytes clients send, they get a clear error, and nobody else notices."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import http.client
import itertools
import json
import os
import resource
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.protocols import protos
from tests.support.server import Server, eventually

LIMIT = 2**20
PATH = "/v1/models/half_plus_two:predict"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture(scope="module")
def running(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in ("half_plus_two", "multi_io", "strings"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(
        model_root=root,
        max_request_bytes=LIMIT,
        max_grpc_message_bytes=LIMIT,
        header_timeout_seconds=1,
        body_grace_seconds=1,
    ) as server:
        for name in ("half_plus_two", "multi_io", "strings"):
            server.wait_for(name, 1)
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The server, which after the test must be as it was: every process alive, and answering."""
    before = running.lasting_processes()
    yield running
    assert running.predict("half_plus_two", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    answer = protos.PredictResponse.FromString(call_grpc(running, predict_request()))
    assert list(answer.outputs["y"].float_val) == [2.5, 3.0]
    assert running.lasting_processes() == before


def predict_request() -> Any:
    request = protos.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].dtype = protos.DataType.Value("DT_FLOAT")
    request.inputs["x"].tensor_shape.dim.add(size=2)
    request.inputs["x"].float_val.extend([1.0, 2.0])
    return request


def call_grpc(server: Server, request: Any, method: str = PREDICT, **options: Any) -> bytes:
    """The serialized answer. `request` is a message, or bytes. Raises grpc.RpcError."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.max_send_message_length", -1)]) as channel:
        answer: bytes = channel.unary_unary(method)(data, timeout=60, **options)
        return answer


def refusal(server: Server, request: Any, method: str = PREDICT, **options: Any) -> tuple[str, str]:
    """Code and details of the error that the request gets."""
    with pytest.raises(grpc.RpcError) as caught:
        call_grpc(server, request, method, **options)
    return caught.value.code().name, caught.value.details()


class Connection:
    """A connection on which a test sends what it likes, and reads one answer after the other."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def stop_sending(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def response(self) -> tuple[int, bytes, http.client.HTTPMessage]:
        """The next answer."""
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = http.client.parse_headers(self._file)
        return int(line.split()[1]), self._file.read(int(headers["content-length"])), headers

    def ended(self) -> bool:
        """Whether the server ends the connection, after whatever else it sends. Raises TimeoutError if not."""
        with contextlib.suppress(ConnectionResetError):
            self._file.read()
        return True


def connected(server: Server) -> Connection:
    return Connection(server.rest_port)


def peak_bytes(server: Server, kind: str) -> int:
    """The most memory that any process of the kind ever held."""
    status = [Path(f"/proc/{pid}/status").read_text() for pid in server.pids(kind)]
    return max(int(text.partition("VmHWM:")[2].split()[0]) for text in status) * 1024


# -- JSON ---------------------------------------------------------------------------------------------------------

DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nothing",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"instances": [1.0]',
        b'{"instances": [1.0]} {"instances": [1.0]}',
        b'{"instances": [1.0,]}',
        b"{'instances': [1.0]}",
        b'{"instances": [1.0], "inputs": [1.0]}',
        b'{"instances": 1.0}',
        b'{"instances": []}',
        b'{"instances": null}',
        b'{"instances": [null]}',
        b'{"instances": ["one"]}',
        b'{"instances": [true]}',
        b'{"instances": [{"x": 1.0}, {"y": 1.0}]}',
        b'{"instances": [{"x": 1.0}, 1.0]}',
        b'{"instances": [{"b64": "AAAA"}]}',
        b'{"instances": [[1.0], [1.0, 2.0]]}',
        b'{"instances": [[[1.0]], [1.0]]}',
        b'{"instances": [1.0, [2.0]]}',
        b'{"instances": [1e999]}',
        b'{"instances": [' + b"9" * 100_000 + b"]}",
        b'{"inputs": {}}',
        b'{"signature_name": 7, "instances": [1.0]}',
        b'{"signature_name": "\\ud800", "instances": [1.0]}',
        b'{"instances": [1.0], "x": "\xff\xfe"}',
        b"\xff\xfe{\x00}\x00",
        b"\x00" * 1000,
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"instances": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"instances": ' + b"[" * DEEP + b"1.0" + b"]" * DEEP + b"}",
        b'{"instances": ' + b"[" * DEEP + b"NaN" + b"]" * DEEP + b"}",
        b'{"instances": [' + b'{"x":' * DEEP + b"1" + b"}" * DEEP + b"]}",
        b'{"instances": [NaN, ' + b'{"x":' * DEEP + b"1" + b"}" * DEEP + b"]}",
        b'{"instances": ' + b"[" * 300 + b"1.0" + b"]" * 300 + b"}",
    ],
    ids=itertools.count(),
)
def test_a_body_that_is_no_predict_request_gets_400_and_says_why(running: Server, body: bytes) -> None:
    status, answer, headers = running.http("POST", PATH, body)
    assert status == 400
    assert headers["content-type"].startswith("application/json")
    assert 0 < len(answer["error"]) < 2000


def test_ragged_rows_of_every_size_are_refused(server: Server) -> None:
    for columns in (3, 300):
        rows = [[1.0] * columns for _ in range(100)]
        rows[57].append(2.0)
        document = {"instances": [{"a": row, "b": 1} for row in rows]}
        assert server.predict("multi_io", document)[0] == 400
        assert server.predict("multi_io", {"inputs": {"a": rows, "b": [1] * 100}})[0] == 400


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "%2e%2f", "..%2f..%2fetc%2fpasswd", "%00", "%ff", "%f0%9f%98%80", "a" * 5000]
)
def test_a_strange_model_name_is_a_model_that_is_not_there(server: Server, name: str) -> None:
    for method, path in (("POST", ":predict"), ("GET", ""), ("GET", "/metadata")):
        status, answer, _ = server.http(method, f"/v1/models/{name}{path}", b'{"instances": [1.0]}')
        assert status == 404
        assert answer["error"]


@pytest.mark.parametrize(
    "line", [b"GET /healthz", b"POST " + PATH.encode() + b"\r\ncontent-length: 2", b"GET /x HTTP/0.9"]
)
def test_a_request_without_a_version_of_http_that_we_speak_is_refused(server: Server, line: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(line + b"\r\n\r\n{}")
        status, body, headers = connection.response()
        assert status in (400, 505)
        assert json.loads(body)["error"]
        assert headers["connection"] == "close"
        assert connection.ended()
    assert "Traceback" not in server.log()


# -- size, encoding and pace of a body ----------------------------------------------------------------------------


def test_a_body_over_the_limit_gets_413(server: Server) -> None:
    body = b'{"instances": [1.0' + b" " * LIMIT + b"]}"
    status, answer, headers = server.http("POST", PATH, body)
    assert status == 413
    assert "max_request_bytes" in answer["error"]
    assert headers["connection"] == "close"


def test_a_chunked_body_over_the_limit_gets_413(server: Server) -> None:
    connection = server.connection()
    chunks = itertools.chain([b'{"instances": [1.0'], itertools.repeat(b" " * 65536, 40))
    connection.request("POST", PATH, chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    answer = connection.getresponse()
    assert answer.status == 413
    assert "max_request_bytes" in json.loads(answer.read())["error"]
    connection.close()


def test_a_body_that_is_declared_larger_than_any_memory_gets_413(server: Server) -> None:
    with connected(server) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {2**62}\r\n\r\n".encode())
        assert sock.response()[0] == 413
        assert sock.ended()


def test_a_body_that_trickles_in_gets_408_and_its_connection_ends(server: Server) -> None:
    for head, part in (
        ("content-length: 1000", b""),
        ("content-length: 1000", b"{"),
        ("transfer-encoding: chunked", b""),
        ("transfer-encoding: chunked", b"1\r\n{\r\n"),
    ):
        with connected(server) as sock:
            sock.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode() + part)
            status, body, headers = sock.response()
            assert status == 408
            assert "at least 16,384 bytes a second are asked for, after body_grace_seconds" in json.loads(body)["error"]
            assert headers["connection"] == "close"
            assert sock.ended()


def test_a_body_that_nobody_asked_for_does_not_hold_its_connection(server: Server) -> None:
    with connected(server) as sock:
        sock.sendall(b"POST /elsewhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert sock.response()[0] == 404
        assert sock.ended()


def test_a_client_that_waits_for_leave_to_send_a_body_that_is_too_large_is_told_no(server: Server) -> None:
    with connected(server) as sock:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {10 * LIMIT}\r\nexpect: 100-continue\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.response()[0] == 413


def gzipped(server: Server, body: bytes, encoding: str = "gzip") -> tuple[int, Any]:
    status, answer, _ = server.http("POST", PATH, body, {"Content-Encoding": encoding})
    return status, answer


def test_a_gzip_body_that_is_cut_off_or_garbled_gets_400(server: Server) -> None:
    whole = gzip.compress(b'{"instances": [1.0]}')
    assert gzipped(server, whole)[0] == 200
    for length in range(len(whole)):
        status, answer = gzipped(server, whole[:length])
        assert status == 400
        assert answer["error"]
    for index in range(len(whole)):
        garbled = bytearray(whole)
        garbled[index] ^= 0xFF
        assert gzipped(server, bytes(garbled))[0] in (200, 400)  # the header has fields that mean nothing here
    for other in (os.urandom(10_000), b'{"instances": [1.0]}', zlib.compress(b"{}"), whole + b"tail"):
        assert gzipped(server, other)[0] == 400


def test_an_unknown_encoding_gets_400(server: Server) -> None:
    for encoding in ("br", "compress", "gzip, gzip", "x" * 1000):
        status, answer = gzipped(server, b'{"instances": [1.0]}', encoding)
        assert status == 400
        assert "send gzip" in answer["error"]


def test_gzip_bombs_get_413_and_take_no_memory(server: Server) -> None:
    """Each inflates a thousandfold, to a gigabyte."""
    deflater = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    megabyte = bytes(2**20)
    bomb = b"".join(deflater.compress(megabyte) for _ in range(1000)) + deflater.flush()
    assert len(bomb) < LIMIT, "else it would be refused for its own size"
    before = peak_bytes(server, "ds-rest")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: gzipped(server, bomb)[0], range(40)))
    assert set(statuses) == {413}
    assert peak_bytes(server, "ds-rest") - before < 120 * 2**20


# -- HTTP itself --------------------------------------------------------------------------------------------------


def test_headers_over_64_kib_get_431(server: Server) -> None:
    value = "x" * 70_000
    many = "".join(f"x-{index}: {'y' * 90}\r\n" for index in range(700))
    for head in (
        f"GET /healthz HTTP/1.1\r\nhost: x\r\nx: {value}\r\n\r\n",
        f"GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n",
        f"GET /{value} HTTP/1.1\r\nhost: x\r\n\r\n",
        f"GET /healthz HTTP/1.1\r\nhost: x\r\nx: {value}",  # and no end
        f"GET /{value}",
    ):
        with connected(server) as sock:
            sock.sendall(head.encode())
            status, body, _ = sock.response()
            assert status == 431
            assert json.loads(body)["error"]
            assert sock.ended()


def test_headers_that_are_slow_get_408(server: Server) -> None:
    heads = (b"", b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: y")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(server)) for _ in heads]
        second = stack.enter_context(connected(server))  # the second request of a connection
        for sock, head in zip(socks, heads, strict=True):
            sock.sendall(head)
        second.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /hea")
        assert second.response()[0] == 200
        for sock in (*socks, second):
            assert sock.response()[0] == 408
            assert sock.ended()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 10_000,
        bytes(range(255, -1, -1)) * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / FTP/1.1\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"POST %s HTTP/1.1\r\ncontent-length: -1\r\n\r\n" % PATH.encode(),
        b"POST %s HTTP/1.1\r\ncontent-length: 1x\r\n\r\n" % PATH.encode(),
        b"POST %s HTTP/1.1\r\ncontent-length: %s\r\n\r\n" % (PATH.encode(), b"9" * 100),
        b"POST %s HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}" % PATH.encode(),
        b"POST %s HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % PATH.encode(),
        b"POST %s HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n" % PATH.encode(),
        b"POST %s HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n%s\r\n" % (PATH.encode(), b"f" * 30),
    ],
    ids=itertools.count(),
)
def test_what_is_no_http_gets_400_and_its_connection_ends(running: Server, garbage: bytes) -> None:
    with connected(running) as sock:
        sock.sendall(garbage)
        status, body, _ = sock.response()
        assert status == 400
        assert json.loads(body)["error"]
        assert sock.ended()


def test_random_bytes_end_their_connection(server: Server) -> None:
    for length in (1, 10, 100, 1000, 10_000, 100_000):
        with connected(server) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(os.urandom(length))
            assert sock.ended()


def test_odd_but_right_http_is_answered(server: Server) -> None:
    for request, wanted in (
        (b"GET http://elsewhere/healthz HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz?x=%ff&y HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET //v1//models HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    ):
        with connected(server) as sock:
            sock.sendall(request)
            assert sock.response()[0] == wanted, request


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    small = b'{"instances": [%d.0]}'
    request = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
    with connected(server) as sock:
        bodies = [small % index for index in range(20)]
        sock.sendall(b"".join(request % (PATH.encode(), len(body), body) for body in bodies))
        for index in range(20):
            status, body, _ = sock.response()
            assert (status, json.loads(body)) == (200, {"predictions": [index / 2 + 2]})


def test_pipelined_requests_with_large_bodies_are_not_taken_for_large_headers(server: Server) -> None:
    body = b'{"instances": [1.0' + b" " * 200_000 + b"]}"
    request = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (PATH.encode(), len(body), body)
    with connected(server) as sock, concurrent.futures.ThreadPoolExecutor(1) as pool:
        sending = pool.submit(sock.sendall, request * 30)
        for _ in range(30):
            assert sock.response()[0] == 200
        sending.result()


def test_garbage_behind_a_request_does_not_take_its_answer(server: Server) -> None:
    body = b'{"instances": [1.0]}'
    request = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (PATH.encode(), len(body), body)
    for garbage in (b"\x00garbage\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n"):
        with connected(server) as sock:
            sock.sendall(request + garbage)
            status, answer, _ = sock.response()
            assert (status, json.loads(answer)) == (200, {"predictions": [2.5]})
            assert sock.ended()


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Lets this process open a few thousand files, or skips the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this machine allows a process fewer than 2,000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_idle_connections_leave_room_for_others(server: Server) -> None:
    with many_files(), contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(server)) for _ in range(1000)]
        for sock in idle:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        for sock in idle:
            assert sock.response()[0] == 200
        for _ in range(50):
            assert server.predict("half_plus_two", {"instances": [1.0]})[0] == 200
        for sock in idle[::100]:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert sock.response()[0] == 200, "it was idle, and is good still"


def test_a_thousand_slow_clients_leave_room_for_others(server: Server) -> None:
    with many_files(), contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(1000)]
        for sock in slow:
            sock.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\nx-slow:" % PATH.encode())
        for _ in range(50):
            assert server.predict("half_plus_two", {"instances": [1.0]})[0] == 200
        assert all(sock.ended() for sock in slow)


# -- gRPC ---------------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_grpc_harm_nobody(server: Server) -> None:
    for data in (
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        os.urandom(10_000),
        bytes(10_000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(10_000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x01\x04" + bytes(1000),
    ):
        with Connection(server.grpc_port) as sock:
            with contextlib.suppress(OSError):  # the server may end it meanwhile
                sock.sendall(data)
                sock.stop_sending()
            assert sock.ended()


@pytest.mark.parametrize(
    "method",
    [
        PREDICT,
        "/tensorflow.serving.PredictionService/GetModelMetadata",
        "/tensorflow.serving.ModelService/GetModelStatus",
    ],
)
@pytest.mark.parametrize("data", [b"\xff" * 100, b"\x0a\x7f", b"\x0a\xff\xff\xff\xff\x0f", b"\x00", b"\x0b" * 10_000])
def test_bytes_that_are_no_message_are_an_invalid_argument(running: Server, method: str, data: bytes) -> None:
    code, details = refusal(running, data, method)
    assert code == "INVALID_ARGUMENT"
    assert details


def test_an_unknown_method_is_unimplemented(server: Server) -> None:
    assert refusal(server, b"", "/tensorflow.serving.PredictionService/Nope")[0] == "UNIMPLEMENTED"
    assert refusal(server, b"", "/nope")[0] == "UNIMPLEMENTED"


def test_a_message_over_the_limit_exhausts_a_resource(server: Server) -> None:
    code, details = refusal(server, bytes(LIMIT + 1))
    assert code == "RESOURCE_EXHAUSTED"
    assert str(LIMIT) in details


def test_a_compressed_message_over_the_limit_takes_no_memory(server: Server) -> None:
    request = predict_request()
    request.inputs["x"].ClearField("float_val")
    request.inputs["x"].tensor_content = bytes(300 * 2**20)
    before = peak_bytes(server, "ds-grpc")
    code, _ = refusal(server, request, compression=grpc.Compression.Gzip)
    assert code in ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
    assert peak_bytes(server, "ds-grpc") - before < 100 * 2**20


def tensors() -> dict[str, Any]:
    """Tensors whose fields contradict each other."""
    found: dict[str, Any] = {}

    def add(name: str, shape: list[int], **fields: Any) -> None:
        tensor = protos.TensorProto()
        tensor.dtype = fields.pop("dtype", protos.DataType.Value("DT_FLOAT"))
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        for field, value in fields.items():
            if isinstance(value, list):
                getattr(tensor, field).extend(value)
            else:
                setattr(tensor, field, value)
        found[name] = tensor

    add("negative", [-1], float_val=[1.0])
    add("enormous", [2**62], float_val=[1.0])
    add("enormous product", [2**32, 2**32, 2**32], float_val=[1.0])
    add("enormous repeat", [2**40], float_val=[1.0, 2.0])
    add("zero times enormous", [0, 2**62, 2**62])
    add("content too short", [3], tensor_content=b"\0" * 11)
    add("content too long", [3], tensor_content=b"\0" * 13)
    add("enormous with content", [2**50], tensor_content=b"\0" * 4)
    add("no type", [1], dtype=0, float_val=[1.0])
    add("unknown type", [1], dtype=9999, float_val=[1.0])
    add("a resource", [1], dtype=20)
    add("strings for numbers", [1], dtype=7, string_val=[b"x"])
    add("many dimensions", [1] * 300, float_val=[1.0])
    return found


@pytest.mark.parametrize("name", sorted(tensors()))
def test_a_tensor_that_contradicts_itself_is_an_invalid_argument(server: Server, name: str) -> None:
    request = predict_request()
    request.inputs["x"].CopyFrom(tensors()[name])
    code, details = refusal(server, request)
    assert code == "INVALID_ARGUMENT", details
    assert details


def test_names_of_every_kind_are_answered_on_grpc(server: Server) -> None:
    for name in ("..", "../..", "a/b", "\0", "\u2603", "x" * 100_000):
        request = predict_request()
        request.model_spec.name = name
        assert refusal(server, request)[0] == "NOT_FOUND"
        request = predict_request()
        request.model_spec.signature_name = name
        assert refusal(server, request)[0] == "FAILED_PRECONDITION"
        request = predict_request()
        request.output_filter.append(name)
        assert refusal(server, request)[0] == "INVALID_ARGUMENT"
        request = predict_request()
        request.inputs[name].CopyFrom(request.inputs["x"])
        assert refusal(server, request)[0] == "INVALID_ARGUMENT"


def test_after_all_that_every_process_still_lives(server: Server) -> None:
    eventually(lambda: server.get("/readyz")[0] == 200, "it is ready")
    log = server.log()
    assert "Traceback" not in log
    assert "is started again" not in log
    assert "restarting" not in log

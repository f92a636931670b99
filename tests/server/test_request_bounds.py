"""What a client can make a process hold is bounded: each attack here once took gigabytes, or all of its time."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from appliance.protocols import protos
from appliance.protocols.wire_format import field
from tests.support import http2
from tests.support.grpc_calls import PREDICT, code_of, half_plus_two
from tests.support.server import Server, eventually

KIB, MIB = 2**10, 2**20
PATH = "/v1/models/half_plus_two:predict"


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in ("half_plus_two", "strings"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(
        model_root=root,
        rest_workers=1,
        grpc_workers=1,
        max_inflight_bytes=1024 * MIB,  # 512 MiB for each of the two processes
        header_timeout_seconds=1,
        body_grace_seconds=1,
    ) as server:
        for name in ("half_plus_two", "strings"):
            server.wait_for(name, 1)
        yield server


def peak_bytes(server: Server, kind: str) -> int:
    """The most memory that the process of the kind ever held."""
    (pid,) = server.pids(kind)
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def connected(server: Server, receive_bytes: int = 0) -> socket.socket:
    """A connection to REST whose kernel takes about `receive_bytes` that nobody reads (0: as many as it likes)."""
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", server.rest_port))
    return sock


def ended(sock: socket.socket) -> bool:
    """Whether the server ends the connection; what it sends until then is dropped."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


# -- REST ---------------------------------------------------------------------------------------------------------


def test_trailers_count_as_headers(server: Server) -> None:
    before = peak_bytes(server, "ds-rest")
    for trailers in ([b"x: " + b"y" * 1000 + b"\r\n"] * 100_000, [b"x: ", *[b"y" * 1000] * 100_000]):
        with connected(server) as sock:
            sock.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            sock.sendall(b'14\r\n{"instances": [1.0]}\r\n0\r\n')
            with pytest.raises(ConnectionError):  # it ends while they are sent
                sock.sendall(b"".join(trailers))
    assert peak_bytes(server, "ds-rest") - before < 60 * MIB


def test_trailers_of_a_few_kilobytes_are_taken_and_change_nothing(server: Server) -> None:
    with connected(server) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        sock.sendall(b'14\r\n{"instances": [1.0]}\r\n0\r\ncontent-encoding: br\r\nx: ' + b"y" * 5000 + b"\r\n\r\n")
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"[2.5]" in answer


def test_a_chunked_body_of_single_bytes_is_taken(server: Server) -> None:
    body = b'{"instances": [1.0' + b" " * 20_000 + b"]}"
    with connected(server) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        sock.sendall(head.encode())
        for index in range(len(body)):
            sock.sendall(b"1;part=%d\r\n%c\r\n" % (index, body[index]))
        sock.sendall(b"0\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"HTTP/1.1 200 OK" in answer
    assert b"[2.5]" in answer


@pytest.mark.parametrize("first", ["predict", "healthz"])
def test_a_request_that_cannot_be_read_leaves_the_answer_to_the_one_before_it(server: Server, first: str) -> None:
    body = b'{"instances": [1.0]}'
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n"
    whole = {
        "predict": f"{head}content-length: {len(body)}\r\n\r\n".encode() + body,
        "healthz": b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    }[first]
    with connected(server) as sock:
        sock.sendall(whole + f"{head}transfer-encoding: chunked\r\n\r\nzz\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_clients_that_leave_before_their_answers_write_no_errors_into_the_log(server: Server) -> None:
    before = server.log()
    small = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n".encode() + b'{"instances": [1.0]}'
    for missing in range(0, 40, 2):
        with connected(server) as sock:
            sock.sendall((small + large_request(12_000) + small)[: -missing or None])
    with connected(server) as sock:  # the process has come to the end of all of them
        sock.sendall(small.replace(b"host: x", b"connection: close"))
        assert b"[2.5]" in b"".join(iter(lambda: sock.recv(65536), b""))
    eventually(lambda: in_flight(server, "rest") == 0, "nothing is in flight")
    assert "Traceback" not in server.log()[len(before) :]


def large_request(rows: int) -> bytes:
    body = b'{"instances": [' + b",".join([b"1.0"] * rows) + b"]}"
    return f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def test_requests_that_wait_for_the_answer_before_take_no_more_memory_than_their_text(server: Server) -> None:
    """A connection that sent 256 KiB of the shortest requests behind a slow one held 26 MB."""
    shortest = b"GET /x HTTP/1.1\r\n\r\n" * 13_000
    slow = large_request(1_000_000)
    with connected(server) as sock:
        sock.sendall(slow + shortest + b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 404") == 13_000
    assert b'"status": "alive"' in answer
    before = peak_bytes(server, "ds-rest")
    socks = []
    try:
        for _ in range(8):
            socks.append(connected(server, 4096))
            socks[-1].sendall(slow + shortest)  # all of it is taken
        assert server.predict("half_plus_two", {"instances": [1.0] * 1_000_000})[0] == 200  # parsed after the others
        assert peak_bytes(server, "ds-rest") - before < 170 * MIB
    finally:
        for sock in socks:
            sock.close()


def test_an_answer_that_nobody_reads_ends_its_connection(server: Server) -> None:
    """Also one that has been answered, is closed, and waits for the last bytes to be read."""
    socks = []
    try:
        for request in (
            large_request(2_000_000),
            large_request(2_000_000) + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
            large_request(1_200_000).replace(b"host: x", b"connection: close"),
        ):
            socks.append(connected(server, 4096))
            socks[-1].sendall(request)
        (pid,) = server.pids("ds-rest")
        ports = {f"{sock.getsockname()[1]:04X}" for sock in socks}

        def held() -> bool:
            lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
            return any(line.split()[2].rpartition(":")[2] in ports and line.split()[3] == "01" for line in lines)

        eventually(lambda: not held(), "the server has ended the connections")
    finally:
        for sock in socks:
            sock.close()


def test_answers_that_nobody_reads_do_not_add_up(server: Server) -> None:
    request = large_request(1_500_000)
    with connected(server) as sock:
        sock.sendall(request.replace(b"host: x", b"connection: close"))
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    before = peak_bytes(server, "ds-rest")
    socks = []
    try:
        for _ in range(20):
            socks.append(connected(server, 4096))
            socks[-1].sendall(request)
        assert server.predict("half_plus_two", {"instances": [1.0]})[0] == 200
    finally:
        for sock in socks:
            sock.close()
    # Each once, and a few that are being made: what the process holds of tests before this one may come on top.
    assert peak_bytes(server, "ds-rest") - before < 25 * len(answer)


def test_an_answer_counts_as_in_flight_until_it_is_read(server: Server) -> None:
    with connected(server, 4096) as sock:
        sock.sendall(large_request(2_000_000).replace(b"1.0", b"3.0"))
        eventually(lambda: 7_000_000 < in_flight(server, "rest") < 9_000_000, "the answer alone is in flight")
    eventually(lambda: in_flight(server, "rest") == 0, "its client is gone")


def test_an_answer_that_is_read_slowly_and_steadily_comes_whole(server: Server) -> None:
    with connected(server, 4096) as sock:
        sock.sendall(large_request(200_000).replace(b"host: x", b"connection: close"))
        answer = b"".join(iter(lambda: sock.recv(2048), b""))
    assert answer.endswith(b"2.5]}"), answer[-50:]


def test_numbers_that_users_send_are_taken(server: Server) -> None:
    """An image batch of 30 MB."""
    row = ",".join(f"{value:.9f}" for value in np.random.default_rng(0).random(1000))
    body = f'{{"instances": [{",".join([row] * 2700)}]}}'.encode()
    assert 30_000_000 < len(body) < 34_000_000
    status, answer = server.predict("half_plus_two", body)
    assert status == 200, answer
    assert len(answer["predictions"]) == 2_700_000


# -- JSON ---------------------------------------------------------------------------------------------------------


def posted(server: Server, body: bytes, encoding: str = "") -> tuple[int, str]:
    status, answer, _ = server.http("POST", PATH, body, {"content-encoding": encoding} if encoding else {})
    return status, json.dumps(answer)


@pytest.mark.parametrize("filling", [b"[],", b"{},", b'{"a":1},', b"[[]],", b'"a",', b"1,[],"])
def test_a_text_of_little_lists_is_refused_before_it_is_parsed(server: Server, filling: bytes) -> None:
    body = b'{"instances": [' + filling * (40 * MIB // len(filling)) + b"1]}"
    before = peak_bytes(server, "ds-rest")
    for status, answer in (posted(server, body), posted(server, gzip.compress(body, 1), "gzip")):
        assert status == 413, answer
        assert "max_inflight_bytes" in answer
    assert peak_bytes(server, "ds-rest") - before < 250 * MIB


def test_a_text_that_hides_little_lists_behind_numbers_is_refused_before_it_is_parsed(server: Server) -> None:
    body = b'{"instances": [' + b"1.5," * 100_000 + b"[]," * (13 * MIB) + b"1]}"
    before = peak_bytes(server, "ds-rest")
    assert posted(server, body)[0] == 413
    assert peak_bytes(server, "ds-rest") - before < 700 * MIB


def test_a_text_over_max_json_bytes_is_refused_plain_and_inflated(server: Server) -> None:
    body = b'{"instances": [' + b" " * (65 * MIB) + b"1.0]}"
    for status, answer in (posted(server, body), posted(server, gzip.compress(body, 1), "gzip")):
        assert status == 413
        assert "max_json_bytes is 67,108,864: send less at once, use gRPC, or raise it" in answer


def test_others_are_answered_while_a_large_text_is_parsed(server: Server) -> None:
    ragged = b'{"instances": [' + b"[1.5,2.5,3.5,4.5]," * 1_000_000 + b"[1.5]]}"
    with connected(server) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(ragged)}\r\n\r\n".encode() + ragged)
        sock.setblocking(False)
        answered = 0
        with connected(server) as other:
            while True:
                try:
                    first = sock.recv(65536)
                    break
                except BlockingIOError:
                    other.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                    assert other.recv(65536).startswith(b"HTTP/1.1 200 OK")
                    answered += 1
    assert first.startswith(b"HTTP/1.1 400")
    assert answered > 100


# -- gRPC ---------------------------------------------------------------------------------------------------------


def repeated(nbytes: int, name: str = "half_plus_two") -> bytes:
    """A request of 40 bytes for a tensor of one repeated value."""
    request = protos.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].dtype = protos.DataType.Value("DT_FLOAT")
    request.inputs["x"].tensor_shape.dim.add(size=nbytes // 4)
    request.inputs["x"].float_val.append(3.0)
    return bytes(request.SerializeToString())


def in_flight(server: Server, protocol: str) -> float:
    page = server.http("GET", "/metrics")[1].decode()
    found = re.search(rf'^dropserve_inflight_request_bytes{{protocol="{protocol}"}} (\S+)', page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_an_answer_that_may_not_be_sent_counts_and_ends_its_connection(server: Server) -> None:
    with http2.Client(server.grpc_port, window=0) as client:
        client.call(PREDICT, repeated(256 * KIB))
        eventually(lambda: 512 * KIB < in_flight(server, "grpc") < 520 * KIB, "the answer alone is in flight")
        assert client.ended()  # after a second, and as long as 256 KiB take at 16 KiB a second
    eventually(lambda: in_flight(server, "grpc") == 0, "its client is gone")


def test_an_answer_of_a_stream_that_may_not_be_sent_counts_and_ends_its_connection(server: Server) -> None:
    message = protos.ModelInferRequest(model_name="half_plus_two", raw_input_contents=[bytes(14 * KIB)])
    message.inputs.add(name="x", datatype="FP32", shape=[14 * KIB // 4])
    with http2.Client(server.grpc_port, window=0) as client:
        client.call("/inference.GRPCInferenceService/ModelStreamInfer", message.SerializeToString())
        eventually(lambda: 28 * KIB < in_flight(server, "grpc") < 30 * KIB, "the answer alone is in flight")
        assert client.ended()  # after a second, and as long as 14 KiB take
    eventually(lambda: in_flight(server, "grpc") == 0, "its client is gone")


def test_answers_that_may_not_be_sent_are_bounded_in_memory(server: Server) -> None:
    """Twelve requests of 42 bytes held 1.5 GB for as long as the connection lived."""
    before = peak_bytes(server, "ds-grpc")
    any_size = [("grpc.max_receive_message_length", -1)]
    with (
        http2.Client(server.grpc_port, window=0) as client,
        grpc.insecure_channel(server_address(server), any_size) as channel,
    ):
        for _ in range(30):
            client.call(PREDICT, repeated(60 * MIB))
        call = channel.unary_unary(PREDICT)
        refused = eventually(
            lambda: [
                details
                for code, details in (code_of(lambda: call(repeated(60 * MIB), timeout=60)),)
                if code == "RESOURCE_EXHAUSTED"
            ],
            "no more is taken",
        )
        assert "max_inflight_bytes" in refused[0]
        assert half_plus_two(channel) == [2.5, 3.0, 4.5]
    eventually(lambda: in_flight(server, "grpc") == 0, "its client is gone")
    assert peak_bytes(server, "ds-grpc") - before < 1600 * MIB
    with grpc.insecure_channel(server_address(server)) as channel:
        assert half_plus_two(channel) == [2.5, 3.0, 4.5]


def server_address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


EMPTY = {
    "inputs": (PREDICT, b"\x12\x00"),
    "output_filter": (PREDICT, b"\x1a\x00"),
    "tasks": ("/tensorflow.serving.PredictionService/MultiInference", b"\x0a\x00"),
    "metadata_field": ("/tensorflow.serving.PredictionService/GetModelMetadata", b"\x12\x00"),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("odd", [b"", b"\x7d\x00\x00\x00\x00"], ids=["plain", "with a field of another kind"])
def test_millions_of_empty_entries_are_refused_before_they_are_read(server: Server, name: str, odd: bytes) -> None:
    path, entry = EMPTY[name]
    head = b"\x0a\x0f\x0a\x0dhalf_plus_two" if name != "tasks" else b""
    before = peak_bytes(server, "ds-grpc")
    with grpc.insecure_channel(server_address(server), [("grpc.max_send_message_length", -1)]) as channel:
        code, details = code_of(lambda: channel.unary_unary(path)(head + odd + entry * (10 * MIB), timeout=60))
    assert code == "INVALID_ARGUMENT"
    assert "more than" in details
    assert peak_bytes(server, "ds-grpc") - before < 150 * MIB


@pytest.mark.parametrize("method", ["Classify", "Regress"])
def test_millions_of_empty_examples_are_refused_before_they_are_read(server: Server, method: str) -> None:
    examples = field(1, b"\x0a\x00" * (10 * MIB))
    data = field(1, b"\x0a\x0dhalf_plus_two") + field(2, examples)
    with grpc.insecure_channel(server_address(server), [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
        code, details = code_of(lambda: call(data, timeout=60))
    assert code == "INVALID_ARGUMENT"
    assert "more than 1,048,576 examples" in details


def test_a_shape_of_millions_of_dimensions_is_refused_before_it_is_parsed(server: Server) -> None:
    before = peak_bytes(server, "ds-grpc")
    shape = field(2, b"\x12\x00" * (10 * MIB))
    unpacked = b"\x2d\x00\x00\x80\x3f" * 5000
    for tensor in (b"\x08\x01" + shape, b"\x08\x01" + unpacked + shape, b"\x08\x01" + field(2, b"\x12\x00") * MIB * 2):
        data = field(1, b"\x0a\x0dhalf_plus_two") + field(2, b"\x0a\x01x" + field(2, tensor))
        with grpc.insecure_channel(server_address(server), [("grpc.max_send_message_length", -1)]) as channel:
            code, details = code_of(lambda: channel.unary_unary(PREDICT)(data, timeout=60))  # noqa: B023
        assert code == "INVALID_ARGUMENT"
        assert "the shape takes" in details or "more than" in details
    assert peak_bytes(server, "ds-grpc") - before < 300 * MIB

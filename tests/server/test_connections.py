"""Connections are bounded in time and number, and clients that are there already do not notice."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import http2
from tests.support.grpc_calls import PREDICT, code_of, half_plus_two
from tests.support.server import Server, eventually

DESCRIPTORS = 400


class FewDescriptors(Server):
    prefix = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("prlimit") is None:
        pytest.skip("this machine has no prlimit (util-linux)")
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(zoo / "half_plus_two", root / "half_plus_two" / "1")
    with FewDescriptors(
        model_root=root,
        rest_workers=1,
        grpc_workers=1,
        grpc_channel_arguments="grpc.max_connection_idle_ms=1000",
    ) as server:
        server.wait_for("half_plus_two", 1)
        yield server


def test_an_idle_connection_ends_and_its_client_connects_again_by_itself(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert half_plus_two(channel) == [2.5, 3.0, 4.5]
        with http2.Client(server.grpc_port) as idle:
            assert idle.ended()
        for _ in range(3):
            assert half_plus_two(channel) == [2.5, 3.0, 4.5]


def test_more_grpc_connections_than_descriptors_leave_the_others_alone(server: Server) -> None:
    """Those that are open go on, and so does REST; when some have gone, others are taken."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel, contextlib.ExitStack() as stack:
        assert half_plus_two(channel) == [2.5, 3.0, 4.5]
        for _ in range(DESCRIPTORS + 100):
            client = stack.enter_context(http2.Client(server.grpc_port))
            with contextlib.suppress(ConnectionError):  # it may have been refused
                client.call(PREDICT, b"", whole=False)  # so that it is not idle
        assert half_plus_two(channel) == [2.5, 3.0, 4.5]
        assert server.get("/healthz")[0] == 200
        (pid,) = server.pids("ds-grpc")
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < DESCRIPTORS
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        eventually(lambda: code_of(lambda: half_plus_two(channel))[0] == "OK", "others are taken")


def test_more_rest_connections_than_descriptors_leave_the_others_alone(server: Server) -> None:
    connection = server.connection()
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    with contextlib.ExitStack() as stack:
        for _ in range(DESCRIPTORS + 100):
            sock = server.connection()
            sock.connect()
            stack.callback(sock.close)
            with contextlib.suppress(OSError):
                sock.putrequest("GET", "/healthz")  # and no end
        assert b"503 Service Unavailable" in sock.sock.recv(1000)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        (pid,) = server.pids("ds-rest")
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < DESCRIPTORS - 50
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            assert half_plus_two(channel) == [2.5, 3.0, 4.5]
    eventually(lambda: server.get("/healthz")[0] == 200, "others are taken")
    assert server.predict("half_plus_two", {"instances": [1.0]}) == (200, {"predictions": [2.5]})

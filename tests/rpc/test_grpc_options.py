"""gRPC's options: channel arguments, the Unix socket, slots, health; deadlines; and who may reload."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.config.options import Options
from appliance.config.parsing import parse_channel_arguments
from appliance.config.settings import read_settings
from appliance.core.errors import Code, ConfigError, ServingError
from appliance.host.ports import check_socket_path, remove_socket
from appliance.protocols import protos
from appliance.rpc.options import Slots, channel_arguments, quiet_lost_clients
from appliance.rpc.peers import Peer, check_may_reload, peer_of
from tests.support.grpc_calls import PREDICT, STATUS, code_of, half_plus_two, method, predict, reload, request
from tests.support.server import ROOT, Server, eventually

# Channel arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("grpc.max_connection_age_ms=2000", {"grpc.max_connection_age_ms": 2000}),
        ("a=1,b=x,c=-7", {"a": 1, "b": "x", "c": -7}),
        ("a = 1 , b = x y", {"a": 1, "b": "x y"}),
        ("a=1,a=2", {"a": 2}),
        ("a=", {"a": ""}),
        ("a=x=y", {"a": "x=y"}),
        ("a=2147483647,b=2147483648", {"a": 2147483647, "b": "2147483648"}),
        ("a=1.5,b=0x10,c=1_0,d=+3", {"a": "1.5", "b": "0x10", "c": "1_0", "d": 3}),
    ],
)
def test_channel_arguments_are_32_bit_numbers_or_strings(text: str, expected: dict[str, Any]) -> None:
    assert parse_channel_arguments(text) == expected


@pytest.mark.parametrize("text", ["a", "a=1,", ",a=1", "=1", "a:1", "a=1,b"])
def test_channel_arguments_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"grpc_channel_arguments has .*write name=value"):
        read_settings({"grpc_channel_arguments": text})


def test_channel_arguments_go_before_ours_but_the_port_stays_shared() -> None:
    text = "grpc.max_receive_message_length=1000,grpc.so_reuseport=0,grpc.http2.max_frame_size=16384"
    arguments = dict(channel_arguments(Options(grpc_channel_arguments=text), 100))
    assert arguments["grpc.max_receive_message_length"] == 1000
    assert arguments["grpc.max_send_message_length"] == -1
    assert arguments["grpc.so_reuseport"] == 1
    assert arguments["grpc.http2.max_frame_size"] == 16384
    assert dict(channel_arguments(Options(), 100))["grpc.max_receive_message_length"] == 2**31 - 1


# Slots


class Bytes:
    """Counts what is reserved."""

    def __init__(self) -> None:
        self.held = 0

    def reserve(self, nbytes: int) -> None:
        self.held += nbytes

    def release(self, nbytes: int) -> None:
        self.held -= nbytes


def test_requests_without_a_slot_wait_in_order_and_count_their_bytes() -> None:
    async def run() -> None:
        counted = Bytes()
        slots = Slots(1, counted.reserve, counted.release)
        await slots.take(10)
        assert counted.held == 0
        order: list[str] = []

        async def work(name: str) -> None:
            await slots.take(10)
            order.append(name)

        tasks = [asyncio.create_task(work(name)) for name in "abc"]
        await asyncio.sleep(0)
        assert (order, counted.held) == ([], 30)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        for _ in range(2):
            slots.give()
        await asyncio.wait([tasks[0], tasks[2]])
        assert (order, counted.held) == (["a", "c"], 0)
        slots.give()
        await asyncio.wait_for(slots.take(10), 1)

    asyncio.run(run())


def test_a_slot_that_comes_with_a_cancellation_is_not_lost() -> None:
    async def run() -> None:
        counted = Bytes()
        slots = Slots(1, counted.reserve, counted.release)
        await slots.take(1)
        waiting = asyncio.create_task(slots.take(1))
        await asyncio.sleep(0)
        slots.give()
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.wait_for(slots.take(1), 1)
        assert counted.held == 0

    asyncio.run(run())


def test_waiting_requests_are_bounded() -> None:
    async def run() -> None:
        counted = Bytes()
        slots = Slots(1, counted.reserve, counted.release, max_waiting=2)
        await slots.take(1)
        waiting = [asyncio.create_task(slots.take(1)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ServingError) as caught:
            await slots.take(1)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    asyncio.run(run())


# Peers


class Context:
    """What a servicer context says of its caller."""

    def __init__(self, peer: str, **auth: list[bytes]) -> None:
        self._peer, self._auth = peer, auth

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


@pytest.mark.parametrize(
    ("peer", "loopback"),
    [
        ("ipv4:127.0.0.1:51234", True),
        ("ipv4:127.8.9.10:1", True),
        ("ipv6:[::1]:51234", True),
        ("ipv6:%5B::1%5D:51234", True),
        ("ipv6:[::ffff:127.0.0.1]:51234", True),
        ("ipv6:%5B::ffff:10.0.0.1%5D:51234", False),
        ("ipv6:[fe80::1%25eth0]:51234", False),
        ("ipv4:10.0.0.7:127", False),
        ("ipv4:127.0.0.1.example.org:1", False),
        ("ipv6:[]", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_elsewhere(peer: str, loopback: bool) -> None:
    assert peer_of(Context(peer)) == Peer(peer, by_loopback=loopback)


@pytest.mark.parametrize(
    ("peer", "allowed_by"),
    [
        (peer_of(Context("unix:")), {"never", "loopback", "any"}),
        (peer_of(Context("unix:/run/grpc.sock")), {"never", "loopback", "any"}),
        (peer_of(Context("ipv4:10.0.0.7:1", x509_pem_cert=[b"-"])), {"never", "loopback", "any"}),
        (peer_of(Context("ipv4:127.0.0.1:1", transport_security_type=[b"ssl"])), {"loopback", "any"}),
        (peer_of(Context("ipv4:10.0.0.7:1")), {"any"}),
    ],
)
def test_who_may_reload(peer: Peer, allowed_by: set[str]) -> None:
    for option in ("never", "loopback", "any"):
        if option in allowed_by:
            check_may_reload(peer, option)
        else:
            with pytest.raises(ServingError) as caught:
                check_may_reload(peer, option)
            assert caught.value.code is Code.PERMISSION_DENIED
            assert "--grpc_socket_path" in caught.value.remedy


# The Unix socket


def test_a_socket_path_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    check_socket_path(str(tmp_path / "new"))
    with pytest.raises(ConfigError, match="which is no folder; make the folder"):
        check_socket_path(str(tmp_path / "missing" / "grpc"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="exists and is no socket"):
        check_socket_path(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        check_socket_path(str(tmp_path / ("x" * 107)))


def test_a_socket_that_somebody_listens_on_may_be_taken_over_and_is_not_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        check_socket_path(path)
        assert "another process listens" in caplog.text
        remove_socket(path)
        assert os.path.exists(path)
    check_socket_path(path)
    remove_socket(path)
    assert not os.path.exists(path)


def test_the_socket_serves_alone_with_mode_0660_replaces_a_stale_one_and_goes(
    tmp_path: Path, drop: Callable[..., Path]
) -> None:
    drop("half_plus_two")
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with Server(model_root=tmp_path / "models", grpc_socket_path=path, port=-1) as server:
        server.wait_for("half_plus_two", 1)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with grpc.insecure_channel(f"unix:{path}") as channel:
            assert half_plus_two(channel) == [2.5, 3.0, 4.5]
            code, details = code_of(lambda: reload(channel))
            assert (code, details[:25]) == ("INVALID_ARGUMENT", "ServerModelConfig type no")
        assert len(server.pids("ds-grpc")) == 1
        os.kill(server.pids("ds-grpc")[0], signal.SIGKILL)  # its successor takes the path over
        with grpc.insecure_channel(f"unix:{path}") as channel:
            eventually(lambda: code_of(lambda: half_plus_two(channel))[0] == "OK", "it serves again")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        assert server.stop() == 0
    assert not path.exists()


def test_a_socket_path_without_a_folder_stops_the_start(tmp_path: Path) -> None:
    arguments = [f"--model_root={tmp_path}", f"--grpc_socket_path={tmp_path}/missing/grpc", "--port=-1"]
    ended = subprocess.run(
        [sys.executable, "-m", "appliance", "serve", *arguments, f"--runtime_dir={tmp_path}/run", "--rest_api_port=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert f"{tmp_path}/missing, which is no folder" in ended.stderr


def test_what_grpc_says_of_clients_that_left_before_their_answer_stays_out_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quiet_lost_clients()
    of_grpc = logging.getLogger("grpc._cython.cygrpc")
    try:
        for error in (cygrpc.ExecuteBatchError("the client is gone"), ValueError("a fault")):
            try:
                raise error
            except (cygrpc.ExecuteBatchError, ValueError):
                of_grpc.exception("raised by a servicer method")
    finally:
        of_grpc.filters.clear()
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


# A server with all of it


@pytest.fixture(scope="module")
def tuned(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in ("half_plus_two", "gate"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(
        model_root=root,
        grpc_workers=1,
        grpc_max_threads=1,
        max_concurrent_requests=2,
        grpc_channel_arguments="grpc.max_receive_message_length=100000",
        enable_grpc_healthcheck_service=False,
        enable_serialization_as_tensor_content=True,
        allow_remote_reload="loopback",
    ) as server:
        server.wait_for("half_plus_two", 1)
        server.wait_for("gate", 1)
        yield server


@pytest.fixture
def channel(tuned: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{tuned.grpc_port}") as made:
        yield made


def test_a_channel_argument_replaces_our_own(channel: grpc.Channel) -> None:
    assert half_plus_two(channel) == [2.5, 3.0, 4.5]
    code, details = code_of(lambda: predict(channel, "half_plus_two", x=np.zeros(50_000, "f4")))
    assert (code, "larger than max" in details) == ("RESOURCE_EXHAUSTED", True)


@pytest.mark.parametrize("seconds", [None, 4e9])
def test_a_deadline_may_be_absent_or_centuries_away(channel: grpc.Channel, seconds: float | None) -> None:
    call = method(channel, PREDICT, protos.PredictResponse)
    assert call(request("half_plus_two", x=np.ones(2, "f4")), timeout=seconds).outputs


def test_outputs_come_as_tensor_content_on_request(channel: grpc.Channel) -> None:
    answer = method(channel, PREDICT, protos.PredictResponse)(request("half_plus_two", x=np.ones(2, "f4")), timeout=30)
    assert answer.outputs["y"].tensor_content == np.full(2, 2.5, "<f4").tobytes()
    assert not answer.outputs["y"].float_val


def test_without_the_option_there_is_no_health_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert code_of(lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=10))[0] == "UNIMPLEMENTED"


def test_loopback_may_reload_where_the_option_says_so(channel: grpc.Channel) -> None:
    code, details = code_of(lambda: reload(channel))
    assert (code, details[:25]) == ("INVALID_ARGUMENT", "ServerModelConfig type no")


def test_requests_beyond_the_slots_wait_and_status_does_not(channel: grpc.Channel, tmp_path: Path) -> None:
    shut, opened = tmp_path / "shut", tmp_path / "open"
    opened.touch()
    call = method(channel, PREDICT, protos.PredictResponse)
    holding = call.future(request("gate", path=np.array([str(shut).encode()], object)), timeout=60)
    free = request("gate", path=np.array([str(opened).encode()], object))
    # The worker has a second thread for it, but the front has one slot.
    eventually(lambda: code_of(lambda: call(free, timeout=0.5))[0] == "DEADLINE_EXCEEDED", "the slot is taken")
    status = protos.GetModelStatusRequest()
    status.model_spec.name = "gate"
    assert method(channel, STATUS, protos.GetModelStatusResponse)(status, timeout=30).model_version_status
    waiting = call.future(free, timeout=60)
    shut.touch()
    assert holding.result(60).outputs
    assert waiting.result(60).outputs


def test_what_nobody_waits_for_is_not_run(tmp_path: Path, drop: Callable[..., Path]) -> None:
    """Its execution would never end, and hold the only thread for ever."""
    drop("gate", source="gate")
    shut, never, opened = (str(tmp_path / name).encode() for name in ("shut", "never", "open"))
    Path(opened.decode()).touch()

    def gate(path: bytes) -> Any:
        return request("gate", path=np.array([path], object))

    with Server(model_root=tmp_path / "models", max_concurrent_requests=1) as server:
        server.wait_for("gate", 1)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as made:
            call = method(made, PREDICT, protos.PredictResponse)
            holding = call.future(gate(shut), timeout=120)
            eventually(
                lambda: code_of(lambda: call(gate(opened), timeout=0.5))[0] == "DEADLINE_EXCEEDED",
                "the only thread is held",
            )
            cancelled = call.future(gate(never), timeout=120)
            late = [call.future(gate(never), timeout=0.5) for _ in range(3)]
            for future in late:
                assert future.code().name == "DEADLINE_EXCEEDED"
            cancelled.cancel()
            # In order after the cancellation, on the same connection: it has arrived when this one answers.
            assert code_of(lambda: predict(made, "unknown", x=np.ones(1, "f4")))[0] == "NOT_FOUND"
            Path(shut.decode()).touch()
            assert holding.result(60).outputs
            assert call(gate(opened), timeout=60).outputs

"""TensorFlow's profiler over gRPC: as its own client sees it, and who may call it for how long."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from appliance.core.errors import Code, ServingError
from appliance.protocols import protos
from appliance.rpc.peers import Peer
from appliance.rpc.profiler import check_may_profile, file_names, tracer_levels
from tests.support.grpc_calls import code_of, half_plus_two, method, predict
from tests.support.server import ROOT, Server, eventually

SERVICE = "/tensorflow.ProfilerService"
ANY_SIZE = [("grpc.max_receive_message_length", -1)]


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models on TensorFlow and one on LiteRT, and gRPC by TCP and by socket."""
    root = tmp_path_factory.mktemp("models")
    socket_path = str(tmp_path_factory.mktemp("s") / "grpc")
    for name in ("half_plus_two", "strings", "lite_old"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(
        model_root=root, enable_profiler=True, grpc_socket_path=socket_path, grpc_workers=2, grpc_max_threads=1
    ) as running:
        for name in ("half_plus_two", "strings", "lite_old"):
            running.wait_for(name, 1)
        running.socket_path = socket_path
        yield running


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", ANY_SIZE) as opened:
        yield opened


def profile(channel: grpc.Channel, milliseconds: int, timeout: float = 60, **fields: Any) -> Any:
    request = protos.ProfileRequest(duration_ms=milliseconds, opts={"duration_ms": milliseconds}, **fields)
    return method(channel, f"{SERVICE}/Profile", protos.ProfileResponse)(request, timeout=timeout)


def terminate(channel: grpc.Channel, session: str) -> None:
    request = protos.TerminateRequest(session_id=session)
    method(channel, f"{SERVICE}/Terminate", protos.TerminateResponse)(request, timeout=30)


def client(*arguments: str) -> Any:
    """What TensorFlow makes of it."""
    command = [sys.executable, "-m", "tests.support.profiler_client", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def requests_for(
    channel: grpc.Channel,
    ask: Callable[[grpc.Channel], list[float]] = half_plus_two,
    answer: Sequence[float] = (2.5, 3.0, 4.5),
) -> Iterator[None]:
    """Sends one request after the other meanwhile; each has to be answered right."""
    stop = threading.Event()

    def send() -> int:
        sent = 0
        while not stop.is_set():
            assert ask(channel) == list(answer)
            sent += 1
        return sent

    with ThreadPoolExecutor(1) as pool:
        sender = pool.submit(send)
        try:
            yield
        finally:
            stop.set()
        assert sender.result(30) > 0


def files_of_traces(server: Server) -> list[str]:
    return [str(path) for path in Path(server.runtime_dir, "run").glob("server-*/profile-*/**/*") if path.is_file()]


def wait_until_tracing(server: Server, seconds: int) -> None:
    """Until a trace of so many seconds runs: each test has a number of its own."""
    eventually(lambda: f"workers for {seconds} s" in server.log(), "the trace runs")


# -- what a trace holds -----------------------------------------------------------------------------------------


def test_the_official_client_saves_a_trace_of_the_model_that_ran(
    server: Server, channel: grpc.Channel, tmp_path: Path
) -> None:
    with requests_for(channel):
        got = client("trace", f"grpc://localhost:{server.grpc_port}", str(tmp_path), "500")
    assert got["error"] == ""
    # The workers of the idle models have no events.
    assert list(got["files"]) == [f"localhost_{server.grpc_port}.half_plus_two-1.xplane.pb"]
    (events,) = got["files"].values()
    assert any("SessionRun" in name or "ExecutorState::Process" in name for name in events), events


def test_the_official_client_saves_a_trace_of_a_server_that_is_busy_without_tensorflow(
    server: Server, channel: grpc.Channel, tmp_path: Path
) -> None:
    def lite_old(channel: grpc.Channel) -> list[float]:
        return [float(y) for y in predict(channel, "lite_old", x=np.array([[1.0]], "f4"))["Identity"].flat]

    with requests_for(channel, lite_old, [3.5]):
        # As tensorflow_serving/model_servers/profiler_client.py asks: without a scheme.
        got = client("trace", f"localhost:{server.grpc_port}", str(tmp_path), "500")
    assert got == {
        "error": "",
        "files": {f"localhost_{server.grpc_port}.lite_old-1.xplane.pb": ["serving_default"]},
    }


def test_the_official_client_hears_that_an_idle_server_has_no_events(server: Server, tmp_path: Path) -> None:
    got = client("trace", f"grpc://localhost:{server.grpc_port}", str(tmp_path), "100")
    assert got["files"] == {}
    assert "No trace event was collected" in got["error"]


def test_the_folder_that_a_request_names_is_never_written_to(
    server: Server, channel: grpc.Channel, tmp_path: Path
) -> None:
    with requests_for(channel):
        response = profile(channel, 300, repository_root=str(tmp_path), session_id="x")
    assert [tool.name for tool in response.tool_data] == ["half_plus_two-1.xplane.pb"]
    assert not response.empty_trace
    assert response.xspace == b""
    assert os.listdir(tmp_path) == []
    assert files_of_traces(server) == []


def test_a_trace_in_the_answer_holds_the_planes_of_every_worker(channel: grpc.Channel, tmp_path: Path) -> None:
    with requests_for(channel):
        response = profile(channel, 300, emit_xspace=True)
    assert not response.tool_data
    (tmp_path / "xspace").write_bytes(response.xspace)
    (events,) = client("events", str(tmp_path / "xspace"))
    assert events
    assert response.xspace.count(b"/host:CPU") == 3


@pytest.mark.parametrize(
    ("asked", "levels"),
    [
        ({}, ()),
        ({"host_tracer_level": 3}, ()),  # no version: options that nobody has set
        ({"version": 1, "host_tracer_level": 2, "device_tracer_level": 1}, (2, 1)),
        ({"version": 1}, (0, 0)),
        ({"version": 1, "host_tracer_level": 2**32 - 1, "device_tracer_level": 2**32 - 1}, (3, 1)),
    ],
)
def test_the_client_says_how_much_the_tracers_record(asked: dict[str, int], levels: tuple[int, ...]) -> None:
    names = ("host_tracer_level", "device_tracer_level")
    assert tracer_levels(protos.ProfileRequest(opts=asked).opts) == dict(zip(names, levels, strict=bool(levels)))


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ([("a", 1), ("b", 12)], ["a-1.xplane.pb", "b-12.xplane.pb"]),
        ([("../../etc/a b", 1)], [".._.._etc_a_b-1.xplane.pb"]),
        ([("a/b", 1), ("a_b", 1), ("a b", 1)], ["a_b-1.xplane.pb", "a_b-1_2.xplane.pb", "a_b-1_3.xplane.pb"]),
        ([("x" * 300, 7)], ["x" * 98 + "-7.xplane.pb"]),
    ],
)
def test_names_of_files_are_safe_and_tell_workers_apart(models: list[tuple[str, int]], names: list[str]) -> None:
    assert file_names([{"model": model, "version": version} for model, version in models]) == names


# -- for how long ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("milliseconds", [0, 60_001, 2**64 - 1])
def test_a_trace_of_no_or_too_long_a_time_is_refused_with_the_limit(channel: grpc.Channel, milliseconds: int) -> None:
    code, details = code_of(lambda: profile(channel, milliseconds))
    assert code == "INVALID_ARGUMENT"
    assert "from 1 to 60000" in details


def test_a_second_trace_is_refused_while_one_runs_and_terminate_ends_that_early(
    server: Server, channel: grpc.Channel
) -> None:
    with ThreadPoolExecutor(1) as pool, requests_for(channel):
        first = pool.submit(profile, channel, 51_000, session_id="long")
        wait_until_tracing(server, 51)
        terminate(channel, "another")
        assert code_of(lambda: profile(channel, 100)) == (
            "ALREADY_EXISTS",
            "another trace runs already; try again when it has ended",
        )
        terminate(channel, "long")
        response = first.result(40)  # it would take 51 s
    assert [tool.name for tool in response.tool_data] == ["half_plus_two-1.xplane.pb"]


def test_a_client_that_hangs_up_ends_its_trace_and_leaves_no_file(server: Server, channel: grpc.Channel) -> None:
    call = channel.unary_unary(
        f"{SERVICE}/Profile",
        request_serializer=protos.ProfileRequest.SerializeToString,
        response_deserializer=protos.ProfileResponse.FromString,
    ).future(protos.ProfileRequest(duration_ms=52_000, session_id="left"), timeout=60)
    wait_until_tracing(server, 52)
    call.cancel()
    eventually(lambda: code_of(lambda: profile(channel, 1))[0] == "OK", "the trace has ended", 20)
    eventually(lambda: files_of_traces(server) == [], "its files are gone", 20)


def test_a_worker_that_is_killed_is_left_out_and_the_next_trace_has_its_successor(zoo: Path, tmp_path: Path) -> None:
    for name in ("half_plus_two", "strings"):
        shutil.copytree(zoo / name, tmp_path / name / "1")
    with Server(model_root=tmp_path, enable_profiler=True) as server, ThreadPoolExecutor(1) as pool:
        for name in ("half_plus_two", "strings"):
            server.wait_for(name, 1)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", ANY_SIZE) as channel:
            trace = pool.submit(profile, channel, 53_000, session_id="s", emit_xspace=True)
            wait_until_tracing(server, 53)
            workers = server.pids("ds-worker")
            os.kill(workers[0], 9)
            eventually(lambda: workers[0] not in server.pids("ds-worker"), "the worker is gone", 20)
            terminate(channel, "s")
            assert trace.result(30).xspace.count(b"/host:CPU") == 1
            assert "is not in the trace" in server.log()
            eventually(lambda: server.log().count("/1: available") == 3, "it is replaced")
            assert profile(channel, 100, emit_xspace=True).xspace.count(b"/host:CPU") == 2


# -- who may, and where ------------------------------------------------------------------------------------------


def test_the_unix_socket_may_profile(server: Server) -> None:
    with grpc.insecure_channel(f"unix:{server.socket_path}", ANY_SIZE) as channel:
        assert code_of(lambda: profile(channel, 10))[0] == "OK"


@pytest.mark.parametrize("call", ["Profile", "Terminate", "Monitor"])
def test_callers_from_elsewhere_are_refused(zoo: Path, tmp_path: Path, call: str) -> None:
    address = _address_of_this_machine()
    if address is None:
        pytest.skip("this machine has only its loopback address")
    shutil.copytree(zoo / "half_plus_two", tmp_path / "m" / "1")
    with Server(model_root=tmp_path, bind_address="0.0.0.0", enable_profiler=True) as server:
        server.wait_for("m", 1)
        with grpc.insecure_channel(f"{address}:{server.grpc_port}") as channel:
            request = protos.ProfileRequest(duration_ms=10)
            send = method(channel, f"{SERVICE}/{call}", protos.ProfileResponse)
            code, details = code_of(lambda: send(request, timeout=30))
    assert code == "PERMISSION_DENIED"
    assert "clients on this machine" in details


@pytest.mark.parametrize(
    ("peer", "may"),
    [
        (Peer("unix:", by_socket=True), True),
        (Peer("ipv4:127.0.0.1:5", by_loopback=True), True),
        (Peer("ipv4:192.0.2.7:5"), False),
        (Peer("ipv4:192.0.2.7:5", verified=True), False),
    ],
)
def test_only_the_socket_and_loopback_may_profile(peer: Peer, may: bool) -> None:
    if may:
        check_may_profile(peer)
        return
    with pytest.raises(ServingError, match="localhost") as refused:
        check_may_profile(peer)
    assert refused.value.code is Code.PERMISSION_DENIED


def test_monitor_says_that_it_is_for_tpus(channel: grpc.Channel) -> None:
    send = method(channel, f"{SERVICE}/Monitor", protos.ProfileResponse)
    code, details = code_of(lambda: send(protos.ProfileRequest(duration_ms=10), timeout=30))
    assert code == "UNIMPLEMENTED"
    assert "TPU" in details


def test_without_a_worker_there_is_nothing_to_trace(tmp_path: Path) -> None:
    with (
        Server(model_root=tmp_path, enable_profiler=True) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        code, details = code_of(lambda: profile(channel, 10))
    assert code == "FAILED_PRECONDITION"
    assert "no model is served now" in details


def test_the_service_is_not_there_unless_asked_for(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "half_plus_two", tmp_path / "m" / "1")
    with Server(model_root=tmp_path) as server:
        server.wait_for("m", 1)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            assert code_of(lambda: profile(channel, 10))[0] == "UNIMPLEMENTED"


def _address_of_this_machine() -> str | None:
    """An IPv4 address besides loopback's. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address

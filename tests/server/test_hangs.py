"""Processes that hang are killed and started again; what does not hang is left alone. Real signals, one real server."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.support.grpc_calls import code_of, predict
from tests.support.server import Server, eventually

HANG_SECONDS = 2.0
RUN_LIMIT_SECONDS = 1.0
THREADS = 2


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in ("half_plus_two", "slow"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(
        model_root=root,
        hang_seconds=HANG_SECONDS,
        run_limit_seconds=RUN_LIMIT_SECONDS,
        max_concurrent_requests=THREADS,
        enable_model_warmup=False,
        release_gate="off",
        rest_workers=2,
        grpc_workers=2,
    ) as running:
        for name in ("half_plus_two", "slow"):
            running.wait_for(name, 1)
        yield running


def hangs(server: Server, role: str) -> int:
    page = server.http("GET", "/metrics")[1].decode()
    found = re.search(rf'^dropserve_hangs_total{{role="{role}"}} (\d+)$', page, re.MULTILINE)
    return int(found[1]) if found else 0


def channel_to(server: Server) -> grpc.Channel:
    """A connection of its own: channels to one address share one otherwise."""
    return grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.use_local_subchannel_pool", 1)])


def answers(server: Server) -> bool:
    """Whether both protocols answer on new connections, and the server is ready."""
    try:
        if server.predict("half_plus_two", {"instances": [1.0]}) != (200, {"predictions": [2.5]}):
            return False
        if server.get("/readyz")[0] != 200:
            return False
    except OSError:
        return False
    with channel_to(server) as channel:
        return code_of(lambda: predict(channel, "half_plus_two", 5, x=np.ones(1, np.float32)))[0] == "OK"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("ds-worker", "worker"),
        ("ds-grpc", "grpc"),
        ("ds-rest", "rest"),
        ("ds-rest-master", "rest-master"),
        ("ds-forkserver", "forkserver"),
    ],
)
def test_a_process_that_is_stopped_is_killed_and_started_again(server: Server, name: str, role: str) -> None:
    eventually(lambda: answers(server), "it answers")
    before = server.pids(name)
    counted = hangs(server, role)
    (stopped, *_) = before
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: stopped not in server.processes(), "it is killed")
    eventually(lambda: len(server.pids(name)) == len(before), "another has taken its place")
    eventually(lambda: answers(server), "it answers again")
    assert hangs(server, role) == counted + 1
    assert f"(process {stopped}) hangs: it has not answered for" in server.log()


@pytest.mark.parametrize(("name", "count"), [("ds-rest-master", 1), ("ds-rest", 2), ("ds-grpc", 2)])
def test_a_process_that_is_stopped_while_it_starts_is_killed_and_started_again(
    server: Server, name: str, count: int
) -> None:
    eventually(lambda: answers(server), "it answers")
    eventually(lambda: len(server.pids(name)) == count, "all are there")
    before = server.pids(name)
    os.kill(before[0], signal.SIGKILL)
    (stopped, *_) = eventually(lambda: set(server.pids(name)) - set(before), "another takes its place")
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: stopped not in server.processes(), "it is killed too")
    eventually(lambda: len(server.pids(name)) == count, "there are as many as before")
    eventually(lambda: answers(server), "it answers again")


def ask_slow(server: Server, iterations: int, seconds: float) -> str:
    """The status code of a request to the model `slow` that waits for so many seconds."""
    with channel_to(server) as channel:
        return code_of(lambda: predict(channel, "slow", seconds, iterations=np.array([iterations], np.int32)))[0]


def test_runs_that_never_end_do_not_keep_a_version_from_answering_for_good(server: Server) -> None:
    eventually(lambda: answers(server), "it answers")
    counted = hangs(server, "worker")
    with ThreadPoolExecutor(THREADS) as clients:
        outcomes = list(clients.map(lambda _: ask_slow(server, 2_000_000_000, 2.0), range(THREADS)))
    assert outcomes == ["DEADLINE_EXCEEDED"] * THREADS
    eventually(lambda: hangs(server, "worker") == counted + 1, "its worker is ended")
    assert "the worker of slow/1" in server.log()
    assert "a run went on for" in server.log()
    eventually(lambda: server.predict("slow", {"instances": [1]})[0] == 200, "it answers again")

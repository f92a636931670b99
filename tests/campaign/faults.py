"""Processes that are killed or stopped and a disk that is full, in a random order, under load."""

from __future__ import annotations

import os
import signal
import time
from random import Random

from tests.campaign.clients import Clients, new_connections_answer
from tests.campaign.disk import Disk
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer, drop, unload
from tests.support.server import eventually

__all__ = ["KINDS", "break_processes"]

KINDS = ("ds-worker", "ds-rest", "ds-rest-master", "ds-grpc", "ds-forkserver", "dropserve")
RECOVERY_SECONDS = 90.0
"""After a fault, until everything is there again. A process that hangs is killed after `hang_seconds`."""

_PAUSE_SECONDS = 1.5  # how long the supervisor, which nobody here watches, stands still


def break_processes(
    report: Report,
    server: CampaignServer,
    seed: int,
    seconds: float,
    model: str,
    most: int = 0,
    disk: Disk | None = None,
) -> dict[str, float]:
    """Break something again and again for so many seconds, or `most` times. Return the figures.

    Whatever happens, no answer is wrong, and afterwards the server is as it was.
    """
    random = Random(f"{seed}:faults")
    until = time.monotonic() + seconds
    done: dict[str, int] = {}
    slowest = 0.0
    eventually(lambda: new_connections_answer(server, model), "the server answers")
    usual = _counted(server)
    kinds = [f"{how} {kind}" for kind in KINDS for how in ("kill", "stop") if (how, kind) != ("kill", "dropserve")]
    kinds += ["fill the disk"] * 2 if disk else []
    with Clients(server, model) as clients:
        while time.monotonic() < until and not (most and sum(done.values()) >= most):
            fault = random.choice(kinds)
            begun = time.monotonic()
            try:
                if disk and fault == "fill the disk":
                    _fill(server, disk, random)
                else:
                    _break(server, fault, random)
                eventually(lambda: _counted(server) == usual, f"the processes are {usual}", RECOVERY_SECONDS)
                eventually(lambda: new_connections_answer(server, model), "new connections answer", RECOVERY_SECONDS)
                clients.more(20)
            except AssertionError as error:
                report.finding(
                    f"after fault {sum(done.values()) + 1}, {fault}: {str(error)[:2000]}", now=_counted(server)
                )
                if server.process.poll() is not None:
                    break
            done[fault] = done.get(fault, 0) + 1
            took = time.monotonic() - begun
            slowest = max(slowest, took)
            report.line("broken", fault=fault, recovered_after=round(took, 1), **clients.counts)
    for what in clients.wrong:
        report.finding(what)
    return {
        "faults": sum(done.values()),
        "answers": clients.counts["right"],
        "slowest_recovery_seconds": round(slowest, 1),
        **clients.refused(),
    }


def _counted(server: CampaignServer) -> dict[str, int]:
    """How many processes of each kind there are, of those that last."""
    found = list(server.processes().values())
    return {kind: found.count(kind) for kind in KINDS}


def _break(server: CampaignServer, fault: str, random: Random) -> None:
    how, _, kind = fault.partition(" ")
    pids = eventually(lambda: server.pids(kind), f"there is a {kind}")
    pid = random.choice(pids)
    if kind == "dropserve":
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(_PAUSE_SECONDS)
        finally:
            os.kill(pid, signal.SIGCONT)
        return
    os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    eventually(lambda: pid not in server.processes(), f"{kind} {pid} is gone", RECOVERY_SECONDS)
    if kind == "ds-forkserver":
        drop(server.root, "late", 1)
        server.wait_for("late", 1)
        unload(server, "late")


def _fill(server: CampaignServer, disk: Disk, random: Random) -> None:
    """While the disk is full, drop a model and kill a worker; once there is room, both must serve."""
    with disk.full():
        drop(server.root, "late", 1)
        os.kill(random.choice(server.pids("ds-worker")), signal.SIGKILL)
        time.sleep(_PAUSE_SECONDS)
        assert server.process.poll() is None, f"the server ended:\n{server.log()[-2000:]}"
    server.wait_for("late", 1)
    unload(server, "late")

"""Models that come and go: what the processes that stay hold must not grow."""

from __future__ import annotations

import os
from pathlib import Path

from tests.campaign.clients import new_connections_answer
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer, drop, unload

__all__ = ["come_and_go"]

DRIFT = 0.02
_WARM_SHARE = 0.3  # of the cycles: caches fill, and the interpreter finds its size
_MEASURES = 10


def come_and_go(report: Report, server: CampaignServer, count: int) -> dict[str, float]:
    """Load, ask and unload a model `count` times. Return by how much each figure has grown, as a share."""
    warm = max(1, round(count * _WARM_SHARE))
    first: dict[str, int] = {}
    now: dict[str, int] = {}
    for cycle in range(1, count + 1):
        model = f"passing_{cycle % 5}"
        drop(server.root, model, 1)
        server.wait_for(model, 1)
        if not new_connections_answer(server, model, 1):
            report.finding(f"cycle {cycle}: {model} is available and does not answer")
        unload(server, model)
        if cycle in (warm, count) or cycle % max(1, count // _MEASURES) == 0:
            now = held(server)
            report.line("held", cycle=cycle, **now)
            if cycle == warm:
                first = now
    grown = {name: (now[name] - first[name]) / max(1, first[name]) for name in first}
    for name, share in grown.items():
        if share > DRIFT:
            report.finding(f"{name} grew from {first[name]:,} to {now[name]:,} in {count - warm} cycles")
    return {f"{name}_grown_percent": round(100 * share, 2) for name, share in grown.items()}


def held(server: CampaignServer) -> dict[str, int]:
    """Memory, descriptors and threads of the server's processes, and the files that they hold in common."""
    pids = [pid for pid, name in server.lasting_processes().items() if name != "ds-worker"]
    return {
        "resident_kib": sum(_resident_kib(pid) for pid in pids),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        "threads": sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
        "processes": len(pids),
        "files": sum(len(names) for _, _, names in os.walk(server.runtime_dir)),
        "shared_memory": sum(_shared_memory(pid) for pid in pids),
    }


def _shared_memory(pid: int) -> int:
    """How many files in /dev/shm the process holds: they have no names there."""
    return sum(os.readlink(entry.path).startswith("/dev/shm") for entry in os.scandir(f"/proc/{pid}/fd"))


def _resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])

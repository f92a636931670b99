"""Versions that follow one another under load: no request is lost, and each answer is that of the version it names."""

from __future__ import annotations

import shutil
import time

from tests.campaign.clients import Clients
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer, drop
from tests.support.server import eventually

__all__ = ["swap_versions"]

_MODEL = "swapped"
_TOLD_EACH = 50


def swap_versions(report: Report, server: CampaignServer, count: int) -> dict[str, float]:
    """Swap `count` times; the server has no model of that name yet. Return the figures."""
    drop(server.root, _MODEL, 1)
    server.wait_for(_MODEL, 1)
    seconds: list[float] = []
    with Clients(server, _MODEL, addends=frozenset({2.0, 3.0})) as clients:
        for version in range(2, count + 2):
            begun = time.monotonic()
            folder = drop(server.root, _MODEL, version)
            try:
                server.wait_for(_MODEL, version)
                eventually(lambda old=version - 1: _is_gone(server, old), f"version {version - 1} has ended")
                clients.more(4)
            except AssertionError as error:
                report.finding(f"swap to version {version}: {str(error)[:2000]}")
                break
            seconds.append(time.monotonic() - begun)
            shutil.rmtree(folder.parent / str(version - 1))
            if version % _TOLD_EACH == 0:
                report.line("swapped", versions=version - 1, **clients.counts)
    for what in clients.wrong:
        report.finding(what)
    if refused := clients.refused():
        report.finding(f"requests were lost: {refused}")
    shutil.rmtree(server.root / _MODEL)
    return {
        "swaps": len(seconds),
        "answers": clients.counts["right"],
        "slowest_swap_seconds": round(max(seconds, default=0.0), 2),
    }


def _is_gone(server: CampaignServer, version: int) -> bool:
    return server.versions(_MODEL).get(version, ("ended", ""))[0] == "ended"

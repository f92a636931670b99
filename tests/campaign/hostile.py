"""Models that do harm, one after the other beside a good one: how much longer the good one's clients wait."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement
from tests.campaign import seeds
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer
from tests.support.memory_limit import limited_memory
from tests.support.server import ROOT, eventually

__all__ = ["HARMS", "beside_hostile"]

ENDLESS = 1 << 40
_RUNS: Mapping[str, Mapping[str, Any]] = {
    "abort": {"wanted": ENDLESS},
    "exhaust": {"wanted": ENDLESS},
    "hang": {"wanted": ENDLESS},
    "print_lines": {"lines": 20_000},
    "rows": {"count": 500_000},
    "strings": {"count": 5_000_000},
}
"""Of the model `hostile`: a signature, and the inputs for which it does harm, again and again."""

_LOADS = ("exhausts_memory_at_load", "hangs_at_load")
HARMS = (*_RUNS, *_LOADS)

_MEMORY_BYTES = 1 << 30  # that one that takes all there is may have: other processes of the machine are no part of this
_CONNECTIONS = 2
_CLIENTS = 2  # of the hostile model
_SECONDS = 120.0
_RIGHT = json.dumps({"predictions": [2.5, 3.0, 4.5]}, separators=(",", ":")).encode()


def beside_hostile(
    report: Report, server: CampaignServer, model: str, seconds: float, most: float, harms: tuple[str, ...] = HARMS
) -> dict[str, float]:
    """Measure the requests of `model` alone, and beside each of `harms`, for so many seconds each. Return the figures.

    Each request is answered, and right; the slowest hundredth waits `most` times as long as without the harm, at most.
    """
    alone = _measured(report, server, model, "alone", seconds)
    figures = {"alone_p50_ms": round(alone.p50_ms, 2), "alone_p99_ms": round(alone.p99_ms, 2)}
    for harm in harms:
        try:
            with _done(server, harm):
                found = _measured(report, server, model, harm, seconds)
        except AssertionError as error:
            report.finding(f"{harm}: {str(error)[:2000]}")
            continue
        times = found.p99_ms / alone.p99_ms
        figures |= {f"{harm}_p50_ms": round(found.p50_ms, 2), f"{harm}_p99_ms": round(found.p99_ms, 2)}
        if times > most:
            report.finding(f"{harm}: the 99th percentile is {times:.1f} times that without it, more than {most:g}")
    return figures


def _measured(report: Report, server: CampaignServer, model: str, beside: str, seconds: float) -> Measurement:
    body = Path(server.runtime_dir, "body")
    body.write_bytes(json.dumps({"instances": [1.0, 2.0, 5.0]}).encode())
    command = [sys.executable, "-m", "benchmarks.http_load", "--port", str(server.rest_port), "--body", str(body)]
    command += ["--path", f"/v1/models/{model}:predict", "--concurrency", str(_CONNECTIONS), "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=seconds + _SECONDS, check=True)
    measured = Measurement.from_json(done.stdout.decode())
    for encoded, count in measured.answers.items():
        answer = base64.b64decode(encoded)
        if answer != _RIGHT:
            report.finding(f"{beside}: {count} answers were {answer[:300]!r}")
    for error, count in measured.errors.items():
        report.finding(f"{beside}: {count} requests failed: {error}")
    p50, p99 = round(measured.p50_ms, 2), round(measured.p99_ms, 2)
    report.line("measured", beside=beside, answers=measured.requests, p50_ms=p50, p99_ms=p99)
    return measured


@contextlib.contextmanager
def _done(server: CampaignServer, harm: str) -> Iterator[None]:
    """Have `harm` done meanwhile, by a model that is dropped for it and removed at the end."""
    others = set(server.pids("ds-worker"))
    source, name = ("hostile", "hostile") if harm in _RUNS else (harm, harm)
    with limited_memory(server.pids("ds-forkserver"), _MEMORY_BYTES):
        base = _drop(server, source, name)
        try:
            if harm in _RUNS:
                server.wait_for(name, 1)
                with _asked(server, harm):
                    yield
            else:
                eventually(lambda: server.versions(name), f"{name} is seen")
                yield
        finally:
            shutil.rmtree(base)
            _end(server, name, others)


def _drop(server: CampaignServer, source: str, name: str) -> Path:
    base = server.root / name
    shutil.copytree(seeds.zoo() / source, base / ".incoming")
    os.rename(base / ".incoming", base / "1")
    return base


def _end(server: CampaignServer, name: str, others: set[int]) -> None:
    """Wait until the model is gone. Its runs need not end by themselves, so its process is killed."""

    def ended() -> bool:
        if all(phase == "ended" for phase, _ in server.versions(name).values()):
            return True
        for pid in set(server.pids("ds-worker")) - others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return False

    eventually(ended, f"{name} is unloaded", _SECONDS)


@contextlib.contextmanager
def _asked(server: CampaignServer, signature: str) -> Iterator[None]:
    """Clients ask for the harm again and again; whatever they get is right."""
    stop = threading.Event()
    document = {"signature_name": signature, "inputs": dict(_RUNS[signature])}

    def ask() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                server.predict("hostile", document)
            stop.wait(0.01)

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(_CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()

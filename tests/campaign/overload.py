"""More than the server can answer: many connections that ask without a pause, slow readers, and clients that leave."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

from benchmarks.measurement import Measurement
from tests.campaign.clients import REFUSALS
from tests.campaign.leaks import held
from tests.campaign.report import Report
from tests.campaign.serving import CampaignServer
from tests.support.server import ROOT, eventually

__all__ = ["overload"]

_SATURATING = 32  # connections: more of them bring no more answers a second
_TIMES = 10
_MEMORY_KIB = 2 << 20
_BODY = {"instances": [1.0, 2.0, 5.0]}
_RIGHT = json.dumps({"predictions": [2.5, 3.0, 4.5]}, separators=(",", ":")).encode()


def overload(report: Report, server: CampaignServer, model: str, seed: int, seconds: float) -> dict[str, float]:
    """Load `model` with ten times what saturates the server for so many seconds. Return the figures.

    What is answered is right, what is refused is told so, memory stays bounded, another client still gets answers, and
    afterwards the server is as it was.
    """
    before, processes = held(server), server.lasting_processes()
    stop = threading.Event()
    odd = [threading.Thread(target=_odd_client, args=(server, model, Random(f"{seed}:{n}"), stop)) for n in range(8)]
    for thread in odd:
        thread.start()
    load = _start_load(server, model, seconds)
    peak, slowest, asked, refused = 0, 0.0, 0, 0
    while load.poll() is None:
        begun = time.monotonic()
        try:
            status, answer = server.predict(model, _BODY)
            asked, refused = asked + 1, refused + (status != 200)
            if (status == 200 and answer["predictions"] != [2.5, 3.0, 4.5]) or str(status) not in REFUSALS | {"200"}:
                report.finding(f"another client got {status} {answer}")
        except OSError as error:
            report.finding(f"another client got no answer: {error!r}")
        slowest = max(slowest, time.monotonic() - begun)
        peak = max(peak, held(server)["resident_kib"])
        if time.monotonic() - begun < 0.5:
            time.sleep(0.5)
    stop.set()
    for thread in odd:
        thread.join(60)
    measured = _measured(report, load)
    if peak - before["resident_kib"] > _MEMORY_KIB:
        report.finding(f"the processes grew from {before['resident_kib']:,} to {peak:,} KiB")
    try:
        eventually(lambda: held(server)["descriptors"] <= before["descriptors"] + 8, "the connections are closed")
        assert server.lasting_processes() == processes, (
            f"the processes are {server.lasting_processes()}, not {processes}"
        )
        assert server.predict(model, _BODY) == (200, {"predictions": [2.5, 3.0, 4.5]})
    except AssertionError as error:
        report.finding(f"after the load: {error}")
    return {
        "answers": measured.requests,
        "answers_per_second": round(measured.requests_per_second),
        "p99_ms": round(measured.p99_ms, 1),
        "others_asked": asked,
        "others_refused": refused,
        "others_slowest_seconds": round(slowest, 2),
        "grown_mib": (peak - before["resident_kib"]) >> 10,
    }


def _start_load(server: CampaignServer, model: str, seconds: float) -> subprocess.Popen[bytes]:
    body = Path(server.runtime_dir, "body")
    body.write_bytes(json.dumps(_BODY).encode())
    command = [sys.executable, "-m", "benchmarks.http_load", "--port", str(server.rest_port), "--body", str(body)]
    command += ["--path", f"/v1/models/{model}:predict", "--concurrency", str(_SATURATING * _TIMES)]
    return subprocess.Popen([*command, "--seconds", str(seconds)], cwd=ROOT, stdout=subprocess.PIPE)


def _measured(report: Report, load: subprocess.Popen[bytes]) -> Measurement:
    """What the load generator has seen, of which every answer is checked."""
    out, _ = load.communicate(timeout=60)
    measured = Measurement.from_json(out.decode())
    for encoded, count in measured.answers.items():
        answer = base64.b64decode(encoded)
        if answer != _RIGHT:
            report.finding(f"{count} answers were {answer[:300]!r}")
    for error, count in measured.errors.items():
        if not any(code in error for code in REFUSALS):
            report.finding(f"{count} requests failed: {error}")
    return measured


def _odd_client(server: CampaignServer, model: str, random: Random, stop: threading.Event) -> None:
    """Ask for large answers and read them slowly or never, send half of a request, or leave at once."""
    body = json.dumps({"instances": [1.0] * 50_000}).encode()
    request = (
        f"POST /v1/models/{model}:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.rest_port), 5) as connection:
            match random.randrange(4):
                case 0:  # reads slowly
                    connection.sendall(request * 3)
                    for _ in range(50):
                        if stop.wait(0.1) or not connection.recv(1000):
                            break
                case 1:  # never reads
                    connection.sendall(request * 20)
                    stop.wait(5)
                case 2:  # sends half
                    connection.sendall(request[: len(request) // 2])
                    stop.wait(random.random() * 3)
                case _:  # leaves
                    connection.sendall(request)

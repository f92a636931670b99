"""Mutated input for every parser, each in a process of its own: what ends it, holds it up, or passes as right."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.campaign import parsers
from tests.campaign.in_process import input_of, target_named
from tests.campaign.report import Report
from tests.support.server import ROOT

__all__ = ["fuzz_parsers"]

HANG_SECONDS = 60.0
"""Of the clock, for one input; the machine may be busy."""

_PIECE = 5000  # inputs of one process: a new one begins with little memory
_MOST_FINDINGS = 20  # of one target: the rest would be the same again


def fuzz_parsers(report: Report, seed: int, count: int, names: Iterable[str] = ()) -> int:
    """Give `count` inputs to the parsers `names`, or to all, by their shares. Return how many were parsed."""
    targets = [target_named(name) for name in names] or list(parsers.TARGETS.values())
    shares = sum(target.share for target in targets)
    done = 0
    with tempfile.TemporaryDirectory(prefix="campaign-", dir="/dev/shm") as scratch:  # some are files
        for target in targets:
            wanted = max(1, round(count * target.share / shares))
            done += _fuzz(report, target, seed, wanted, scratch)
    return done


def _fuzz(report: Report, target: parsers.Target, seed: int, wanted: int, scratch: str) -> int:
    begun, first, found = time.monotonic(), 0, 0
    while first < wanted and found < _MOST_FINDINGS:
        size = min(_PIECE, wanted - first)
        reached, findings = _run(target, seed, first, size, scratch)
        for number, what, data in findings:
            report.finding(
                f"{target.name}: {what}", number=number, seed=seed, input=_kept(report, target, number, data)
            )
        found += len(findings)
        first = reached
    seconds = time.monotonic() - begun
    report.line("parsed", target=target.name, inputs=first, findings=found, per_second=round(first / seconds))
    return first


def _run(
    target: parsers.Target, seed: int, first: int, count: int, scratch: str
) -> tuple[int, list[tuple[int, str, bytes]]]:
    """Run one process. Return the number after the last input that was parsed, and the findings with their inputs."""
    with tempfile.NamedTemporaryFile() as progress, tempfile.TemporaryFile() as output:
        progress.write(struct.pack("<q", first))
        progress.flush()
        command = [sys.executable, "-m", "tests.campaign.in_process", target.name]
        command += [*map(str, (seed, first, count)), progress.name]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": scratch}
        )
        why = ""
        at, since = first, time.monotonic()
        while process.poll() is None:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                now = _number(progress.name)
                if now != at:
                    at, since = now, time.monotonic()
                elif time.monotonic() - since > HANG_SECONDS:
                    why = f"is not parsed within {HANG_SECONDS:g} s"
                    process.kill()
                    process.wait()
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace").strip()[-500:]
        process.stderr.close()
        reached = _number(progress.name)
        output.seek(0)
        lines = [json.loads(line) for line in output.read().splitlines()]
    findings = [(line["number"], line["what"], base64.b64decode(line["data"])) for line in lines]
    if reached < first + count:  # it has ended in this one
        if not why:
            status = process.returncode
            why = f"ends the process by {signal.Signals(-status).name}" if status < 0 else f"ends the process: {said}"
        findings.append((reached, why, input_of(target, seed, reached)))
        reached += 1
    return reached, findings


def _number(path: str) -> int:
    (number,) = struct.unpack("<q", Path(path).read_bytes()[:8])
    return int(number)


def _kept(report: Report, target: parsers.Target, number: int, data: bytes) -> str:
    """Keep the input of a finding beside the report; return its file."""
    folder = Path(f"{report.path}.inputs")
    folder.mkdir(exist_ok=True)
    path = folder / f"{target.name}-{number}"
    path.write_bytes(data)
    return os.fspath(path)

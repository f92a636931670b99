"""Runs jobs of converters.job as the appliance does: each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from converters.report import Report
from converters.spec import Job, JobSpec

ROOT = Path(__file__).resolve().parents[2]
KEY = b"the key of the servers in tests, of 32 bytes and more"
_SCRATCH = tempfile.TemporaryDirectory(prefix="dropserve-test-jobs-")  # removed with the test run


@dataclass(frozen=True)
class Outcome:
    report: Report
    progress: tuple[str, ...]
    work_dir: Path
    """With the files of the chosen form, unless the cache has them."""
    warnings: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """Those of the chosen form, with their hashes."""


def run_job(path: str | os.PathLike[str], *, code: Path = ROOT, key: bytes = KEY, **options: Any) -> Outcome:
    """Accelerates the SavedModel at `path`, by the packages in the folder `code`: any proven form is fast enough, and
    any timing is final, so that a busy machine changes nothing."""
    work_dir = tempfile.mkdtemp(dir=_SCRATCH.name)
    defaults = {
        "yielding": False,
        "search_seconds": 1.0,
        "measure_seconds": 0.1,
        "max_others": 1.0,
        "min_speedup": 0.0,
    }
    spec = JobSpec(path=os.fspath(path), work_dir=work_dir, **{**defaults, **options})
    job = subprocess.run(
        [sys.executable, "-m", "converters.job"],
        cwd=code,
        input=json.dumps(msgspec.to_builtins(Job(spec, key))),
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    lines = [json.loads(line) for line in job.stdout.splitlines()]
    assert job.returncode == 0, (lines, job.stderr[-3000:])
    assert "report" in lines[-1]
    said = {kind: tuple(line[kind] for line in lines[:-1] if kind in line) for kind in ("progress", "warning")}
    report = msgspec.convert(lines[-1]["report"], Report)
    return Outcome(report, said["progress"], Path(work_dir), said["warning"], lines[-1]["files"])

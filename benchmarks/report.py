"""The table on the terminal, and the JSON lines that keep a run."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import time

from benchmarks.cases import CONCURRENCIES, SESSION, Case
from benchmarks.footprint import Drop, Footprint
from benchmarks.measurement import Measurement
from benchmarks.models import ROOT

RESULTS = os.path.join(ROOT, "benchmarks", "results")
PACKAGES = ("tensorflow", "onnxruntime-gpu", "ai-edge-litert", "grpcio", "gunicorn", "uvicorn", "falcon", "fastapi")
REQUESTS = {
    "half_plus_two": "3 floats",
    "digits": "1 image of 8×8 floats",
    "mobilenet_v2": "1 image of 224×224×3 floats",
}
Results = dict[Case, list[Measurement]]  # one for each of CONCURRENCIES


def describe_machine() -> dict[str, str | int]:
    """What a figure depends on."""
    with open("/proc/cpuinfo") as file:
        cpus = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    git = ["git", "-C", ROOT]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpus[0] if cpus else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **versions,
        "commit": (commit.strip() or "none") + (" with changes" if changes else ""),
    }


class ResultFile:
    """A file of JSON lines, complete up to the last finished step even if the run is interrupted.

    The servers' logs stand beside it, under the same `stem`.
    """

    def __init__(self, started: str) -> None:
        os.makedirs(RESULTS, exist_ok=True)
        self.stem = os.path.join(RESULTS, started.replace(":", ""))
        self.path = self.stem + ".jsonl"

    def append(self, kind: str, **values: object) -> None:
        """One line; `kind` says what the others are."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")


def format_results(medians: Results) -> str:
    """One table a model: requests a second, p50 and p99 at each concurrency."""
    lines = []
    for model in dict.fromkeys(case.model for case in medians):
        rows = {case: row for case, row in medians.items() if case.model == model}
        lines.append(f"\n{model}, {REQUESTS[model]}")
        lines.append(" " * 34 + "".join(f"{f'{count} at a time':>28}" for count in CONCURRENCIES))
        lines.append(" " * 34 + f"{'req/s':>10}{'p50 ms':>9}{'p99 ms':>9}" * len(CONCURRENCIES))
        for case, row in rows.items():
            figures = "".join(f"{m.requests_per_second:10,.0f}{m.p50_ms:9.3f}{m.p99_ms:9.3f}" for m in row)
            lines.append(f"  {case.name.removeprefix(model + ' '):<32}{figures}")
            for count, measurement in zip(CONCURRENCIES, row, strict=True):
                lines += _describe_failures(count, measurement)
        lines += _compare_with_session(rows)
    return "\n".join(lines)


def _describe_failures(concurrency: int, measurement: Measurement) -> list[str]:
    failures = [f"{count} × {message}" for message, count in measurement.errors.items()]
    if measurement.unchecked:
        failures.append(f"{measurement.unchecked} answers not checked: too many distinct ones")
    return [f"    ERRORS at {concurrency}: {failure}" for failure in failures]


def _compare_with_session(rows: Results) -> list[str]:
    """Latency added at one connection, and the share of the session's best throughput."""
    session = next((row for case, row in rows.items() if case.server == SESSION), None)
    if session is None:
        return []
    limit = max(measurement.requests_per_second for measurement in session)
    lines = []
    for case, row in rows.items():
        if case.server != SESSION:
            added = 1e3 * (row[0].p50_ms - session[0].p50_ms)
            share = max(measurement.requests_per_second for measurement in row) / limit
            lines.append(
                f"  {case.name.removeprefix(case.model + ' '):<32}adds {added:,.0f} µs to the session's p50 at 1; "
                f"its best rate is {share:.0%} of the session's best"
            )
    return lines


def format_footprint(footprint: Footprint) -> str:
    """One row a process."""
    lines = [f"\nidle: {footprint.idle_cpu_percent:.2f} % of a core over all processes"]
    for process in footprint.processes:
        role = "front" if process.is_front else ""
        runtimes = ", ".join(process.runtimes) or "no framework"
        lines.append(f"  {process.pss_mib:7.1f} MiB  {role:<6}{runtimes:<14}{process.name}")
    total = sum(process.pss_mib for process in footprint.processes)
    lines.append(f"  {total:7.1f} MiB  in all (PSS: shared pages are divided among those who share them)")
    lines += [f"  ERROR: front {process.pid} has TensorFlow mapped" for process in footprint.fronts_with_tensorflow]
    return "\n".join(lines)


def format_drop(drop: Drop) -> str:
    """One line."""
    return (
        f"  {drop.model:<16}available {drop.available_seconds:.2f} s, first answer {drop.first_answer_seconds:.2f} s "
        f"after the {drop.settle_seconds:g} s of settling"
    )


def to_values(value: Footprint | Drop | Measurement) -> dict[str, object]:
    """For a line of the result file."""
    return dataclasses.asdict(value)

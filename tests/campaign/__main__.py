"""`make campaign`: see the package, and docs/reliability.md.

    python -m tests.campaign PART [--seed N] [--count N] [--seconds N] [--report FILE] [--only TARGET …]

`--count` and `--seconds` make a part smaller. The report's lines stand in build/campaign/PART-SEED.jsonl. The exit
status is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign.disk import Disk, in_own_mounts
from tests.campaign.drops import drop_mutated_models
from tests.campaign.faults import break_processes
from tests.campaign.fuzz import fuzz_parsers
from tests.campaign.hostile import beside_hostile
from tests.campaign.leaks import come_and_go
from tests.campaign.overload import overload
from tests.campaign.parsers import TARGETS
from tests.campaign.report import Report
from tests.campaign.serving import serving
from tests.campaign.swaps import swap_versions
from tests.campaign.wire import fuzz_sockets
from tests.support.server import ROOT


def fuzz(report: Report, asked: argparse.Namespace) -> dict[str, float]:
    count = asked.count or 1_000_000
    figures: dict[str, float] = {"parsed": fuzz_parsers(report, asked.seed, count, asked.only)}
    if not asked.only:
        with serving("stays", incomplete_after_seconds=1) as server:
            figures["sent"] = fuzz_sockets(report, server, "stays", asked.seed, max(1, count // 100))
            figures["dropped"] = drop_mutated_models(report, server, "stays", asked.seed, max(1, count // 5000))
    return figures


def swaps(report: Report, asked: argparse.Namespace) -> dict[str, float]:
    with serving(settle_seconds=0.2) as server:
        return swap_versions(report, server, asked.count or 1000)


def faults(report: Report, asked: argparse.Namespace) -> dict[str, float]:
    seconds = asked.seconds or 900.0
    with contextlib.ExitStack() as stack:
        disk, folders = None, {}
        if in_own_mounts():
            disk = stack.enter_context(Disk(Path(stack.enter_context(tempfile.TemporaryDirectory()), "disk")))
            folders = {"runtime_dir": disk.path / "run", "cache_dir": disk.path / "cache"}
        else:
            report.line("left out", what="a full disk: neither a mount namespace nor a user namespace is allowed here")
        server = stack.enter_context(serving("stays", hang_seconds=5, **folders))
        return break_processes(report, server, asked.seed, seconds, "stays", asked.count, disk)


def leaks(report: Report, asked: argparse.Namespace) -> dict[str, float]:
    with serving("stays") as server:
        return come_and_go(report, server, asked.count or 500)


def overloaded(report: Report, asked: argparse.Namespace) -> dict[str, float]:
    with serving("stays") as server:
        return overload(report, server, "stays", asked.seed, asked.seconds or 300.0)


def hostile(report: Report, asked: argparse.Namespace) -> dict[str, float]:
    with serving("stays") as server:
        return beside_hostile(report, server, "stays", asked.seconds or 20.0, most=3.0)


PARTS = {
    "faults": faults,
    "fuzz": fuzz,
    "hostile": hostile,
    "leaks": leaks,
    "overload": overloaded,
    "swaps": swaps,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries to break the server.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument(
        "--count", type=int, default=0, help="of inputs, swaps or cycles; 0: as many as a whole run has"
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="of load; 0: as many as a whole run has")
    parser.add_argument("--only", nargs="+", default=(), choices=TARGETS, metavar="TARGET", help="of fuzz")
    parser.add_argument("--report", default="")
    asked = parser.parse_args()
    path = asked.report or ROOT / "build" / "campaign" / f"{asked.part}-{asked.seed}.jsonl"
    if asked.part == "faults":
        in_own_mounts()
    report = Report(path, part=asked.part, seed=asked.seed, count=asked.count, load_seconds=asked.seconds)
    figures = PARTS[asked.part](report, asked)
    return 1 if report.end(**figures) else 0


if __name__ == "__main__":
    sys.exit(main())

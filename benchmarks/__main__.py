"""python -m benchmarks: measure dropserve beside the bare session and FastAPI, in one run on this machine."""

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

from benchmarks.cases import CASES, CONCURRENCIES, DROPSERVE, FASTAPI, Case, measure_case
from benchmarks.footprint import measure_drop, measure_footprint
from benchmarks.measurement import Measurement, take_medians
from benchmarks.models import MODELS, NAMES, ROOT
from benchmarks.report import (
    ResultFile,
    describe_machine,
    format_drop,
    format_footprint,
    format_results,
    to_values,
)
from benchmarks.servers import Server, ServerError, make_dropserve, make_fastapi, wait_until_quiet

DROPPED = ("half_plus_two", "mobilenet_v2")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="the window of one measurement (5)")
    parser.add_argument("--warmup-seconds", type=float, default=1.0, help="load before the window opens (1)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats, of which medians are shown (3)")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="how long idle CPU time is watched (10)")
    parser.add_argument("--quick", action="store_true", help="1 s windows, 1 repeat: to see that everything works")
    parser.add_argument(
        "--cases", nargs="+", default=[""], metavar="TEXT", help="only those whose name has one of these; see --list"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--settle-seconds", type=float, default=1.0, help="the server's --settle_seconds (1)")
    parser.add_argument("--serve-args", default="", help="further arguments of `dropserve serve`, in one string")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.warmup_seconds, options.repeats, options.idle_seconds = 1.0, 0.5, 1, 3.0
    return options


def start_servers(
    stack: contextlib.ExitStack, needed: set[str], model_root: str, log_stem: str, options: argparse.Namespace
) -> dict[str, Server]:
    """The servers that the chosen cases need, by name; they stop with the stack."""
    servers = {}
    if FASTAPI in needed:
        folder = os.path.join(MODELS, "half_plus_two", "1")
        server = make_fastapi("half_plus_two", folder, f"{log_stem}.fastapi.log")
        servers[FASTAPI] = stack.enter_context(server)
    if DROPSERVE in needed:
        shutil.copytree(MODELS, model_root)  # versions are dropped into it
        extra = [f"--settle_seconds={options.settle_seconds}", *shlex.split(options.serve_args)]
        server = make_dropserve(model_root, f"{log_stem}.dropserve.log", extra)
        servers[DROPSERVE] = stack.enter_context(server)
        waited = wait_until_quiet(servers[DROPSERVE])
        print(f"dropserve is quiet {waited:.0f} s after it was ready", flush=True)
    return servers


def run_cases(
    cases: list[Case], servers: dict[str, Server], options: argparse.Namespace, results: ResultFile
) -> dict[Case, list[Measurement]]:
    """All cases, one after the other, `repeats` times over: a slow minute of the machine hits every case alike."""
    collected: dict[Case, list[list[Measurement]]] = {case: [] for case in cases}
    for repeat in range(1, options.repeats + 1):
        for case in cases:
            print(f"\r\033[K{repeat}/{options.repeats} {case.name}", end="", file=sys.stderr, flush=True)
            row = measure_case(case, servers, options.warmup_seconds, options.seconds)
            collected[case].append(row)
            for concurrency, measurement in zip(CONCURRENCIES, row, strict=True):
                results.append("case", case=case.name, repeat=repeat, concurrency=concurrency, **to_values(measurement))
    print("\r\033[K", end="", file=sys.stderr)
    return {
        case: [take_medians([row[i] for row in rows]) for i in range(len(CONCURRENCIES))]
        for case, rows in collected.items()
    }


def run_footprint(
    server: Server, model_root: str, chosen: set[str], options: argparse.Namespace, results: ResultFile
) -> bool:
    """Idle cost, then drops, which change what is served. Returns whether all went well."""
    well = True
    if "footprint" in chosen:
        wait_until_quiet(server)
        footprint = measure_footprint(server, options.idle_seconds)
        print(format_footprint(footprint))
        results.append("footprint", **to_values(footprint))
        well = not footprint.fronts_with_tensorflow
    if "new version" in chosen:
        print("\na new version")
        for model in DROPPED:
            drop = measure_drop(server, model_root, model, options.settle_seconds)
            print(format_drop(drop))
            results.append("drop", **to_values(drop))
    return well


def main() -> int:
    """Returns the exit status: 1 if anything failed or was answered wrongly."""
    options = parse_options()
    chosen = {name for name in ("footprint", "new version") if any(text in name for text in options.cases)}
    cases = [case for case in CASES if any(text in case.name for text in options.cases)]
    if options.list:
        print("\n".join([*(case.name for case in CASES), "footprint", "new version"]))
        return 0
    if not cases and not chosen:
        print(f"no case has {options.cases} in its name; --list prints the names", file=sys.stderr)
        return 2

    # In a process of its own: TensorFlow's memory and threads do not stay beside the measurements.
    subprocess.run([sys.executable, "-m", "benchmarks.models", *NAMES], cwd=ROOT, check=True)
    machine = describe_machine()
    results = ResultFile(str(machine["time"]))
    results.append("machine", **machine, options=vars(options))
    print("  ".join(f"{key} {value}" for key, value in machine.items()), flush=True)

    needed = {case.server for case in cases} | ({DROPSERVE} if chosen else set())
    well = True
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch, contextlib.ExitStack() as stack:
        model_root = os.path.join(scratch, "models")
        servers = start_servers(stack, needed, model_root, results.stem, options)
        medians = run_cases(cases, servers, options, results)
        print(format_results(medians))
        well = not any(measurement.failures for row in medians.values() for measurement in row)
        if chosen:
            well = run_footprint(servers[DROPSERVE], model_root, chosen, options, results) and well
    print(f"\n{'no errors' if well else 'THERE WERE ERRORS'}; every measurement is in {results.path}")
    return 0 if well else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ServerError, OSError) as problem:
        sys.exit(f"error: {problem}")

"""What our server costs while nobody asks, and how soon a dropped version answers."""

import dataclasses
import json
import os
import shutil
import time

from benchmarks.models import find_wrong_answer, locate_request
from benchmarks.servers import Process, Server, fetch, inspect_processes, measure_cpu

DROP_SECONDS = 120.0
POLL_SECONDS = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    """An idle server. CPU in percent of one core, over all processes."""

    idle_cpu_percent: float
    processes: list[Process]

    @property
    def fronts_with_tensorflow(self) -> list[Process]:
        """Must be empty: it would cost each front hundreds of MiB."""
        return [process for process in self.processes if process.is_front and "TensorFlow" in process.runtimes]


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Seconds from the rename that completes a version folder, less the time the server waits for it to settle."""

    model: str
    settle_seconds: float
    available_seconds: float
    first_answer_seconds: float


def measure_footprint(server: Server, idle_seconds: float) -> Footprint:
    """Of a server that nobody calls."""
    return Footprint(measure_cpu(server, idle_seconds), inspect_processes(server))


def measure_drop(server: Server, model_root: str, model: str, settle_seconds: float) -> Drop:
    """Drop a copy of version 1 as version 2, and ask until it answers."""
    base = os.path.join(model_root, model)
    shutil.copytree(os.path.join(base, "1"), os.path.join(base, ".2.partial"))
    with open(locate_request(model, "rest.json"), "rb") as file:
        body = file.read()

    os.rename(os.path.join(base, ".2.partial"), os.path.join(base, "2"))
    dropped = time.monotonic()
    while _find_state(server, model, "2") != "AVAILABLE":
        if time.monotonic() > dropped + DROP_SECONDS:
            state = _find_state(server, model, "2")
            raise TimeoutError(f"{model} version 2 is {state}, not AVAILABLE, {DROP_SECONDS:.0f} s after the drop")
        time.sleep(POLL_SECONDS)
    available = time.monotonic()
    answer = fetch(f"{server.url}/v1/models/{model}/versions/2:predict", body)
    answered = time.monotonic()
    wrong = find_wrong_answer(model, "REST", answer)
    if wrong is not None:
        raise ValueError(f"{model} version 2: {wrong}")
    return Drop(model, settle_seconds, available - dropped - settle_seconds, answered - dropped - settle_seconds)


def _find_state(server: Server, model: str, version: str) -> str:
    """The state in the status API, or `unknown` while the version is not listed."""
    for status in json.loads(fetch(f"{server.url}/v1/models/{model}"))["model_version_status"]:
        if status["version"] == version:
            return str(status["state"])
    return "unknown"

"""The GPU view: what a driver tells, and that no driver, however it fails, costs more than an error field.

The driver is a stub of NVIDIA's library (tests/support/nvml_stub.c), loaded by the real nvidia-ml-py in the real
probe process.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.core.servable import ServableId
from appliance.gpu.values import Gpu, GpuProcess, GpuStatus, named, table, with_identities
from tests.support.nvml_stub import NOT_AVAILABLE, NvmlStub
from tests.support.server import ROOT, Server, eventually

GIB = 2**30
FIRST = {
    "index": 0,
    "name": "Stub X100",
    "uuid": "GPU-00000000-0000-0000-0000-000000000000",
    "temperature_celsius": 40,
    "power_watts": 75.5,
    "power_limit_watts": 700.0,
    "utilization_percent": 25,
    "memory_used_bytes": 3 * GIB,
    "memory_free_bytes": 80 * GIB - 3 * GIB - GIB // 2,
    "memory_total_bytes": 80 * GIB,
    "fan_percent": None,
    "performance_state": "P0",
    "mig": "disabled",
    "processes": [],
    "error": "",
    "errors": {},
}
SECOND = {
    **FIRST,
    "index": 1,
    "name": "Stub X200",
    "uuid": "GPU-00000000-0000-0000-0000-000000000001",
    "temperature_celsius": 41,
    "fan_percent": 30,
    "performance_state": "P8",
    "mig": "disabled; enabled after a reset",
}
CLOSED_URL = "http://127.0.0.1:9"  # the port of `discard`


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> NvmlStub:
    return NvmlStub(tmp_path_factory.mktemp("nvml"))


class GpuServer(Server):
    """A server with one model, whose NVIDIA library is the stub."""

    def __init__(self, stub: NvmlStub, **options: Any) -> None:
        self.environment = stub.environment
        super().__init__(**options)

    def gpus(self) -> dict[str, Any]:
        status, document = self.get("/v1/gpu")
        assert status == 200
        assert isinstance(document, dict)
        return document

    def when(self, is_so: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The GPUs once `is_so`: what was read is remembered for a second, and a failure for longer."""

        def probe() -> dict[str, Any] | None:
            document = self.gpus()
            return document if is_so(document) else None

        return eventually(probe, what)

    def metric(self, name: str, *labels: str) -> dict[str, float]:
        """The samples of a metric by its labels' text, those that have all of `labels`."""
        page = self.get("/metrics")[1].decode()
        found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", page, re.MULTILINE)
        return {key: float(value) for key, value in found if all(label in key for label in labels)}


def is_healthy(document: dict[str, Any]) -> bool:
    return msgspec.convert(document, GpuStatus).is_healthy


@pytest.fixture(scope="module")
def running(stub: NvmlStub, zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuServer]:
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(zoo / "half_plus_two", root / "half" / "7")
    with GpuServer(stub, model_root=root) as server:
        server.wait_for("half", 7)
        yield server


@pytest.fixture
def server(running: GpuServer, stub: NvmlStub) -> GpuServer:
    """The server, with a driver that works."""
    stub.tell()
    running.when(is_healthy, "the driver works")
    return running


def command(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", "gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# -- what is told ----------------------------------------------------------------------------------------------


def test_each_gpu_tells_its_state(server: GpuServer) -> None:
    document = server.gpus()
    assert document["gpus"] == [FIRST, SECOND]
    assert (document["driver_version"], document["cuda_version"]) == ("550.54.15", "12.4")
    assert (document["error"], document["reason"]) == ("", "")
    assert document["age_seconds"] >= 0


def test_a_process_has_the_model_and_version_that_it_serves(server: GpuServer, stub: NvmlStub) -> None:
    (worker,) = server.pids("ds-worker")
    stub.tell(f"process 0 {worker} {GIB}", f"process 1 {worker} {NOT_AVAILABLE}", f"process 0 1 {2 * GIB}")
    document = server.when(lambda found: bool(found["gpus"][0]["processes"]), "the processes are listed")
    ours = {"pid": worker, "type": "C", "name": f"/usr/bin/program-{worker}", "model": "half", "version": "7"}
    stranger = {"pid": 1, "type": "C", "name": None, "model": None, "version": None}
    assert document["gpus"][0]["processes"] == [stranger | {"memory_bytes": 2 * GIB}, ours | {"memory_bytes": GIB}]
    assert document["gpus"][1]["processes"] == [ours | {"memory_bytes": None}]
    status, page = server.get("/v1/gpu?format=text")
    assert status == 200
    assert re.search(rf"^ +0 +{worker} +C +1024MiB +half +7 +/usr/bin/program-{worker}$", page.decode(), re.MULTILINE)
    assert re.search(r"^ +0 +1 +C +2048MiB +unknown +- +N/A$", page.decode(), re.MULTILINE)
    assert server.metric("dropserve_gpu_process_memory_bytes") == {'{gpu="0",model="half",version="7"}': GIB}


def test_a_format_that_is_none_is_refused_with_those_there_are(server: GpuServer) -> None:
    status, document = server.get("/v1/gpu?format=xml")
    assert status == 400
    assert "'xml'" in document["error"]
    assert "json or text" in document["error"]


def test_a_scrape_has_the_gpus(server: GpuServer) -> None:
    labels = '{gpu="1",uuid="GPU-00000000-0000-0000-0000-000000000001",name="Stub X200"}'
    values = {
        "up": 1,
        "errors": 0,
        "temperature_celsius": 41,
        "power_watts": 75.5,
        "power_limit_watts": 700,
        "utilization_ratio": 0.25,
        "memory_used_bytes": 3 * GIB,
        "memory_total_bytes": 80 * GIB,
    }
    for name, value in values.items():
        assert server.metric(f"dropserve_gpu_{name}", 'gpu="1"') == {labels: value}
    assert server.metric("dropserve_gpu_driver_up") == {"": 1}


# -- a driver that fails ---------------------------------------------------------------------------------------


def test_what_one_gpu_fails_to_tell_costs_those_fields_only(server: GpuServer, stub: NvmlStub) -> None:
    stub.tell("nvmlDeviceGetPowerUsage 1 999", "nvmlDeviceGetTemperature 1 3", "nvmlDeviceGetMemoryInfo_v2 1 4")
    document = server.when(lambda found: bool(found["gpus"][1]["errors"]), "the second GPU fails")
    assert document["gpus"][0] == FIRST
    second = document["gpus"][1]
    denied = "Insufficient Permissions; may this user open /dev/nvidiactl and /dev/nvidia0?"
    memory = ("memory_used_bytes", "memory_free_bytes", "memory_total_bytes")
    assert second.pop("errors") == {"power_watts": "Unknown Error", **dict.fromkeys(memory, denied)}
    unknown = dict.fromkeys(("power_watts", "temperature_celsius", *memory))
    assert second == {key: value for key, value in (SECOND | unknown).items() if key != "errors"}
    assert list(server.metric("dropserve_gpu_errors", 'gpu="1"').values()) == [4]
    assert server.metric("dropserve_gpu_power_watts", 'gpu="1"') == {}
    page = server.get("/v1/gpu?format=text")[1].decode()
    assert "ERR / 700W" in page
    assert "GPU 1: power_watts: Unknown Error" in page


def test_a_gpu_that_is_lost_keeps_its_name_and_comes_back(server: GpuServer, stub: NvmlStub) -> None:
    stub.tell("* 1 15")
    document = server.when(lambda found: found["gpus"][1]["error"] != "", "the second GPU is lost")
    assert document["error"] == ""
    assert document["gpus"][0] == FIRST
    second = document["gpus"][1]
    assert "lost" in second["error"]
    assert (second["name"], second["uuid"], second["memory_total_bytes"]) == (SECOND["name"], SECOND["uuid"], None)
    assert list(server.metric("dropserve_gpu_up", 'gpu="1"').values()) == [0]
    assert list(server.metric("dropserve_gpu_up", 'gpu="0"').values()) == [1]
    stub.tell()
    assert server.when(is_healthy, "the GPU is back")["gpus"] == [FIRST, SECOND]


def test_a_gpu_that_is_lost_while_it_is_read_keeps_what_it_told(server: GpuServer, stub: NvmlStub) -> None:
    stub.tell("nvmlDeviceGetPowerUsage 1 15")
    document = server.when(lambda found: found["gpus"][1]["error"] != "", "the second GPU is lost")
    second = document["gpus"][1]
    assert (second["temperature_celsius"], second["power_watts"]) == (41, None)


def test_a_driver_that_hangs_holds_nobody_up_and_is_asked_again(server: GpuServer, stub: NvmlStub) -> None:
    (probe,) = server.pids("ds-gpu")
    stub.tell("* * hang")
    # Whatever is asked meanwhile is answered: the driver's time is up after 2 s.
    waiting = threading.Thread(target=lambda: server.when(lambda found: found["error"] != "", "it hangs"))
    waiting.start()
    while waiting.is_alive():
        for path in ("/healthz", "/metrics", "/v1/models/half"):
            assert server.get(path)[0] == 200, path
        assert server.predict("half", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    waiting.join()
    document = server.gpus()
    assert "driver" in document["error"]
    assert [gpu["name"] for gpu in document["gpus"]] == ["Stub X100", "Stub X200"]  # as of its age
    assert document["age_seconds"] > 1
    assert server.metric("dropserve_gpu_driver_up") == {"": 0}
    assert "ERROR: " in server.get("/v1/gpu?format=text")[1].decode()
    eventually(lambda: probe not in server.processes(), "the process that hung is gone")
    stub.tell()
    assert server.when(is_healthy, "the driver answers again")["gpus"] == [FIRST, SECOND]
    eventually(lambda: "the state of the GPUs is known again" in server.log(), "the log says so")


def test_a_gpu_that_hangs_does_not_hide_the_other(server: GpuServer, stub: NvmlStub) -> None:
    stub.tell("nvmlDeviceGetUtilizationRates 0 hang")
    document = server.when(
        lambda found: len(found["gpus"]) == 2 and found["gpus"][0]["error"] != "", "the first GPU hangs"
    )
    assert "within 2 s" in document["gpus"][0]["error"]
    assert "hangs at GPU 0" in document["error"]
    assert document["gpus"][1] == SECOND


def test_a_library_that_crashes_takes_only_its_own_process_down(server: GpuServer, stub: NvmlStub) -> None:
    stub.tell("nvmlDeviceGetName 0 crash")
    document = server.when(lambda found: found["error"] != "", "the library crashes")
    assert "SIGABRT" in document["error"]
    assert server.process.poll() is None
    stub.tell()
    server.when(is_healthy, "the driver answers again")


def test_a_driver_that_starts_slowly_is_waited_for_in_the_background(server: GpuServer, stub: NvmlStub) -> None:
    stub.tell("nvmlDeviceGetCount_v2 * crash", "nvmlInitWithFlags * hang")  # the next process hangs in its start
    server.when(lambda found: "has not answered" in found["error"], "the driver starts slowly")
    (probe,) = server.pids("ds-gpu")
    assert "has not answered" in server.gpus()["error"]
    stub.tell()
    server.when(is_healthy, "the driver has started")
    assert server.pids("ds-gpu") == [probe]


def test_without_a_driver_there_are_no_gpus_and_the_reason(tmp_path: Path) -> None:
    # A file that is no library hides that of a machine that has one.
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    (tmp_path / "models").mkdir()

    class NoDriver(Server):
        environment: Mapping[str, str] = {"LD_LIBRARY_PATH": str(tmp_path)}

    with NoDriver(model_root=tmp_path / "models") as server:
        status, document = server.get("/v1/gpu")
        assert (status, document["gpus"], document["error"]) == (200, [], "")
        assert "no NVIDIA driver" in document["reason"]
        page = server.get("/metrics")[1].decode()
        assert not re.search("^dropserve_gpu", page, re.MULTILINE)
        eventually(lambda: not server.pids("ds-gpu"), "no process stays")


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_prints_the_servers_table(server: GpuServer, stub: NvmlStub) -> None:
    (worker,) = server.pids("ds-worker")
    stub.tell(f"process 0 {worker} {GIB}")
    server.when(lambda found: bool(found["gpus"][0]["processes"]), "the process is listed")
    done = command("--url", f"http://127.0.0.1:{server.rest_port}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Driver 550.54.15   CUDA 12.4" in done.stdout
    assert "GPU 1: Stub X200 (UUID: GPU-00000000-0000-0000-0000-000000000001)" in done.stdout
    assert re.search(r"^ +1 +30% +41C +P8 +76W / 700W +3072MiB / 81920MiB +25% ", done.stdout, re.MULTILINE)
    assert re.search(rf"^ +0 +{worker} +C +1024MiB +half +7 ", done.stdout, re.MULTILINE)


def test_the_command_watches_until_it_is_interrupted(server: GpuServer) -> None:
    arguments = ["gpu", "--url", f"http://127.0.0.1:{server.rest_port}", "--watch", "0.1"]
    with subprocess.Popen(
        [sys.executable, "-m", "appliance", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        seen = 0
        while seen < 3:
            line = watching.stdout.readline()
            assert line
            seen += "Driver 550.54.15" in line
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
        assert watching.returncode == 0


def test_without_a_server_the_command_asks_the_driver(stub: NvmlStub) -> None:
    stub.tell()
    done = command("--url", CLOSED_URL, environment=dict(stub.environment))
    assert done.returncode == 0
    assert "Stub X200" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "no server answers" in done.stderr


@pytest.mark.parametrize(
    ("result", "words"),
    [(9, "not loaded"), (18, "the driver was updated"), (999, "does not start: Unknown Error"), (77, "does not start")],
)
def test_a_driver_that_does_not_start_is_told_with_its_reason(stub: NvmlStub, result: int, words: str) -> None:
    stub.tell(f"nvmlInitWithFlags * {result}")
    done = command("--url", CLOSED_URL, environment=dict(stub.environment))
    assert done.returncode == 1
    assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "{url}/elsewhere"], "404"),
        (["--url", "nonsense"], "no answer from nonsense"),
        (["--watch", "0"], "from 0.1"),
    ],
)
def test_what_the_command_cannot_do_is_one_line_with_a_remedy(
    server: GpuServer, arguments: list[str], words: str
) -> None:
    url = f"http://127.0.0.1:{server.rest_port}"
    done = command(*(argument.format(url=url) for argument in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert "; " in done.stderr


# -- values ----------------------------------------------------------------------------------------------------

LISTED = GpuStatus(
    driver_version="1",
    gpus=(Gpu(0, processes=(GpuProcess(10, "C", "a", 5), GpuProcess(11, "G", None, None))), Gpu(1, error="lost")),
    age_seconds=1.5,
)


def test_a_status_survives_json() -> None:
    assert msgspec.convert(msgspec.to_builtins(LISTED), GpuStatus) == LISTED


def test_only_processes_that_serve_are_named() -> None:
    first, second = named(LISTED, {10: ServableId("m", 3), 12: ServableId("n", 4)}).gpus[0].processes
    assert (first.model, first.version) == ("m", "3")
    assert (second.model, second.version) == (None, None)


def test_a_gpu_that_answers_is_never_given_an_earlier_identity() -> None:
    earlier = (Gpu(0, name="old", uuid="o"), Gpu(1, name="old", uuid="p"))
    now = with_identities((Gpu(1, error="lost"), Gpu(0), Gpu(2, error="lost")), earlier)
    assert [(gpu.index, gpu.name, gpu.uuid) for gpu in now] == [(0, None, None), (1, "old", "p"), (2, None, None)]


def test_names_cannot_drive_the_terminal() -> None:
    evil = "\x1b[2J\n\u202eevil"
    gpu = Gpu(0, name=evil, error=evil, errors={"name": evil}, processes=(GpuProcess(1, "C", evil, 0, evil, "1"),))
    page = table(GpuStatus(driver_version=evil, gpus=(gpu,), error=evil, reason=evil))
    assert all(character.isprintable() or character == "\n" for character in page)
    assert len(page.splitlines()) == len(table(GpuStatus(gpus=(Gpu(0, error="e", errors={"name": "e"}, processes=(
        GpuProcess(1, "C", "n", 0),)),), error="e", reason="r")).splitlines())  # fmt: skip


@pytest.mark.parametrize(
    ("status", "healthy"),
    [
        (GpuStatus(gpus=(Gpu(0),)), True),
        (GpuStatus(reason="no driver"), False),
        (GpuStatus(gpus=(Gpu(0),), error="hangs"), False),
        (GpuStatus(gpus=(Gpu(0, error="lost"),)), False),
        (GpuStatus(gpus=(Gpu(0, errors={"name": "?"}),)), False),
    ],
)
def test_only_gpus_that_told_all_are_healthy(status: GpuStatus, healthy: bool) -> None:
    assert status.is_healthy is healthy

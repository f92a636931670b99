"""Starting, watching and stopping the servers under load. What is read of a process comes from /proc."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import Self

START_SECONDS = 60.0
STOP_SECONDS = 30.0
QUIET_SECONDS = 300.0  # a server may convert and measure models after its start
LULL_SECONDS = 5.0  # trials of odd shapes begin two seconds after a version is available
RUNTIMES = {"TensorFlow": "libtensorflow", "ONNX Runtime": "onnxruntime", "LiteRT": "ai_edge_litert"}
ROLES = {"dropserve": "supervisor", "ds-rest": "rest", "ds-grpc": "grpc", "ds-worker": "worker"}  # by process name
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server did not start, or did not stop as it should; the message ends with the end of its log."""


def find_free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str, body: bytes | None = None) -> bytes:
    """GET, or POST where there is a body; raises URLError."""
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as response:
        return bytes(response.read())


class Server:
    """A server process and everything that it starts, ready on entering and stopped on leaving."""

    def __init__(
        self,
        command: list[str],
        rest_port: int,
        grpc_port: int,
        log_path: str,
        *,
        environment: dict[str, str] | None = None,
        exit_statuses: tuple[int, ...] = (0,),
    ) -> None:
        self.rest_port = rest_port
        self.grpc_port = grpc_port
        self._command = command
        self._log_path = log_path
        self._environment = {**os.environ, **(environment or {})}
        self._exit_statuses = exit_statuses
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The REST address."""
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def pid(self) -> int:
        """The process that was started; its children are found below it."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise ServerError(self.describe(f"still running {STOP_SECONDS:.0f} s after SIGTERM")) from error
        if status not in self._exit_statuses:
            raise ServerError(self.describe(f"exit status {status} after SIGTERM")) from error

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(self.describe(f"ended with status {self._process.returncode} before it was ready"))
            try:
                fetch(f"{self.url}/readyz")
            except OSError:  # URLError and HTTPError (not ready yet) are among them
                time.sleep(0.05)
            else:
                return
        raise ServerError(self.describe(f"/readyz did not answer 200 within {START_SECONDS:.0f} s"))

    def describe(self, what: str) -> str:
        """A failure, with the end of the server's log."""
        with open(self._log_path, errors="replace") as log:
            tail = "".join(log.readlines()[-20:])
        return f"{' '.join(self._command)}: {what}\n{tail}"


def make_dropserve(model_root: str, log_path: str, extra: list[str]) -> Server:
    """Our server over a model root."""
    rest_port, grpc_port = find_free_port(), find_free_port()
    command = [sys.executable, "-m", "appliance", "serve", "--acceleration=off", "--model_root", model_root]
    command += ["--rest_api_port", str(rest_port), "--port", str(grpc_port), *extra]
    return Server(command, rest_port, grpc_port, log_path)


def make_fastapi(name: str, folder: str, log_path: str, workers: int = 2) -> Server:
    """The peer, holding one model."""
    port = find_free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.fastapi_peer:app", "--workers", str(workers)]
    command += ["--port", str(port), "--no-access-log", "--log-level", "warning", "--loop", "uvloop"]
    environment = {"MODEL_NAME": name, "MODEL_FOLDER": folder}
    return Server(command, port, 0, log_path, environment=environment, exit_statuses=(0, -signal.SIGTERM))


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One process of a server. PSS counts a page shared by n processes as 1/n in each."""

    pid: int
    name: str
    pss_mib: float
    is_front: bool  # it holds one of the server's listening sockets
    runtimes: tuple[str, ...]  # frameworks whose libraries are mapped


def list_tree(pid: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _read_stat(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    tree = [pid]
    for parent in tree:  # grows while it is walked
        tree += sorted(children.get(parent, []))
    return tree


def inspect_processes(server: Server) -> list[Process]:
    """What each process of a server is, and what it holds."""
    inodes = _find_listening_inodes({server.rest_port, server.grpc_port})
    processes = []
    closed: list[tuple[int, str]] = []
    for pid in list_tree(server.pid):
        try:
            with open(f"/proc/{pid}/comm") as file:
                name = file.read().strip()
            with open(f"/proc/{pid}/smaps_rollup") as file:
                pss = re.search(r"^Pss: +(\d+) kB$", file.read(), re.MULTILINE)
            with open(f"/proc/{pid}/maps") as file:
                maps = file.read()
            sockets = {_read_link(f"/proc/{pid}/fd/{descriptor}") for descriptor in os.listdir(f"/proc/{pid}/fd")}
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        except PermissionError:  # it is not dumpable, and this is not root: it tells its memory itself
            closed.append((pid, name))
            continue
        processes.append(
            Process(
                pid=pid,
                name=name,
                pss_mib=int(pss[1]) / 1024 if pss else 0.0,
                is_front=not sockets.isdisjoint(inodes),
                runtimes=tuple(name for name, library in RUNTIMES.items() if library in maps),
            )
        )
    return processes + (_inspect_closed(server, closed) if closed else [])


def _inspect_closed(server: Server, closed: list[tuple[int, str]]) -> list[Process]:
    """What may be known of processes that only root may look into: the server's metrics have the memory of each role,
    of which its processes get equal shares here; the runtimes that they have loaded remain unknown."""
    page = fetch(f"http://127.0.0.1:{server.rest_port}/metrics").decode()
    told: dict[str, float] = {}
    for role, value in re.findall(
        r'^dropserve_process_proportional_memory_bytes{role="(\w+)".*} (\S+)$', page, re.MULTILINE
    ):
        told[role] = told.get(role, 0.0) + float(value)
    names = [name for _, name in closed]
    return [
        Process(
            pid=pid,
            name=name,
            pss_mib=told.get(ROLES.get(name, ""), 0.0) / names.count(name) / 2**20,
            is_front=name in ("ds-rest", "ds-grpc"),
            runtimes=("unknown",),
        )
        for pid, name in closed
    ]


def measure_cpu(server: Server, seconds: float) -> float:
    """The CPU time that all processes of a server use in a while, in percent of one core."""
    before = _sum_cpu_seconds(server.pid)
    started = time.monotonic()
    time.sleep(seconds)
    return 100 * (_sum_cpu_seconds(server.pid) - before) / (time.monotonic() - started)


def wait_until_quiet(server: Server) -> float:
    """Wait until background work (conversion, warm-up, trials) is over: it is not measured. Returns the seconds."""
    started = time.monotonic()
    while time.monotonic() < started + QUIET_SECONDS:
        percent = measure_cpu(server, LULL_SECONDS)
        if percent < 2.0:
            return time.monotonic() - started
    raise ServerError(server.describe(f"uses {percent:.0f} % of a core {QUIET_SECONDS:.0f} s after the last request"))


def _sum_cpu_seconds(pid: int) -> float:
    """User and system time, with that of children that have ended and been waited for (proc_pid_stat(5))."""
    ticks = 0
    for process in list_tree(pid):
        fields = _read_stat(process)
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS_PER_SECOND


def _read_stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: a command's name may contain blanks and parentheses. Empty if it ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _find_listening_inodes(ports: set[int]) -> set[str]:
    """Links such as `socket:[1234]` of the TCP sockets that listen on the ports."""
    links = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not os.path.exists(table):
            continue
        with open(table) as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) in ports:  # 0A: TCP_LISTEN
                    links.add(f"socket:[{fields[9]}]")
    return links


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""

"""A real server for tests: `dropserve serve` as a child process on free ports, with its log, and plain HTTP."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60.0
_KEYS = tempfile.TemporaryDirectory(prefix="dropserve-test-keys-")  # removed with the test run
KEY_FILE = os.path.join(_KEYS.name, "cache.key")
"""The key of the cache of all servers of a test run, which may share a cache."""
_FOLDERS = tempfile.TemporaryDirectory(prefix="ds-")  # short: a socket's path has little room
os.chmod(_FOLDERS.name, 0o711)  # a server of another user reaches its own folder in it
_NUMBERS = itertools.count()


def eventually(probe: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """The first true value of `probe`, asked again and again until a generous deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last seen: {value!r}")
        threading.Event().wait(0.02)


class Server:
    """One running server. Use as a context manager: it is stopped at the end, whatever happened."""

    prefix: tuple[str, ...] = ()  # a command that runs the server's, such as `unshare -m`
    command: tuple[str, ...] = (sys.executable, "-m", "appliance", "serve")
    cwd = ROOT
    environment: Mapping[str, str] = {}

    def __init__(self, *flags: str, **options: Any) -> None:
        self.runtime_dir = os.path.join(_FOLDERS.name, str(next(_NUMBERS)))
        os.mkdir(self.runtime_dir, 0o700)
        values = {"rest_api_port": 0, "port": 0, "settle_seconds": 0.2, "bind_address": "127.0.0.1", **options}
        values.setdefault("runtime_dir", os.path.join(self.runtime_dir, "run"))
        values.setdefault("file_system_poll_wait_seconds", 0.2)
        values.setdefault("cache_key_file", KEY_FILE)
        values.setdefault("acceleration", "off")  # a conversion takes what the machine has left, and seconds
        self.arguments = self._arguments(values)
        self.log_path = os.path.join(self.runtime_dir, "log")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command, *self.arguments, *flags],
                stdout=log,
                stderr=log,
                cwd=self.cwd,
                env={**os.environ, "PYTHONDEVMODE": "", **self.environment},
            )
        self.rest_port = self.grpc_port = 0
        self.socket_path = ""

    def _arguments(self, values: dict[str, Any]) -> list[str]:
        return [f"--{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in values.items()]

    def __enter__(self) -> Self:
        def announced() -> re.Match[str] | None:
            assert self.process.poll() is None, f"the server ended:\n{self.log()}"
            return re.search(r"\bdropserve \d\S* serves .*", self.log())

        line = eventually(announced, "the server announces its ports")[0]
        rest = re.search(r"REST on http://[^ ]*:(\d+)", line)
        grpc = re.search(r"gRPC on [^ ]*:(\d+)", line)
        self.rest_port, self.grpc_port = int(rest[1]) if rest else 0, int(grpc[1]) if grpc else 0
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def log(self) -> str:
        return Path(self.log_path).read_text(errors="replace")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    # -- HTTP --------------------------------------------------------------------------------------------------

    def connection(self, timeout: float = 30) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=timeout)

    def http(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (parsed where it is JSON) and headers (names in lower case)."""
        connection = self.connection()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            data = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return response.status, json.loads(data) if is_json else data, found
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        status, body, _ = self.http("GET", path)
        return status, body

    def predict(self, model: str, document: Any, path: str = "") -> tuple[int, Any]:
        """POSTs `document` (as JSON unless it is bytes) to the model's predict."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        status, answer, _ = self.http("POST", f"/v1/models/{model}{path}:predict", body)
        return status, answer

    # -- models ------------------------------------------------------------------------------------------------

    def versions(self, model: str) -> dict[int, tuple[str, str]]:
        """Phase ("available") and reason of each listed version."""
        _, document = self.get("/v1/models")
        for entry in document["models"]:
            if entry["name"] == model:
                return {int(v["version"]): (v["phase"], v["reason"]) for v in entry["versions"]}
        return {}

    def wait_for(self, model: str, version: int, phase: str = "available") -> str:
        """Waits until the version is in `phase`; its reason then."""

        def reached() -> tuple[str, str] | None:
            found = self.versions(model).get(version)
            return found if found is not None and found[0] == phase else None

        try:
            return eventually(reached, f"{model}/{version} is {phase}")[1]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.versions(model)}\n{self.log()[-5000:]}") from None

    def ask_official(self, module: str) -> dict[str, Any]:
        """What the official stubs got, in a process of their own: `module` prints it as JSON."""
        done = subprocess.run(
            [sys.executable, "-m", module, str(self.grpc_port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    # -- processes ---------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """The living processes of the server by number, with their names: dropserve (the supervisor), ds-forkserver,
        ds-worker, ds-rest-master, ds-rest, ds-grpc."""
        found: dict[int, tuple[int, str]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
                name = stat[stat.index("(") + 1 : stat.rindex(")")]
                state, parent = stat.rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    found[int(entry)] = (int(parent), name)
        ours = {self.process.pid} & found.keys()
        while more := {pid for pid, (parent, _) in found.items() if parent in ours} - ours:
            ours |= more
        return {pid: found[pid][1] for pid in ours}

    def lasting_processes(self) -> dict[int, str]:
        """Those of `processes` that do not end by themselves, once they are the same in ten looks: a process that is
        being forked has its parent's name for a moment, and one that is started the interpreter's."""
        looks: list[dict[int, str]] = []

        def settled() -> bool:
            passing = ("ds-trial", "ds-gpu", "python")
            looks.append({pid: name for pid, name in self.processes().items() if name not in passing})
            return len(looks) >= 10 and all(look == looks[-1] for look in looks[-10:])

        eventually(settled, "its processes are the same for a moment")
        return looks[-1]

    def pids(self, name: str) -> list[int]:
        return sorted(pid for pid, found in self.processes().items() if found == name)


class ModelServer(Server):
    """The same by the command `tensorflow_model_server`. The options go into a file for --config, since 0 is no port
    among its flags, and any free one there; flags are for what a test is about."""

    command = (os.path.join(os.path.dirname(sys.executable), "tensorflow_model_server"),)

    def _arguments(self, values: dict[str, Any]) -> list[str]:
        path = os.path.join(self.runtime_dir, "dropserve.toml")
        lines = [
            f"{name} = {json.dumps(v if isinstance(v, bool | int | float) else str(v))}\n" for name, v in values.items()
        ]
        Path(path).write_text("".join(lines))
        return [f"--config={path}"]

"""What the service manager is told: by a real server, to a real datagram socket in the manager's place."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import PublicState
from appliance.host.service_manager import MAX_STATUS_CHARACTERS, Notifier
from tests.support.server import DEADLINE_SECONDS, Server

Drop = Callable[..., Path]


class Manager:
    """The service manager's end of the protocol."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def close(self) -> None:
        self._socket.close()

    def next(self, seconds: float = DEADLINE_SECONDS) -> list[str]:
        """The lines of the next notification; none where no one comes within `seconds`."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(65536).decode().split("\n")
        except TimeoutError:
            return []

    def until(self, line: str) -> list[str]:
        """All lines up to the notification that begins with `line`, which is the last."""
        seen = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            lines = self.next()
            seen += lines
            if any(found.startswith(line) for found in lines):
                return seen
        raise AssertionError(f"no {line} among {seen}")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(str(tmp_path / "notify"))) as found:
        yield found


@contextlib.contextmanager
def notified(manager: Manager, watchdog_seconds: float = 0, **options: object) -> Iterator[Server]:
    variables = {"NOTIFY_SOCKET": manager.address}
    if watchdog_seconds:
        variables["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))

    class Notified(Server):
        environment = variables

    with Notified(**options) as server:
        yield server


# -- a server ----------------------------------------------------------------------------------------------------------


def test_ready_is_told_when_the_ports_serve_and_stopping_when_they_will_not(
    drop: Drop, tmp_path: Path, manager: Manager
) -> None:
    drop("good")
    with notified(manager, model_base_path=tmp_path / "models" / "good", model_name="good") as server:
        before = manager.until("READY=1")
        assert server.get("/healthz")[0] == 200
        assert not any(line.startswith(("STOPPING", "RELOADING", "WATCHDOG")) for line in before)
        manager.until("STATUS=serving; models: 1 available, 0 failed")
        for pid in server.processes().keys() - {server.process.pid}:
            with contextlib.suppress(FileNotFoundError):
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
        server.process.send_signal(signal.SIGTERM)
        assert "READY=1" not in manager.until("STOPPING=1")
        assert server.process.wait(DEADLINE_SECONDS) == 0


def test_a_reload_is_told_when_it_begins_and_when_it_has_ended(drop: Drop, tmp_path: Path, manager: Manager) -> None:
    drop("m")
    file = tmp_path / "models.config"
    file.write_text("model_config_list {}")
    with notified(manager, model_config_file=file) as server:
        manager.until("READY=1")
        file.write_text(f'model_config_list {{ config {{ name: "m" base_path: "{tmp_path}/models/m" }} }}')
        server.process.send_signal(signal.SIGHUP)
        begun = manager.until("RELOADING=1")
        assert any(line.startswith("MONOTONIC_USEC=") and line[15:].isdigit() for line in begun)
        manager.until("READY=1")
        assert "the configuration was reloaded: added m" in server.log()
        file.write_text("nonsense {")
        server.process.send_signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        manager.until("READY=1")  # it serves on as before
        assert "the configuration was not reloaded" in server.log()


def test_the_watchdog_hears_from_a_loop_that_turns_and_not_from_one_that_stands(
    drop: Drop, tmp_path: Path, manager: Manager
) -> None:
    drop("m")
    with notified(manager, watchdog_seconds=3.0, model_root=tmp_path / "models") as server:
        manager.until("READY=1")
        manager.until("WATCHDOG=1")
        moments = [time.monotonic()]
        for _ in range(3):
            manager.until("WATCHDOG=1")
            moments.append(time.monotonic())
        gaps = [after - before for before, after in itertools.pairwise(moments)]
        assert max(gaps) < 3.0, "the manager would have ended the service"
        assert sum(gaps) > 3.6, "half of the time is soon enough"

        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            while manager.next(0.2):
                pass  # what it had said before
            assert manager.next(2.5) == []
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        manager.until("WATCHDOG=1")


def test_a_server_that_is_slow_to_stop_still_gives_signs_of_life(drop: Drop, tmp_path: Path, manager: Manager) -> None:
    drop("m")
    options = {"model_root": tmp_path / "models", "shutdown_delay_seconds": 2.0}
    with notified(manager, watchdog_seconds=1.0, **options) as server:
        manager.until("READY=1")
        server.process.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert manager.until("WATCHDOG=1")
        server.process.send_signal(signal.SIGTERM)  # ends the delay
        assert server.process.wait(DEADLINE_SECONDS) == 0


# -- one notifier ------------------------------------------------------------------------------------------------------


def test_an_abstract_socket_is_notified_too() -> None:
    with contextlib.closing(Manager(f"@dropserve-test-{secrets.token_hex(8)}")) as manager:
        Notifier(manager.address).say("READY=1", "STATUS=well")
        assert manager.next() == ["READY=1", "STATUS=well"]


def test_the_same_status_is_told_once_and_in_one_short_line(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.status("one\ntwo")
    notifier.status("one\ntwo")
    notifier.status("x" * 5000)
    assert manager.next() == ["STATUS=one two"]
    assert manager.next() == ["STATUS=" + "x" * MAX_STATUS_CHARACTERS]
    assert manager.next(0.05) == []


def test_a_notifier_takes_its_variables_out_of_the_environment(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7", "PATH": "/bin"}
    notifier = Notifier.from_environment(environment, 7)
    assert environment == {"PATH": "/bin"}
    assert notifier.watchdog_seconds == 3.0


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "3000000"},
    ],
)
def test_nobody_watches_who_is_not_this_process_or_cannot_be_told(environment: dict[str, str]) -> None:
    assert Notifier.from_environment(environment, 7).watchdog_seconds is None


def test_a_manager_that_is_gone_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.say("READY=1")
    notifier.say("WATCHDOG=1")
    assert [record.getMessage() for record in caplog.records] == [
        "the service manager was not told READY=1: No such file or directory"
    ]


def test_a_manager_that_does_not_read_stops_nobody(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    told = 0
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        while told < 100_000:
            filler.sendto(b"x" * 1000, manager.address)
            told += 1
    notifier.say("WATCHDOG=1")
    assert told > 0


# -- the status line ---------------------------------------------------------------------------------------------------


def test_a_summary_counts_models_and_names_those_that_failed() -> None:
    def model(name: str, state: str, public: PublicState, reason: str = "") -> ModelRoute:
        return ModelRoute(name, (VersionRoute(1, state, public),), reason=reason)

    models = [
        model("a", "available", PublicState.AVAILABLE, "its folder is gone; nothing is unloaded"),
        model("b", "failed", PublicState.END),
        model("c", "loading", PublicState.LOADING),
        ModelRoute("d", reason="no numbered version folder"),
    ]
    known = {found.name: found for found in models}
    assert Snapshot(1, True, known).summary() == "models: 1 available, 2 failed (b, d), 1 not loaded yet"
    assert Snapshot().summary() == "models: 0 available, 0 failed"
    many = {f"m{i}": model(f"m{i}", "failed", PublicState.END) for i in range(9)}
    assert Snapshot(1, True, many).summary() == "models: 0 available, 9 failed (m0, m1, m2, m3, m4, ...)"

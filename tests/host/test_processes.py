"""Child processes get the descriptors that they are given, whatever numbers these have here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from appliance.host.processes import Reaper, is_crash, spawn

# Writes its own descriptors' names to them.
CHILD = "import os\nos.write(3, b'three')\nos.write(4, b'four')\nos.write(2, b'two')\n"


@pytest.mark.parametrize("numbers", [(100, 101, 102), (101, 100, 3), (4, 3, 5), (5, 6, 7), (6, 3, 100), (3, 102, 4)])
def test_a_child_gets_its_descriptors_whatever_numbers_they_have(numbers: tuple[int, int, int], tmp_path: Path) -> None:
    (tmp_path / "spawned_child.py").write_text(CHILD)
    script = (
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from appliance.host.processes import spawn\n"
        "pipes = [os.pipe() for _ in range(3)]\n"
        "reads = [os.dup2(read, 200 + index) for index, (read, _) in enumerate(pipes)]\n"
        "writes = [os.dup2(write, 210 + index, False) for index, (_, write) in enumerate(pipes)]\n"
        "os.closerange(3, 200)\n"
        "given = [os.dup2(write, number, False) for write, number in zip(writes, map(int, sys.argv[2:]))]\n"
        "os.closerange(210, 220)\n"
        "pid = spawn('spawned_child', {'PYTHONPATH': sys.argv[1]}, given[:2], given[2])\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "[os.close(number) for number in given]\n"
        "print(status, *(os.read(read, 100).decode() for read in reads))\n"
    )
    read, write = os.pipe()
    root = str(Path(__file__).resolve().parents[2])
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", script, str(tmp_path), *map(str, numbers)],
        {"PYTHONPATH": root},
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    with os.fdopen(read) as output:
        assert output.read() == "0 three four two\n"
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_that_cannot_be_started_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        spawn("nothing", {}, [1_000_000])


@pytest.mark.parametrize(
    ("ends", "crashed"),
    [
        ("os.abort()", True),
        ("os.kill(os.getpid(), signal.SIGSEGV)", True),
        ("os.kill(os.getpid(), signal.SIGKILL)", False),
        ("os.kill(os.getpid(), signal.SIGTERM)", False),
        ("os._exit(1)", False),
        ("os._exit(0)", False),
    ],
)
def test_only_what_a_process_does_to_itself_is_a_crash(ends: str, crashed: bool) -> None:
    program = f"import os, resource, signal\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n{ends}"
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ)
    assert is_crash(os.waitpid(child, 0)[1]) == crashed


def test_a_reaper_that_is_stopped_leaves_no_handler_that_writes_to_the_closed_loop() -> None:
    async def stopped() -> tuple[object, int]:
        reaper = Reaper()
        reaper.start()
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
        reaper.stop()
        return signal.getsignal(signal.SIGCHLD), signal.set_wakeup_fd(-1)

    assert asyncio.run(stopped()) == (signal.SIG_DFL, -1)

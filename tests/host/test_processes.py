"""Child processes get their argument and the descriptors that they are given, and die with their parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.host.processes import Reaper, argument_file, is_crash, spawn

ROOT = Path(__file__).resolve().parents[2]
# Writes its own descriptors' names to them, and its argument to its output.
CHILD = (
    "import os\n"
    "from appliance.host.processes import take_argument\n"
    "os.write(3, b'three')\nos.write(4, b'four')\nos.write(2, b'two')\nos.write(1, take_argument(str).encode())\n"
)
SECONDS = 60.0


@pytest.mark.parametrize(
    "numbers",
    [(100, 101, 102, 103), (101, 100, 3, 4), (4, 3, 5, 6), (5, 6, 7, 8), (6, 3, 100, 5), (3, 102, 4, 1), (4, 3, 1, 2)],
)
def test_a_child_gets_its_descriptors_whatever_numbers_they_have(numbers: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    script = (
        "import os, sys\n"
        "shown = os.dup2(1, 199, False)\n"
        "from appliance.host.processes import spawn\n"
        "pipes = [os.pipe() for _ in range(4)]\n"
        "reads = [os.dup2(read, 200 + index) for index, (read, _) in enumerate(pipes)]\n"
        "writes = [os.dup2(write, 210 + index, False) for index, (_, write) in enumerate(pipes)]\n"
        "os.closerange(3, 199)\n"
        "given = [os.dup2(write, number, False) for write, number in zip(writes, map(int, sys.argv[2:]))]\n"
        "os.closerange(210, 220)\n"
        "environment = {'PYTHONPATH': sys.argv[1]}\n"
        "pid = spawn('child', 'one', given[:2], environment=environment, stdout=given[2], stderr=given[3])\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "[os.close(number) for number in given]\n"
        "os.write(shown, ' '.join([str(status), *(os.read(read, 100).decode() for read in reads)]).encode())\n"
    )
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", script, f"{tmp_path}:{ROOT}", *map(str, numbers)],
        {"PYTHONPATH": str(ROOT)},
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    with os.fdopen(read) as output:
        assert output.read() == "0 three four one two"
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_that_cannot_be_started_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        spawn("nothing", None, [1_000_000])


def output_of(program: str, argument: object, tmp_path: Path) -> str:
    """What a child with this program and argument prints."""
    (tmp_path / "child.py").write_text(program)
    read, write = os.pipe()
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": os.environ["PATH"]}
    pid = spawn("child", argument, environment=environment, stdout=write)
    os.close(write)
    with os.fdopen(read) as output:
        found = output.read()
    assert os.waitpid(pid, 0)[1] == 0
    return found


def test_an_argument_may_be_large_and_a_grandchild_sees_nothing_of_it(tmp_path: Path) -> None:
    program = (
        "import subprocess\n"
        "from appliance.host.processes import take_argument\n"
        "print(len(take_argument(dict)['text']), flush=True)\n"
        "subprocess.run('cat; env; ls -l /proc/self/fd', shell=True, check=True)\n"
    )
    first, _, rest = output_of(program, {"text": "secret " * 1_000_000}, tmp_path).partition("\n")
    assert first == "7000000"
    assert "PATH=" in rest
    assert "/dev/null" in rest
    assert "secret" not in rest
    assert "/dev/shm" not in rest


def test_without_other_descriptors_a_child_prints_where_its_parent_does(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import sys\n"
        "from appliance.host.processes import take_argument\n"
        "print(take_argument(str))\n"
        "print('error', file=sys.stderr)\n"
    )
    script = "import os\nfrom appliance.host.processes import spawn\nos.waitpid(spawn('child', 'output'), 0)"
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert (shown.stdout, shown.stderr) == ("output\n", "error\n")


def test_the_file_of_an_argument_has_no_name_and_is_nobody_elses() -> None:
    with argument_file({"a": [1, None]}) as file:
        status = os.fstat(file.fileno())
        assert status.st_nlink == 0
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert not os.get_inheritable(file.fileno())
        assert json.load(file) == {"parent": os.getpid(), "argument": {"a": [1, None]}}


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import os, signal\n"
        "from appliance.host.processes import take_argument\n"
        "take_argument(type(None))\n"
        "os.write(3, b'lives')\n"
        "signal.pause()\n"
    )
    script = "import sys\nfrom appliance.host.processes import spawn\nspawn('child', None, [int(sys.argv[1])])\ninput()"
    read, write = os.pipe()
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", script, str(write)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[write], env=environment) as parent:
        os.close(write)
        assert os.read(read, 100) == b"lives"
        parent.kill()
    assert os.read(read, 100) == b""
    os.close(read)


def test_a_child_whose_parent_has_gone_before_it_began_ends_at_once() -> None:
    program = "from appliance.host.processes import take_argument; take_argument(type(None)); print('lives')"
    script = (
        f'"{sys.executable}" -c "{program}"; echo $?'  # the shell is its parent, and this process wrote the argument
    )
    with argument_file(None) as file:
        shown = subprocess.run(
            ["sh", "-c", script], check=False, cwd=ROOT, stdin=file, capture_output=True, text=True, timeout=SECONDS
        )
    assert shown.stdout == "1\n"


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

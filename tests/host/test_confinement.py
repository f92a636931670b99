"""What a confined process can still do: each attempt is made in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from appliance.host.confinement import supported
from appliance.host.links import Followed, follow_links

HERE = supported()
SECCOMP = pytest.mark.skipif("seccomp" not in HERE.by, reason=str(HERE))
LANDLOCK = pytest.mark.skipif(not any("landlock" in name for name in HERE.by), reason=str(HERE))

ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy starts no threads

ATTEMPTS = """
import errno, json, os, signal, socket, sys, threading
from appliance.host.confinement import Profile, confine
reads, writes, mode, target = json.loads(sys.argv[1])
held = os.open(target, os.O_RDWR)
ends, _lives = os.pipe()
other = os.fork()
if not other:
    os.close(_lives)
    os._exit(len(os.read(ends, 1)))
confined = confine(Profile(tuple(reads), tuple(writes), file_bytes=4096), mode)

def tried(do):
    try:
        do()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def threads():
    found = []
    def look():
        found.extend(
            line.split()[1]
            for task in os.listdir("/proc/self/task")
            for line in open(f"/proc/self/task/{task}/status")
            if line.startswith("Seccomp:")
        )
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found

said = {
    "by": confined.by,
    "seccomp": threads(),
    "read": tried(lambda: open(target).read()),
    "write": tried(lambda: open(target, "r+")),
    "write held": tried(lambda: os.write(held, b"x")),
    "write too much": tried(lambda: [os.write(held, bytes(4096)) for _ in range(3)]),
    "make": tried(lambda: open(target + ".new", "w")),
    "truncate": tried(lambda: os.truncate(target, 0)),
    "remove": tried(lambda: os.unlink(target)),
    "chmod": tried(lambda: os.chmod(target, 0)),
    "fork": tried(lambda: os.fork() or os._exit(0)),
    "program": tried(lambda: os.execv("/nowhere", ["nowhere"])),
    "socket": tried(lambda: socket.socket(socket.AF_INET)),
    "unix socket": tried(lambda: socket.socket(socket.AF_UNIX)),
    "kill": tried(lambda: os.kill(other, signal.SIGTERM)),
    "list": tried(lambda: os.listdir(os.path.dirname(target))),
    "environment": tried(lambda: open(f"/proc/{other}/environ").read()),
}
print(json.dumps(said), flush=True)
"""


def attempts(target: Path, reads: list[Path] = [], writes: list[Path] = [], mode: str = "on") -> dict[str, Any]:  # noqa: B006
    arguments = json.dumps([list(map(str, reads)), list(map(str, writes)), mode, str(target)])
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "of_others" / "file"
    path.parent.mkdir()
    path.write_text("secret")
    return path


@SECCOMP
def test_a_confined_process_changes_nothing_starts_nothing_and_connects_to_nothing(target: Path) -> None:
    said = attempts(target, reads=[target.parent])
    assert set(said["seccomp"]) == {"2"}
    assert len(said["seccomp"]) == 2
    assert (said["read"], said["write held"], said["write too much"]) == ("done", "done", "EFBIG")
    assert {said[name] for name in ("write", "make")} == {"EACCES"}
    refused = ("truncate", "remove", "chmod", "fork", "program", "socket", "unix socket", "kill")
    assert {name: said[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert target.exists()


@LANDLOCK
def test_what_the_profile_does_not_name_cannot_be_read(target: Path) -> None:
    said = attempts(target)
    assert (said["read"], said["list"], said["environment"]) == ("EACCES", "EACCES", "EACCES")


@LANDLOCK
def test_a_path_that_has_become_a_link_since_it_was_decided_on_is_not_read(target: Path, tmp_path: Path) -> None:
    (tmp_path / "version").symlink_to(target)
    (tmp_path / "model").symlink_to(target.parent)
    said = attempts(target, reads=[tmp_path / "version", tmp_path / "model", tmp_path / "model" / "file"])
    assert (said["read"], said["list"]) == ("EACCES", "EACCES")


@LANDLOCK
def test_a_process_that_writes_does_so_below_its_own_folder_only(target: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    said = attempts(target, writes=[own])
    assert {said[name] for name in ("read", "write", "make", "truncate", "remove")} == {"EACCES"}
    inside = own / "file"
    inside.write_text("mine")
    said = attempts(inside, writes=[own])
    assert {said[name] for name in ("read", "write", "make", "remove")} == {"done"}
    assert {said[name] for name in ("fork", "program", "socket", "kill")} == {"EPERM"}


def test_switched_off_it_takes_nothing_away(target: Path) -> None:
    said = attempts(target, mode="off")
    assert said["by"] == []
    assert {said[name] for name in ("read", "write", "make", "socket")} == {"done"}


def test_a_link_is_followed_if_whoever_made_it_owns_what_it_leads_to(tmp_path: Path) -> None:
    folder, store, foreign = (tmp_path / name for name in ("1", "store", "foreign"))
    for path in (folder, store, foreign):
        path.mkdir()
    (store / "weights").write_text("w")
    (folder / "variables").symlink_to(store)
    (store / "more").symlink_to(foreign)
    (folder / "self").symlink_to("self")
    assert follow_links(str(folder)) == Followed([str(folder), str(store), str(foreign)])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_link_to_what_belongs_to_somebody_else_is_not_followed(tmp_path: Path) -> None:
    folder, key = tmp_path / "1", tmp_path / "key"
    folder.mkdir()
    key.write_text("secret")
    os.chown(key, 4711, 4711)
    (folder / "asset").symlink_to(key)
    os.chown(folder / "asset", 4712, 4712, follow_symlinks=False)
    assert follow_links(str(folder)) == Followed([str(folder)], [f"{folder / 'asset'} -> {key}"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_link_to_what_everybody_may_read_is_followed_whoever_made_it() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder, store = Path(place, "1"), Path(place, "store")
        folder.mkdir()
        store.mkdir()
        (store / "weights").write_text("w")
        (folder / "variables").symlink_to(store)
        for path in (store, store / "weights"):
            os.chown(path, 4711, 4711)
        os.chown(folder / "variables", 4712, 4712, follow_symlinks=False)
        refused = [f"{folder / 'variables'} -> {store}"]
        assert follow_links(str(folder)) == Followed([str(folder), str(store)])
        (store / "weights").chmod(0o640)
        assert follow_links(str(folder)) == Followed([str(folder)], refused)
        (store / "weights").chmod(0o644)
        os.chmod(place, 0o700)
        assert follow_links(str(folder)) == Followed([str(folder)], refused)


WITHOUT_LANDLOCK = """
import struct, sys
from appliance.core.errors import ConfigError
from appliance.host import confinement

# An older kernel: landlock_create_ruleset (444) is unknown.
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
confinement._prctl(38, 1)
confinement._filter_calls(b"".join(struct.pack("=HBBI", *instruction) for instruction in code))
print(confinement.supported())
try:
    print(confinement.confine(confinement.Profile(), "required"))
except ConfigError as error:
    print(error)
print(confinement.confine(confinement.Profile()).by)
open("/etc/hostname").close()
try:
    open("/tmp/new", "w")
except PermissionError:
    print("and nothing is written")
"""


@SECCOMP
def test_without_landlock_the_rest_holds_and_it_is_told_and_required_refuses() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=ENVIRONMENT,
    )
    told, refused, by, rest = done.stdout.splitlines()
    assert told.startswith("seccomp; Linux ")
    assert "has no Landlock" in told
    assert refused.startswith("sandbox is required, and not all of it is there: Linux ")
    assert "docs/security.md" in refused
    assert (by, rest) == ("('seccomp',)", "and nothing is written")

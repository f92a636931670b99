"""The installed service does all of its work on each kind of host, and maps no file that is not its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rpm import hosts
from tests.rpm.hosts import HERE, InstalledServer, run
from tests.support.acceleration_models import acceleration_zoo
from tests.support.onnx_models import normalizer, write
from tests.support.server import eventually

# What a loader could take instead of the runtime's own, and what glibc opens by name as a program runs.
LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2", "libutil.so.1"),
    *("libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libz.so.1", "libssl.so.3", "libcrypto.so.3", "libffi.so.8"),
    *("libnss_files.so.2", "libnss_dns.so.2", "libnss_sss.so.2", "libnss_systemd.so.2", "libnss_myhostname.so.2"),
    *("libbz2.so.1.0", "liblzma.so.5", "libsqlite3.so.0", "libexpat.so.1", "libuuid.so.1", "libcrypt.so.1"),
)
FOLDERS = ("lib64", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib")


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture
def host(installed: Path) -> Iterator[Path]:
    """The root, without the models and caches of an earlier proof."""
    yield installed
    for name in ("var/lib/dropserve/models", "var/cache/dropserve"):
        empty(installed / name)


@pytest.fixture
def hostile(host: Path, tmp_path: Path) -> Iterator[Path]:
    library = tmp_path / "broken.so"
    run("gcc", "-shared", "-fPIC", "-nostdlib", "-lc", "-o", library, HERE / "broken.c")
    made: list[Path] = []
    for folder in FOLDERS:
        (host / folder).mkdir(parents=True, exist_ok=True)
        for name in LIBRARIES:
            made.append(host / folder / name)
            shutil.copyfile(library, made[-1])
    named = {"ld.so.preload": "/lib64/libc.so.6\n", "ld.so.conf": "".join(f"/{folder}\n" for folder in FOLDERS)}
    named["nsswitch.conf"] = "passwd: sss systemd files\ngroup: sss files\nhosts: files myhostname dns\n"
    for name, text in named.items():
        made.append(host / "etc" / name)
        made[-1].write_text(text)
    run("ldconfig", "-r", host, "-X")
    made.append(host / "etc/ld.so.cache")
    assert made[-1].is_file()
    yield host
    for path in made:
        path.unlink()


def answer(server: InstalledServer, value: float, path: str = "") -> object:
    status, document = server.predict("m", {"instances": [value]}, path)
    return document["predictions"][0] if status == 200 else (status, document)


def official_answers(server: InstalledServer) -> dict[str, object]:
    """A Predict by gRPC with the official stubs, from the project's own interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rpm.grpc_predict", str(server.grpc_port)],
        cwd=hosts.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def serves_everything(root: Path, zoo: Path, launcher: tuple[str, ...] = (), allowed: tuple[str, ...] = ()) -> None:
    """The life of a service: start, first model, both protocols, conversion, a new version, a crash, the end."""
    foreign: set[str] = set()
    began = time.monotonic()
    hosts.drop(root, zoo / "half_plus_two", "m", 1)
    with InstalledServer(root, launcher, acceleration_min_speedup=0) as server:

        def watched(probe: Callable[[], object]) -> Callable[[], object]:
            def look() -> object:
                foreign.update(server.foreign(allowed))
                return probe()

            return look

        server.wait_for("m", 1)
        assert answer(server, 1.0) == 2.5
        print(f"first start to first answer: {time.monotonic() - began:.1f} s")
        uid, _ = hosts.account(root)
        owners = {os.stat(f"/proc/{pid}").st_uid for pid in server.processes()}
        assert owners == {uid}
        assert official_answers(server) == {"y": [2.5]}

        with tempfile.TemporaryDirectory() as folder:
            hosts.drop(root, write(Path(folder), normalizer()), "text", 1)
        server.wait_for("text", 1)
        assert server.predict("text", {"instances": ["ÄB", "c"]}) == (200, {"predictions": ["äb", "c"]})
        assert (root / "opt/dropserve/runtime/lib/locale/en_US.utf8/LC_CTYPE").is_file()

        hosts.drop(root, acceleration_zoo() / "conv", "conv", 1)
        server.wait_for("conv", 1)

        def acceleration() -> dict[str, Any]:
            return dict(server.get("/v1/models/conv/versions/1/acceleration")[1])

        def form() -> object:
            found = acceleration()
            return found["state"] == "done" and found["serving"] != "its own model"

        eventually(watched(form), "an accelerated form serves", 240)
        forms = {candidate["form"] for candidate in acceleration()["candidates"]}
        assert forms >= {"onnx", "tflite"}, acceleration()
        status, document = server.predict("conv", {"instances": [[[[0.5] * 3] * 16] * 16]})
        assert status == 200, document

        hosts.drop(root, zoo / "half_plus_three", "m", 2)
        server.wait_for("m", 2)
        assert answer(server, 1.0) == 3.5
        worker = server.pids("ds-worker")[-1]
        os.kill(worker, signal.SIGKILL)
        eventually(watched(lambda: worker not in server.processes()), "the killed worker is gone")
        eventually(watched(lambda: answer(server, 1.0) == 3.5), "another worker answers")
        foreign.update(server.foreign(allowed))
        assert server.maps()
        assert server.stop() == 0, server.log()[-3000:]
    assert not foreign, foreign


def test_it_serves_where_there_is_no_c_library(host: Path, zoo: Path) -> None:
    libraries = [path for folder in FOLDERS for path in (host / folder).glob("*.so*")]
    assert not libraries
    serves_everything(host, zoo)


def test_it_serves_on_a_hostile_host(hostile: Path, zoo: Path) -> None:
    serves_everything(hostile, zoo)


def test_its_commands_heed_nothing_of_a_hostile_environment(hostile: Path) -> None:
    names = ("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LOCPATH", "GCONV_PATH", "LD_AUDIT")
    environment = [f"{name}=/lib64" for name in names]
    for command in ("dropserve", "tensorflow_model_server"):
        said = run("chroot", hostile, "/bin/busybox", "env", "-i", *environment, f"/usr/bin/{command}", "--version")
        assert "dropserve" in said


def test_it_serves_with_the_system_calls_of_linux_3_10(host: Path, zoo: Path) -> None:
    made = [host / "linux310", host / "uname310.so"]
    run("gcc", "-static", "-O1", "-Wall", "-o", made[0], HERE / "linux310.c")
    run("gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", made[1], HERE / "uname310.c")
    try:
        python = ("/opt/dropserve/runtime/bin/python3", "-I", "-c", (HERE / "on_linux310.py").read_text())
        told = run(*hosts.entering(host, "0:0"), "/linux310", *python)
        assert told.splitlines() == ["3.10.0-1160.el7.x86_64", "{}"]
        serves_everything(host, zoo, ("/linux310",), (f"{host}/uname310.so", "/uname310.so"))
    finally:
        for path in made:
            path.unlink()


def test_the_c_library_allows_a_kernel_as_old_as_el7s(installed: Path) -> None:
    notes = run("readelf", "-n", installed / "opt/dropserve/runtime/lib/libc.so.6")
    assert "OS: Linux, ABI: 3.2.0" in notes

"""A server of a user without rights: what its processes hide from each other, and what they tell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.host.confinement import supported
from tests.support.server import Server, eventually

USER = 65534

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can start a server of another user, by setpriv"
)


class OfAnotherUser(Server):
    # The checkout and its interpreter may lie in folders that only root may enter: reading is left to the server.
    prefix = (
        "setpriv",
        f"--reuid={USER}",
        f"--regid={USER}",
        "--clear-groups",
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
    )

    def _arguments(self, values: dict[str, Any]) -> list[str]:
        os.chown(self.runtime_dir, USER, USER)
        return super()._arguments(values)


@pytest.fixture(scope="module")
def server(zoo: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as root:  # not pytest's, which only root may enter
        shutil.copytree(zoo / "half_plus_two", os.path.join(root, "good", "1"))
        subprocess.run(["chown", "-R", f"{USER}:{USER}", root], check=True, timeout=60)
        with OfAnotherUser(model_root=root, cache_dir=os.path.join(root, "cache")) as server:
            server.wait_for("good", 1)
            yield server


def test_it_serves_and_its_workers_are_confined(server: Server) -> None:
    assert server.predict("good", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    (worker,) = server.pids("ds-worker")
    for task in os.listdir(f"/proc/{worker}/task"):
        status = Path(f"/proc/{worker}/task/{task}/status").read_text()
        assert (f"Seccomp:\t{2 if 'seccomp' in supported().by else 0}\n") in status
        assert f"Uid:\t{USER}\t{USER}" in status


def test_no_process_can_be_looked_into_by_others_of_its_user(server: Server) -> None:
    """The kernel gives the files of a process that is not dumpable to root."""
    processes = server.lasting_processes()
    assert {"dropserve", "ds-rest-master", "ds-rest", "ds-grpc", "ds-forkserver", "ds-worker"} <= set(
        processes.values()
    )
    owners = {name: os.stat(f"/proc/{pid}/environ").st_uid for pid, name in processes.items()}
    assert owners == dict.fromkeys(owners, 0)


def test_each_process_tells_its_own_memory(server: Server) -> None:
    def told() -> set[str]:
        _, page = server.get("/metrics")
        lines = [line for line in page.decode().splitlines() if "proportional_memory_bytes{" in line]
        return {line.partition('role="')[2].partition('"')[0] for line in lines if float(line.split()[-1]) > 1 << 20}

    eventually(lambda: told() == {"supervisor", "rest", "grpc", "worker"}, "every role tells its memory")


def test_a_worker_gives_way_before_the_server_when_memory_is_short(server: Server) -> None:
    scores = {name: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid, name in server.processes().items()}
    assert scores["ds-worker"] >= scores["dropserve"] + 500
    assert scores["ds-rest"] == scores["ds-grpc"] == scores["dropserve"]


def test_no_process_of_its_user_can_shorten_what_another_has_mapped(server: Server) -> None:
    """Also if nothing confines it: a process whose mapped file is shortened dies of it."""
    program = (
        "import sys\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        open(path, 'w')\n"
        "    except PermissionError:\n"
        "        print('refused')\n"
    )
    found = [*Path(server.runtime_dir, "run").glob("server-*/metrics/*.metrics")]
    found += Path(server.runtime_dir, "run").glob("server-*/*.runs")
    assert len(found) >= 6
    command = [*OfAnotherUser.prefix, sys.executable, "-c", program, *map(str, found)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == ["refused"] * len(found)
    assert server.predict("good", {"instances": [2.0]}) == (200, {"predictions": [3.0]})

"""The processes that a job starts, which run a model each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT

FORKED = """
import os, socket, sys
from backends.frames import send
from converters.child import Limits, fork
to_the_job, _ = socket.socketpair()
os.dup2(to_the_job.fileno(), 0)

def tell(sock):
    places = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) != sock.fileno()
              and os.path.exists(f"/proc/self/fd/{name}")}
    send(sock, {"open": sorted(places)})

with fork("a child", tell, sys.argv[1], Limits(60, 1 << 30, yielding=False)) as child:
    print(child.answer()[0]["open"])
"""


def test_a_forked_child_has_nothing_open_of_its_parents(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, log], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{sorted(['/dev/null', log])}\n"

"""A job leaves a core to what is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from converters import cores
from tests.support.server import ROOT

_SCRIPT = """
import json, os, subprocess, sys, threading
from converters import cores

def used():
    return [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]

threading.Thread(target=threading.Event().wait, daemon=True).start()
found = [used()]
cores.leave_one()
found.append(used())
child = "import os; print(*sorted(os.sched_getaffinity(0)))"
found.append([[int(core) for core in subprocess.check_output([sys.executable, "-c", child], text=True).split()]])
cores.widen(os.getpid())
found.append(used())
print(json.dumps(found))
"""


@pytest.mark.skipif(len(cores.ALL) < 2, reason="there is one core only: it is shared")
def test_a_job_and_its_children_leave_one_core_until_they_are_measured_where_there_are_few() -> None:
    found = json.loads(subprocess.check_output([sys.executable, "-c", _SCRIPT], cwd=ROOT, text=True))
    every = sorted(cores.ALL)
    before, working, started, measured = found
    assert before == [every, every]
    assert measured == [sorted(cores.MEASURED)] * 2
    assert working == [every[1:], every[1:]]
    assert started == [every[1:]]


def test_a_process_that_is_gone_is_left_alone() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    before = os.sched_getaffinity(0)
    cores.widen(process.pid)
    assert os.sched_getaffinity(0) == before

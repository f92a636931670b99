"""A worker in a process of its own from the start, for frameworks other than TensorFlow.

Forked from the fork server, it would carry TensorFlow's 500 MB; this way it begins with an empty interpreter, and is
ready about as soon (0.2 s). It is the supervisor's child, and speaks with it as a forked one does.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback

import msgspec

from appliance.host.processes import become_worker, spawn
from appliance.worker.process import run_worker
from appliance.worker.task import WorkerTask

_VARIABLE = "DROPSERVE_WORKER"
_CONTROL_DESCRIPTOR = 3


def start(task: WorkerTask, control: int, stderr: int) -> int:
    """Starts a worker as a child of this process: its process number. Raises OSError.

    `control` and `stderr` are descriptors: its end of the control socket, and where its libraries print.
    """
    environment = {
        **os.environ,
        # NumPy's: it would start a thread for each core, and nothing here multiplies matrices by NumPy.
        "OPENBLAS_NUM_THREADS": "1",
        _VARIABLE: json.dumps({"supervisor": os.getpid(), "task": msgspec.to_builtins(task)}),
    }
    return spawn("appliance.worker.spawned", environment, [control], stderr)


def main() -> None:
    status = 1
    try:
        told = json.loads(os.environ.pop(_VARIABLE))
        become_worker(told["supervisor"])
        control = socket.socket(fileno=_CONTROL_DESCRIPTOR)
        status = run_worker(msgspec.convert(told["task"], WorkerTask), control)
    except BaseException:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Without the interpreter's teardown: a framework's threads may still hold what it would free.
        os._exit(status)


if __name__ == "__main__":
    main()

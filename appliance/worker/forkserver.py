"""A process that has imported TensorFlow and forks workers from itself.

Importing costs 1.5 s and 500 MB once; a fork costs tens of milliseconds and shares those pages. It never runs a
TensorFlow op: a fork after one may hang. A worker is forked twice, so that it becomes the supervisor's child (which is
a subreaper): the supervisor alone reaps and signals it, and the fork server's own death touches no worker.

Protocol, on a SOCK_SEQPACKET pair: the server says {"ready": true}; each request is {"id": N, "task": {…}} with two
descriptors, the worker's control socket and its stderr; the answer is {"id": N, "pid": P}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
import time
from typing import Any

import msgspec

from appliance.host.processes import become_worker, die_with_parent, set_name
from appliance.worker.process import run_worker
from appliance.worker.task import WorkerTask

_CONTROL_DESCRIPTOR = 3
MAX_MESSAGE_BYTES = 65536
PARENT_VARIABLE = "DROPSERVE_PARENT"


def main() -> None:
    set_name("ds-forkserver")
    supervisor = int(os.environ[PARENT_VARIABLE])
    die_with_parent(supervisor)
    control = socket.socket(fileno=_CONTROL_DESCRIPTOR)
    importlib.import_module("backends.tensorflow_backend")  # here alone: whoever starts this process loads no framework
    gc.collect()
    gc.freeze()  # a collection in a worker must not touch, and so copy, the shared pages
    control.send(b'{"ready": true}')
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 2)
        if not data:
            return
        request = json.loads(data)
        pid = _fork_twice(request["task"], descriptors, supervisor, control)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(json.dumps({"id": request["id"], "pid": pid}).encode())


def _fork_twice(task: dict[str, Any], descriptors: list[int], supervisor: int, control: socket.socket) -> int:
    read_end, write_end = os.pipe()
    middle = os.fork()
    if middle == 0:
        worker = os.fork()
        if worker == 0:
            os.close(read_end)
            os.close(write_end)
            control.close()
            _become_worker(task, descriptors, supervisor)
        os.write(write_end, str(worker).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(middle, 0)
    pid = int(os.read(read_end, 32))
    os.close(read_end)
    return pid


def _become_worker(task: dict[str, Any], descriptors: list[int], supervisor: int) -> None:
    status = 1
    try:
        control_descriptor, stderr_descriptor = descriptors
        os.dup2(stderr_descriptor, 1)
        os.dup2(stderr_descriptor, 2)
        os.close(stderr_descriptor)
        deadline = time.monotonic() + 10
        while os.getppid() != supervisor:  # until the middle process is gone: an instant
            if time.monotonic() > deadline:
                os._exit(1)
            os.sched_yield()
        become_worker(supervisor, is_expendable=task.get("odd_shapes_from") is not None)
        status = run_worker(msgspec.convert(task, WorkerTask), socket.socket(fileno=control_descriptor))
    except BaseException:  # noqa: BLE001 - the outer loop of a process
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Without the interpreter's teardown: TensorFlow's threads may still hold what it would free.
        os._exit(status)


if __name__ == "__main__":
    main()

"""A process that has imported TensorFlow and forks workers from itself.

Importing costs 1.5 s and 500 MB once; a fork costs tens of milliseconds and shares those pages. It never runs a
TensorFlow op: a fork after one may hang. A worker is forked twice, so that it becomes the supervisor's child (which is
a subreaper): the supervisor alone reaps and signals it, and the fork server's own death touches no worker.

Protocol, on a SOCK_SEQPACKET pair: the server says {"ready": true}; each request is {"id": N} with three descriptors,
the file of the worker's argument, its control socket and its stderr; the answer is {"id": N, "pid": P}. The answer to
{"ping": true} is {"alive": true}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import time
from collections.abc import Sequence
from types import NoneType
from typing import NoReturn

from appliance.host.confinement import FORKED_SCORE, close_to_others, give_way_when_memory_is_short
from appliance.host.processes import set_name, take_argument
from appliance.worker import process

_CONTROL_DESCRIPTOR = 3
_MAX_MESSAGE_BYTES = 4096
_REPARENT_SECONDS = 10.0


def main() -> None:
    """Import TensorFlow, then fork a worker for each request until the supervisor closes the socket."""
    take_argument(NoneType)
    set_name("ds-forkserver")
    give_way_when_memory_is_short(FORKED_SCORE)
    close_to_others()
    supervisor = os.getppid()
    control = socket.socket(fileno=_CONTROL_DESCRIPTOR)
    importlib.import_module("backends.tensorflow_backend")  # here alone: whoever starts this process loads no framework
    gc.collect()
    gc.freeze()  # a collection in a worker must not touch, and so copy, the shared pages
    control.send(b'{"ready": true}')
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, 3)
        if not data:
            return
        request = json.loads(data)
        if "ping" in request:
            control.send(b'{"alive": true}')
            continue
        pid = _fork_twice(descriptors, supervisor, control)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(json.dumps({"id": request["id"], "pid": pid}).encode())


def _fork_twice(descriptors: Sequence[int], supervisor: int, control: socket.socket) -> int:
    """Fork a worker that becomes the supervisor's child; return its process number."""
    read_end, write_end = os.pipe()
    middle = os.fork()
    if middle == 0:
        worker = os.fork()
        if worker == 0:
            os.close(read_end)
            os.close(write_end)
            control.close()
            _become_worker(descriptors, supervisor)
        os.write(write_end, str(worker).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(middle, 0)
    pid = int(os.read(read_end, 32))
    os.close(read_end)
    return pid


def _become_worker(descriptors: Sequence[int], supervisor: int) -> NoReturn:
    """Put the descriptors where `spawn` would have put them, and be a worker."""
    argument, worker_control, stderr = descriptors
    for descriptor, number in ((argument, 0), (stderr, 1), (stderr, 2), (worker_control, process.CONTROL_DESCRIPTOR)):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    deadline = time.monotonic() + _REPARENT_SECONDS
    while os.getppid() != supervisor:  # until the middle process is gone: an instant
        if time.monotonic() > deadline:
            os._exit(1)
        os.sched_yield()
    process.main()


if __name__ == "__main__":
    main()

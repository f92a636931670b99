"""The process of one model version: confines itself, loads it, tries and warms it up, reports to the supervisor, and
serves.

`python -m appliance.worker.process` begins with an empty interpreter, and is ready in 0.2 s; the fork server's children
call the same `main`, with TensorFlow imported.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import Any, NoReturn

import msgspec

from appliance.config.batching_parameters import of_version
from appliance.core.errors import ConfigError
from appliance.core.gpu_devices import gpu_environment
from appliance.host.memory import resident_bytes
from appliance.host.processes import set_name, take_argument
from appliance.metrics.ownership import WORKER
from appliance.metrics.recording import Recorder, WorkerMetrics
from appliance.worker.odd_shape_trial import try_odd_shapes
from appliance.worker.run_record import RunRecord
from appliance.worker.run_times import RunTimes
from appliance.worker.sandbox import enter_sandbox, unreadable
from appliance.worker.serving import Worker
from appliance.worker.task import WorkerTask, concurrency_of, loader_of
from appliance.worker.trials import Fatal, check_memory
from appliance.worker.warmup import source_of, try_others, warm_up
from backends.contract import Backend, BackendError, Code, IncompleteError, Partial, Placed, Remarked
from backends.domain import ANY, Bounded
from backends.registry import check_complete

__all__ = ["CONTROL_DESCRIPTOR", "main"]

CONTROL_DESCRIPTOR = 3
"""The worker's end of its control socket."""

_READY_SECONDS = 1.0  # made-up requests end so long before load_timeout_seconds, so that they cannot fail the load


def main() -> NoReturn:
    """Be a worker from its start to its end. Its argument is a `WorkerTask`, however the process was started."""
    status = 1
    try:
        task = take_argument(WorkerTask)
        set_name("ds-worker" if task.odd_shapes_from is None else "ds-trial")
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the terminal: the supervisor ends its workers in order
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        status = _run_worker(task, socket.socket(fileno=CONTROL_DESCRIPTOR))
    except BaseException:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Skip the interpreter's teardown: the framework's threads may still use what it would free.
        os._exit(status)


def _run_worker(task: WorkerTask, control: socket.socket) -> int:
    """Load and serve the model of `task`; return the exit status. Reports go to the supervisor as JSON lines."""
    if task.odd_shapes_from is not None:
        return try_odd_shapes(task, control)

    def report(event: str, **details: Any) -> None:
        control.sendall(json.dumps({"event": event, **details}).encode() + b"\n")

    watch = threading.Thread(target=_exit_with_supervisor, args=(control,), daemon=True)
    started = time.monotonic()
    incomplete: list[str] = []
    recorder = Recorder(task.metrics_directory, WORKER, task.model, str(task.version), task.path)
    metrics = WorkerMetrics(recorder, task.model, task.version)
    try:
        listener = _listener(task.socket_path)
        os.environ.update(gpu_environment(task.options.device, task.options.gpu_devices))
        loaded_from = task.form_path or task.path
        incomplete = _check(task, loaded_from)
        batching = of_version(task.options, task.path)
        record = RunRecord(task.record_path, concurrency_of(task, batching) + 1, is_watched=task.is_watched)
        report("confined", **asdict(enter_sandbox(task)))
        watch.start()
        load_model = loader_of(task)
        bytes_before = resident_bytes(os.getpid()) or 0
        loaded = load_model()
        backend = _bounded(loaded, task)
        load_seconds = time.monotonic() - started
        metrics.loaded(task.path, load_seconds)
        source = source_of(task.path, task.options)
        if source != "none":
            report("progress", stage="warming up", source=source)
        warm_by = started + task.options.load_timeout_seconds - _READY_SECONDS
        fatal = Fatal([(name, number, how) for name, number, how in task.fatal_attempts])

        def announce(signature: str, attempt: int) -> None:
            report("progress", stage="warming up", source="made", attempt=[signature, attempt])

        def load_again() -> Backend:
            if time.monotonic() + 2 * load_seconds > warm_by:
                raise BackendError(Code.DEADLINE_EXCEEDED, "load_timeout_seconds leaves no time for it")
            check_memory((resident_bytes(os.getpid()) or 0) - bytes_before)
            return load_model()

        warm = warm_up(backend, task.path, task.options, warm_by - time.monotonic(), fatal, announce)
        if source == "recorded":
            metrics.warmed_up(task.path, warm.seconds)
        remarks = loaded.remarks if isinstance(loaded, Remarked) else ()
        trials = dict(warm.trials)
        if task.is_tried and task.options.release_gate != "off":
            seconds_left = warm_by - time.monotonic()
            trials |= try_others(backend, trials, task.options, seconds_left, fatal, announce, load_again)
        report(
            "ready",
            signatures=msgspec.to_builtins(dict(backend.signatures)),
            unsupported=dict(loaded.unsupported) if isinstance(loaded, Partial) else {},
            warmup=warm.to_json(),
            warmup_trials=msgspec.to_builtins(dict(warm.trials)),
            trials=msgspec.to_builtins(trials) if task.is_tried else None,
            remarks=[*(f"it is served, and its folder looks incomplete: {text}" for text in incomplete), *remarks],
            **({"device": loaded.device} if isinstance(loaded, Placed) else {}),
        )
        worker = Worker(
            task,
            backend,
            control,
            listener,
            batching=batching,
            mergeable=warm.mergeable,
            metrics=metrics,
            record=record,
            run_times=RunTimes(),
        )
        worker.note_answered(warm.answered)
    except IncompleteError as error:
        report("incomplete", message=str(error))
        return 0
    except BackendError as error:
        metrics.load_failed(task.path)
        report("failed", code=int(error.code), message="; ".join([error.message, *incomplete, *unreadable(task)]))
        return 0
    except ConfigError as error:
        metrics.load_failed(task.path)
        report("failed", code=int(Code.INVALID_ARGUMENT), message=str(error))
        return 0
    except Exception as error:  # noqa: BLE001 - the outer loop of a process: whatever a model raises is its failure
        metrics.load_failed(task.path)
        report("failed", code=int(Code.INTERNAL), message=f"{type(error).__name__}: {error}")
        return 1
    worker.run()
    return 0


def _listener(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)
    return listener


def _bounded(backend: Backend, task: WorkerTask) -> Backend:
    """Return `backend`; if it is a form that was not proven for all inputs, with a check of the inputs of each run."""
    domains = task.domains
    if task.options.proof_inputs == "finite":
        domains = {name: domain.unlooked() for name, domain in domains.items()}
    return Bounded(backend, domains) if any(domain != ANY for domain in domains.values()) else backend


def _check(task: WorkerTask, path: str) -> list[str]:
    """Return what seems to be missing in the version folder.

    Raise IncompleteError instead if the folder is to settle again first (`task.check_files`).
    """
    try:
        check_complete(task.backend, path)
    except IncompleteError as error:
        if task.check_files:
            raise
        return [str(error)]
    return []


def _exit_with_supervisor(control: socket.socket) -> None:
    """End the process if the supervisor goes while the main thread loads the model."""
    poller = selectors.PollSelector()
    poller.register(control, selectors.EVENT_READ)
    while True:
        poller.select()
        try:
            data = control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data:
            os._exit(1)
        return  # a command has come: from now on the main loop reads the socket, and sees the end


if __name__ == "__main__":
    main()

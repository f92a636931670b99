"""The process of one worker, as the supervisor sees it, and how it is started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from appliance.config.model_options import ModelOptions
from appliance.core.questions import Questions
from appliance.core.servable import Form
from appliance.host.processes import Reaper
from appliance.lifecycle.actions import StartWorker
from appliance.lifecycle.replicas import Attempt
from appliance.source.content import Found
from appliance.supervisor.load_checks import Looked
from appliance.supervisor.placement import Placement
from appliance.supervisor.programs import ForkServer, spawn_worker
from appliance.supervisor.stderr import LastWords, relay_stderr
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.watch import Watched
from appliance.supervisor.worker_end import WorkerEnd, end_of
from appliance.supervisor.worker_reports import Failure, Progress
from appliance.worker.task import WorkerTask
from appliance.worker.trials import COPY, PROOF
from backends.registry import FORKED, backend_for

__all__ = ["Starter", "WorkerProcess"]


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A worker's process from our side: what it is for, and how far it has come."""

    action: StartWorker
    options: ModelOptions
    form: Form | None
    preparing: asyncio.Task[Form | None] | None = None  # what verifies and finds its form, before there is a process
    looked: tuple[Looked, ...] = ()  # what it loads, as it was before
    looking: asyncio.Task[Found | None] | None = None  # what sees that its files are still there, likewise
    odd_shapes_from: int | None = None  # it serves nobody: see `appliance.worker.odd_shape_trial`
    pid: int | None = None
    socket_path: str = ""
    record_path: str = ""
    writer: asyncio.StreamWriter | None = None
    control: socket.socket | None = None  # the same connection, for what is told to it
    progress: Progress = field(default_factory=Progress)
    last_words: LastWords = field(default_factory=LastWords)
    failure: Failure | None = None  # why it has not loaded, until that is told
    serving: bool = False
    killed: bool = False
    watched: Watched | None = None  # since it has loaded
    why_hanging: str = ""  # if it was killed because it hung
    questions: Questions = field(init=False)
    _unanswered: int = 0  # questions, those for signs of life too

    def __post_init__(self) -> None:
        self.questions = Questions(self._ask, f"{self.action.servable}: its worker")

    @property
    def backend(self) -> str:
        """What runs it: its form's backend, or what the files of its folder, as they were last seen, are for."""
        if self.form is not None:
            return self.form.backend
        return backend_for(self.action.names, self.options.prefer_tflite_model)

    def tell(self, message: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Send `message` to it, with `descriptor`, if it has come that far and has not ended. A worker that has not
        read a hundred kilobytes of messages gets no more of them."""
        if self.control is not None:
            data = json.dumps(message).encode() + b"\n"
            with contextlib.suppress(OSError):
                socket.send_fds(self.control, [data], [] if descriptor is None else [descriptor])

    def ask_for_life(self) -> None:
        """Ask it for a sign of life, unless it has not read the last such question."""
        if self.writer is not None and not self.writer.transport.get_write_buffer_size():
            self._unanswered += 1
            self.tell({"do": "ping"})

    def check_asked(self) -> None:
        """Count something that it has said since it serves. Raise ValueError if it was not asked for that much: a model
        that says things for ever would keep the supervisor from all else."""
        self._unanswered -= 1
        if self._unanswered < 0:
            raise ValueError("it says more than it was asked for")

    def _ask(self, question: Mapping[str, Any]) -> None:
        self._unanswered += 1
        self.tell({"do": "answer", **question})

    def hung(self, why: str) -> None:
        """Note why it is killed."""
        self.why_hanging = why

    def end(self, status: int) -> WorkerEnd:
        """Return how it ended, with this wait status, and remove its files."""
        end = end_of(status, self.last_words.text, self.socket_path, self.record_path)
        if self.why_hanging:
            end = replace(end, how=f"killed because it hung: {self.why_hanging}")
        if self.progress.attempt is None:
            return end
        signature, number = self.progress.attempt
        what = {PROOF: "the trials of merging", COPY: "a copy to try"}.get(number, f"attempt {number} at")
        return replace(end, attempt=Attempt(signature, number, end.how, f"{what} {signature}"))


class Starter:
    """Starts workers' processes. `directory` is for their sockets, `metrics_directory` for what they count.
    `count_dropped` is told of lines that a model has printed beyond what is logged."""

    def __init__(
        self,
        reaper: Reaper,
        tasks: Tasks,
        placement: Placement,
        fork_server: ForkServer,
        *,
        directory: str,
        metrics_directory: str,
        cores: int,
        count_dropped: Callable[[str, int], None],
    ) -> None:
        self._reaper = reaper
        self._count_dropped = count_dropped
        self._tasks = tasks
        self._placement = placement
        self._fork_server = fork_server
        self._directory = directory
        self._metrics_directory = metrics_directory
        self._cores = cores
        self._started = 0

    async def start(self, worker: WorkerProcess) -> tuple[socket.socket, asyncio.Future[int], asyncio.Task[None]]:
        """Start the process of `worker`: our end of its control connection, its wait status to come, and the task that
        relays its stderr. What the folder held when it was last seen decides the backend, and so the kind of process.

        If the fork server dies meanwhile, the next one is asked, with a connection and a path of its own: a worker that
        was forked all the same sees the end of its control connection, and ends.

        Raises OSError, and ServingError if no GPU has room.
        """
        options = worker.options
        if worker.form is not None and not options.tensorflow_intra_op_parallelism:
            options = replace(options, tensorflow_intra_op_parallelism=worker.form.threads)
        options = await self._placement.place(worker.action.worker, worker.backend, options)
        while True:
            # A second process of the same worker must not meet the first one's socket.
            self._started += 1
            task = self._task(
                worker, options, os.path.join(self._directory, f"w{worker.action.worker}.{self._started}")
            )
            worker.socket_path, worker.record_path = task.socket_path, task.record_path
            ours, theirs = socket.socketpair()
            read_end, write_end = os.pipe()
            # What ends an expendable process is told in one line.
            level = logging.WARNING if worker.odd_shapes_from is None else logging.DEBUG
            servable = worker.action.servable
            dropped = partial(self._count_dropped, servable.model)
            stderr = self._tasks.start(relay_stderr(str(servable), read_end, worker.last_words.hear, level, dropped))
            try:
                if task.backend in FORKED:
                    worker.pid = await self._fork_server.fork(task, theirs.fileno(), write_end)
                else:
                    worker.pid = spawn_worker(task, theirs.fileno(), write_end)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
                os.close(write_end)
            if worker.pid is not None:
                self._reaper.forget(worker.pid)
                self._placement.started(worker.action.worker, worker.pid)
                return ours, self._reaper.exit_of(worker.pid), stderr
            ours.close()

    def _task(self, worker: WorkerProcess, options: ModelOptions, socket_path: str) -> WorkerTask:
        action, form = worker.action, worker.form
        return WorkerTask(
            model=action.servable.model,
            version=action.servable.version,
            path=action.path,
            socket_path=socket_path,
            backend=worker.backend,
            form_path="" if form is None else form.path,
            check_files=action.check_files,
            metrics_directory=self._metrics_directory,
            max_concurrent_requests=options.max_concurrent_requests or max(2, self._cores),
            options=ModelOptions(**{f.name: getattr(options, f.name) for f in fields(ModelOptions)}),
            fatal_attempts=tuple((attempt.signature, attempt.number, attempt.how) for attempt in action.left_out),
            domains={} if form is None else dict(form.domains),
            # A form has been proven to answer as the model does, and what has served was tried before it did.
            is_tried=action.is_tried and form is None,
            is_watched=action.is_watched,
            odd_shapes_from=worker.odd_shapes_from,
        )

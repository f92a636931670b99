"""The processes that run models: started, listened to, asked, drained and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import msgspec

from appliance.config.model_options import ModelOptions
from appliance.core.errors import Code, ServingError
from appliance.core.outcomes import Outcome, Trial, Trials
from appliance.core.poison import NO_RUNS, Runs
from appliance.core.questions import Questions
from appliance.core.servable import Form, ServableId
from appliance.host.processes import Reaper
from appliance.lifecycle.actions import StartWorker
from appliance.supervisor.placement import Placement
from appliance.supervisor.programs import ForkServer
from appliance.supervisor.stderr import LastWords, relay_stderr
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.worker_end import WorkerEnd, end_of
from appliance.worker import spawned as spawned_worker
from appliance.worker.run_record import read_record
from appliance.worker.task import WorkerTask
from appliance.worker.trials import COPY, PROOF
from backends.contract import Signature
from backends.registry import FORKED, backend_for

logger = logging.getLogger(__name__)

_SPAWN_SECONDS = 60.0
_MAX_LINE_BYTES = 256 * 1024 * 1024
_KILL_SECONDS = 2.0
_STILL_LOADING_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class OddTrial:
    """What came of a process that tried odd shapes: the last that it was at, and why others were left out ("" if none
    was)."""

    at: int
    message: str
    end: WorkerEnd


class Reports(Protocol):
    """Who hears how workers fare. Called in the event loop; `number` is the StartWorker's."""

    def worker_ready(
        self,
        number: int,
        socket_path: str,
        signatures: Mapping[str, Signature],
        form: Form | None,
        trials: Trials | None,
        remarks: Sequence[str],
        unsupported: Mapping[str, str],
    ) -> None: ...
    def worker_incomplete(self, number: int, reason: str) -> None: ...
    def worker_failed(self, number: int, code: Code, reason: str) -> None: ...
    def worker_ended(self, number: int, end: WorkerEnd) -> None: ...


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process from our side."""

    action: StartWorker
    options: ModelOptions
    form: Form | None
    preparing: asyncio.Task[Form | None] | None = None  # what finds its form, before there is a process
    may_fall_back: bool = False  # the form is only preferred: where it does not load, the model itself is loaded
    pid: int | None = None
    writer: asyncio.StreamWriter | None = None
    processes: int = 0  # that were started for it
    serving: bool = False
    killed: bool = False
    draining: bool = False
    end: WorkerEnd = field(default_factory=lambda: WorkerEnd("it was not started"))  # of its last process
    socket_path: str = ""
    record_path: str = ""
    odd_shapes_from: int | None = None  # it serves nobody: see appliance.worker.odd_shapes
    last_words: LastWords = field(default_factory=LastWords)
    attempt: tuple[str, int] | None = None  # the made-up request that it is at: the signature, and its number there
    fatal_attempts: list[tuple[str, int, str]] = field(default_factory=list)  # with how the process died of each
    questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        whom = f"{self.action.servable}: its worker"
        self.questions = Questions(lambda question: self.tell({"do": "answer", **question}), whom)

    @property
    def backend(self) -> str:
        """What runs it: its form's backend, or what the files of its folder, as they were last seen, are for."""
        if self.form is not None:
            return self.form.backend
        return backend_for(self.action.names, self.options.prefer_tflite_model)

    def forget_process(self) -> None:
        """Its process has ended, and another one is to be started for it."""
        self.pid, self.writer, self.last_words, self.attempt = None, None, LastWords(), None

    def hear(self, words: str) -> None:
        self.last_words.hear(words)

    def tell(self, message: Mapping[str, Any]) -> None:
        if self.writer is not None:
            with contextlib.suppress(OSError):
                self.writer.write(json.dumps(message).encode() + b"\n")


class Workers:
    """All workers of one server, by the numbers of the actions that started them."""

    def __init__(
        self,
        reports: Reports,
        reaper: Reaper,
        tasks: Tasks,
        *,
        directory: str,
        metrics_directory: str,
        cores: int,
        placement: Placement,
    ) -> None:
        self._reports = reports
        self._reaper = reaper
        self._tasks = tasks
        self._directory = directory
        self._metrics_directory = metrics_directory
        self._cores = cores
        self._placement = placement
        self._workers: dict[int, _Worker] = {}
        self._stopping = False
        self._expendable: int | None = None  # the process that tries odd shapes, if one does
        self.fork_server = ForkServer(reaper, self._relay_fork_server)

    # -- what the supervisor asks for ------------------------------------------------------------------------

    def start(
        self, action: StartWorker, options: ModelOptions, prepare: Coroutine[Any, Any, Form | None] | None = None
    ) -> None:
        """Starts a worker; `prepare` finds a form for it first, and may take its time."""
        worker = self._workers[action.worker] = _Worker(action, options, action.form)
        if prepare is not None:
            worker.preparing = asyncio.create_task(prepare)
        self._tasks.start(self._live(worker))

    def kill(self, number: int) -> None:
        worker = self._workers[number]
        worker.killed = True
        if worker.preparing is not None:
            worker.preparing.cancel()
        if worker.pid is not None:
            self._reaper.kill(worker.pid)

    async def drain(self, number: int, seconds: float) -> None:
        """Lets a worker that is no longer routed end what it has, for `seconds` at most."""
        worker = self._workers.get(number)
        if worker is None or worker.pid is None:
            return
        worker.draining = True
        worker.tell({"do": "drain"})
        done, _ = await asyncio.wait([self._reaper.exit_of(worker.pid)], timeout=seconds)
        if not done:
            servable = worker.action.servable
            logger.warning("%s: requests still ran %g s after its unloading began; it is killed", servable, seconds)
            self._reaper.kill(worker.pid)

    async def ask(self, number: int, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        """Asks a worker that serves; its answer, plain JSON values both ways.

        Raises ServingError: what the worker answers, UNAVAILABLE where it ends, DEADLINE_EXCEEDED after `seconds`.
        """
        worker = self._workers.get(number)
        if worker is None or not worker.serving:
            raise ServingError(Code.UNAVAILABLE, "the worker does not serve any more", "try again")
        return await worker.questions.ask(method, params, seconds)

    def serving(self) -> dict[int, tuple[ServableId, int]]:
        """The workers that serve: number → what, and its process number."""
        return {
            number: (worker.action.servable, worker.pid)
            for number, worker in self._workers.items()
            if worker.serving and worker.pid is not None
        }

    def by_pid(self) -> dict[int, ServableId]:
        """What each living worker is for, by process number."""
        return {w.pid: w.action.servable for w in self._workers.values() if w.pid is not None}

    async def stop(self, deadline: float) -> None:
        """Lets all end what they have until `deadline` (monotonic), then ends them."""
        self._stopping = True
        expendable = self._expendable
        self._kill_expendable()
        self.fork_server.program.stopping = True
        workers = list(self._workers.items())
        for number, worker in workers:
            if worker.writer is None:
                self.kill(number)
            worker.tell({"do": "drain"})
        ends = [self._reaper.exit_of(worker.pid) for _, worker in workers if worker.pid is not None]
        if ends:
            await asyncio.wait(ends, timeout=max(deadline - time.monotonic(), 0.2))
        for number in list(self._workers):
            self.kill(number)
        pids = [worker.pid for worker in self._workers.values()] + [self.fork_server.program.pid, expendable]
        ends = [self._reaper.exit_of(pid) for pid in pids if pid is not None]
        if self.fork_server.program.pid is not None:
            self._reaper.kill(self.fork_server.program.pid)
        if ends:  # a large process takes a moment to give its memory back, and the next server may need it
            await asyncio.wait(ends, timeout=_KILL_SECONDS)

    # -- the life of one -------------------------------------------------------------------------------------

    async def _live(self, worker: _Worker) -> None:
        """One worker, from its start to its end; whatever happens, its end is told."""
        number = worker.action.worker
        try:
            if worker.preparing is not None:
                await asyncio.wait([worker.preparing])
                if not worker.preparing.cancelled():
                    worker.form = worker.preparing.result()
                worker.may_fall_back = worker.form is not None
            how = await self._run(worker, worker.options)
            if worker.may_fall_back and not (worker.killed or worker.draining or self._stopping):
                logger.warning("%s: its form does not load (%s): TensorFlow serves it", worker.action.servable, how)
                worker.form, worker.may_fall_back = None, False
                worker.forget_process()
                how = await self._run(worker, worker.options)
            while worker.attempt is not None and not (worker.killed or worker.draining or self._stopping):
                signature, attempt = worker.attempt
                logger.warning(
                    "%s: its process ended (%s) while made-up inputs warmed it up (%s); it starts again without those",
                    worker.action.servable,
                    how,
                    {PROOF: "the trials of merging", COPY: "a copy to try"}.get(attempt, f"attempt {attempt} at")
                    + f" {signature}",
                )
                worker.fatal_attempts.append((signature, attempt, how))
                worker.forget_process()
                how = await self._run(worker, worker.options)
        except Exception as error:
            logger.exception("%s: looking after its worker failed", worker.action.servable)
            how = f"the supervisor failed: {type(error).__name__}: {error}"
            if worker.pid is not None:
                self._reaper.kill(worker.pid)
        del self._workers[number]
        self._placement.release(number)
        end = replace(worker.end, how=how)
        if end.fatal:  # what its siblings have answered counts as much
            try:
                answered = self.answered(worker.action.servable, worker.action.digest)
                end = replace(end, runs=end.runs.with_answered_of(answered))
            except Exception:
                # Without it a kind could be refused that is answered, so nothing is held against what ran.
                logger.exception("%s: what its other workers have answered cannot be read", worker.action.servable)
                end = replace(end, fatal="")
        self._reports.worker_ended(number, end)

    async def _run(self, worker: _Worker, options: ModelOptions) -> str:
        """The life of one process; how it ended."""
        servable = worker.action.servable
        try:
            async with asyncio.timeout(_SPAWN_SECONDS):
                ours, socket_path, stderr = await self._start_process(worker, options)
        except ServingError as error:  # no GPU has room
            self._failed(worker, error.code, str(error))
            return str(error)
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"the fork server did not start it within {_SPAWN_SECONDS:g} s"
            self._failed(worker, Code.INTERNAL, reason)
            return reason
        assert worker.pid is not None
        self._reaper.forget(worker.pid)
        self._placement.started(worker.action.worker, worker.pid)
        exited = self._reaper.exit_of(worker.pid)
        if worker.killed:
            self._reaper.kill(worker.pid)
        reader, worker.writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
        try:
            async with asyncio.timeout(options.load_timeout_seconds):
                worker.serving = self._on_report(worker, socket_path, await self._report_of(reader, worker))
            if worker.serving:
                await self._hear_answers(reader, worker)
        except TimeoutError:
            worker.attempt = None
            reason = f"it did not load within {options.load_timeout_seconds:g} s (load_timeout_seconds)"
            self._failed(worker, Code.DEADLINE_EXCEEDED, reason)
            self._reaper.kill(worker.pid)
        except (OSError, ValueError, KeyError) as error:
            logger.error("%s: a report of its worker cannot be read: %r", servable, error)
        worker.serving = False
        worker.writer.close()
        worker.questions.fail(f"{servable}: its worker ended")
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await asyncio.shield(exited)
        except TimeoutError:
            self._reaper.kill(worker.pid)
        status = await exited
        await asyncio.wait([stderr], timeout=1)
        worker.end = self._end_of(worker, status)
        return worker.end.how

    @staticmethod
    def _end_of(worker: _Worker, status: int) -> WorkerEnd:
        return end_of(status, worker.last_words.text, worker.socket_path, worker.record_path)

    def answered(self, servable: ServableId, digest: str) -> Runs:
        """Return what the living workers of these files have answered."""
        found = NO_RUNS
        for worker in self._workers.values():
            if worker.serving and (worker.action.servable, worker.action.digest) == (servable, digest):
                found = found.with_answered_of(read_record(worker.record_path))
        return found

    def _failed(self, worker: _Worker, code: Code, reason: str) -> None:
        if worker.may_fall_back:
            worker.hear(reason)
        else:
            self._reports.worker_failed(worker.action.worker, code, reason)

    async def _start_process(
        self, worker: _Worker, options: ModelOptions
    ) -> tuple[socket.socket, str, asyncio.Task[None]]:
        """Starts the process of `worker`: our end of its control socket, its data socket's path, and the task that
        relays its stderr. What the folder held when it was last seen decides the backend, and so the kind of process.

        Where the fork server dies meanwhile, the next one is asked, with a socket and a path of its own: a worker that
        was forked all the same sees the end of its control socket, and ends.
        """
        servable = worker.action.servable
        form, backend = worker.form, worker.backend
        if form is not None and not options.tensorflow_intra_op_parallelism:
            options = replace(options, tensorflow_intra_op_parallelism=form.threads)
        options = await self._placement.place(worker.action.worker, backend, options)
        while True:
            # A second process of the same worker must not meet the first one's socket.
            worker.processes += 1
            unique = f"w{worker.action.worker}.{worker.processes}"
            worker.socket_path = socket_path = os.path.join(self._directory, unique)
            task = WorkerTask(
                model=servable.model,
                version=servable.version,
                path=worker.action.path,
                socket_path=socket_path,
                backend=backend,
                artifact="" if form is None else form.path,
                check_files=worker.action.check_files,
                metrics_directory=self._metrics_directory,
                max_concurrent_requests=options.max_concurrent_requests or max(2, self._cores),
                options=ModelOptions(**{f.name: getattr(options, f.name) for f in fields(ModelOptions)}),
                fatal_attempts=tuple(worker.fatal_attempts),
                domains={} if form is None else dict(form.domains),
                # A form has been proven to answer as the model does, and what has served was tried before it did.
                is_tried=worker.action.is_tried and form is None,
                is_watched=worker.action.is_watched,
                odd_shapes_from=worker.odd_shapes_from,
            )
            worker.record_path = task.record_path
            ours, theirs = socket.socketpair()
            read_end, write_end = os.pipe()
            # What ends an expendable process is told in one line.
            level = logging.WARNING if worker.odd_shapes_from is None else logging.DEBUG
            stderr = self._tasks.start(relay_stderr(str(servable), read_end, worker.hear, level))
            try:
                if backend in FORKED:
                    worker.pid = await self.fork_server.fork(msgspec.to_builtins(task), [theirs.fileno(), write_end])
                else:
                    worker.pid = spawned_worker.start(task, theirs.fileno(), write_end)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
                os.close(write_end)
            if worker.pid is not None:
                return ours, socket_path, stderr
            ours.close()

    @staticmethod
    async def _report_of(reader: asyncio.StreamReader, worker: _Worker) -> bytes:
        """A worker's report; until it comes, the log says what the worker does (its lines of event "progress"), and
        that it is alive."""
        servable = worker.action.servable
        started = time.monotonic()
        silent_until = started + _STILL_LOADING_SECONDS
        stage = "loading"
        line = asyncio.ensure_future(reader.readline())
        try:
            while True:
                done, _ = await asyncio.wait([line], timeout=max(silent_until - time.monotonic(), 0.0))
                if not done:
                    logger.info("%s: still %s after %.0f s", servable, stage, time.monotonic() - started)
                    silent_until = time.monotonic() + _STILL_LOADING_SECONDS
                    continue
                report = line.result()
                message = json.loads(report) if report else {}
                if message.get("event") != "progress":
                    if report:
                        worker.attempt = None
                    return report
                stage = message["stage"]
                worker.attempt = None
                if "attempt" in message:
                    signature, number = message["attempt"]
                    worker.attempt = signature, number
                line = asyncio.ensure_future(reader.readline())
        finally:
            line.cancel()

    def _on_report(self, worker: _Worker, socket_path: str, line: bytes) -> bool:
        """Takes a worker's report; whether it serves now."""
        if not line:
            return False
        report = json.loads(line)
        number = worker.action.worker
        if report["event"] == "ready":
            signatures = msgspec.convert(report["signatures"], dict[str, Signature])
            in_warmup = msgspec.convert(report["warmup_trials"], dict[str, Trial])
            trials = msgspec.convert(report["trials"], dict[str, Trial] | None)
            _log_warmup(worker.action.servable, report["warmup"], in_warmup if trials is None else trials)
            failed = [name for name, trial in in_warmup.items() if trial.outcome is Outcome.FAILED]
            if failed and worker.may_fall_back:
                self._failed(worker, in_warmup[failed[0]].code, f"{failed[0]}: {in_warmup[failed[0]].message}")
                return False  # it ends, for it is not heard any more
            if report.get("device") == "cuda":
                logger.info("%s: runs on a GPU", worker.action.servable)
            worker.may_fall_back = False
            unsupported = report["unsupported"]
            for name, reason in unsupported.items():
                logger.warning("%s: signature %r cannot be served: %s", worker.action.servable, name, reason)
            remarks = report["remarks"]
            self._reports.worker_ready(number, socket_path, signatures, worker.form, trials, remarks, unsupported)
            return True
        if report["event"] == "incomplete" and not worker.may_fall_back:
            self._reports.worker_incomplete(number, report["message"])
        else:
            self._failed(worker, Code(report.get("code", Code.INTERNAL)), report["message"])
        return False

    async def try_odd_shapes(self, action: StartWorker, options: ModelOptions, first: int, seconds: float) -> OddTrial:
        """Runs one process that tries odd shapes from the one with the number `first` on, and is lost if one of them
        ends it. Raises OSError and TimeoutError, after `seconds`."""
        if self._stopping:
            raise ServingError(Code.UNAVAILABLE, "the server is stopping")
        worker = _Worker(action, options, None, odd_shapes_from=first)
        at, status = first, 0
        message: str | None = None
        try:
            async with asyncio.timeout(seconds):
                ours, _, stderr = await self._start_process(worker, options)
                assert worker.pid is not None
                self._expendable = worker.pid
                self._reaper.forget(worker.pid)
                exited = self._reaper.exit_of(worker.pid)
                if self._stopping:  # since it was asked for
                    raise ServingError(Code.UNAVAILABLE, "the server is stopping")
                reader, worker.writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
                while line := await reader.readline():
                    report = json.loads(line)
                    at = report.get("index", at)
                    message = "" if report["event"] == "tried" else report.get("message", message)
                status = await exited
                await asyncio.wait([stderr], timeout=1)
        finally:
            self._kill_expendable()  # it has ended, unless time is up or the server stops
            if worker.writer is not None:
                worker.writer.close()
            worker.end = self._end_of(worker, status)
        return OddTrial(at, f"its process {worker.end.how}" if message is None else message, worker.end)

    def _kill_expendable(self) -> None:
        if self._expendable is not None:
            self._reaper.kill(self._expendable)
            self._expendable = None

    @staticmethod
    async def _hear_answers(reader: asyncio.StreamReader, worker: _Worker) -> None:
        """What a worker that serves still says: answers, until its end."""
        while line := await reader.readline():
            worker.questions.answered(json.loads(line))

    def _relay_fork_server(self, descriptor: int) -> None:
        self._tasks.start(relay_stderr("the fork server", descriptor, lambda _: None))


def _log_warmup(servable: ServableId, warmup: Mapping[str, Any], trials: Trials) -> None:
    if warmup["source"] != "none":
        text = f"{servable}: warmed up with {warmup['requests']} requests in {warmup['seconds']:.2f} s"
        text += f" ({warmup['source']})"
        if warmup["mergeable"]:
            text += f"; requests may be merged: {', '.join(warmup['mergeable'])}"
        logger.info(text, extra={"fields": {"model": servable.model, "version": servable.version, "warmup": warmup}})
    if warmup["message"]:
        logger.info("%s: left out of the warm-up: %s", servable, warmup["message"])
    for signature, trial in trials.items():
        if trial.outcome is Outcome.FAILED:
            what = f"{trial.code.name}: {trial.message}"
            logger.warning("%s: signature %s fails whatever it is asked: %s", servable, signature, what)
        elif trial.outcome is Outcome.UNTRIED:
            logger.info("%s: signature %s was not tried: %s", servable, signature, trial.message)
        elif trial.outcome is Outcome.LATE or (
            trial.outcome is Outcome.REFUSED and trial.message not in warmup["message"]
        ):
            logger.info("%s: signature %s was not seen to answer (%s)", servable, signature, trial.message)

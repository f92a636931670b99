"""The processes that run models: started, listened to, asked, drained and ended."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from appliance.config.model_options import ModelOptions
from appliance.core.errors import Code, ServingError
from appliance.core.poison import NO_RUNS, Runs
from appliance.core.servable import Form, ServableId
from appliance.host.processes import Reaper
from appliance.lifecycle.actions import StartWorker
from appliance.supervisor.load_checks import LoadChecks, look_again, look_at
from appliance.supervisor.placement import Placement
from appliance.supervisor.programs import ForkServer
from appliance.supervisor.stderr import relay_stderr
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.watch import Watch, Watched
from appliance.supervisor.worker_end import WorkerEnd
from appliance.supervisor.worker_process import Starter, WorkerProcess
from appliance.supervisor.worker_reports import (
    MAX_LINE_BYTES,
    UNREADABLE,
    Failure,
    Reports,
    loaded_of,
    next_report,
    odd_reports,
)
from appliance.worker.run_record import read_record

__all__ = ["OddTrial", "Workers"]

logger = logging.getLogger(__name__)

_SPAWN_SECONDS = 60.0
_KILL_SECONDS = 2.0
_NOT_STARTED = WorkerEnd("it was not started")


@dataclass(frozen=True, slots=True)
class OddTrial:
    """What came of a process that tried odd shapes: the last that it was at, and why others were left out ("" if none
    was)."""

    at: int
    message: str
    end: WorkerEnd


class Workers:
    """All workers of one server, by the numbers of the actions that started them: a process each."""

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
        watch: Watch,
        checks: LoadChecks,
    ) -> None:
        self._reports = reports
        self._reaper = reaper
        self._tasks = tasks
        self._placement = placement
        self._watch = watch
        self._checks = checks
        self._workers: dict[int, WorkerProcess] = {}
        self._stopping = False
        self._missing: tuple[str, ...] = ()  # of what confines a process: what was logged last
        self._expendable: int | None = None  # the process that tries odd shapes, if one does
        self.fork_server = ForkServer(reaper, watch, self._relay_fork_server)
        self._starter = Starter(
            reaper,
            tasks,
            placement,
            self.fork_server,
            directory=directory,
            metrics_directory=metrics_directory,
            cores=cores,
            count_dropped=reports.lines_dropped,
        )

    # -- what the supervisor asks for ------------------------------------------------------------------------

    def start(
        self, action: StartWorker, options: ModelOptions, prepare: Coroutine[Any, Any, Form | None] | None = None
    ) -> None:
        """Start a worker, once its folder's signature is verified; `prepare` finds a form for it then, and may take its
        time."""
        worker = self._workers[action.worker] = WorkerProcess(action, options, action.form)
        if prepare is not None or options.model_signing != "off":
            worker.preparing = asyncio.create_task(self._prepare(worker, prepare))
        self._tasks.start(self._live(worker))

    def kill(self, number: int) -> None:
        """End a worker at once."""
        worker = self._workers[number]
        worker.killed = True
        for waiting in (worker.preparing, worker.looking):
            if waiting is not None:
                waiting.cancel()
        if worker.pid is not None:
            self._reaper.kill(worker.pid)

    async def drain(self, number: int, seconds: float) -> None:
        """Let a worker that is no longer routed end what it has, for `seconds` at most."""
        worker = self._workers.get(number)
        if worker is None or worker.pid is None:
            return
        if worker.watched is not None:  # it has a deadline of its own now
            self._watch.remove(worker.watched)
        worker.tell({"do": "drain"})
        done, _ = await asyncio.wait([self._reaper.exit_of(worker.pid)], timeout=seconds)
        if not done:
            servable = worker.action.servable
            logger.warning("%s: requests still ran %g s after its unloading began; it is killed", servable, seconds)
            self._reaper.kill(worker.pid)

    async def ask(
        self, number: int, method: str, params: Mapping[str, Any], seconds: float, file: int | None = None
    ) -> Any:
        """Ask a worker that serves, and return its answer; plain JSON values both ways. It writes what is long to
        `file`, a descriptor that the caller closes.

        Raises ServingError: what the worker answers, UNAVAILABLE if it ends, DEADLINE_EXCEEDED after `seconds`.
        """
        worker = self._workers.get(number)
        if worker is None or not worker.serving:
            raise ServingError(Code.UNAVAILABLE, "the worker does not serve any more", "try again")
        if file is not None:
            worker.tell({"do": "file"}, file)  # for the question that follows at once
        return await worker.questions.ask(method, params, seconds)

    def serving(self) -> dict[int, tuple[ServableId, int]]:
        """Return the workers that serve: number → what, and its process number."""
        return {
            number: (worker.action.servable, worker.pid)
            for number, worker in self._workers.items()
            if worker.serving and worker.pid is not None
        }

    def questions(self, method: str, seconds: float) -> dict[int, Callable[[], Awaitable[Any]]]:
        """Return how to ask each worker that serves to do `method`, by process number. What is returned raises
        ServingError, also after `seconds`."""
        return {pid: partial(self.ask, number, method, {}, seconds) for number, (_, pid) in self.serving().items()}

    def by_pid(self) -> dict[int, ServableId]:
        """Return what each living worker is for, by process number."""
        return {w.pid: w.action.servable for w in self._workers.values() if w.pid is not None}

    def answered(self, servable: ServableId, digest: str) -> Runs:
        """Return what the living workers of these files have answered."""
        found = NO_RUNS
        for worker in self._workers.values():
            if worker.serving and (worker.action.servable, worker.action.digest) == (servable, digest):
                found = found.with_answered_of(read_record(worker.record_path))
        return found

    async def stop(self, deadline: float) -> None:
        """Let all end what they have until `deadline` (monotonic), then end them."""
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

    async def _prepare(self, worker: WorkerProcess, find: Coroutine[Any, Any, Form | None] | None) -> Form | None:
        """Verify the signature of its folder, and return the form to load, if `find` finds one. Raise ServingError."""
        action = worker.action
        try:
            worker.looked = await self._checks.look_at_version(action.servable, action.path, worker.options)
            return None if find is None else await find
        finally:
            if find is not None:
                find.close()  # if it was not begun

    async def _live(self, worker: WorkerProcess) -> None:
        """Run one worker from its start to its end, which is told whatever happens."""
        number = worker.action.worker
        end = _NOT_STARTED
        try:
            if worker.preparing is not None:
                await asyncio.wait([worker.preparing])
                if not worker.preparing.cancelled():
                    self._prepared(worker, worker.preparing)
            files = None
            if not worker.killed and worker.failure is None:
                worker.looking = asyncio.create_task(self._checks.changed_files(worker.action))
                await asyncio.wait([worker.looking])
                files = None if worker.looking.cancelled() else worker.looking.result()
            if files is not None and not worker.killed:
                self._reports.files_changed(number, worker.action.servable.model, files)
            elif not worker.killed and worker.failure is None:
                end = await self._run(worker)
        except Exception as error:
            logger.exception("%s: looking after its worker failed", worker.action.servable)
            end = WorkerEnd(f"the supervisor failed: {type(error).__name__}: {error}")
            if worker.pid is not None:
                self._reaper.kill(worker.pid)
        self._tell_failure(worker)
        del self._workers[number]
        self._placement.release(number)
        self._reports.worker_ended(number, self._with_answers_of_siblings(worker, end))

    def _prepared(self, worker: WorkerProcess, preparing: asyncio.Task[Form | None]) -> None:
        """Take in what came of the preparations of a worker: a form, or that it must not be loaded."""
        error = preparing.exception()
        if isinstance(error, ServingError):
            worker.failure = Failure(error.code, str(error))
        elif (form := preparing.result()) is not None:
            worker.form = form
            self._reports.form_found(worker.action.worker, form)

    def _with_answers_of_siblings(self, worker: WorkerProcess, end: WorkerEnd) -> WorkerEnd:
        """Return `end` with what the other workers of the same files have answered, which counts as much."""
        if not end.fatal:
            return end
        try:
            answered = self.answered(worker.action.servable, worker.action.digest)
        except Exception:
            # Without it a kind could be refused that is answered, so nothing is held against what ran.
            logger.exception("%s: what its other workers have answered cannot be read", worker.action.servable)
            return replace(end, fatal="")
        return replace(end, runs=end.runs.with_answered_of(answered))

    async def _run(self, worker: WorkerProcess) -> WorkerEnd:
        """Run its process; return how it ended."""
        try:
            async with asyncio.timeout(worker.options.load_timeout_seconds):
                worker.looked += await look_at(worker.form)
            async with asyncio.timeout(_SPAWN_SECONDS):
                ours, exited, stderr = await self._starter.start(worker)
        except ServingError as error:  # files are not what they should be, or no GPU has room
            worker.failure = Failure(error.code, str(error))
            return WorkerEnd(str(error))
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"the fork server did not start it within {_SPAWN_SECONDS:g} s"
            worker.failure = Failure(Code.INTERNAL, reason)
            return WorkerEnd(reason)
        assert worker.pid is not None
        if worker.killed:
            self._reaper.kill(worker.pid)
        worker.control = ours.dup()
        reader, worker.writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        try:
            await self._hear(worker, reader)
        finally:
            worker.serving = False
            if worker.watched is not None:
                self._watch.remove(worker.watched)
            worker.writer.close()
            worker.control.close()
            worker.questions.fail(f"{worker.action.servable}: its worker ended")
        for _ in range(2):  # by itself, or because it is killed
            done, _ = await asyncio.wait([exited], timeout=_KILL_SECONDS)
            if done:
                break
            self._reaper.kill(worker.pid)
        self._tell_failure(worker)  # also if it hangs in the kernel
        status = await exited
        await asyncio.wait([stderr], timeout=1)
        return worker.end(status)

    async def _hear(self, worker: WorkerProcess, reader: asyncio.StreamReader) -> None:
        """Take a worker's report, and while it serves its answers, until it has no more to say."""
        servable, seconds = worker.action.servable, worker.options.load_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                report = await next_report(reader, servable, worker.progress)
                await look_again(worker.looked)
            if report is None:
                return
            self._tell_what_is_missing(worker.progress.confined.missing, worker.options.sandbox)
            loaded = loaded_of(report, servable, worker.socket_path, worker.progress.confined.by)
            if isinstance(loaded, Failure):
                worker.failure = loaded
                return
            remarks = tuple(each.remark for each in worker.looked if each.remark)
            worker.serving = True
            self._start_watching(worker)
            self._reports.worker_ready(worker.action.worker, replace(loaded, remarks=(*loaded.remarks, *remarks)))
            while line := await reader.readline():
                worker.check_asked()
                message = json.loads(line)
                if "alive" in message:
                    self._heard(worker, message)
                else:
                    worker.questions.answered(message)
        except TimeoutError:
            worker.progress.attempt = None
            reason = f"it did not load within {seconds:g} s (load_timeout_seconds)"
            worker.failure = Failure(Code.DEADLINE_EXCEEDED, reason)
            assert worker.pid is not None
            self._reaper.kill(worker.pid)
        except ServingError as error:
            worker.failure = Failure(error.code, str(error))
        except OSError:
            return  # its process has ended: its status says how
        except UNREADABLE as error:
            logger.error("%s: a report of its worker cannot be read: %r", servable, error)
            if not worker.serving:
                reason = f"what its worker reports cannot be read ({error}); a line may have {MAX_LINE_BYTES:,} bytes"
                worker.failure = Failure(Code.INVALID_ARGUMENT, reason)

    def _start_watching(self, worker: WorkerProcess) -> None:
        assert worker.pid is not None
        worker.watched = Watched(
            f"the worker of {worker.action.servable}", "worker", worker.pid, worker.ask_for_life, worker.hung
        )
        self._watch.add(worker.watched, worker.options.run_limit_seconds)

    def _heard(self, worker: WorkerProcess, message: Mapping[str, Any]) -> None:
        if worker.watched is not None:
            self._watch.heard(worker.watched, int(message["overdue"]))

    def _tell_what_is_missing(self, missing: tuple[str, ...], sandbox: str) -> None:
        """Log once what does not confine workers, unless the operator wants it so."""
        if sandbox != "off" and missing and missing != self._missing:
            self._missing = missing
            logger.warning("models are not fully confined: %s", "; ".join(missing))

    def _tell_failure(self, worker: WorkerProcess) -> None:
        failure, worker.failure = worker.failure, None
        if failure is not None:
            self._reports.worker_failed(worker.action.worker, failure)

    # -- processes that are there to be lost -----------------------------------------------------------------

    async def try_odd_shapes(self, action: StartWorker, options: ModelOptions, first: int, seconds: float) -> OddTrial:
        """Run one process that tries odd shapes from the one with the number `first` on, and is lost if one of them
        ends it.

        Raises OSError, ServingError (also if the folder has other files by now), ValueError for what is no report, and
        TimeoutError after `seconds`.
        """
        if self._stopping:
            raise ServingError(Code.UNAVAILABLE, "the server is stopping")
        worker = WorkerProcess(action, options, None, odd_shapes_from=first)
        at, status = first, 0
        message: str | None = None
        try:
            async with asyncio.timeout(seconds):
                await self._checks.look_at_version(action.servable, action.path, options, to_serve=False)
                if await self._checks.changed_files(action) is not None:
                    raise ServingError(Code.DATA_LOSS, f"files in {action.path} were changed since it was loaded")
                ours, exited, stderr = await self._starter.start(worker)
                self._expendable = worker.pid
                if self._stopping:  # since it was asked for
                    raise ServingError(Code.UNAVAILABLE, "the server is stopping")
                reader, worker.writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
                async for report in odd_reports(reader):
                    at = at if report.index is None else report.index
                    message = "" if report.event == "tried" else report.message or message
                status = await exited
                await asyncio.wait([stderr], timeout=1)
        finally:
            self._kill_expendable()  # it has ended, unless time is up or the server stops
            if worker.writer is not None:
                worker.writer.close()
            end = worker.end(status)
        return OddTrial(at, f"its process {end.how}" if message is None else message, end)

    def _kill_expendable(self) -> None:
        if self._expendable is not None:
            self._reaper.kill(self._expendable)
            self._expendable = None

    def _relay_fork_server(self, descriptor: int) -> None:
        self._tasks.start(relay_stderr("the fork server", descriptor, lambda _: None))

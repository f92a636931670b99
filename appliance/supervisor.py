"""The composition root: carries out the manager's actions, runs the other processes, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from appliance import __version__
from appliance.dataplane.worker import WorkerTask
from appliance.errors import Code, ConfigError, ServingError
from appliance.fronts.settings import FrontSettings
from appliance.host import hold_port, instance_directory, listen
from appliance.lifecycle.manager import Action, DrainWorker, KillWorker, Manager, StartWorker
from appliance.lifecycle.settle import Observed
from appliance.lifecycle.source import Source
from appliance.model_config import ModelConfig, parse_model_config
from appliance.options import ModelOptions, Settings, effective, format_version_policy
from appliance.processes import Reaper, become_subreaper, describe_status, set_name, spawn
from appliance.programs import ForkServer, Program
from appliance.routes import Snapshot
from appliance.servable import ServableId
from backends.contract import Signature

logger = logging.getLogger(__name__)

_ACK_SECONDS = 5.0
_SPAWN_SECONDS = 60.0
_MAX_LINE_BYTES = 256 * 1024 * 1024
_STABLE_SECONDS = 10.0
_MAX_BACKOFF_SECONDS = 10.0
_KILL_SECONDS = 2.0
_STILL_LOADING_SECONDS = 10.0
# TensorFlow's remarks (absl's I and W lines), and its surprise that we hide the GPU from it.
_CHATTER = re.compile(r"[IW]\d{4} |WARNING: All log messages before absl|.*failed call to cuInit|.*cuda_platform")


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process from the supervisor's side."""

    action: StartWorker
    pid: int | None = None
    writer: asyncio.StreamWriter | None = None
    killed: bool = False
    last_words: str = ""

    def hear(self, words: str) -> None:
        self.last_words = words


@dataclass(slots=True, eq=False)
class _Front:
    """A connected front: what it has been sent, and what it has adopted."""

    role: str
    writer: asyncio.StreamWriter
    acked: int = 0


class Supervisor:
    """One server. `run()` serves until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        options = self._options = settings.options
        cores = len(os.sched_getaffinity(0))
        self._cores = cores
        self._manager = Manager(
            options.max_num_load_retries,
            options.load_retry_interval_micros / 1e6,
            options.max_concurrent_loads or max(4, 2 * cores),
        )
        self._model_options: dict[str, ModelOptions] = {}
        self._candidates: dict[str, str] = {}  # sub-folders of the root that have no version yet
        self._workers: dict[int, _Worker] = {}
        self._fronts: set[_Front] = set()
        self._acked = asyncio.Event()
        self._snapshot = Snapshot()
        self._published = 0  # the manager's revision that the snapshot shows
        self._ready = False
        self._stopping = False
        self._stop_requested = asyncio.Event()
        self._wake = asyncio.Event()
        self._reaper = Reaper()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._programs: list[Program] = []
        self._serving: dict[str, int] = {}
        self._announced = False

    async def run(self) -> int:
        """Serves; the exit status. Raises ConfigError where it cannot start."""
        options = self._options
        models = self._configured_models()
        become_subreaper()
        set_name("dropserve")
        self._reaper.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_requested.set)
        self._listener = None if options.rest_api_port < 0 else listen(options.bind_address, options.rest_api_port)
        self._grpc_holder = None if options.port < 0 else hold_port(options.bind_address, options.port)
        self._directory, self._lock = instance_directory(options.runtime_dir)
        try:
            self._metrics_directory = os.path.join(self._directory, "metrics")
            os.mkdir(self._metrics_directory, 0o700)
            control_path = os.path.join(self._directory, "control")
            control = await asyncio.start_unix_server(self._on_front, control_path, limit=_MAX_LINE_BYTES)
            self._fork_server = ForkServer(self._relay_fork_server)
            self._keep(self._fork_server.program)
            for program in self._front_programs(control_path):
                self._keep(program)
            source = Source(self, options.file_system_poll_wait_seconds)
            self._source = source
            for name, (base_path, model_options) in models.items():
                self._model_options[name] = model_options
                self._manager.add_model(name, base_path, model_options.policy, self._labels.get(name))
                source.add(name, base_path, model_options.settle_seconds)
            if options.model_root:
                source.set_root(options.model_root)
            await self._loop()
            await self._shut_down()
            control.close()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.close(self._lock)
        logger.info("stopped")
        return 0

    def _configured_models(self) -> dict[str, tuple[str, ModelOptions]]:
        """Every model that is named by flags or files, with its base path and options."""
        options = self._options
        self._labels: dict[str, dict[str, int]] = {}
        found: dict[str, tuple[str, ModelOptions]] = {}
        if options.model_base_path and options.model_config_file:
            raise ConfigError(
                "both model_base_path and model_config_file are set", "set one, or add the model to the file"
            )
        if options.model_base_path:
            found[options.model_name] = (options.model_base_path, self._settings.of_model(options.model_name))
        if options.model_config_file:
            for config in _read_model_config(options.model_config_file):
                model_options = self._settings.of_model(
                    config.name, version_policy=format_version_policy(config.policy)
                )
                found[config.name] = (model_options.base_path or config.base_path, model_options)
                self._labels[config.name] = dict(config.labels)
        for name, table in self._settings.models.items():
            if "base_path" in table and name not in found:
                found[name] = (table["base_path"], self._settings.of_model(name))
        if options.rest_api_port < 0 and options.port < 0 and not options.grpc_socket_path:
            raise ConfigError("neither REST nor gRPC is served", "set rest_api_port, port or grpc_socket_path")
        if not found and not options.model_root and not options.model_config_file:
            raise ConfigError(
                "no models are configured",
                "give --model_root DIR, --model_base_path DIR, --model_config_file FILE, or [models.NAME] in --config",
            )
        return found

    # -- the source's listener -------------------------------------------------------------------------------

    def loaded_versions(self, name: str) -> frozenset[int]:
        return self._manager.loaded_versions(name)

    def model_appeared(self, name: str, base_path: str) -> float:
        options = self._settings.of_model(name)
        self._model_options[name] = options
        self._candidates[name] = base_path
        return options.settle_seconds

    def model_vanished(self, name: str) -> None:
        if self._candidates.pop(name, None) is None:
            logger.info("model %s: its folder is gone", name)
            self._act(self._manager.remove_model(name, time.monotonic()))

    def versions_observed(self, name: str, observed: dict[int, Observed], remark: str) -> None:
        if name in self._candidates:
            if not observed and "holds a SavedModel" not in remark:
                return
            base_path = self._candidates.pop(name)
            logger.info("model %s: found at %s", name, base_path)
            self._manager.add_model(name, base_path, self._model_options[name].policy)
        self._act(self._manager.observe(name, observed, remark, time.monotonic()))

    def base_path_lost(self, name: str, reason: str) -> None:
        if name not in self._candidates:
            self._manager.base_path_lost(name, reason)
            self._wake.set()

    # -- the main loop ---------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        started = time.monotonic()
        ready_by = started + self._options.ready_timeout_seconds
        while not self._stop_requested.is_set():
            now = time.monotonic()
            self._act(self._manager.tick(now))
            self._wake.clear()
            if not self._ready and ((list(self._manager.names()) and self._manager.all_tried()) or now >= ready_by):
                self._ready = True
            self._publish()
            due = [
                moment for moment in (self._manager.next_due, None if self._ready else ready_by) if moment is not None
            ]
            delay = max(min(due) - time.monotonic(), 0.01) if due else None
            waiters = [asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(self._stop_requested.wait())]
            await asyncio.wait(waiters, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for waiter in waiters:
                waiter.cancel()

    def _task(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the supervisor failed", exc_info=task.exception())

    def _act(self, actions: Iterable[Action]) -> None:
        if self._stopping:
            return  # workers end because they are told to: that is no news, and none is started again
        for change in self._manager.take_changes():
            level = logging.WARNING if change.new in ("failed", "restarting") else logging.INFO
            text = f"{change.servable}: {change.new}" + (f": {change.reason}" if change.reason else "")
            fields = {
                "model": change.servable.model,
                "version": change.servable.version,
                "state": change.new,
                "old_state": change.old,
                "reason": change.reason,
            }
            logger.log(level, text, extra={"fields": fields})
        for action in actions:
            match action:
                case StartWorker():
                    worker = self._workers[action.worker] = _Worker(action)
                    self._task(self._run_worker(worker))
                case KillWorker(number):
                    self._kill(self._workers[number])
                case DrainWorker(number):
                    self._task(self._drain(self._workers[number]))
        self._wake.set()

    # -- workers ---------------------------------------------------------------------------------------------

    async def _run_worker(self, worker: _Worker) -> None:
        """The life of one worker process, from its start to its end."""
        number, servable = worker.action.worker, worker.action.servable
        options = self._model_options[servable.model]
        try:
            async with asyncio.timeout(_SPAWN_SECONDS):
                ours, socket_path, stderr = await self._fork_worker(worker, options)
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"the fork server did not start it within {_SPAWN_SECONDS:g} s"
            del self._workers[number]
            self._act(self._manager.worker_failed(number, Code.INTERNAL, reason, time.monotonic()))
            self._act(self._manager.worker_ended(number, reason, time.monotonic()))  # where it was draining
            return
        assert worker.pid is not None
        exited = self._reaper.exit_of(worker.pid)
        if worker.killed:
            self._reaper.kill(worker.pid)
        reader, worker.writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
        try:
            async with asyncio.timeout(options.load_timeout_seconds):
                serving = self._on_report(worker, socket_path, await self._report_of(reader, servable))
        except TimeoutError:
            serving = False
            reason = f"it did not load within {options.load_timeout_seconds:g} s (load_timeout_seconds)"
            self._act(self._manager.worker_failed(number, Code.DEADLINE_EXCEEDED, reason, time.monotonic()))
            self._reaper.kill(worker.pid)
        except (OSError, ValueError) as error:
            serving = False
            logger.error("%s: a report of its worker cannot be read: %s", servable, error)
        if serving:
            with contextlib.suppress(OSError, ValueError):
                await reader.read()  # nothing more is said: the end of file is its end
        worker.writer.close()
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                await asyncio.shield(exited)
        except TimeoutError:
            self._reaper.kill(worker.pid)
        how = describe_status(await exited)
        await asyncio.wait([stderr], timeout=1)
        if worker.last_words:
            how += f"; its last words: {worker.last_words}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
        del self._workers[number]
        self._act(self._manager.worker_ended(number, how, time.monotonic()))

    @staticmethod
    async def _report_of(reader: asyncio.StreamReader, servable: ServableId) -> bytes:
        """A worker's report; until it comes, the log says what the worker does (its lines of event "progress"), and
        that it is alive."""
        started = time.monotonic()
        stage = "loading"
        line = asyncio.ensure_future(reader.readline())
        try:
            while True:
                done, _ = await asyncio.wait([line], timeout=_STILL_LOADING_SECONDS)
                if not done:
                    logger.info("%s: still %s after %.0f s", servable, stage, time.monotonic() - started)
                    continue
                report = line.result()
                message = json.loads(report) if report else {}
                if message.get("event") != "progress":
                    return report
                stage = message["stage"]
                line = asyncio.ensure_future(reader.readline())
        finally:
            line.cancel()

    async def _fork_worker(
        self, worker: _Worker, options: ModelOptions
    ) -> tuple[socket.socket, str, asyncio.Task[None]]:
        """Starts the process of `worker`: our end of its control socket, its data socket's path, and the task that
        relays its stderr.

        Where the fork server dies meanwhile, the next one is asked, with a socket and a path of its own: a worker that
        was forked all the same sees the end of its control socket, and ends.
        """
        servable = worker.action.servable
        attempt = 0
        while True:
            attempt += 1
            socket_path = os.path.join(self._directory, f"w{worker.action.worker}.{attempt}")
            task = WorkerTask(
                model=servable.model,
                version=servable.version,
                path=worker.action.path,
                socket_path=socket_path,
                backend="tensorflow",
                metrics_directory=self._metrics_directory,
                max_concurrent_requests=options.max_concurrent_requests or max(2, self._cores),
                shared_memory_bytes=self._options.shared_memory_bytes,
                options=ModelOptions(**{f.name: getattr(options, f.name) for f in fields(ModelOptions)}),
            )
            ours, theirs = socket.socketpair()
            read_end, write_end = os.pipe()
            stderr = self._task(self._relay_stderr(str(servable), read_end, worker.hear))
            try:
                worker.pid = await self._fork_server.fork(task.to_json(), [theirs.fileno(), write_end])
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
                os.close(write_end)
            if worker.pid is not None:
                return ours, socket_path, stderr
            ours.close()

    def _on_report(self, worker: _Worker, socket_path: str, line: bytes) -> bool:
        """Takes a worker's one report; whether it serves now."""
        if not line:
            return False
        report = json.loads(line)
        number, now = worker.action.worker, time.monotonic()
        if report["event"] == "ready":
            signatures = {name: Signature.from_json(value) for name, value in report["signatures"].items()}
            self._act(self._manager.worker_ready(number, socket_path, signatures, now))
            return True
        if report["event"] == "incomplete":
            self._act(self._manager.worker_incomplete(number, report["message"], now))
        else:
            self._act(self._manager.worker_failed(number, Code(report["code"]), report["message"], now))
        return False

    async def _relay_stderr(self, who: str, descriptor: int, hear: Callable[[str], None]) -> None:
        """Logs what a process's libraries print, and lets `hear` remember it."""
        reader = asyncio.StreamReader(limit=65536)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:  # a line beyond the limit: what was read of it is dropped
                    continue
                if not line:
                    return
                text = line.decode(errors="replace").rstrip()
                if not text or _CHATTER.match(text):
                    logger.debug("%s says: %s", who, text[:4000])
                    continue
                hear(text[:500])
                logger.warning("%s says: %s", who, text[:4000])
        finally:
            transport.close()

    def _relay_fork_server(self, descriptor: int) -> None:
        self._task(self._relay_stderr("the fork server", descriptor, lambda _: None))

    def _kill(self, worker: _Worker) -> None:
        worker.killed = True
        if worker.pid is not None:
            self._reaper.kill(worker.pid)

    async def _drain(self, worker: _Worker) -> None:
        """Unloads a version: first no front routes to it, then it ends what it has, then it goes."""
        self._publish()
        await self._all_acked(self._snapshot.serial)
        if worker.writer is not None and worker.pid is not None:
            with contextlib.suppress(OSError):
                worker.writer.write(b"drain\n")
            exited = self._reaper.exit_of(worker.pid)
            done, _ = await asyncio.wait([exited], timeout=self._options.drain_timeout_seconds)
            if not done:
                seconds = self._options.drain_timeout_seconds
                logger.warning(
                    "%s: requests still ran %g s after its unloading began; it is killed",
                    worker.action.servable,
                    seconds,
                )
                self._reaper.kill(worker.pid)

    # -- fronts ----------------------------------------------------------------------------------------------

    async def _on_front(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front: _Front | None = None
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), 10))
            front = _Front(hello["role"], writer)
            self._fronts.add(front)
            self._send(front, self._encoded(self._snapshot))
            while line := await reader.readline():
                message = json.loads(line)
                if "ack" in message:
                    front.acked = message["ack"]
                    self._acked.set()
                elif "serving" in message:
                    self._announce(front.role)
                elif "call" in message:
                    self._task(self._answer_call(front, message))
        except (OSError, ValueError, KeyError, TimeoutError) as error:
            logger.debug("a front's control connection ended: %s", error)
        finally:
            if front is not None:
                self._fronts.discard(front)
                self._acked.set()
            writer.close()

    async def _answer_call(self, front: _Front, message: dict[str, Any]) -> None:
        """Does what a front asks for, and answers it."""
        answer: dict[str, Any] = {"answer_to": message["call"]}
        try:
            answer["result"] = await self._call(message["method"], message["params"])
        except ServingError as error:
            answer |= {"code": int(error.code), "message": str(error)}
        except Exception as error:
            logger.exception("a front's call failed: %s", message["method"])
            answer |= {"code": int(Code.INTERNAL), "message": f"{type(error).__name__}: {error}"}
        self._send(front, json.dumps(answer).encode() + b"\n")

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        raise ServingError(Code.UNIMPLEMENTED, f"the supervisor cannot {method}")

    def _announce(self, role: str) -> None:
        self._serving[role] = self._serving.get(role, 0) + 1
        expected = {program.name.partition(" ")[0] for program in self._programs} & {"rest", "grpc"}
        if self._announced or not expected <= self._serving.keys():
            return
        self._announced = True
        host = self._options.bind_address
        shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        rest = None if self._listener is None else self._listener.getsockname()[1]
        grpc = None if self._grpc_holder is None else self._grpc_holder.getsockname()[1]
        places = [
            *([] if rest is None else [f"REST on http://{shown}:{rest}"]),
            *([] if grpc is None else [f"gRPC on {shown}:{grpc}"]),
            *([f"gRPC on unix:{self._options.grpc_socket_path}"] if self._options.grpc_socket_path else []),
        ]
        logger.info(
            "dropserve %s serves %s",
            __version__,
            " and ".join(places),
            extra={"fields": {"rest_api_port": rest, "port": grpc, "event": "serving"}},
        )

    @staticmethod
    def _encoded(snapshot: Snapshot) -> bytes:
        return json.dumps({"snapshot": snapshot.to_json()}).encode() + b"\n"

    def _publish(self) -> None:
        """Sends the fronts a new snapshot, if anything has changed."""
        ready = self._ready and not self._stopping
        if self._manager.revision == self._published and ready == self._snapshot.ready:
            return
        self._published = self._manager.revision
        routes = self._manager.routes()
        self._snapshot = Snapshot(self._snapshot.serial + 1, ready, routes)
        data = self._encoded(self._snapshot)
        for front in self._fronts:
            self._send(front, data)

    @staticmethod
    def _send(front: _Front, data: bytes) -> None:
        if front.writer.transport.get_write_buffer_size() > _MAX_LINE_BYTES:
            front.writer.transport.abort()  # it does not read: its end restarts it
            return
        front.writer.write(data)

    async def _all_acked(self, serial: int) -> None:
        """Waits until every front has adopted snapshot `serial`, for a while at most."""
        deadline = time.monotonic() + _ACK_SECONDS
        while any(front.acked < serial for front in self._fronts):
            self._acked.clear()
            delay = deadline - time.monotonic()
            if delay <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._acked.wait(), delay)

    def _front_programs(self, control_path: str) -> list[Program]:
        options = self._options
        rest = effective(options.rest_workers, self._cores, 2, 4)
        grpc = effective(options.grpc_workers, self._cores, 2, 4)
        port = None if self._grpc_holder is None else self._grpc_holder.getsockname()[1]

        def settings(index: int, workers: int) -> FrontSettings:
            return FrontSettings(
                options=options,
                supervisor=os.getpid(),
                control_path=control_path,
                metrics_directory=self._metrics_directory,
                workers=workers,
                index=index,
                port=port,
                max_inflight_bytes=options.max_inflight_bytes // (rest + grpc),
            )

        def start_rest() -> int:
            environment = settings(0, rest).environment(os.environ)
            assert self._listener is not None
            return spawn("appliance.fronts.rest", environment, [self._listener.fileno()])

        def start_grpc(index: int) -> Callable[[], int]:
            def start() -> int:
                environment = settings(index, 1).environment(os.environ)
                return spawn("appliance.fronts.grpc_server", environment)

            return start

        programs = [] if self._listener is None else [Program("rest", start_rest)]
        if port is None:
            grpc = 1 if options.grpc_socket_path else 0  # one process owns the Unix socket
        return [*programs, *(Program(f"grpc {index}", start_grpc(index)) for index in range(grpc))]

    # -- processes that are kept running ---------------------------------------------------------------------

    def _keep(self, program: Program) -> None:
        self._programs.append(program)
        program.task = self._task(self._keep_running(program))

    async def _keep_running(self, program: Program) -> None:
        failures = 0
        while not program.stopping:
            started = time.monotonic()
            try:
                program.pid = program.start()
                how = describe_status(await self._reaper.exit_of(program.pid))
            except OSError as error:
                how = f"it could not be started: {error}"
            program.pid = None
            if program.stopping:
                break
            failures = failures + 1 if time.monotonic() - started < _STABLE_SECONDS else 1
            delay = 0.0 if failures == 1 else min(0.25 * 2.0 ** (failures - 2), _MAX_BACKOFF_SECONDS)
            logger.error("the %s process ended (%s); it is started again", program.name, how)
            await asyncio.sleep(delay)
        program.ended.set()

    async def _stop_programs(self, programs: Iterable[Program], seconds: float) -> None:
        programs = list(programs)
        for program in programs:
            program.stopping = True
            if program.pid is not None:
                self._reaper.kill(program.pid, signal.SIGTERM)
            elif program.task is not None:
                program.task.cancel()
                program.ended.set()
        waiters = [asyncio.create_task(program.ended.wait()) for program in programs]
        _, late = await asyncio.wait(waiters, timeout=seconds)
        for program, waiter in zip(programs, waiters, strict=True):
            if waiter in late and program.pid is not None:
                logger.warning("the %s process did not end within %.1f s; it is killed", program.name, seconds)
                self._reaper.kill(program.pid)

    # -- the end ---------------------------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        """Fronts first, which end their requests; then the workers that ran them."""
        logger.info("stopping: requests in flight may end within %g s", self._options.shutdown_grace_seconds)
        self._stopping = True
        deadline = time.monotonic() + self._options.shutdown_grace_seconds
        self._source.stop()
        self._publish()
        if self._listener is not None:
            self._listener.close()
        fronts = [program for program in self._programs if program is not self._fork_server.program]
        await self._stop_programs(fronts, max(deadline - time.monotonic() - 0.5, 0.1))
        self._fork_server.program.stopping = True
        workers = list(self._workers.values())
        for worker in workers:
            if worker.writer is not None:
                with contextlib.suppress(OSError):
                    worker.writer.write(b"drain\n")
            else:
                self._kill(worker)
        ends = [self._reaper.exit_of(worker.pid) for worker in workers if worker.pid is not None]
        if ends:
            await asyncio.wait(ends, timeout=max(deadline - time.monotonic(), 0.2))
        for worker in list(self._workers.values()):
            self._kill(worker)
        if self._fork_server.program.pid is not None:
            self._reaper.kill(self._fork_server.program.pid)
        if self._grpc_holder is not None:
            self._grpc_holder.close()


def _read_model_config(path: str) -> tuple[ModelConfig, ...]:
    try:
        with open(path, encoding="utf-8") as file:
            return parse_model_config(file.read(), path)
    except OSError as error:
        raise ConfigError(f"cannot read the model_config_file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the model_config_file {path} is not UTF-8 text: {error}") from None

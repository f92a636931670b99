"""The composition root: it carries out the manager's actions, runs the other processes, and ends them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import msgspec

from appliance.config.settings import Settings
from appliance.conversion.form_cache import form_cache
from appliance.core.errors import Code, ServingError
from appliance.core.routes import Snapshot
from appliance.core.servable import Form, ServableId
from appliance.gpu.client import GpuClient
from appliance.gpu.values import GpuStatus
from appliance.host.confinement import close_to_others
from appliance.host.ports import check_socket_path, hold_port, instance_directory, listen, remove_socket
from appliance.host.processes import Reaper, become_subreaper, set_name
from appliance.host.service_manager import Notifier
from appliance.lifecycle.actions import StartWorker
from appliance.lifecycle.manager import Manager
from appliance.lifecycle.replicas import Loaded
from appliance.metrics.keeper import MetricsKeeper
from appliance.source.content import Found
from appliance.supervisor.acceleration import Acceleration
from appliance.supervisor.controller import Controller
from appliance.supervisor.front_programs import front_programs, log_serving
from appliance.supervisor.fronts import Fronts
from appliance.supervisor.load_checks import LoadChecks
from appliance.supervisor.models import Models, log_warnings
from appliance.supervisor.odd_shape_trials import OddShapeTrials
from appliance.supervisor.placement import Placement
from appliance.supervisor.process_memory import ProcessMemory
from appliance.supervisor.profiler import Profiler
from appliance.supervisor.programs import Program, Programs
from appliance.supervisor.start_checks import check_files, log_sandbox, may_accelerate
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.verification import Verification
from appliance.supervisor.watch import Watch
from appliance.supervisor.worker_end import WorkerEnd
from appliance.supervisor.worker_reports import Failure
from appliance.supervisor.workers import Workers

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 60.0  # that a version that is unloaded has for its requests


class Supervisor:
    """One server. `run()` serves until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings] | None = None) -> None:
        """`reread` gives the settings anew, for SIGHUP; it raises ConfigError if they cannot be used."""
        self._settings = settings
        options = self._options = settings.options
        self._cores = len(os.sched_getaffinity(0))
        self._tasks = Tasks()
        self._reaper = Reaper()
        self._programs = Programs(self._reaper)
        self._manager = Manager(
            options.max_num_load_retries,
            options.load_retry_interval_micros / 1e6,
            options.max_concurrent_loads or max(4, 2 * self._cores),
            options.allow_version_labels_for_unavailable_models,
            options.slow_load_seconds,
        )
        self._controller = Controller(self._manager, self)
        self._models = Models(settings, reread, self._controller, self._tasks)
        self._watch = Watch(options.hang_seconds, self._hung, self.decided)
        self._fronts = Fronts(
            self._tasks, self._call, self._announce, self._fold_metrics, self._watch, self._programs.has_started
        )
        self._cache = form_cache(options)
        self._acceleration = Acceleration(
            self._controller,
            self._models.options_of,
            self._tasks,
            self._reaper,
            self._cache,
        )
        self._odd_shapes = OddShapeTrials(self._controller, self._models.options_of, self._tasks)
        self._published = 0  # the manager's revision that the fronts have
        self._ready = False
        self._leaving = False  # it still serves, but is not ready any more
        self._stopping = False
        self._stop_requested = asyncio.Event()
        self._wake = asyncio.Event()
        self._later: list[Program] = []  # fronts that start once the first models are loaded
        self._serving: set[str] = set()  # the fronts that have taken requests
        self._announced = False
        self._notifier = Notifier.from_environment(os.environ, os.getpid())
        self._passes = 0  # of the main loop
        self._reloads = 0  # that SIGHUP asked for and that have not ended

    async def run(self) -> int:
        """Serve, and return the exit status. Raises ConfigError if it cannot start."""
        options = self._options
        models = self._models.configured()
        self._monitoring_path = check_files(self._settings)
        log_warnings(self._settings)
        become_subreaper()
        set_name("dropserve")
        if options.sandbox != "off":
            close_to_others()
        self._reaper.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._tasks.start(self._keep_watchdog())
        self._listener = None if options.rest_api_port < 0 else listen(options.bind_address, options.rest_api_port)
        self._grpc_holder = None if options.port < 0 else hold_port(options.bind_address, options.port)
        if options.grpc_socket_path:
            check_socket_path(options.grpc_socket_path)
        directory, lock = instance_directory(options.runtime_dir)
        try:
            log_sandbox(options.sandbox)
            if may_accelerate(self._settings):
                await asyncio.to_thread(self._cache.key)
            self._metrics_directory = os.path.join(directory, "metrics")
            os.mkdir(self._metrics_directory, 0o700)
            self._metrics = MetricsKeeper(self._metrics_directory)
            self._workers = Workers(
                self,
                self._reaper,
                self._tasks,
                directory=directory,
                metrics_directory=self._metrics_directory,
                cores=self._cores,
                placement=Placement(self._gpu_status),
                watch=self._watch,
                checks=LoadChecks(self._reaper, self._tasks, self._metrics),
            )
            self._programs.keep(self._workers.fork_server.program)
            self._gpus = GpuClient(self._reaper, self._workers.by_pid)
            self._memory = ProcessMemory((self._workers, self._fronts))
            self._profiler = Profiler(self._workers, self._tasks, directory)
            self._verification = Verification(
                self._controller,
                self._models.options_of,
                self._workers,
                self._tasks,
                self._reaper,
                self._metrics,
                directory=directory,
                cache=self._cache,
            )
            control_path = os.path.join(directory, "control")
            control = await self._fronts.listen(control_path)
            self._later = front_programs(
                self._options,
                self._cores,
                self._listener,
                None if self._grpc_holder is None else self._grpc_holder.getsockname()[1],
                control_path=control_path,
                metrics_directory=self._metrics_directory,
                monitoring_path=self._monitoring_path,
                watch=self._watch,
            )
            if not options.listen_when_loaded or options.model_root:
                self._start_fronts()
            self._models.start(models)
            watching = self._tasks.start(self._watch.run())
            await self._loop()
            watching.cancel()  # from now on every process has a deadline for its end
            await self._shut_down()
            control.close()
        finally:
            self._reaper.stop()
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)
        logger.info("stopped")
        return 0

    # -- the main loop ---------------------------------------------------------------------------------------

    def _on_stop_signal(self) -> None:
        """Begin to stop: at once, or after shutdown_delay_seconds, for which /readyz sends load balancers away; a
        second signal ends that delay."""
        self._notifier.say("STOPPING=1")
        delay = self._options.shutdown_delay_seconds
        if self._leaving or delay == 0:
            self._stop_requested.set()
            return
        self._leaving = True
        logger.info("stopping in %g s (shutdown_delay_seconds); /readyz says so from now on", delay)
        asyncio.get_running_loop().call_later(delay, self._stop_requested.set)
        self._wake.set()

    def _on_hangup(self) -> None:
        if not self._stopping:
            self._tasks.start(self._reload())

    async def _reload(self) -> None:
        """Reload, and tell the service manager when it begins and when the last that was asked for has ended."""
        self._reloads += 1
        if self._announced:  # else READY=1 would stand for the first one
            # The time is for Type=notify-reload (systemd 253); older ones ignore it.
            self._notifier.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            await self._models.reload_settings()
        finally:
            self._reloads -= 1
            if self._announced and not (self._reloads or self._leaving or self._stopping):
                self._notifier.say("READY=1")

    async def _keep_watchdog(self) -> None:
        """Tell the service manager's watchdog, twice in the time that it waits, that the main loop makes its passes, or
        that what is in flight is ended, for which every step has a deadline."""
        while (seconds := self._notifier.watchdog_seconds) is not None:
            passes = self._passes
            self._wake.set()
            await asyncio.sleep(seconds / 2)
            if self._passes != passes or self._stopping:
                self._notifier.say("WATCHDOG=1")

    async def _loop(self) -> None:
        started = time.monotonic()
        ready_by = started + self._options.ready_timeout_seconds
        while not self._stop_requested.is_set():
            now = time.monotonic()
            self._passes += 1
            self._controller.post(Manager.tick)
            self._wake.clear()
            if not self._ready and ((list(self._manager.names()) and self._manager.all_tried()) or now >= ready_by):
                self._ready = True
            if self._later and (self._manager.all_decided() or now >= ready_by):
                self._start_fronts()
            self._publish()
            self._models.changed()
            self._acceleration.look()
            self._odd_shapes.look(self._workers)
            self._verification.look()
            moments = (self._manager.next_due, ready_by if self._later or not self._ready else None)
            due = [moment for moment in moments if moment is not None]
            delay = max(min(due) - time.monotonic(), 0.01) if due else None
            events = [asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(self._stop_requested.wait())]
            await asyncio.wait(events, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for event in events:
                event.cancel()

    # -- what the manager decides (`Effects`) ------------------------------------------------------------------

    def start_worker(self, action: StartWorker) -> None:
        options = self._models.options_of(action.servable.model)
        self._workers.start(action, options, self._acceleration.before(action, options))

    def kill_worker(self, number: int) -> None:
        self._workers.kill(number)

    def drain_worker(self, number: int) -> None:
        self._tasks.start(self._drain(number))

    def restarting(self, servable: ServableId) -> None:
        self._metrics.worker_restarted(servable.model)

    def demoted(self, servable: ServableId, why: str, lasting: bool) -> None:
        self._acceleration.demoted(servable, why, lasting)
        self._metrics.demoted(servable.model)

    def decided(self) -> None:
        self._wake.set()

    def _publish(self) -> None:
        """Send the fronts a new snapshot, if anything has changed."""
        is_serving = not self._leaving and not self._stopping
        ready = self._ready and is_serving and not self._watch.is_suspected("rest", "grpc")
        old = self._fronts.snapshot
        if self._manager.revision == self._published and ready == old.ready:
            return
        self._published = self._manager.revision
        self._fronts.publish(Snapshot(old.serial + 1, ready, self._manager.routes(), self._manager.ended()))
        self._notifier.status(self._status())

    def _status(self) -> str:
        """Return how the server stands, in one line for the service manager."""
        state = "serving" if self._announced else "starting"
        return "stopping" if self._leaving or self._stopping else f"{state}; {self._fronts.snapshot.summary()}"

    # -- workers ---------------------------------------------------------------------------------------------

    def form_found(self, number: int, form: Form) -> None:
        self._controller.post(lambda manager, _now: manager.form_found(number, form))

    def worker_ready(self, number: int, loaded: Loaded) -> None:
        self._controller.post(lambda manager, now: manager.worker_ready(number, loaded, now))

    def worker_failed(self, number: int, failure: Failure) -> None:
        if failure.is_incomplete:
            self._controller.post(lambda manager, now: manager.worker_incomplete(number, failure.reason, now))
        else:
            self._controller.post(lambda manager, now: manager.worker_failed(number, failure.code, failure.reason, now))

    def files_changed(self, number: int, model: str, files: Found) -> None:
        self._controller.post(lambda manager, now: manager.files_changed(number, files.digest, files.content, now))
        self._models.look(model)

    def lines_dropped(self, model: str, lines: int) -> None:
        self._metrics.lines_dropped(model, lines)

    def worker_ended(self, number: int, end: WorkerEnd) -> None:
        self._controller.post(
            lambda manager, now: manager.worker_ended(number, end.how, now, end.runs, end.fatal, end.attempt),
            lasting=end.crashed,
        )
        self._fold_metrics()

    async def _drain(self, number: int) -> None:
        """Unload a version: first no front routes to it, then it ends what it has, then it goes."""
        self._publish()
        await self._fronts.all_adopted()
        await self._workers.drain(number, _DRAIN_SECONDS)

    def _hung(self, role: str) -> None:
        self._metrics.hung(role)

    def _fold_metrics(self) -> None:
        """Add to the totals what a process that has ended has counted."""
        if not self._stopping:
            self._tasks.start(self._metrics.fold())

    # -- fronts ----------------------------------------------------------------------------------------------

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        """Do what a front asks for, and return the answer as JSON values. Raises ServingError."""
        if method == "reload":
            answer = await self._models.reload(params)
            # The routes of what is live are with the fronts before the client hears of it.
            self._publish()
            await self._fronts.all_adopted()
            return answer
        if method == "acceleration":
            servable = ServableId(params["model"], params["version"])
            report = self._acceleration.report(servable)
            return None if report is None else report | self._verification.shown(servable)
        if method == "stand_by":
            return await self._models.stand_by(ServableId(params["model"], params["version"]), params["seconds"])
        if method == "demote":
            servable = ServableId(params["model"], params["version"])
            return self._controller.post(lambda manager, now: manager.demote(servable, params["why"], now))
        if method == "gpu":
            return msgspec.to_builtins(await self._gpus.status(params["seconds"]))
        if method == "memory":
            return await self._memory.proportional()
        if method == "profile":
            return await self._profiler.trace(**params)
        if method == "end_profile":
            return await self._profiler.end(**params)
        raise ServingError(Code.UNIMPLEMENTED, f"the supervisor cannot {method}")

    async def _gpu_status(self, seconds: float) -> GpuStatus:
        return await self._gpus.status(seconds)

    def _start_fronts(self) -> None:
        programs, self._later = self._later, []
        for program in programs:
            self._programs.keep(program)

    def _announce(self, role: str) -> None:
        self._serving.add(role)
        # The first gRPC process owns the Unix socket.
        expected = self._programs.names & {"rest", "grpc 0"}
        if self._announced or not expected <= self._serving:
            return
        self._announced = True
        rest = None if self._listener is None else self._listener.getsockname()[1]
        grpc = None if self._grpc_holder is None else self._grpc_holder.getsockname()[1]
        log_serving(self._options, rest, grpc)
        if not self._leaving and not self._stopping:
            self._notifier.say("READY=1")
            self._notifier.status(self._status())

    # -- the end ---------------------------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        """End the fronts, which end their requests, and then the workers that ran them."""
        logger.info("stopping: requests in flight may end within %g s", self._options.shutdown_grace_seconds)
        self._stopping = True
        self._controller.stop()
        deadline = time.monotonic() + self._options.shutdown_grace_seconds
        self._models.stop()
        self._acceleration.stop()
        self._gpus.stop()
        self._publish()
        if self._listener is not None:
            self._listener.close()
        fronts_by = max(deadline - time.monotonic() - 0.5, 0.1)
        await self._programs.stop(fronts_by, but=self._workers.fork_server.program)
        await self._workers.stop(deadline)
        if self._grpc_holder is not None:
            self._grpc_holder.close()
        if self._options.grpc_socket_path:
            remove_socket(self._options.grpc_socket_path)  # where gRPC's process was killed

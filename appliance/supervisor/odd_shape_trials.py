"""Tries inputs of odd shapes on each version that TensorFlow can run, in processes that may die of them.

Requests that kill such a process are refused from then on, before a client sends one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from appliance.config.model_options import ModelOptions
from appliance.core.errors import ServingError
from appliance.core.poison import Kind, Runs
from appliance.core.servable import ServableId
from appliance.lifecycle.actions import StartWorker
from appliance.supervisor.controller import Controller
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.workers import Workers
from backends.registry import backend_for

_SETTLE_SECONDS = 2.0  # the version's first requests and the loads of other versions come first
_MAX_PROCESSES = 8  # each but the last has died: a model may die of every rank but its own
_SECONDS = 120.0
_MARGIN_SECONDS = 30.0  # for one process, besides its load


class OddShapeTrials:
    """The trials of all versions, one at a time. `options_of(model)` returns a model's options."""

    def __init__(
        self,
        controller: Controller,
        options_of: Callable[[str], ModelOptions],
        tasks: Tasks,
    ) -> None:
        self._controller = controller
        self._manager = controller.manager
        self._options_of = options_of
        self._tasks = tasks
        self._begun: dict[ServableId, str] = {}  # the digest of the files that were tried last
        self._looked = 0  # the manager's revision at the last look
        self._one = asyncio.Lock()  # each trial takes the memory of a model
        self._processes = 0

    def look(self, workers: Workers) -> None:
        """Start the trials of versions that have become available, and forget the versions that are gone."""
        if self._manager.revision == self._looked:
            return
        self._looked = self._manager.revision
        known = {
            ServableId(model.name, version.version)
            for model in self._manager.routes().values()
            for version in model.versions
        }
        self._begun = {servable: digest for servable, digest in self._begun.items() if servable in known}
        for servable, files, names in self._manager.served():
            options = self._options_of(servable.model)
            digest = files.digest or ""
            if backend_for(names, options.prefer_tflite_model) != "tensorflow" or self._begun.get(servable) == digest:
                continue
            self._begun[servable] = digest
            started = StartWorker(0, servable, files.path, names, digest=digest, content=files.content)
            self._tasks.start(self._try(workers, started, options))

    async def _try(self, workers: Workers, wanted: StartWorker, options: ModelOptions) -> None:
        servable, digest = wanted.servable, wanted.digest
        await asyncio.sleep(_SETTLE_SECONDS)
        async with self._one:
            deadline = time.monotonic() + _SECONDS
            first, why = 0, f"{_MAX_PROCESSES} processes were lost to others"
            for _ in range(_MAX_PROCESSES):
                if not any((known, files.digest) == (servable, digest) for known, files, _ in self._manager.served()):
                    if self._begun.get(servable) == digest:
                        del self._begun[servable]  # it has gone, or its worker has died: it may come back
                    return
                if time.monotonic() >= deadline:
                    why = f"no process is begun for it later than {_SECONDS:g} s after the first"
                    break
                self._processes += 1
                action = replace(wanted, worker=-self._processes)
                try:
                    trial = await workers.try_odd_shapes(
                        action, options, first, options.load_timeout_seconds + _MARGIN_SECONDS
                    )
                except (OSError, ValueError, KeyError, TimeoutError, ServingError) as error:
                    why = str(error) or "a process for it took too long"
                    break
                runs = trial.end.runs
                fatal = [one.kind for one in runs.held] if trial.end.fatal else []
                answered = runs.with_answered_of(workers.answered(servable, digest))
                self._tried(servable, digest, fatal, trial.end.fatal, answered)
                if not fatal:
                    why = trial.message
                    break
                first = trial.at + 1
            if why:
                self._controller.post(lambda manager, _now: manager.odd_shapes_skipped(servable, digest, why))

    def _tried(self, servable: ServableId, digest: str, fatal: Collection[Kind], how: str, answered: Runs) -> None:
        self._controller.post(lambda manager, _now: manager.odd_shapes_tried(servable, digest, fatal, how, answered))

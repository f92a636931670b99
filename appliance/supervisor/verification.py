"""Verifies in service what forms answer: has TensorFlow run samples of their requests again, and gives up a form that
was wrong.

TensorFlow starts for a batch and ends again: a form is served so that its memory is free. All that takes at most 1 % of
a core: in any hour, what the budget holds and what it gains are 36 s together.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.conversion.job import VERIFYING_PROCESS, job_spec
from appliance.conversion.text import Live
from appliance.core.errors import Code, ConfigError, ServingError
from appliance.core.servable import ServableId
from appliance.host.processes import Reaper
from appliance.lifecycle.successors import ServedForm
from appliance.metrics.keeper import MetricsKeeper
from appliance.source.scan import fingerprint
from appliance.supervisor.controller import Controller
from appliance.supervisor.cpu_budget import CpuBudget
from appliance.supervisor.job_process import run_process
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.workers import Workers
from appliance.worker.trials import check_memory_for_copy
from backends.contract import BackendError
from backends.samples import new_file, read_samples
from converters import counterexamples
from converters.identity import content_hash
from converters.live import MAX_DIFFERING, LiveReport
from converters.verifying import VerifyingSpec, wrong_samples

__all__ = ["Verification"]

logger = logging.getLogger(__name__)

_CAPACITY_SECONDS, _RATE = 18.0, 0.005  # of processor time; a second of it a second is one core
_FIRST_COST = 6.0  # processor seconds that a batch is expected to take, before one of the version has: mostly imports
_PROCESS_SECONDS = 600.0  # it may wait for a core that has nothing else to do
_DUE_SECONDS = 300.0
_ANSWER_SECONDS = 30.0
_AGAIN_SECONDS = 60.0  # after a batch could not begin, or failed
_TENSORFLOW_BYTES = 600 << 20  # that it takes besides the model
_NO_ROOM = "no room was left for them"
_FAILED = "their verification failed"


@dataclass(slots=True, eq=False)
class _Record:
    """What is known of one form that serves a version, and what a batch of its samples takes."""

    form: ServedForm
    live: Live = field(default_factory=Live)
    cost: float = _FIRST_COST
    agreed: dict[int, int] = field(default_factory=dict)  # by worker: the number of its last answer found equal


class Verification:
    """The verification of all forms, one batch at a time. `options_of(model)` returns a model's options; samples lie in
    `directory`, which nobody else can read."""

    def __init__(
        self,
        controller: Controller,
        options_of: Callable[[str], ModelOptions],
        workers: Workers,
        tasks: Tasks,
        reaper: Reaper,
        metrics: MetricsKeeper,
        *,
        directory: str,
        cache: FormCache,
    ) -> None:
        self._controller = controller
        self._manager = controller.manager
        self._options_of = options_of
        self._workers = workers
        self._tasks = tasks
        self._reaper = reaper
        self._metrics = metrics
        self._directory = directory
        self._cache = cache
        self._looked = 0  # the manager's revision at the last look
        self._records: dict[ServableId, _Record] = {}
        self._watched: set[int] = set()  # workers that a task asks for samples, or whose form was given up
        self._one = asyncio.Lock()
        self._budget = CpuBudget(_CAPACITY_SECONDS, _RATE, time.monotonic())

    def look(self) -> None:
        """Begin with the forms that have taken over, and forget those that have gone."""
        if self._manager.revision == self._looked:
            return
        self._looked = self._manager.revision
        forms = {form.servable: form for form in self._manager.forms()}
        for servable, record in list(self._records.items()):
            known = forms.get(servable)
            if known is None or known.form != record.form.form:
                del self._records[servable]
        self._watched &= {form.worker for form in forms.values()}
        for servable, form in forms.items():
            options = self._options_of(servable.model)
            if not form.worker or form.worker in self._watched or not (options.verify_first or options.verify_fraction):
                continue
            record = self._records.setdefault(servable, _Record(form))
            record.form = form  # with its newest worker
            self._watched.add(form.worker)
            self._tasks.start(self._watch(form, record))

    def shown(self, servable: ServableId) -> dict[str, Any]:
        """Return what is known of the form of `servable`, as JSON values; nothing if it is not verified."""
        record = self._records.get(servable)
        return {} if record is None else {"live": msgspec.to_builtins(record.live)}

    async def _watch(self, form: ServedForm, record: _Record) -> None:
        """Verify what one worker answers, until it ends or its form is given up."""
        try:
            wrong = ""
            while not wrong:
                try:
                    asked = {"seconds": _DUE_SECONDS}
                    if await self._ask(form, "samples_due", asked, _DUE_SECONDS + _ANSWER_SECONDS):
                        async with self._one:
                            wrong = await self._verify(form, record)
                except (OSError, ValueError, TimeoutError, BackendError) as error:
                    why = str(error) or f"it took longer than {_PROCESS_SECONDS:g} s"
                    if why != record.live.held_up:
                        logger.warning("%s: what its form answers is not verified now: %s", form.servable, why)
                    record.live = msgspec.structs.replace(record.live, held_up=why)
                    await asyncio.sleep(_AGAIN_SECONDS)
            await self._give_up(form, wrong)
        except ServingError as error:
            logger.debug("%s: its form is not verified any more: %s", form.servable, error)

    async def _verify(self, form: ServedForm, record: _Record) -> str:
        """Verify one batch, once there is processor time for it; return what was wrong with it, "" if nothing was.

        Raise OSError, ValueError, TimeoutError if that fails, BackendError if there is too little memory, and
        ServingError if the worker has ended.
        """
        await asyncio.sleep(self._budget.seconds_until(record.cost, time.monotonic()))
        if (await asyncio.to_thread(fingerprint, form.path)).digest != form.digest:
            raise ValueError("its files were changed since they were loaded")
        await asyncio.to_thread(check_memory_for_copy, form.path, _TENSORFLOW_BYTES)
        work_dir = tempfile.mkdtemp(prefix="verify-", dir=self._directory)
        try:
            samples = os.path.join(work_dir, "samples")
            file = new_file(samples)
            try:
                taken = await self._ask(form, "samples", {}, _ANSWER_SECONDS, file)
            finally:
                os.close(file)
            try:
                report = await self._run(form, record, work_dir, samples)
            except (OSError, ValueError, TimeoutError):
                await self._take_in(form, record, LiveReport(unjudged={_FAILED: taken["requests"]}), taken["dropped"])
                raise
            kept = await asyncio.to_thread(self._keep, form, work_dir) if report.difference else ""
        finally:
            await asyncio.to_thread(shutil.rmtree, work_dir, ignore_errors=True)
        if (await asyncio.to_thread(fingerprint, form.path)).digest != form.digest:
            logger.info("%s: its files have changed, and tell nothing of what its form answers", form.servable)
            return ""
        return await self._take_in(form, record, report, taken["dropped"], kept)

    async def _run(self, form: ServedForm, record: _Record, work_dir: str, samples: str) -> LiveReport:
        """Run one process on a file of samples, charge what it took, and return its report. Raise as `_verify`."""
        options = self._options_of(form.servable.model)
        job = job_spec(options, form.path, work_dir, self._cache)
        allowed = max(self._budget.level(time.monotonic()), 0.0)
        spec = VerifyingSpec(job, form.form.path, samples, allowed, dict(form.form.domains))
        line: dict[str, Any] = {}
        # What a process that is killed has used is not known.
        used = _CAPACITY_SECONDS
        try:
            async with asyncio.timeout(_PROCESS_SECONDS):
                how = await run_process(
                    self._reaper,
                    self._tasks,
                    f"{form.servable}'s verification",
                    VERIFYING_PROCESS,
                    spec,
                    device="cpu",
                    started=lambda _: None,
                    hear=line.update,
                )
            if "verified" not in line:
                used = line.get("cpu_seconds", used)
                raise ValueError(line.get("error") or f"its process {how}")
            report = msgspec.convert(line["verified"], LiveReport)
            used = record.cost = report.cpu_seconds
            return report
        finally:
            self._budget.charge(used, time.monotonic())

    def _keep(self, form: ServedForm, work_dir: str) -> str:
        """Keep the inputs of wrong answers, which a verification has left in `work_dir`, so that later proofs begin
        with them; return their file, "" without one. In a thread, since disks may be slow."""
        try:
            key = self._cache.key()
            if not key:
                return ""
            wrong = list(itertools.islice(read_samples(wrong_samples(work_dir)), MAX_DIFFERING))
            return counterexamples.keep(self._cache.folder, content_hash(form.path), key, wrong)
        except (OSError, ValueError, ConfigError) as error:
            logger.warning("inputs of wrong answers cannot be kept in %s: %s", self._cache.folder, error)
            return ""

    async def _take_in(
        self, form: ServedForm, record: _Record, report: LiveReport, dropped: int, kept: str = ""
    ) -> str:
        """Count what came of a batch; return what was wrong with it, "" if nothing was. `kept` is the file that has the
        inputs of wrong answers."""
        unjudged = {**report.unjudged, **({_NO_ROOM: dropped} if dropped else {})}
        record.live = _added(record.live, report, unjudged)
        counts = (("equal", report.equal), ("different", report.different), ("unjudged", sum(unjudged.values())))
        for outcome, count in counts:
            self._metrics.verified(form.servable.model, outcome, count)
        logger.debug("%s: %s; %.1f s of processor time", form.servable, record.live.text(), report.cpu_seconds)
        agreed = record.agreed[form.worker] = max(record.agreed.get(form.worker, 0), report.agreed)
        if not report.difference:
            return ""
        doubtful = 0
        with contextlib.suppress(ServingError, ValueError):  # it has ended, and so have its answers
            doubtful = await self._ask(form, "doubt", {"since": agreed}, _ANSWER_SECONDS)
        why = f"{record.live.text()}; {doubtful:,} doubtful answers since the last that was equal"
        why += f"; {report.difference}" + (f"; its inputs are kept in {kept}" if kept else "")
        return f"it answers otherwise than TensorFlow: {why}"

    async def _give_up(self, form: ServedForm, why: str) -> None:
        """Give up a form that was wrong, for good; again, if TensorFlow could not be loaded to take its place."""
        servable = form.servable
        while form in self._manager.forms():
            self._controller.post(lambda manager, now: manager.demote(servable, why, now, form.form), lasting=True)
            await asyncio.sleep(self._options_of(servable.model).load_timeout_seconds + _AGAIN_SECONDS)

    async def _ask(
        self, form: ServedForm, method: str, params: Mapping[str, Any], seconds: float, file: int | None = None
    ) -> Any:
        """Ask the worker of `form`. Raise ServingError if it has ended, ValueError for what else goes wrong."""
        try:
            return await self._workers.ask(form.worker, method, params, seconds, file)
        except ServingError as error:
            if error.code is Code.UNAVAILABLE:  # it has ended
                raise
            raise ValueError(str(error)) from error


def _added(live: Live, report: LiveReport, unjudged: Mapping[str, int]) -> Live:
    """Return what is known, with another batch."""
    reasons = dict(live.unjudged)
    for why, count in unjudged.items():
        reasons[why] = reasons.get(why, 0) + count
    return Live(live.equal + report.equal, live.different + report.different, reasons)

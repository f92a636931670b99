"""Finds forms for the versions that are served: one job at a time, its report, and what follows of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.conversion.job import PROCESS, job_spec
from appliance.conversion.text import demotion_text
from appliance.core.errors import ConfigError
from appliance.core.servable import Form, ServableId
from appliance.host.processes import Reaper
from appliance.lifecycle.actions import StartWorker
from appliance.source.scan import fingerprint
from appliance.supervisor.controller import Controller
from appliance.supervisor.job_process import run_process
from appliance.supervisor.tasks import Tasks
from backends.registry import BACKEND_OF, backend_for
from converters.entry import Entry, hold
from converters.report import Demotion, Report
from converters.spec import Job

logger = logging.getLogger(__name__)

_MAX_WHY = 500  # characters of what a framework says
# A job converts in up to two formats, by up to three entry points and in up to three precisions each, and each
# conversion has its own limit (`JobSpec.timeout_seconds`).
_JOB_SECONDS = 12 * 600.0
_SETTLE_SECONDS = 0.2
_OLD_JOB_SECONDS = 86400.0


@dataclass(slots=True, eq=False)
class _Case:
    """What is known of the acceleration of one version with certain files."""

    digest: str
    state: str = "queued"  # queued, running, done, failed
    progress: str = ""
    report: Report | None = None
    files: tuple[tuple[str, str], ...] = ()  # of the report's form: name, SHA-256
    pid: int | None = None
    entry: Entry | None = None  # of the cache: held, so that what is served is not evicted

    def shown(self) -> dict[str, Any]:
        """Return what clients see of it, as JSON's values."""
        report = {} if self.report is None else msgspec.to_builtins(self.report)
        demoted = "" if self.report is None else "; ".join(map(demotion_text, self.report.demotions))
        return {"state": self.state, "progress": self.progress, "demoted": demoted, **report}


class Acceleration:
    """`options_of(model)` are a model's options."""

    def __init__(
        self,
        controller: Controller,
        options_of: Callable[[str], ModelOptions],
        tasks: Tasks,
        reaper: Reaper,
        cache: FormCache,
    ) -> None:
        self._controller = controller
        self._manager = controller.manager
        self._options_of = options_of
        self._tasks = tasks
        self._reaper = reaper
        self._cache = cache
        self._cases: dict[ServableId, _Case] = {}
        self._looked = 0  # the manager's revision then
        self._one = asyncio.Lock()  # conversions take all that is left of the machine: one at a time
        self._work_dirs: list[str] = []
        self._swept = False  # what jobs of killed servers left behind, before the first job

    def look(self) -> None:
        """Start what is to be done for versions that have become available, and forget those that are gone."""
        if self._manager.revision == self._looked:
            return
        self._looked = self._manager.revision
        there = set()
        for model in self._manager.routes().values():
            there |= {ServableId(model.name, version.version) for version in model.versions}
        for servable in self._cases.keys() - there:
            self._forget(self._cases.pop(servable))
        for servable, path, digest, names in self._manager.own_models():
            options = self._options_of(servable.model)
            case = self._cases.get(servable)
            if options.acceleration == "off" or backend_for(names, options.prefer_tflite_model) != "tensorflow":
                continue
            if case is None or case.digest != digest:
                if case is not None:
                    self._forget(case)
                self._cases[servable] = case = _Case(digest)
                self._tasks.start(self._accelerate(servable, path, case, options))

    def report(self, servable: ServableId) -> dict[str, Any] | None:
        """Return what is known of the acceleration of `servable`, as JSON values; None if nothing is."""
        case = self._cases.get(servable)
        if case is None:
            return None
        return {**case.shown(), "proof_inputs": self._options_of(servable.model).proof_inputs}

    def demoted(self, servable: ServableId, why: str, lasting: bool) -> None:
        """Note that the form of `servable` is not served any more; if that is `lasting`, in the cache too."""
        logger.warning("%s: its form is given up: %s", servable, why)
        case = self._cases.get(servable)
        if case is None or case.report is None or not case.report.form:
            return
        at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        demotion = Demotion(case.report.form, at, why[:_MAX_WHY])
        if lasting and case.entry is not None:
            self._tasks.start(self._remember(case, case.report, case.entry, demotion))
        case.report = _with_demotion(case.report, demotion)

    def before(self, action: StartWorker, options: ModelOptions) -> Coroutine[Any, Any, Form | None] | None:
        """Return what finds the form for a version that waits for it before it is served; None if it waits for none."""
        wanted = options.wait_for_acceleration and options.acceleration != "off" and action.may_find_form
        if not wanted or backend_for(action.names, options.prefer_tflite_model) != "tensorflow":
            return None
        return self._form_for(action.servable, action.path, action.digest, options)

    @staticmethod
    async def _remember(case: _Case, report: Report, entry: Entry, demotion: Demotion) -> None:
        """Keep `demotion` of the form in `report`: in a thread, since the disk may be slow."""
        case.report = _with_demotion(report, await asyncio.to_thread(entry.demote, demotion))

    async def _form_for(self, servable: ServableId, path: str, digest: str, options: ModelOptions) -> Form | None:
        case = self._cases.get(servable)
        if case is None or case.digest != digest:
            case = self._cases[servable] = _Case(digest)
            await self._find(servable, path, case, options)
        return self._form(case)

    def stop(self) -> None:
        for case in self._cases.values():
            self._forget(case)
        for work_dir in self._work_dirs:
            shutil.rmtree(work_dir, ignore_errors=True)

    # -- one job ---------------------------------------------------------------------------------------------

    async def _accelerate(self, servable: ServableId, path: str, case: _Case, options: ModelOptions) -> None:
        await asyncio.sleep(_SETTLE_SECONDS)  # the version answers its first requests undisturbed
        await self._find(servable, path, case, options)
        form = self._form(case)
        if form is not None and self._cases.get(servable) is case:
            self._controller.post(lambda manager, now: manager.accelerate(servable, form, case.digest, now))

    async def _find(self, servable: ServableId, path: str, case: _Case, options: ModelOptions) -> None:
        """Run the job of `case`, and keep its report."""
        async with self._one:
            if self._cases.get(servable) is not case:
                return  # it has gone while others were converted
            case.state = "running"
            try:
                await _check_unchanged(path, case)
                async with asyncio.timeout(_JOB_SECONDS):
                    found = await self._run(servable, path, case, options)
                await _check_unchanged(path, case)
                case.report = found
            except (OSError, ValueError, KeyError, TimeoutError, ConfigError) as error:
                case.state, case.progress = "failed", str(error) or "the job took too long"
                logger.error("%s: its acceleration failed: %s", servable, case.progress)
                return
            finally:
                self._end(case)
            case.state, case.progress = "done", ""
            report = case.report
            key = await asyncio.to_thread(self._cache.key)
            case.entry = await asyncio.to_thread(hold, report.folder, key) if report.folder else None
            logger.info(
                "%s: %s is served fastest: %s",
                servable,
                report.chosen,
                report.reason,
                extra={"fields": {"model": servable.model, "version": servable.version, "chosen": report.chosen}},
            )
            for demotion in report.demotions:
                logger.warning("%s: %s failed before: %s", servable, demotion.form, demotion_text(demotion))

    async def _run(self, servable: ServableId, path: str, case: _Case, options: ModelOptions) -> Report:
        """Run one process of a job. Raises OSError, ValueError, KeyError for what goes wrong with it, and ConfigError
        if the key of the cache cannot be used."""
        key = await asyncio.to_thread(self._cache.key)
        work_dir = await asyncio.to_thread(self._work_dir)
        self._work_dirs.append(work_dir)
        job = Job(job_spec(options, path, work_dir, self._cache), key)
        report: Report | None = None

        def started(pid: int) -> None:
            case.pid = pid

        def hear(message: Mapping[str, Any]) -> None:
            nonlocal report
            if "progress" in message:
                case.progress = str(message["progress"])[:500]
                logger.debug("%s: %s", servable, case.progress)
            elif "warning" in message:
                logger.warning("%s: %s", servable, message["warning"])
            elif "report" in message:
                report = msgspec.convert(message["report"], Report)
                case.files = tuple(sorted(message["files"].items()))
            else:
                raise ValueError(f"the job failed: {message['error']}")

        how = await run_process(
            self._reaper,
            self._tasks,
            f"{servable}'s conversion",
            PROCESS,
            job,
            device=options.device,
            started=started,
            hear=hear,
        )
        if report is None:
            raise ValueError(f"the job {how}")
        if not report.folder.startswith(work_dir):
            self._work_dirs.remove(work_dir)
            await asyncio.to_thread(shutil.rmtree, work_dir, ignore_errors=True)
        return report

    def _work_dir(self) -> str:
        """Return a new folder for a job: beside the cache's entries, so that they are moved and not copied there."""
        jobs = os.path.join(self._cache.folder, "jobs")
        if not self._swept:
            self._swept = True
            _remove_old(jobs)
        try:
            os.makedirs(jobs, mode=0o700, exist_ok=True)
            return tempfile.mkdtemp(prefix="job-", dir=jobs)
        except OSError as error:
            logger.warning(
                "converted models are not kept: %s cannot be written (%s); set cache_dir", jobs, error.strerror
            )
            return tempfile.mkdtemp(prefix="dropserve-job-")

    def _forget(self, case: _Case) -> None:
        self._end(case)
        if case.entry is not None:
            case.entry.close()
            case.entry = None

    def _end(self, case: _Case) -> None:
        if case.pid is not None:
            self._reaper.kill(case.pid)
            case.pid = None

    @staticmethod
    def _form(case: _Case) -> Form | None:
        report = case.report
        if report is None or report.chosen not in BACKEND_OF or not report.folder:
            return None
        if any(demotion.form == report.form for demotion in report.demotions):
            return None
        proofs = next((form.proofs for form in report.forms if form.name == report.form), ())
        domains = tuple((proof.signature, proof.domain) for proof in proofs)
        return Form(BACKEND_OF[report.chosen], report.folder, report.threads, domains, case.files)


async def _check_unchanged(path: str, case: _Case) -> None:
    """Raise ValueError if the files in the folder `path` are not those that the version has: a form of others must not
    serve it. Raise OSError if they cannot be read."""
    if (await asyncio.to_thread(fingerprint, path)).digest != case.digest:
        raise ValueError("its files were changed since they were loaded; drop a version with another number instead")


def _with_demotion(report: Report, demotion: Demotion) -> Report:
    return msgspec.structs.replace(report, demotions=(*report.demotions, demotion))


def _remove_old(jobs: str) -> None:
    """Remove what jobs of servers that were killed have left in the folder `jobs`."""
    with contextlib.suppress(OSError):
        for name in os.listdir(jobs):
            path = os.path.join(jobs, name)
            if time.time() - os.stat(path).st_mtime > _OLD_JOB_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

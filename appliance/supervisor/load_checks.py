"""What is looked at before a worker loads files, and again when it has: they are what was last seen, what was signed,
and what was proven.

Hashes are compared before, and what the file system says of the files (`source.scan.fingerprint`) before and after, so
that nothing else was loaded than what was compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from appliance.config.model_options import ModelOptions
from appliance.core.errors import Code, ConfigError, ServingError
from appliance.core.servable import Form, ServableId
from appliance.host.processes import Reaper
from appliance.lifecycle.actions import StartWorker
from appliance.metrics.keeper import MetricsKeeper
from appliance.signing.task import VerifyTask
from appliance.source.content import Found
from appliance.source.content import changed as changed_content
from appliance.source.scan import fingerprint
from appliance.source.threads import ScanThreads
from appliance.supervisor.job_process import run_process
from appliance.supervisor.tasks import Tasks
from converters.files import changed

__all__ = ["LoadChecks", "Looked", "check_signing", "look_again", "look_at"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0
_VERIFYING_PROCESS = "appliance.signing.process"


@dataclass(frozen=True, slots=True)
class Looked:
    """A folder whose files are what they should be, and its fingerprint then; or a `remark` on what is amiss, and no
    fingerprint."""

    path: str
    digest: str = ""
    remark: str = ""


def check_signing(models: Iterable[ModelOptions]) -> None:
    """Check the keys and certificates that the options of `models` name, before anything is served. Raise
    ConfigError."""
    from appliance.signing.trust import read_trust  # noqa: PLC0415 - without signatures, nobody needs what it loads

    for options in models:
        if options.model_signing != "off":
            if not options.model_signing_keys:
                raise ConfigError(
                    f"model_signing is {options.model_signing}, and model_signing_keys is empty",
                    "list the files of the public keys or certificates whose signatures are trusted",
                )
            try:
                read_trust(options.model_signing_keys)
            except ConfigError as error:
                raise ConfigError(f"model_signing_keys: {error.message}", error.remedy) from None


async def look_at(form: Form | None) -> tuple[Looked, ...]:
    """Return what was seen of the files of `form`, which is to be loaded; nothing without one. Raise ServingError if
    they are not what was proven."""
    return () if form is None else (await asyncio.to_thread(_look_at_form, form),)


async def look_again(looked: Iterable[Looked]) -> None:
    """Raise ServingError if files have changed since they were looked at: nobody knows what was loaded."""
    for each in looked:
        if each.digest and await asyncio.to_thread(_digest, each.path) != each.digest:
            raise ServingError(Code.DATA_LOSS, f"files in {each.path} were changed while they were loaded")


class LoadChecks:
    """Looks at version folders: whether they hold the files that were last seen, and what was signed, which a process
    of its own verifies."""

    def __init__(self, reaper: Reaper, tasks: Tasks, metrics: MetricsKeeper) -> None:
        self._reaper = reaper
        self._tasks = tasks
        self._metrics = metrics
        self._threads = ScanThreads()

    async def changed_files(self, action: StartWorker) -> Found | None:
        """Return what is in the folder of a worker instead of what it is to load, None if that is still there."""
        if not action.digest:
            return None
        look = self._threads.call(partial(changed_content, action.path, action.digest, action.content))
        try:
            files = await asyncio.wait_for(look, _LOOK_SECONDS)
        except OSError:  # the worker says of what it cannot read; its deadline is for file systems that hang
            return None
        if files is not None and files.content == action.content:
            logger.info("%s: its files were written to since they were looked at; they seem the same", action.servable)
            return None
        return files

    async def look_at_version(
        self, servable: ServableId, path: str, options: ModelOptions, *, to_serve: bool = True
    ) -> tuple[Looked, ...]:
        """Return what was seen of a version folder, which is to be loaded; nothing if nobody looks at signatures. Raise
        ServingError if it must be signed, and is not what was signed. What is not loaded `to_serve` is not counted."""
        if options.model_signing == "off":
            return ()
        try:
            async with asyncio.timeout(options.load_timeout_seconds):
                digest = await asyncio.to_thread(_digest, path)
                said = await self._verify(servable, VerifyTask(path, options.model_signing_keys))
        except TimeoutError:
            said = {"refused": f"it was not verified within {options.load_timeout_seconds:g} s (load_timeout_seconds)"}
        except (OSError, ValueError) as error:
            said = {"refused": f"it could not be verified: {error}"}
        refused = said.get("refused", "")
        if to_serve:
            outcome = "valid" if not refused else "missing" if said.get("missing") else "invalid"
            self._metrics.signature(servable.model, outcome)
        if not refused:
            logger.log(logging.INFO if to_serve else logging.DEBUG, "%s: signed by %s", servable, said["signer"])
            return (Looked(path, digest),)
        if options.model_signing == "require":
            raise ServingError(Code.FAILED_PRECONDITION, f"its signature: {refused}")
        if to_serve:
            text = "%s: its signature: %s; it is loaded all the same (model_signing is warn)"
            logger.warning(text, servable, refused)
        return (Looked(path, remark=f"its signature: {refused}"),)

    async def _verify(self, servable: ServableId, task: VerifyTask) -> dict[str, Any]:
        """Return what the process that verifies has said. Raise OSError, ValueError."""
        said: dict[str, Any] = {}
        how = await run_process(
            self._reaper,
            self._tasks,
            f"{servable}'s verification of its signature",
            _VERIFYING_PROCESS,
            task,
            device="cpu",
            started=lambda _: None,
            hear=said.update,
        )
        if not {"signer", "refused"} & said.keys():
            raise ValueError(f"its process {how}")
        return said


def _look_at_form(form: Form) -> Looked:
    looked = Looked(form.path, _digest(form.path))
    if name := changed(form.path, dict(form.files)):
        raise ServingError(Code.DATA_LOSS, f"{form.path}/{name} is not what was proven: it is missing, or was changed")
    return looked


def _digest(path: str) -> str:
    try:
        return fingerprint(path).digest
    except OSError as error:
        raise ServingError(Code.DATA_LOSS, f"{path} cannot be read: {error.strerror or error}") from None

"""What a worker says on its control connection until it serves, and who hears of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from appliance.core.errors import Code
from appliance.core.outcomes import Outcome, Trial, Trials
from appliance.core.servable import Form, ServableId
from appliance.core.signature_limit import why_too_large
from appliance.host.confinement import Confined
from appliance.lifecycle.replicas import Loaded
from appliance.source.content import Found
from appliance.supervisor.worker_end import WorkerEnd
from backends.contract import Signature

__all__ = ["MAX_LINE_BYTES", "Failure", "Reports", "loaded_of", "next_report"]

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 4 << 20
"""The most that a worker says in one line: signatures, and what came of their trials."""

_STILL_LOADING_SECONDS = 10.0
_MAX_REASON = 10_000
_MAX_REMARKS = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker has not loaded; `is_incomplete` if files were missing in its folder."""

    code: Code
    reason: str
    is_incomplete: bool = False


class Reports(Protocol):
    """What hears how workers fare, in the event loop; `number` is the StartWorker's."""

    def form_found(self, number: int, form: Form) -> None:
        """It will load `form`, for which it has waited."""

    def worker_ready(self, number: int, loaded: Loaded) -> None: ...

    def worker_failed(self, number: int, failure: Failure) -> None:
        """It has not loaded. Its process has ended, or cannot be ended; `worker_ended` follows when it has."""

    def files_changed(self, number: int, model: str, files: Found) -> None:
        """Its process is not started, because the files of `model` that it was to load are not there any more."""

    def worker_ended(self, number: int, end: WorkerEnd) -> None: ...
    def lines_dropped(self, model: str, lines: int) -> None: ...


class Progress:
    """What a worker does until it reports: the made-up request of its warm-up that it is at, as the signature and the
    number there, None if it is at none."""

    def __init__(self) -> None:
        self.attempt: tuple[str, int] | None = None
        self.stage = "loading"
        self.confined = Confined()

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take in a message of event "progress", or "confined", which comes before the model is loaded."""
        if message["event"] == "confined":
            self.confined = Confined(tuple(message["by"]), tuple(message["missing"]))
            return
        self.stage = message["stage"]
        self.attempt = None
        if "attempt" in message:
            signature, number = message["attempt"]
            self.attempt = signature, number


async def next_report(reader: asyncio.StreamReader, servable: ServableId, progress: Progress) -> dict[str, Any] | None:
    """Return a worker's report, None if it ends without one. Until it comes, log what the worker does, and that it is
    alive.

    Raises ValueError, KeyError for what is no message, and OSError.
    """
    started = time.monotonic()
    silent_until = started + _STILL_LOADING_SECONDS
    line = asyncio.ensure_future(reader.readline())
    try:
        while True:
            done, _ = await asyncio.wait([line], timeout=max(silent_until - time.monotonic(), 0.0))
            if not done:
                logger.info("%s: still %s after %.0f s", servable, progress.stage, time.monotonic() - started)
                silent_until = time.monotonic() + _STILL_LOADING_SECONDS
                continue
            if not line.result():
                return None
            message: dict[str, Any] = json.loads(line.result())
            if message["event"] not in ("progress", "confined"):
                progress.attempt = None
                return message
            progress.hear(message)
            line = asyncio.ensure_future(reader.readline())
    finally:
        line.cancel()


def loaded_of(
    report: Mapping[str, Any], servable: ServableId, socket_path: str, confined_by: tuple[str, ...]
) -> Loaded | Failure:
    """Return what a worker's report says. What is for the operator alone is logged.

    All that it says goes to every front, and its process may do what its model wants: so all is bounded here too.
    """
    if report["event"] == "incomplete":
        return Failure(Code.FAILED_PRECONDITION, report["message"][:_MAX_REASON], is_incomplete=True)
    if report["event"] != "ready":
        return Failure(Code(report.get("code", Code.INTERNAL)), report["message"][:_MAX_REASON])
    if why := why_too_large(report["signatures"], report["unsupported"]):
        return Failure(Code.INVALID_ARGUMENT, why)
    in_warmup = msgspec.convert(report["warmup_trials"], dict[str, Trial])
    trials = msgspec.convert(report["trials"], dict[str, Trial] | None)
    _log_warmup(servable, report["warmup"], in_warmup if trials is None else trials)
    if report.get("device") == "cuda":
        logger.info("%s: runs on a GPU", servable)
    for name, reason in report["unsupported"].items():
        logger.warning("%s: signature %r cannot be served: %s", servable, name, reason)
    failed = [f"{name}: {trial.message}" for name, trial in in_warmup.items() if trial.outcome is Outcome.FAILED]
    return Loaded(
        socket_path,
        msgspec.convert(report["signatures"], dict[str, Signature]),
        trials,
        tuple(remark[:_MAX_REASON] for remark in report["remarks"][:_MAX_REMARKS]),
        report["unsupported"],
        failed[0] if failed else "",
        confined_by,
    )


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

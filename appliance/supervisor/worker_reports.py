"""What a worker says on its control connection until it serves, and who hears of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
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

__all__ = ["MAX_LINE_BYTES", "UNREADABLE", "Failure", "OddReport", "Reports", "loaded_of", "next_report", "odd_reports"]

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 4 << 20
"""The most that a worker says in one line: signatures, and what came of their trials."""

UNREADABLE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What is raised by what a worker says, if it is no report: its process may do what its model wants."""

_STILL_LOADING_SECONDS = 10.0
_MAX_REASON = 10_000
_MAX_REMARKS = 100
_MAX_TOLD_BYTES = 16 << 20  # of all that a worker says before it serves; tens of kilobytes are usual


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


class _Stage(msgspec.Struct):
    """A report of event "progress"."""

    stage: str
    attempt: tuple[str, int] | None = None


class _Warmup(msgspec.Struct):
    """What came of the warm-up, for the log."""

    source: str
    message: str
    requests: int = 0
    seconds: float = 0.0
    mergeable: list[str] = []


class _Ready(msgspec.Struct):
    """A report of event "ready"."""

    signatures: dict[str, Signature]
    unsupported: dict[str, str]
    warmup: _Warmup
    warmup_trials: dict[str, Trial]
    trials: dict[str, Trial] | None
    remarks: list[str]
    device: str = ""


class _Failed(msgspec.Struct):
    """A report of event "failed" or "incomplete"."""

    message: str
    code: Code = Code.INTERNAL


class OddReport(msgspec.Struct):
    """What a process that tries odd shapes says of the one that it is at."""

    event: str
    index: int | None = None
    message: str = ""


class Progress:
    """What a worker does until it reports: the made-up request of its warm-up that it is at, as the signature and the
    number there, None if it is at none."""

    def __init__(self) -> None:
        self.attempt: tuple[str, int] | None = None
        self.stage = "loading"
        self.confined = Confined()
        self._is_confined = False

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take in a message of event "progress", or the first of event "confined", which comes before the model is
        loaded: what says so later may be the model. Raise ValueError, KeyError for what is neither."""
        if message["event"] == "confined":
            if not self._is_confined:
                self.confined, self._is_confined = msgspec.convert(message, Confined), True
            return
        stage = msgspec.convert(message, _Stage)
        self.stage, self.attempt = stage.stage[:_MAX_REASON], stage.attempt


async def next_report(reader: asyncio.StreamReader, servable: ServableId, progress: Progress) -> dict[str, Any] | None:
    """Return a worker's report, None if it ends without one. Until it comes, log what the worker does, and that it is
    alive.

    Raises one of UNREADABLE for what is no message, and if it says too much; and OSError.
    """
    told = 0
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
            told = _added(told, line.result())
            message: dict[str, Any] = json.loads(line.result())
            if message["event"] not in ("progress", "confined"):
                progress.attempt = None
                return message
            progress.hear(message)
            line = asyncio.ensure_future(reader.readline())
    finally:
        line.cancel()


async def odd_reports(reader: asyncio.StreamReader) -> AsyncIterator[OddReport]:
    """Yield what a process that tries odd shapes says. Raise ValueError for what is no report, and if it says too
    much; and OSError."""
    told = 0
    while line := await reader.readline():
        told = _added(told, line)
        report = msgspec.json.decode(line, type=OddReport)
        yield msgspec.structs.replace(report, message=report.message[:_MAX_REASON])
        await asyncio.sleep(0)  # what has come may be many reports, and others are heard too


def _added(told: int, line: bytes) -> int:
    """Return the bytes that a process has said, with another line. Raise ValueError if they are too many."""
    told += len(line)
    if told > _MAX_TOLD_BYTES:
        raise ValueError(f"it says more than {_MAX_TOLD_BYTES:,} bytes before it has loaded")
    return told


def loaded_of(
    report: Mapping[str, Any], servable: ServableId, socket_path: str, confined_by: tuple[str, ...]
) -> Loaded | Failure:
    """Return what a worker's report says. What is for the operator alone is logged.

    All that it says goes to every front, and its process may do what its model wants: so all is bounded here, and of
    the types that fronts expect. Raise one of UNREADABLE for what is not.
    """
    if report["event"] != "ready":
        failed = msgspec.convert(report, _Failed)
        if report["event"] == "incomplete":
            return Failure(Code.FAILED_PRECONDITION, failed.message[:_MAX_REASON], is_incomplete=True)
        return Failure(failed.code, failed.message[:_MAX_REASON])
    if why := why_too_large(report["signatures"], report["unsupported"]):
        return Failure(Code.INVALID_ARGUMENT, why)
    ready = msgspec.convert(report, _Ready)
    _check_types(ready.signatures)
    in_warmup = _cut(ready.warmup_trials)
    trials = None if ready.trials is None else _cut(ready.trials)
    _log_warmup(servable, ready.warmup, in_warmup if trials is None else trials)
    if ready.device == "cuda":
        logger.info("%s: runs on a GPU", servable)
    for name, reason in ready.unsupported.items():
        logger.warning("%s: signature %r cannot be served: %s", servable, name, reason)
    failures = [f"{name}: {trial.message}" for name, trial in in_warmup.items() if trial.outcome is Outcome.FAILED]
    return Loaded(
        socket_path,
        ready.signatures,
        trials,
        tuple(remark[:_MAX_REASON] for remark in ready.remarks[:_MAX_REMARKS]),
        ready.unsupported,
        failures[0] if failures else "",
        confined_by,
    )


def _check_types(signatures: Mapping[str, Signature]) -> None:
    """Raise ValueError for an element type that there is not: whoever meets it later expects none."""
    for name, signature in signatures.items():
        for spec in (*signature.inputs.values(), *signature.outputs.values()):
            try:
                spec.element  # noqa: B018 - it is looked up
            except KeyError:
                raise ValueError(f"signature {name!r} has elements of type {spec.dtype!r}") from None


def _cut(trials: Trials) -> dict[str, Trial]:
    """Return `trials` with messages of a bounded length: a reason may be made of them."""
    return {name: replace(trial, message=trial.message[:_MAX_REASON]) for name, trial in trials.items()}


def _log_warmup(servable: ServableId, warmup: _Warmup, trials: Trials) -> None:
    if warmup.source != "none":
        text = f"{servable}: warmed up with {warmup.requests} requests in {warmup.seconds:.2f} s ({warmup.source})"
        if warmup.mergeable:
            text += f"; requests may be merged: {', '.join(warmup.mergeable)}"
        about = msgspec.to_builtins(warmup)
        logger.info(text, extra={"fields": {"model": servable.model, "version": servable.version, "warmup": about}})
    if warmup.message:
        logger.info("%s: left out of the warm-up: %s", servable, warmup.message)
    for signature, trial in trials.items():
        if trial.outcome is Outcome.FAILED:
            what = f"{trial.code.name}: {trial.message}"
            logger.warning("%s: signature %s fails whatever it is asked: %s", servable, signature, what)
        elif trial.outcome is Outcome.UNTRIED:
            logger.info("%s: signature %s was not tried: %s", servable, signature, trial.message)
        elif trial.outcome is Outcome.LATE or (
            trial.outcome is Outcome.REFUSED and trial.message not in warmup.message
        ):
            logger.info("%s: signature %s was not seen to answer (%s)", servable, signature, trial.message)

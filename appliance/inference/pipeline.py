"""Runs one request for every protocol: resolves a version, checks the request against it, and runs it there.

The answer carries the version that ran. If the version starts to drain in the meantime, all steps are repeated with the
newer snapshot, so that no answer comes from a version that the request was not checked against.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from appliance.core.errors import Code, ServingError
from appliance.core.poison import refusal, shape_text
from appliance.core.routes import ModelRoute, VersionRoute
from appliance.core.servable import ModelSpec
from appliance.inference.own_model import NobodyError, OwnModel
from appliance.inference.router import Router
from appliance.inference.runs import Answered, Check, OnAnswered, Run
from appliance.metrics.recording import RequestMetrics
from appliance.transport.connection import Arrays, Connection, DiedError, DrainingError, UnprovenInputError

__all__ = ["Pipeline", "Submitted"]

_ATTEMPTS = 3
_MAX_WANTED = 300  # characters of a signature's inputs in an error
# Errors that say nothing about the model: full queue, deadline, cancellation, or a worker that is gone.
_NO_ANSWER = frozenset({Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE})


class _Begun(NamedTuple):
    """An attempt: the version that it was resolved to by the snapshot with number `serial`, and what it runs there."""

    serial: int
    model: ModelRoute
    version: VersionRoute
    runs: Sequence[Run]
    connection: Connection | None  # None if no worker takes requests


class _Failed(NamedTuple):
    """An attempt whose only run has failed in a way that may not be the end."""

    begun: _Begun
    error: Exception


class Pipeline:
    """Runs the requests of one front."""

    def __init__(self, router: Router, counts: RequestMetrics) -> None:
        self._router = router
        self._counts = counts
        self._own = OwnModel(router)

    async def run(self, spec: ModelSpec, check: Check, deadline_ns: int) -> Answered:
        """Run what `check` returns for the version that `spec` asks for, on that version.

        `deadline_ns` is in CLOCK_MONOTONIC nanoseconds. Raise ServingError.
        """
        return await self.go_on(None, spec, check, deadline_ns)

    def submit(self, spec: ModelSpec, check: Check, deadline_ns: int, done: OnAnswered) -> Submitted:
        """Do as `run`, without a task unless the request needs one. Raise ServingError, and call nothing then.

        Otherwise `done` is called once with the answer or the error, later, unless the request is cancelled before.
        """
        return Submitted(self, spec, check, deadline_ns, done)

    def begin(self, spec: ModelSpec, check: Check) -> _Begun:
        """Resolve the version, and check the request against it. Raise ServingError."""
        snapshot = self._router.snapshot
        model, version = snapshot.resolve(spec)
        runs = check(version)
        if version.refused:
            self._check_not_refused(model, version, runs)
        return _Begun(snapshot.serial, model, version, runs, self._router.connection_to(version))

    async def go_on(self, failed: _Failed | None, spec: ModelSpec, check: Check, deadline_ns: int) -> Answered:
        """Run a request, of which the first attempt may have `failed` already. Raise ServingError."""
        unproven: UnprovenInputError | None = None
        for _ in range(_ATTEMPTS):
            begun = self.begin(spec, check) if failed is None else failed.begun
            model, version = begun.model, begun.version
            if begun.connection is not None:
                try:
                    if failed is not None:
                        outputs: Sequence[Arrays] = (
                            await self._after(failed.error, begun, begun.runs[0], deadline_ns),
                        )
                    elif len(begun.runs) == 1:
                        outputs = (await self._one(begun, begun.connection, begun.runs[0], deadline_ns),)
                    else:
                        outputs = await self._all(begun, begun.connection, deadline_ns)
                    return Answered(model.name, version.version, outputs)
                except DrainingError:
                    pass
                except UnprovenInputError as error:
                    unproven = error
            failed = None
            await self._router.newer_snapshot(begun.serial, deadline_ns)
        if unproven is not None:
            self._counts.unproven(model.name)
            if time.monotonic_ns() >= deadline_ns:
                raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out while TensorFlow was loaded for this request")
            raise unproven
        raise ServingError(
            Code.UNAVAILABLE,
            f"Model {model.name} version {version.version} has no worker that takes requests",
            "it is being replaced or restarted; try again",
            retry_after_seconds=1,
        )

    async def _all(self, begun: _Begun, connection: Connection, deadline_ns: int) -> Sequence[Arrays]:
        """Return the outputs of all runs. Raise the error of the first run that failed, once all have ended."""
        each = [self._one(begun, connection, run, deadline_ns) for run in begun.runs]
        outputs = []
        for answer in await asyncio.gather(*each, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            outputs.append(answer)
        return outputs

    async def _one(self, begun: _Begun, connection: Connection, run: Run, deadline_ns: int) -> Arrays:
        """Return the outputs of one run. Raise the errors of `_after`."""
        try:
            return await connection.ask(run.signature, run.outputs, run.packed, deadline_ns)
        except ServingError as error:
            return await self._after(error, begun, run, deadline_ns)

    async def _after(self, error: Exception, begun: _Begun, run: Run, deadline_ns: int) -> Arrays:
        """Return the outputs of a run that has failed with `error`, if the model itself answers it.

        Raise ServingError, DrainingError if nothing ran, or UnprovenInputError if the model itself must run it and is
        not available.
        """
        if isinstance(error, UnprovenInputError):
            try:
                arrays = await self._own.answer(begun.model.name, begun.version, run, deadline_ns)
            except NobodyError:
                raise error from None
            except ServingError:
                self._counts.unproven(begun.model.name)
                raise
            self._counts.unproven(begun.model.name)
            return arrays
        if _is_final(error, begun.version) or not isinstance(error, ServingError):
            raise error
        return await self._own.opinion(begun.model.name, begun.version, run, deadline_ns, error)

    def _check_not_refused(self, model: ModelRoute, version: VersionRoute, runs: Sequence[Run]) -> None:
        """Raise INVALID_ARGUMENT for a request of a kind that has ended the version's process before."""
        for run in runs:
            declared = version.signatures[run.signature]
            found = refusal(version.refused, run.signature, declared, run.inputs)
            if found is None:
                continue
            self._counts.refused(model.name)
            wanted = ", ".join(
                f"{name}: {spec.dtype} {shape_text(spec.shape)}" for name, spec in declared.inputs.items()
            )
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"Refused by model {model.name} version {version.version}: {found}",
                f"the signature takes {wanted[:_MAX_WANTED]}",
            )


def _is_final(error: Exception, version: VersionRoute) -> bool:
    """Return whether `error`, from the worker of `version`, is the answer: nobody else may answer the request."""
    if isinstance(error, (DrainingError, UnprovenInputError)):
        return False
    says_nothing = isinstance(error, ServingError) and error.code in _NO_ANSWER and not isinstance(error, DiedError)
    return not version.form_backend or says_nothing


class Submitted:
    """A request in callbacks: it becomes a task only if the first attempt is not the last."""

    __slots__ = ("_begun", "_check", "_deadline_ns", "_done", "_pipeline", "_request_id", "_spec", "_task")

    def __init__(self, pipeline: Pipeline, spec: ModelSpec, check: Check, deadline_ns: int, done: OnAnswered) -> None:
        self._pipeline = pipeline
        self._spec = spec
        self._check = check
        self._deadline_ns = deadline_ns
        self._done: OnAnswered | None = done
        self._task: asyncio.Task[Answered] | None = None
        self._begun = begun = pipeline.begin(spec, check)
        if begun.connection is None or len(begun.runs) != 1:
            self._go_on(None)
            return
        (run,) = begun.runs
        self._request_id = begun.connection.submit(run.signature, run.outputs, run.packed, deadline_ns, self._on_answer)

    def cancel(self) -> None:
        """Give the request up: its client is gone."""
        self._done = None
        if self._task is not None:
            self._task.cancel()
        elif self._begun.connection is not None:
            self._begun.connection.cancel(self._request_id)

    def _on_answer(self, answer: Arrays | Exception) -> None:
        begun = self._begun
        if not isinstance(answer, Exception):
            self._end(Answered(begun.model.name, begun.version.version, (answer,)))
        elif _is_final(answer, begun.version):
            self._end(answer)
        else:
            self._go_on(_Failed(begun, answer))

    def _go_on(self, failed: _Failed | None) -> None:
        going = self._pipeline.go_on(failed, self._spec, self._check, self._deadline_ns)
        self._task = asyncio.get_running_loop().create_task(going)
        self._task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[Answered]) -> None:
        if task.cancelled():
            self._end(ServingError(Code.CANCELLED, "The request was cancelled"))
            return
        error = task.exception()
        if error is None:
            self._end(task.result())
        else:
            self._end(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def _end(self, answer: Answered | Exception) -> None:
        done, self._done = self._done, None  # break the reference cycle, so that no garbage collection is needed
        if done is not None:
            done(answer)

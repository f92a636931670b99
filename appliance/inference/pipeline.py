"""Runs one request for every protocol: resolves a version, checks the request against it, and runs it there.

The answer carries the version that ran. If the version starts to drain in the meantime, all steps are repeated with the
newer snapshot, so that no answer comes from a version that the request was not checked against.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from appliance.core.errors import Code, ServingError
from appliance.core.poison import refusal, shape_text
from appliance.core.routes import ModelRoute, VersionRoute
from appliance.core.servable import ModelSpec
from appliance.inference.own_model import NobodyError, OwnModel
from appliance.inference.router import Router
from appliance.inference.runs import Answered, Check, Run
from appliance.metrics.recording import RequestMetrics
from appliance.transport.connection import Arrays, Connection, DiedError, DrainingError, UnprovenInputError

__all__ = ["Pipeline"]

_ATTEMPTS = 3
_MAX_WANTED = 300  # characters of a signature's inputs in an error
# Errors that say nothing about the model: full queue, deadline, cancellation, or a worker that is gone.
_NO_ANSWER = frozenset({Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE})


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
        unproven: UnprovenInputError | None = None
        for _ in range(_ATTEMPTS):
            serial = self._router.snapshot.serial
            model, version = self._router.snapshot.resolve(spec)
            runs = check(version)
            if version.refused:
                self._check_not_refused(model, version, runs)
            connection = self._router.connection_to(version)
            if connection is not None:
                try:
                    if len(runs) == 1:
                        outputs: Sequence[Arrays] = (await self._one(connection, model, version, runs[0], deadline_ns),)
                    else:
                        outputs = await self._all(connection, model, version, runs, deadline_ns)
                    return Answered(model.name, version.version, outputs)
                except DrainingError:
                    pass
                except UnprovenInputError as error:
                    unproven = error
            await self._router.newer_snapshot(serial, deadline_ns)
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

    async def _all(
        self, connection: Connection, model: ModelRoute, version: VersionRoute, runs: Sequence[Run], deadline_ns: int
    ) -> Sequence[Arrays]:
        """Return the outputs of all `runs`. Raise the error of the first run that failed, once all have ended."""
        each = [self._one(connection, model, version, run, deadline_ns) for run in runs]
        outputs = []
        for answer in await asyncio.gather(*each, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            outputs.append(answer)
        return outputs

    async def _one(
        self, connection: Connection, model: ModelRoute, version: VersionRoute, run: Run, deadline_ns: int
    ) -> Arrays:
        """Return the outputs of one run.

        Raise ServingError, DrainingError if nothing ran, or UnprovenInputError if the model itself must run it and is
        not available.
        """
        try:
            return await connection.ask(run.signature, run.outputs, run.packed, deadline_ns)
        except UnprovenInputError as error:
            try:
                arrays = await self._own.answer(model.name, version, run, deadline_ns)
            except NobodyError:
                raise error from None
            except ServingError:
                self._counts.unproven(model.name)
                raise
            self._counts.unproven(model.name)
            return arrays
        except ServingError as error:
            says_nothing = error.code in _NO_ANSWER and not isinstance(error, DiedError)
            if not version.form_backend or says_nothing:
                raise
            return await self._own.opinion(model.name, version, run, deadline_ns, error)

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

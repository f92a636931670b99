"""Runs requests on the model itself while a form serves it.

This gives a second opinion on a form's error, and answers inputs that the form was not proven for.
"""

from __future__ import annotations

import time

from appliance.core.errors import ServingError
from appliance.core.routes import VersionRoute
from appliance.inference.router import Router
from appliance.inference.runs import Run
from appliance.transport.connection import Arrays, Connection, DiedError, DrainingError

__all__ = ["NobodyError", "OwnModel"]

_MAX_OPINIONS = 8
# A standby worker stays for 30 s after it was last asked for, so the supervisor is not asked at every request.
_STANDING_SECONDS = 5.0


class NobodyError(Exception):
    """No worker with the model itself is available."""


class OwnModel:
    """The standby workers, which run the models themselves beside their forms."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._opinions = 0  # that are being asked for now
        self._standing: dict[str, tuple[str, float]] = {}  # form's socket → standby worker's socket, asked (monotonic)

    async def opinion(
        self, model: str, version: VersionRoute, run: Run, deadline_ns: int, error: ServingError
    ) -> Arrays:
        """Return the answer of the model itself, after its form failed with `error`.

        If the model itself answers, the form is demoted. If it fails too, the error is the client's, and the model's
        own error is raised. Raise `error` if no standby worker is available, or if eight opinions are being asked for
        already.
        """
        if self._opinions >= _MAX_OPINIONS:
            raise error
        self._opinions += 1
        try:
            try:
                arrays = await self.answer(model, version, run, deadline_ns)
            except NobodyError:
                raise error from None
            if not isinstance(error, DiedError):  # the supervisor notices the death of a worker by itself
                why = f"{version.form_backend} failed where TensorFlow answers: {error}"
                self._router.tell("demote", {"model": model, "version": version.version, "why": why})
            return arrays
        finally:
            self._opinions -= 1

    async def answer(self, model: str, version: VersionRoute, run: Run, deadline_ns: int) -> Arrays:
        """Return the answer of the model itself, which is loaded beside its form if necessary.

        `deadline_ns` is in CLOCK_MONOTONIC nanoseconds. Raise ServingError, or NobodyError if no standby worker is
        available.
        """
        connection = await self._standing_by(model, version, deadline_ns)
        try:
            return await connection.ask(run.signature, run.outputs, run.packed, deadline_ns)
        except DrainingError as error:
            self._standing.pop(version.socket_path, None)
            raise NobodyError from error

    async def _standing_by(self, model: str, version: VersionRoute, deadline_ns: int) -> Connection:
        path, asked = self._standing.get(version.socket_path, ("", 0.0))
        now = time.monotonic()
        if path and now - asked <= _STANDING_SECONDS:
            try:
                return self._router.aside_to(path, model, version)
            except OSError:
                pass  # it has ended: ask for another
        seconds = max((deadline_ns - time.monotonic_ns()) / 1e9, 0.0)
        which = {"model": model, "version": version.version, "seconds": seconds}
        try:
            path = await self._router.call("stand_by", which, seconds)
            connection = self._router.aside_to(path, model, version)
        except (ServingError, OSError) as error:
            raise NobodyError from error
        now = time.monotonic()
        self._standing = {form: known for form, known in self._standing.items() if now - known[1] <= _STANDING_SECONDS}
        self._standing[version.socket_path] = path, now
        return connection

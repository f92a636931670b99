"""What the model itself answers, where a form of it serves: a second opinion, or what the form was not proven for."""

from __future__ import annotations

import time

from appliance.core.errors import ServingError
from appliance.core.routes import VersionRoute
from appliance.inference.router import Router
from appliance.inference.runs import Run
from appliance.transport.connection import Arrays, Connection, DiedError, DrainingError

__all__ = ["NobodyError", "OwnModel"]

_MAX_OPINIONS = 8
# What stands by does so for 30 s after it was last asked for: it is not asked for at every request.
_STANDING_SECONDS = 5.0


class NobodyError(Exception):
    """The model itself does not stand by."""


class OwnModel:
    """The workers that stand by for forms, on their own framework."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._opinions = 0  # that are being asked for now
        self._standing: dict[str, tuple[str, float]] = {}  # by the socket of its form: its own, and when it was asked

    async def opinion(
        self, model: str, version: VersionRoute, run: Run, deadline_ns: int, error: ServingError
    ) -> Arrays:
        """What the model itself answers, where its accelerated form failed with `error`. Where it answers, the form is
        demoted; where it refuses too, that is the client's error, and its words are the model's own."""
        if self._opinions >= _MAX_OPINIONS:
            raise error
        self._opinions += 1
        try:
            try:
                arrays = await self.answer(model, version, run, deadline_ns)
            except NobodyError:
                raise error from None
            if not isinstance(error, DiedError):  # the supervisor knows of deaths by itself
                why = f"{version.accelerated} failed where TensorFlow answers: {error}"
                self._router.tell("demote", {"model": model, "version": version.version, "why": why})
            return arrays
        finally:
            self._opinions -= 1

    async def answer(self, model: str, version: VersionRoute, run: Run, deadline_ns: int) -> Arrays:
        """What the model itself answers, which is loaded beside its accelerated form if need be. Raises ServingError,
        NobodyError where it is not to be had."""
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
                pass  # it has ended: another is asked for
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

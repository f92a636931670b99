"""How many versions load at once, and when one whose load or worker has failed is tried again. Pure."""

from __future__ import annotations

import math

from appliance.lifecycle.models import Version
from appliance.lifecycle.servables import Servables
from appliance.lifecycle.states import State

_STABLE_SECONDS = 60.0
_MAX_BACKOFF_SECONDS = 60.0


class Loads:
    """The models that wait for other loads to end, and the rules for another attempt. Times are monotonic seconds."""

    def __init__(self, max_retries: int, retry_interval_seconds: float, max_concurrent: int) -> None:
        self._max_retries = max_retries
        self._retry_interval_seconds = retry_interval_seconds
        self._max_concurrent = max_concurrent
        self._waiting: dict[str, None] = {}  # models that would load more than may load at once; first come first

    def are_full(self, servables: Servables) -> bool:
        """Whether no other version may begin to load now."""
        return servables.loading >= self._max_concurrent

    @property
    def waiting(self) -> list[str]:
        """The models whose versions wait for their turn, the first to come first."""
        return list(self._waiting)

    def is_waiting(self, model: str) -> bool:
        return model in self._waiting

    def wait(self, model: str, waits: bool) -> None:
        """Note whether the model has versions that would load and may not yet."""
        if waits:
            self._waiting.setdefault(model)
        else:
            self._waiting.pop(model, None)

    def retry(self, version: Version, now: float) -> str:
        """Decide when to try again what has not loaded, and return that in words."""
        version.attempts += 1
        if version.attempts > self._max_retries:
            version.retry_at = None
            return f"given up after {version.attempts} attempts; change the files to try again"
        version.retry_at = now + self._retry_interval_seconds
        return (
            f"attempt {version.attempts} of {self._max_retries + 1}; the next in "
            f"{self._retry_interval_seconds:g} s, or when the files change"
        )

    def retry_replacement(self, version: Version, now: float) -> None:
        """Decide when to try again the other files for a version that is served."""
        replacement = version.replacement
        if replacement is not None:
            replacement.attempts += 1
            given_up = replacement.attempts > self._max_retries
            replacement.retry_at = math.inf if given_up else now + self._retry_interval_seconds

    @staticmethod
    def restart(version: Version, now: float) -> None:
        """Decide when to start the next worker of a version whose worker has died."""
        service = version.service
        if version.state is State.AVAILABLE and now - service.since > _STABLE_SECONDS:
            service.crashes = 0
        # The first restart is immediate; a worker that keeps dying is started ever more seldom.
        service.crashes += 1
        delay = 0.0 if service.crashes == 1 else min(2.0 ** (service.crashes - 2), _MAX_BACKOFF_SECONDS)
        version.retry_at = now + delay

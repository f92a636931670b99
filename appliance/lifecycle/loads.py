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

    def __init__(
        self,
        servables: Servables,
        max_retries: int,
        retry_interval_seconds: float,
        max_concurrent: int,
        slow_seconds: float,
    ) -> None:
        self._servables = servables
        self._max_retries = max_retries
        self._retry_interval_seconds = retry_interval_seconds
        self._max_concurrent = max_concurrent
        self._slow_seconds = slow_seconds
        self._waiting: dict[str, None] = {}  # models that would load more than may load at once; first come first
        self._failed_or_slow: set[str] = set()  # models whose last load failed, or was slow

    # -- who may load ----------------------------------------------------------------------------------------

    def may_begin(self, model: str, now: float) -> bool:
        """Whether a version of `model` may begin to load now.

        A load that takes long holds no slot any more, so that a loader that hangs delays no other model for longer.
        Since each takes memory, there are never more than twice as many loads as slots; and a model that is slow or has
        failed gets none of those beyond the slots, nor one that another model waits for.
        """
        loading = len(self._servables.loading)
        suspects = self._suspects(now)
        if model in suspects:
            return self._waiting.keys() - {model} <= suspects and loading < self._max_concurrent
        fresh = sum(not self._is_slow(version, now) for version in self._servables.loading.values())
        return fresh < self._max_concurrent and loading < 2 * self._max_concurrent

    def next_slot(self, now: float) -> float:
        """Return when a slot becomes free although no load ends; infinite: never."""
        loading = self._servables.loading.values()
        fresh = [version.load_began for version in loading if not self._is_slow(version, now)]
        if not fresh or len(loading) >= 2 * self._max_concurrent:
            return math.inf
        return min(fresh) + self._slow_seconds

    def waiting(self, now: float) -> list[str]:
        """Return the models whose versions wait for their turn: the first to come first, those that are slow or have
        failed behind the others."""
        suspects = self._suspects(now)
        return sorted(self._waiting, key=lambda model: model in suspects)

    def ended(self, version: Version, now: float, has_loaded: bool) -> None:
        """Note how a load ended, before the version changes its state."""
        if has_loaded and not self._is_slow(version, now):
            self._failed_or_slow.discard(version.id.model)
        else:
            self._failed_or_slow.add(version.id.model)

    def forget(self, model: str) -> None:
        """Forget a model that is gone."""
        self._waiting.pop(model, None)
        self._failed_or_slow.discard(model)

    def _is_slow(self, version: Version, now: float) -> bool:
        return now >= version.load_began + self._slow_seconds

    def _suspects(self, now: float) -> set[str]:
        """Return the models whose last load failed or was slow, or that have one under way which is."""
        slow = {version.id.model for version in self._servables.loading.values() if self._is_slow(version, now)}
        return self._failed_or_slow | slow

    def is_waiting(self, model: str) -> bool:
        return model in self._waiting

    def wait(self, model: str, waits: bool) -> None:
        """Note whether the model has versions that would load and may not yet."""
        if waits:
            self._waiting.setdefault(model)
        else:
            self._waiting.pop(model, None)

    # -- when to try again -----------------------------------------------------------------------------------

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

"""How much processor time a background task may still use. Pure: the caller passes the time, in monotonic seconds."""

from __future__ import annotations

__all__ = ["CpuBudget"]


class CpuBudget:
    """A budget of `capacity` processor seconds, which is full at first and grows by `rate` seconds a second.

    Whatever was used is charged, so a budget may be overdrawn: it then takes so much longer until the next.
    """

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self.capacity = capacity
        self._rate = rate
        self._level = capacity
        self._at = now

    def level(self, now: float) -> float:
        """Return how many processor seconds may be used now; below 0 if it is overdrawn."""
        self._level = min(self.capacity, self._level + self._rate * (now - self._at))
        self._at = now
        return self._level

    def seconds_until(self, wanted: float, now: float) -> float:
        """Return in how many seconds `wanted` processor seconds are there, or all that there can be; 0: now."""
        return max(0.0, min(wanted, self.capacity) - self.level(now)) / self._rate

    def charge(self, used: float, now: float) -> None:
        """Take away what was used."""
        self._level = self.level(now) - used

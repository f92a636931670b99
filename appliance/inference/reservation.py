"""The bytes of one request that count as in flight, so that all requests together stay bounded."""

from __future__ import annotations

from typing import Self

from appliance.inference.router import Router

__all__ = ["Reservation"]


class Reservation:
    """A context manager: at its end, all that was added is released."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._nbytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._router.release(self._nbytes)

    def add(self, nbytes: int) -> None:
        """Raises ServingError (RESOURCE_EXHAUSTED) where too much is in flight."""
        self._router.reserve(nbytes, already=self._nbytes)
        self._nbytes += nbytes

"""The bytes of one request that are counted as in flight, so that all requests together stay bounded."""

from __future__ import annotations

from typing import Self

from appliance.inference.router import Router

__all__ = ["Reservation"]


class Reservation:
    """A context manager that releases at its end all bytes that were added."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._nbytes = 0
        self._answer_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._router.release(self._nbytes)

    def add(self, nbytes: int) -> None:
        """Count `nbytes` more as in flight. Raise ServingError (RESOURCE_EXHAUSTED) if too much is in flight."""
        self._router.reserve(nbytes, already=self._nbytes)
        self._nbytes += nbytes

    def check_answer(self, nbytes: int) -> None:
        """Raise ServingError if an answer of `nbytes` is too large, also if nothing else is in flight."""
        self._router.check_answer(nbytes)

    def add_answer(self, nbytes: int) -> None:
        """Count `nbytes` more of the answer. Raise ServingError as `add` does, and if the answer has too many."""
        self._answer_bytes += nbytes
        self._router.check_answer(self._answer_bytes)
        self.add(nbytes)

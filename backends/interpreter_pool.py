"""A pool of objects that serve one thread at a time, such as interpreters, made when they are first needed."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from backends.contract import BackendError, Code

T = TypeVar("T")


class InterpreterPool(Generic[T]):
    """Lends at most `size` objects that `make` makes; a borrower waits for at most `seconds`.

    A new object is made only if all others are lent. An object whose borrower failed is dropped, because its state is
    unknown.
    """

    def __init__(self, make: Callable[[], T], size: int, seconds: float) -> None:
        self._make = make
        self._size = size
        self._seconds = seconds
        # Last in, first out, so that few are made and those stay in the caches. None stands for one that is not made
        # yet.
        self._idle: queue.LifoQueue[T | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)

    @contextmanager
    def borrow(self) -> Iterator[T]:
        """Lend one object to the caller. Raise BackendError (RESOURCE_EXHAUSTED) if none is free in time."""
        try:
            found = self._idle.get(timeout=self._seconds)
        except queue.Empty:
            raise BackendError(
                Code.RESOURCE_EXHAUSTED,
                f"all {self._size} interpreters have been busy for {self._seconds:g} s; raise num_tflite_interpreters",
            ) from None
        returned: T | None = None
        try:
            lent = self._make() if found is None else found
            yield lent
            returned = lent
        finally:
            self._idle.put(returned)

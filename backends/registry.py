"""The backends by name: a new one is a module and a line here. Frameworks are imported on first use only."""

from __future__ import annotations

from collections.abc import Sequence

from backends.contract import Backend
from backends.saved_model import check_complete as check_saved_model

__all__ = ["BACKENDS", "check_complete", "load"]

BACKENDS = ("tensorflow",)


def check_complete(backend: str, path: str) -> None:
    """Raises IncompleteError where the version folder at `path` is not all there, BackendError where it is broken."""
    if backend == "tensorflow":
        check_saved_model(path)


def load(backend: str, path: str, *, tags: Sequence[str], intra_op_threads: int, inter_op_threads: int) -> Backend:
    """Loads the version folder at `path`. Thread counts of 0 leave the choice to the framework.

    Raises BackendError with the reason.
    """
    if backend == "tensorflow":
        from backends import tensorflow_backend  # noqa: PLC0415 - costs 1.5 s and 500 MB

        return tensorflow_backend.load(path, tags, intra_op_threads, inter_op_threads)
    raise ValueError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")

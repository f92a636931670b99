"""Names of what is served: a model, a version of it, the state that clients see, and a form of a version."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from backends.domain import Domain


@dataclass(frozen=True, slots=True, order=True)
class ServableId:
    """One version of one model."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a request asks for: a model, and at most one of a version number and a version label."""

    model: str
    version: int | None = None
    label: str = ""


class PublicState(IntEnum):
    """The values of `tensorflow.serving.ModelVersionStatus.State`."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class Form:
    """A converted model of a version: `backend` loads it from the folder `path` (see `backends.form`).

    `threads` is the number of threads it was measured with (0: the backend decides). `domains` gives, by signature, the
    inputs for which it was proven, and `files` the SHA-256 of each file, by its name, when it was.
    """

    backend: str
    path: str
    threads: int = 0
    domains: tuple[tuple[str, Domain], ...] = ()
    files: tuple[tuple[str, str], ...] = ()

"""What is served: a model by name, a version of it by number, and the state that clients see."""

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
    """What a request asks for: the model, and at most one of a version number and a version label."""

    model: str
    version: int | None = None
    label: str = ""


class PublicState(IntEnum):
    """The states of `tensorflow.serving.ModelVersionStatus.State`."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class Form:
    """An accelerated form of a version: `backend` loads the artifact in the folder `path` (`backends.artifact`), on
    as many `threads` as it was measured on (0: the backend's choice). `domains` says of its signatures for which inputs
    they were proven."""

    backend: str
    path: str
    threads: int = 0
    domains: tuple[tuple[str, Domain], ...] = ()

"""The workers of one version: what each is for, which files it was started on, and what it has reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from appliance.core.outcomes import Trials
from appliance.core.servable import Form
from backends.contract import Signature

__all__ = ["Attempt", "Files", "Loaded", "Replica", "Role"]


class Role(Enum):
    """What a worker is for."""

    SERVING = "serving"  # requests are routed to it once it is ready
    SUCCEEDING = "succeeding"  # it takes over as soon as it is ready
    STANDING_BY = "standing by"  # it runs the version's own model beside that of a form, to judge what the form refused


@dataclass(frozen=True, slots=True)
class Files:
    """A version folder at `path`, with what identifies the state of its files (None: it was not looked at), and what
    they contain ("": it is not known)."""

    path: str
    digest: str | None
    content: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker reports when it could serve.

    `trials` are None if none were asked for. `remarks` are for the operator. `unsupported` gives, by signature that is
    not served, the reason. `warmup_failure` is the failure of a warm-up request for which the worker had an answer to
    give, "" if there was none. `confined_by` names what confines its process.
    """

    socket_path: str
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    trials: Trials | None = None
    remarks: tuple[str, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)
    warmup_failure: str = ""
    confined_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """A made-up request that a worker's process died of, while it warmed up: the signature, its number there (see
    `appliance.worker.trials`), how the process ended, and `text`, which names the attempt for the operator."""

    signature: str
    number: int
    how: str = ""
    text: str = ""


@dataclass(slots=True, eq=False)
class Replica:
    """One worker of a version. Its number is that of the action which started it."""

    worker: int
    role: Role
    files: Files
    form: Form | None = None  # None: it runs the version's own model
    until: float = 0.0  # standing by: when it goes (monotonic seconds), unless it is asked for again
    left_out: tuple[Attempt, ...] = ()  # attempts of warm-up that processes before it have died of
    loaded: Loaded | None = None  # None: it still loads
    changes: tuple[str, ...] = ()  # how its signatures differ from those that were served before

"""What the manager wants done, and what it tells of: the supervisor carries it out, and logs it."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.servable import Form, ServableId
from appliance.lifecycle.replicas import Attempt


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a process for `servable`, whose folder is `path`, and report on it under the number `worker`.

    `names` are the model files in it, as they were last seen: they decide what runs it, without another look at a disk
    that may hang.
    """

    worker: int
    servable: ServableId
    path: str
    names: frozenset[str] = frozenset()
    form: Form | None = None  # what is loaded instead of the folder's own model
    digest: str = ""  # what identifies the state of its files
    content: str = ""  # and what they contain; "" if it is not known
    may_find_form: bool = False  # a form may be made first, and be loaded (the option wait_for_acceleration)
    is_tried: bool = False  # try its signatures: these files have not served yet
    check_files: bool = True  # see that the folder is all there, before the framework is asked to load it
    is_watched: bool = False  # a request has ended a process of it: see `appliance.core.poison`
    left_out: tuple[Attempt, ...] = ()  # made-up requests to leave out of the warm-up: processes have died of them


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Publish the routes without it, then let it end what it has accepted."""

    worker: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """End it at once: it has not served yet, and is not wanted any more."""

    worker: int


Action = StartWorker | DrainWorker | KillWorker


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The form of `servable` is served no more, or never was. `is_failure`: it has failed in service; else it could not
    be loaded, for which the machine may be to blame."""

    servable: ServableId
    why: str
    is_failure: bool = True


@dataclass(frozen=True, slots=True)
class StateChange:
    """A line for the log."""

    servable: ServableId
    old: str
    new: str
    reason: str
    is_warning: bool = False

"""What the manager knows: models, their versions, the workers of these, and how their states change."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from appliance.config.version_policy import Specific, VersionPolicy
from appliance.core.errors import Code
from appliance.core.poison import Suspects
from appliance.core.routes import ModelRoute, VersionRoute
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import StartWorker, StateChange
from appliance.lifecycle.release import ReleaseRules
from appliance.lifecycle.states import PUBLIC, Event, State, transition
from backends.contract import Signature

_MAX_ENDED = 256  # versions that are gone and told of: a server that reloads for ever must not grow
AT_REST = (State.SETTLING, State.FAILED, State.ENDED)  # no worker is there, or due


@dataclass(slots=True, eq=False)
class Successor:
    """A second worker of a version that is served (`appliance.lifecycle.successors`)."""

    path: str
    digest: str | None
    form: Form | None = None
    stands_by: bool = False
    until: float = 0.0  # standing by: when it goes, unless it is asked for again
    worker: int = 0
    socket_path: str = ""  # once it is ready
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Replacement:
    """Other files that are seen for a version that is served: in another folder, or where its own lay."""

    path: str
    digest: str
    attempts: int = 0
    retry_at: float = 0.0  # monotonic seconds; infinite: not before they change
    trusts_loader: bool = False


@dataclass(slots=True, eq=False)
class Version:
    id: ServableId
    path: str
    digest: str | None
    state: State = State.SETTLING
    settled: bool = False
    incomplete: bool = False
    judge_at: float | None = None  # incomplete: when it is loaded all the same, if nothing changes
    trusts_loader: bool = False  # it has looked incomplete for long: the framework says what is wrong, if anything is
    present: bool = True
    reason: str = ""
    code: Code = Code.OK
    worker: int | None = None
    socket_path: str = ""
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()  # of its worker, for the operator
    changes: tuple[str, ...] = ()  # how its signatures differ from those of the version whose place it took
    unsupported: Mapping[str, str] = field(default_factory=dict)  # signatures that are not served, and why
    attempts: int = 0
    crashes: int = 0
    served: float = 0.0  # seconds that it was available before `available_since`
    deaths: list[float] = field(default_factory=list)  # after how many seconds of service its worker died, the last few
    given_up: str = ""  # why another version is served instead, if there is one: it died again and again
    available_since: float = 0.0
    retry_at: float | None = None
    is_stale: bool = False  # other files are there than those that its worker was started on: they are looked at
    served_digest: str | None = None  # of the files that it has answered from
    refused_by_gate: bool = False  # why it has failed
    form: Form | None = None  # the accelerated form that its worker serves
    successor: Successor | None = None
    replacement: Replacement | None = None
    suspects: Suspects = field(default_factory=Suspects)  # of the files that it served last
    untried: str = ""  # why no odd shapes were tried, or not all

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders that its workers load from."""
        return (self.path,) if self.successor is None else (self.path, self.successor.path)

    @property
    def is_loadable(self) -> bool:
        if not self.present:
            return False
        if self.state in (State.SETTLING, State.ENDED):
            return self.settled and not self.incomplete
        return self.state is not State.FAILED

    @property
    def is_served_or_coming(self) -> bool:
        """Whether it answers, or its worker is on its way."""
        return self.state in (State.AVAILABLE, State.RESTARTING, State.LOADING)

    @property
    def is_to_be_looked_at(self) -> bool:
        """Whether its files count although it is loaded: others may be there, or more of what looked incomplete."""
        is_back = not self.present and self.state is State.AVAILABLE
        return self.is_stale or self.trusts_loader or is_back

    def serve_since(self, now: float) -> None:
        """It is available from `now` (monotonic) on, without a gap if it was before."""
        if self.suspects.files != self.digest:
            self.suspects, self.untried = Suspects(self.digest), ""
        if self.state is State.AVAILABLE:
            self.served += now - self.available_since
        self.available_since = now
        self.served_digest = self.digest

    def has_files_of(self, other: Successor | Replacement) -> bool:
        """Whether `other` is about the files that it serves."""
        return (self.path, self.digest) == (other.path, other.digest)

    @property
    def is_coming_back(self) -> bool:
        """Whether it is there again, and its old worker or a look at its files must still be waited for."""
        return self.present and (
            self.state is State.DRAINING or (self.state is State.ENDED and not self.settled and not self.given_up)
        )

    def is_succeeded_by(self, worker: int) -> bool:
        return self.successor is not None and self.successor.worker == worker

    def route(self) -> VersionRoute:
        available = self.state is State.AVAILABLE
        return VersionRoute(
            self.id.version,
            self.state.value,
            PUBLIC[self.state],
            self.code,
            self.reason,
            self.socket_path if available else "",
            self.signatures if available else {},
            "" if self.form is None else self.form.backend,
            (*self.remarks, *self.changes, *([self.untried] if self.untried else [])) if available else (),
            self.unsupported if available else {},
            self.suspects.refused if available else (),
        )


@dataclass(slots=True, eq=False)
class Model:
    name: str
    base_path: str
    policy: VersionPolicy
    labels: Mapping[str, int]  # as configured
    rules: ReleaseRules
    effective_labels: dict[str, int] = field(default_factory=dict)  # as routed: each follows once its version is there
    versions: dict[int, Version] = field(default_factory=dict)
    names: dict[str, frozenset[str]] = field(default_factory=dict)  # of model files in each folder, by its path
    reason: str = ""
    removed: bool = False
    seen: bool = False  # its folder has been looked at
    tried: bool = False  # a first attempt has ended, one way or the other
    due: float | None = None  # when the next attempt at a version that is wanted may begin

    @property
    def labelled(self) -> frozenset[int]:
        """The versions to serve because a label points at them. A specific policy has the last word: a label on another
        version, which is allowed for versions that are not available, makes nothing of it."""
        numbers = frozenset(self.labels.values())
        return numbers & self.policy.versions if isinstance(self.policy, Specific) else numbers

    def in_state(self, *states: State) -> set[int]:
        """The numbers of the versions that are in one of `states`."""
        return {number for number, version in self.versions.items() if version.state in states}

    def be_due(self, moment: float) -> None:
        """There is something to do at `moment`, if not before."""
        self.due = moment if self.due is None else min(self.due, moment)

    def loaded_versions(self) -> frozenset[int]:
        """The versions whose files need no more looking at."""
        states = (State.AVAILABLE, State.LOADING, State.RESTARTING, State.DRAINING)
        base_path = self.base_path.rstrip("/")
        return frozenset(
            n
            for n in self.in_state(*states)
            if os.path.dirname(self.versions[n].path) == base_path and not self.versions[n].is_to_be_looked_at
        )

    def route(self) -> ModelRoute:
        """What clients see of it, the newest version first."""
        return ModelRoute(
            self.name,
            tuple(
                version.route()
                for _, version in sorted(self.versions.items(), reverse=True)
                if version.state is not State.SETTLING or version.reason
            ),
            dict(self.effective_labels),
            self.base_path,
            self.reason,
        )


class Servables:
    """All models, by name; the versions by the numbers of their workers; and the changes that were made."""

    def __init__(self, labels_for_unavailable_versions: bool) -> None:
        self._labels_for_unavailable_versions = labels_for_unavailable_versions
        self._workers: dict[int, Version] = {}
        self._started: dict[int, tuple[ServableId, str | None]] = {}  # of each that has not ended: what, of which files
        self._next_worker = 1
        self._changes: list[StateChange] = []
        self._ended: dict[ServableId, VersionRoute] = {}  # the last state of versions that are gone, the oldest first
        self.models: dict[str, Model] = {}
        self.revision = 1  # grows with every change that the routes show

    def version(self, servable: ServableId) -> Version | None:
        """The version, where its model is still wanted."""
        model = self.models.get(servable.model)
        return None if model is None or model.removed else model.versions.get(servable.version)

    def version_of(self, worker: int) -> Version | None:
        return self._workers.get(worker)

    def model_of(self, version: Version) -> Model:
        return self.models[version.id.model]

    def ended(self) -> dict[str, tuple[VersionRoute, ...]]:
        """The last versions that are gone, by model."""
        found: dict[str, tuple[VersionRoute, ...]] = {}
        for servable, route in self._ended.items():
            found[servable.model] = (*found.get(servable.model, ()), route)
        return found

    def take_changes(self) -> list[StateChange]:
        changes, self._changes = self._changes, []
        return changes

    # -- workers ---------------------------------------------------------------------------------------------

    def start_worker(
        self,
        version: Version,
        path: str,
        digest: str | None,
        form: Form | None,
        is_first: bool = False,
        check_files: bool = True,
    ) -> StartWorker:
        """Another worker for the version: its number is in the action."""
        worker = self._next_worker
        self._next_worker += 1
        self._workers[worker] = version
        self._started[worker] = version.id, digest
        names = self.model_of(version).names.get(path, frozenset())
        is_tried = is_first or digest != version.served_digest
        is_watched = version.suspects.is_watched and digest == version.suspects.files and form is None
        start = StartWorker(worker, version.id, path, names, form, digest or "", is_first, is_tried, check_files)
        return replace(start, is_watched=is_watched)

    def forget_worker(self, worker: int) -> None:
        """The version has no part in what becomes of the worker any more; its process may live on for a while."""
        del self._workers[worker]

    def take_started(self, worker: int) -> tuple[ServableId, str | None] | None:
        """Return which version the worker, which has ended, was started for, and what identified the files; forget
        both. None if that was told before."""
        return self._started.pop(worker, None)

    # -- changes ---------------------------------------------------------------------------------------------

    def discover(self, model: Model, number: int, path: str, digest: str | None, remark: str) -> Version:
        """A version whose folder is seen for the first time."""
        version = model.versions[number] = Version(ServableId(model.name, number), path, digest)
        self._changes.append(StateChange(version.id, "", State.SETTLING.value, remark))
        return version

    def forget(self, version: Version, why: str) -> None:
        """The version is at rest, and it is gone. Its last state goes on to be told, as TensorFlow Serving's
        ServableStateMonitor does."""
        model = self.model_of(version)
        del model.versions[version.id.version]
        if version.state is not State.SETTLING:
            if version.state is State.FAILED:
                version.reason = f"{why}; it had failed: {version.reason}"
            self._ended.pop(version.id, None)
            self._ended[version.id] = version.route()
            if len(self._ended) > _MAX_ENDED:
                del self._ended[next(iter(self._ended))]
        self.move_labels(model)
        self.revision += 1

    def move(self, version: Version, event: Event, reason: str) -> None:
        old = version.state
        version.state = transition(old, event)
        version.reason = reason
        self.revision += 1
        self.move_labels(self.model_of(version))
        if version.state is State.ENDED and version.given_up:
            version.code = Code.UNAVAILABLE
        elif version.state is State.ENDED or event in (Event.LOAD, Event.FILES_CHANGED):
            version.code = Code.OK
        self._changes.append(StateChange(version.id, old.value, version.state.value, reason))

    def say(self, version: Version, text: str, is_warning: bool = False) -> None:
        """A change for the log that is no change of state."""
        self._changes.append(StateChange(version.id, version.state.value, version.state.value, text, is_warning))
        self.revision += 1

    def say_remarks(self, version: Version) -> None:
        """What the operator should know of a version that serves from now on."""
        for text in (*version.remarks, *version.changes):
            self.say(version, text, is_warning=True)

    def remark(self, of: Model | Version, reason: str) -> None:
        """Why it stands as it does, where nothing else changes."""
        if of.reason != reason:
            of.reason = reason
            self.revision += 1

    def move_labels(self, model: Model) -> None:
        """Points each label at its configured version as soon as that is available: until then it stays where it was,
        so that a promotion loses no request."""
        for label, number in model.labels.items():
            version = model.versions.get(number)
            new = self._labels_for_unavailable_versions and label not in model.effective_labels
            if new or (version is not None and version.state is State.AVAILABLE):
                model.effective_labels[label] = number
        for label, number in list(model.effective_labels.items()):
            version = model.versions.get(number)
            gone = version is None or version.state not in (State.AVAILABLE, State.RESTARTING)
            if gone and not (self._labels_for_unavailable_versions and model.labels.get(label) == number):
                del model.effective_labels[label]

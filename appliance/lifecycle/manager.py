"""The pure core: what is seen on disk and what happens to workers goes in, actions and routes come out.

No thread, socket, file or clock: the supervisor carries the actions out and says the time (monotonic seconds).
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from appliance.errors import Code
from appliance.lifecycle.policy import Latest, Specific, VersionPolicy, aspired_versions, surplus_versions
from appliance.lifecycle.settle import Observed
from appliance.lifecycle.states import PUBLIC, Event, State, transition
from appliance.routes import ModelRoute, VersionRoute
from appliance.servable import Form, ServableId
from backends.contract import Signature

_STABLE_SECONDS = 60.0
_MAX_BACKOFF_SECONDS = 60.0
_AT_REST = (State.SETTLING, State.FAILED, State.ENDED)  # no worker is there, or due


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
    digest: str = ""  # what identifies its files
    is_first: bool = False  # the version has not been served yet


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
class StateChange:
    """A line for the log."""

    servable: ServableId
    old: str
    new: str
    reason: str


class Standing(Enum):
    """How far a model has come with what its configuration asks for."""

    PENDING = "pending"  # a look at its folder, a load or a label is still to come
    LIVE = "live"
    FAILED = "failed"  # nothing that is under way will bring what was asked for


@dataclass(slots=True, eq=False)
class _Successor:
    """A second worker of a version that is served: it takes over as soon as it is ready, or, standing by, when it is
    needed."""

    worker: int
    path: str
    digest: str | None
    form: Form | None = None
    stands_by: bool = False
    socket_path: str = ""  # once it is ready
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    until: float = 0.0  # standing by: when it goes, unless it is asked for again


@dataclass(slots=True, eq=False)
class _Version:
    id: ServableId
    path: str
    digest: str | None
    state: State = State.SETTLING
    settled: bool = False
    incomplete: bool = False
    present: bool = True
    reason: str = ""
    code: Code = Code.OK
    worker: int | None = None
    socket_path: str = ""
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    attempts: int = 0
    crashes: int = 0
    available_since: float = 0.0
    retry_at: float | None = None
    form: Form | None = None  # the accelerated form that its worker serves
    successor: _Successor | None = None
    moved_digest: str = ""  # of the files in another folder that the last successor was started for

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders that its workers load from."""
        return (self.path,) if self.successor is None else (self.path, self.successor.path)


@dataclass(slots=True, eq=False)
class _Model:
    name: str
    base_path: str
    policy: VersionPolicy
    labels: Mapping[str, int]  # as configured
    effective_labels: dict[str, int] = field(default_factory=dict)  # as routed: each follows once its version is there
    versions: dict[int, _Version] = field(default_factory=dict)
    names: dict[str, frozenset[str]] = field(default_factory=dict)  # of model files in each folder, by its path
    reason: str = ""
    removed: bool = False
    seen: bool = False  # its folder has been looked at
    tried: bool = False  # a first attempt has ended, one way or the other
    due: float | None = None  # when the next attempt at a version that is wanted may begin


class Manager:
    """Knows every model and version, and decides what happens next."""

    def __init__(
        self,
        max_load_retries: int,
        load_retry_interval_seconds: float,
        max_concurrent_loads: int,
        labels_for_unavailable_versions: bool = False,
    ) -> None:
        self._labels_for_unavailable_versions = labels_for_unavailable_versions
        self._max_load_retries = max_load_retries
        self._load_retry_interval_seconds = load_retry_interval_seconds
        self._max_concurrent_loads = max_concurrent_loads
        self._models: dict[str, _Model] = {}
        self._workers: dict[int, _Version] = {}
        self._next_worker = 1
        self._loads = 0
        self._waiting: dict[str, None] = {}  # models that would load more than may load at once; first come first
        self._changes: list[StateChange] = []
        self.demotions: list[tuple[ServableId, str]] = []  # forms that failed, and why; the supervisor takes them
        self.revision = 1  # grows with every change that `routes` shows

    # -- what the supervisor tells ---------------------------------------------------------------------------

    def add_model(
        self,
        name: str,
        base_path: str,
        policy: VersionPolicy | None = None,
        labels: Mapping[str, int] | None = None,
    ) -> None:
        """A model to serve from now on. It has no versions until they are observed.

        Where a model of this name was removed and still drains, the new one waits for its workers, version by version.
        """
        old = self._models.get(name)
        draining = {} if old is None else old.versions
        model = self._models[name] = _Model(name, base_path, policy or Latest(), labels or {}, versions=draining)
        self._move_labels(model)
        self.revision += 1

    def update_model(
        self, name: str, base_path: str, policy: VersionPolicy, labels: Mapping[str, int], now: float
    ) -> list[Action]:
        """Another configuration for a model that is there. What is served stays until what is asked for is loaded:
        versions, labels, and the same version in another folder too."""
        model = self._models[name]
        if base_path != model.base_path:
            model.seen = False
            model.base_path = base_path
        model.policy = policy
        model.labels = dict(labels)
        model.effective_labels = {label: v for label, v in model.effective_labels.items() if label in labels}
        self._move_labels(model)
        self.revision += 1
        return self._proceed(model, now)

    def remove_model(self, name: str, now: float) -> list[Action]:
        """A model that is no longer wanted: its versions are unloaded, and it is forgotten when they are."""
        model = self._models[name]
        model.removed = True
        for version in model.versions.values():
            version.present = False
        return self._proceed(model, now)

    def observe(self, name: str, observed: Mapping[int, Observed], reason: str, now: float) -> list[Action]:
        """The version folders of a model as they are now; `reason` is a remark on its base path."""
        model = self._models[name]
        actions: list[Action] = []
        self._remark(model, reason)
        model.seen = True
        kept = {path for version in model.versions.values() for path in version.paths}
        model.names = {path: names for path, names in model.names.items() if path in kept} | {
            seen.path: seen.names for seen in observed.values() if seen.digest is not None
        }
        for number, seen in observed.items():
            version = model.versions.get(number)
            if version is not None and version.worker is not None and seen.path != version.path:
                version.present = True
                is_new = seen.settled and seen.digest not in (None, version.moved_digest)
                if is_new and version.state is State.AVAILABLE:
                    version.moved_digest = seen.digest or ""
                    actions += self._succeed(version, _Successor(0, seen.path, seen.digest))
                continue
            if version is not None and version.moved_digest:
                actions += self._stay(version)
            if version is None:
                version = model.versions[number] = _Version(ServableId(name, number), seen.path, seen.digest)
                self._changes.append(StateChange(version.id, "", State.SETTLING.value, seen.reason))
            elif seen.digest not in (None, version.digest) and version.state in _AT_REST:
                # While a worker is at it, the old digest is kept, so that the change counts once it has ended.
                version.digest = seen.digest
                version.incomplete = False
                version.attempts = 0
                version.retry_at = None
                if version.state is not State.SETTLING:
                    self._move(version, Event.FILES_CHANGED, "its files changed")
            if not version.present:
                version.settled = False  # it went and came back: these are other files
            version.present = True
            version.path = seen.path
            if seen.digest is not None:
                version.settled = seen.settled
                if version.state is State.SETTLING and not version.incomplete and version.reason != seen.reason:
                    version.reason = seen.reason
                    self.revision += 1
        for number, version in model.versions.items():
            version.present = number in observed
        return actions + self._proceed(model, now)

    def base_path_lost(self, name: str, reason: str) -> None:
        """The base path cannot be read: nothing is unloaded, and the status says why nothing new is."""
        self._models[name].seen = True
        self._remark(self._models[name], reason)

    def worker_ready(
        self,
        worker: int,
        socket_path: str,
        signatures: Mapping[str, Signature],
        now: float,
        form: Form | None = None,
    ) -> list[Action]:
        """The worker serves, `form` or the version's own model."""
        version = self._workers.get(worker)
        if version is not None and version.successor is not None and worker == version.successor.worker:
            version.successor.socket_path, version.successor.signatures = socket_path, signatures
            self.revision += 1
            return [] if version.successor.stands_by else self._take_over(version, now)
        if version is None or version.state not in (State.LOADING, State.RESTARTING):
            return []
        self._end_load(version)
        version.socket_path, version.signatures, version.form = socket_path, signatures, form
        version.available_since = now
        version.attempts = 0
        version.retry_at = None
        version.code = Code.OK
        self._move(version, Event.READY, "")
        return self._after_load(version, now)

    def worker_incomplete(self, worker: int, reason: str, now: float) -> list[Action]:
        """The version's folder is not all there. It is tried again when its files change."""
        version = self._workers.get(worker)
        if version is None or version.state is not State.LOADING or self._succeeds(worker, version):
            return self.worker_failed(worker, Code.FAILED_PRECONDITION, f"incomplete: {reason}", now)
        self._detach(version)
        version.incomplete = True
        self._move(version, Event.INCOMPLETE, f"incomplete: {reason}")
        return self._after_load(version, now)

    def worker_failed(self, worker: int, code: Code, reason: str, now: float) -> list[Action]:
        """The version could not be loaded, or its worker died before it was."""
        version = self._workers.get(worker)
        if version is not None and version.successor is not None and worker == version.successor.worker:
            successor = version.successor
            self._drop_successor(version)
            if successor.form is None and successor.path != version.path:
                version.reason = f"still served from {version.path}: {successor.path} does not load: {reason}"
                self._say(version, version.reason)
            else:
                what = (
                    "TensorFlow, standing by," if successor.form is None else f"its form for {successor.form.backend}"
                )
                self._say(version, f"{what} does not load: {reason}")
            return self._proceed(self._models[version.id.model], now)
        if version is None or version.state not in (State.LOADING, State.RESTARTING):
            return []
        self._detach(version)
        version.code = code
        if version.state is State.RESTARTING:
            self._schedule_restart(version, now)
            self._move(version, Event.LOAD_FAILED, reason)
            return self._after_load(version, now)
        version.attempts += 1
        if version.attempts <= self._max_load_retries:
            version.retry_at = now + self._load_retry_interval_seconds
            remedy = (
                f"attempt {version.attempts} of {self._max_load_retries + 1}; the next in "
                f"{self._load_retry_interval_seconds:g} s, or when the files change"
            )
        else:
            version.retry_at = None
            remedy = f"given up after {version.attempts} attempts; change the files to try again"
        self._move(version, Event.LOAD_FAILED, f"{reason} ({remedy})")
        return self._after_load(version, now)

    def worker_ended(self, worker: int, how: str, now: float) -> list[Action]:
        """The worker's process is gone: `how` says by what."""
        version = self._workers.get(worker)
        if version is None:
            return []
        if self._succeeds(worker, version) or version.state in (State.LOADING, State.RESTARTING):
            return self.worker_failed(worker, Code.INTERNAL, f"its worker died while loading: {how}", now)
        self._detach(version)
        model = self._models[version.id.model]
        if version.state is State.DRAINING:
            self._move(version, Event.WORKER_ENDED, f"unloaded: {version.reason}")
        else:
            if now - version.available_since > _STABLE_SECONDS:
                version.crashes = 0
            self._schedule_restart(version, now)
            version.code = Code.UNAVAILABLE
            self._move(version, Event.WORKER_DIED, f"its worker died: {how}")
            if version.form is not None:
                # A shape that was not proven may have killed it: the form is not trusted again.
                self.demotions.append((version.id, f"its worker on {version.form.backend} died: {how}"))
                version.form = None
            if version.successor is not None:  # it takes over at once
                return self._take_over(version, now) + self._proceed(model, now)
        return self._proceed(model, now)

    def tick(self, now: float) -> list[Action]:
        """Does what has become due by `now`."""
        actions: list[Action] = []
        for model in list(self._models.values()):
            if model.due is not None and model.due <= now:
                actions += self._proceed(model, now)
        return actions

    # -- what the supervisor asks ----------------------------------------------------------------------------

    @property
    def next_due(self) -> float | None:
        """When `tick` has something to do."""
        return min((model.due for model in self._models.values() if model.due is not None), default=None)

    def names(self) -> Iterable[str]:
        return [model.name for model in self._models.values() if not model.removed]

    def loaded_versions(self, name: str) -> frozenset[int]:
        """The versions whose files need no more looking at."""
        model = self._models.get(name)
        if model is None:
            return frozenset()
        states = (State.AVAILABLE, State.LOADING, State.RESTARTING, State.DRAINING)
        return frozenset(
            number
            for number, version in model.versions.items()
            if version.state in states and os.path.dirname(version.path) == model.base_path.rstrip("/")
        )

    def all_tried(self) -> bool:
        """Whether each model has a version available, or has failed its first attempt and tries no other now."""
        return all(self._is_tried(model) for model in self._models.values() if not model.removed)

    def all_decided(self) -> bool:
        """Whether each model has a version available, or has failed its first attempt, or has nothing to attempt."""
        return all(
            self._is_tried(model) or self.standing(model.name)[0] is not Standing.PENDING
            for model in self._models.values()
            if not model.removed
        )

    def _is_tried(self, model: _Model) -> bool:
        versions = model.versions.values()
        return any(v.state is State.AVAILABLE for v in versions) or (
            model.tried and model.name not in self._waiting and not any(v.state is State.LOADING for v in versions)
        )

    def standing(self, name: str) -> tuple[Standing, str]:
        """How far the model has come with its configuration, and the reason where it is not LIVE."""
        model = self._models[name]
        versions = model.versions
        available = {number for number, v in versions.items() if v.state is State.AVAILABLE}
        if not model.seen:
            return Standing.PENDING, f"{model.base_path} has not been looked at yet"
        present = {number: v for number, v in versions.items() if v.present}
        for number, version in sorted(present.items()):
            if version.state in (State.LOADING, State.RESTARTING) or (
                version.successor is not None and version.successor.path != version.path
            ):
                return Standing.PENDING, f"version {number} is loading"
        if model.name in self._waiting:
            return Standing.PENDING, "it waits for other models to load"
        specific = model.policy.versions if isinstance(model.policy, Specific) else frozenset[int]()
        needed = set(specific | frozenset(model.labels.values()))
        if not available:
            needed |= aspired_versions(model.policy, present)
        coming = {n for n in needed & present.keys() if present[n].state is State.SETTLING}
        if coming:
            number = min(coming)
            return Standing.PENDING, f"version {number} is settling: {versions[number].reason}"
        for number in sorted(needed - available):
            label = next((label for label, v in model.labels.items() if v == number), None)
            what = f"version {number}" if label is None else f"version {number} (label {label})"
            if number not in versions or not versions[number].present:
                return Standing.FAILED, f"{what} is not under {model.base_path}"
            return Standing.FAILED, f"{what} is {versions[number].state.value}: {versions[number].reason}"
        moved = [v for n, v in sorted(present.items()) if n in available and v.reason]
        if moved:
            return Standing.FAILED, f"version {moved[0].id.version} is {moved[0].reason}"
        if not available:
            return Standing.FAILED, model.reason or f"there is no version under {model.base_path}"
        return Standing.LIVE, ""

    def busy(self) -> bool:
        """Whether any worker is accounted for."""
        return bool(self._workers)

    def take_changes(self) -> list[StateChange]:
        changes, self._changes = self._changes, []
        return changes

    def routes(self) -> dict[str, ModelRoute]:
        """Every model with its versions, newest first."""
        return {
            model.name: ModelRoute(
                model.name,
                tuple(
                    self._route(version)
                    for _, version in sorted(model.versions.items(), reverse=True)
                    if version.state is not State.SETTLING or version.reason
                ),
                dict(model.effective_labels),
                model.base_path,
                model.reason,
            )
            for model in self._models.values()
        }

    @staticmethod
    def _route(version: _Version) -> VersionRoute:
        available = version.state is State.AVAILABLE
        return VersionRoute(
            version.id.version,
            version.state.value,
            PUBLIC[version.state],
            version.code,
            version.reason,
            version.socket_path if available else "",
            version.signatures if available else {},
            "" if version.form is None else version.form.backend,
        )

    # -- decisions -------------------------------------------------------------------------------------------

    def _proceed(self, model: _Model, now: float) -> list[Action]:
        """Decides on `model`, and on those that wait for a load where one has ended."""
        actions = self._decide(model, now)
        for name in list(self._waiting):
            if self._loads >= self._max_concurrent_loads:
                break
            actions += self._decide(self._models[name], now)
        return actions

    def _decide(self, model: _Model, now: float) -> list[Action]:
        versions = model.versions
        actions = self._drop_the_absent(model)
        loadable = {number for number, version in versions.items() if self._loadable(version)}
        labelled = frozenset() if model.removed else frozenset(model.labels.values())
        aspired = aspired_versions(model.policy, loadable) | (labelled & loadable)
        retriable = {
            number for number, v in versions.items() if v.state is State.FAILED and v.present and v.retry_at is not None
        }
        hoped_for = aspired_versions(model.policy, loadable | retriable) | (labelled & retriable)
        available = {number for number, v in versions.items() if v.state is State.AVAILABLE}
        restarting = {number for number, v in versions.items() if v.state is State.RESTARTING}
        surplus = surplus_versions(aspired, available | (restarting - aspired))
        if not aspired or aspired & available:
            surplus |= {number for number in available if not versions[number].present}
        waiting = False
        model.due = None
        for version in versions.values():
            if version.successor is not None and version.successor.stands_by:
                if version.successor.until <= now:
                    actions.append(KillWorker(version.successor.worker))
                    self._drop_successor(version)
                else:
                    until = version.successor.until
                    model.due = until if model.due is None else min(model.due, until)
        # An old version that crashes while the new one loads is started again: it is all that there is to serve.
        for number in sorted(aspired | hoped_for | (restarting - surplus), reverse=True):
            version = versions[number]
            if version.worker is not None or version.state in (State.AVAILABLE, State.DRAINING):
                continue
            if version.retry_at is not None and version.retry_at > now:
                model.due = version.retry_at if model.due is None else min(model.due, version.retry_at)
                continue
            if version.state is not State.RESTARTING:
                # A restart never waits: it was admitted when it was first loaded.
                if self._loads >= self._max_concurrent_loads:
                    waiting = True
                    continue
                self._loads += 1
                self._move(version, Event.LOAD, "")
            version.retry_at = None
            actions.append(self._start(version))
        if waiting:
            self._waiting.setdefault(model.name)
        else:
            self._waiting.pop(model.name, None)
        for number in sorted(surplus):
            version = versions[number]
            why = "a newer version has taken over" if version.present else "its folder is gone"
            actions += self._unload(version, "the model was removed" if model.removed else why)
        if model.removed and not versions:
            del self._models[model.name]
            self.revision += 1
        return actions

    def _unload(self, version: _Version, why: str) -> list[Action]:
        if version.state is State.LOADING:
            self._loads -= 1
        served = version.state is State.AVAILABLE
        version.retry_at = None
        self._move(version, Event.DRAIN, why)
        actions: list[Action] = []
        if version.successor is not None:
            actions.append(KillWorker(version.successor.worker))
            self._drop_successor(version)
        if version.worker is None:
            self._move(version, Event.WORKER_ENDED, "unloaded")
            return actions
        return [*actions, DrainWorker(version.worker) if served else KillWorker(version.worker)]

    # -- forms and successors --------------------------------------------------------------------------------

    def accelerate(self, servable: ServableId, form: Form, digest: str, now: float) -> list[Action]:
        """Lets `form`, which was made of the files with `digest`, take the place of the version's own model, if that is
        what it still serves."""
        version = self._version(servable)
        if version is None or version.state is not State.AVAILABLE or version.digest != digest or version.form == form:
            return []
        return self._succeed(version, _Successor(0, version.path, version.digest, form))

    def stand_by(self, servable: ServableId, until: float, now: float) -> list[Action]:
        """Has a worker with the version's own model beside that of its accelerated form, to judge what that refused."""
        version = self._version(servable)
        if version is None or version.form is None or version.state is not State.AVAILABLE:
            return []
        if version.successor is not None:
            version.successor.until = max(version.successor.until, until)
            return []
        successor = _Successor(0, version.path, version.digest, stands_by=True, until=until)
        actions = self._succeed(version, successor)
        return actions + self._proceed(self._models[servable.model], now)

    def standing_by(self, servable: ServableId) -> str | None:
        """The socket of the worker that stands by; "" while it loads, None where there is none (any more)."""
        version = self._version(servable)
        if version is None or version.successor is None or not version.successor.stands_by:
            return None
        return version.successor.socket_path

    def demote(self, servable: ServableId, why: str, now: float) -> list[Action]:
        """Serves the version's own model again, instead of an accelerated form that failed where it should not."""
        version = self._version(servable)
        if version is None or version.form is None or version.state is not State.AVAILABLE:
            return []
        self.demotions.append((servable, why))
        if version.successor is not None and version.successor.stands_by:
            version.successor.stands_by = False
            if version.successor.socket_path:
                return self._take_over(version, now)
            return []
        return self._succeed(version, _Successor(0, version.path, version.digest))

    def own_models(self) -> list[tuple[ServableId, str, str, frozenset[str]]]:
        """The available versions that serve their own model: what, its folder, what identifies its files, and its model
        files. Those that have a successor are left out until it is decided."""
        return [
            (version.id, version.path, version.digest, model.names.get(version.path, frozenset()))
            for model in self._models.values()
            if not model.removed
            for version in model.versions.values()
            if version.state is State.AVAILABLE and version.digest and not version.form and not version.successor
        ]

    def own_socket(self, servable: ServableId) -> str | None:
        """Where the version's own model is served, routed or standing by; "" while it is being loaded, None where it
        is not."""
        version = self._version(servable)
        if version is not None and version.form is None and version.state in (State.AVAILABLE, State.RESTARTING):
            return version.socket_path
        return self.standing_by(servable)

    def _version(self, servable: ServableId) -> _Version | None:
        model = self._models.get(servable.model)
        return None if model is None or model.removed else model.versions.get(servable.version)

    @staticmethod
    def _succeeds(worker: int, version: _Version) -> bool:
        return version.successor is not None and version.successor.worker == worker

    def _succeed(self, version: _Version, successor: _Successor) -> list[Action]:
        """Starts `successor` (its number is given here) in place of the one that is there, if any."""
        actions: list[Action] = []
        if version.successor is not None:
            actions.append(KillWorker(version.successor.worker))
            self._drop_successor(version)
        successor.worker = self._next_worker
        self._next_worker += 1
        version.successor = successor
        self._workers[successor.worker] = version
        return [
            *actions,
            self._start_worker(version, successor.worker, successor.path, successor.digest, successor.form, False),
        ]

    def _stay(self, version: _Version) -> list[Action]:
        """The version is asked for in the folder that it is served from: what was to come from another is forgotten."""
        version.moved_digest = ""
        actions: list[Action] = []
        if version.successor is not None and version.successor.path != version.path:
            actions.append(KillWorker(version.successor.worker))
            self._drop_successor(version)
        if version.state is State.AVAILABLE and version.reason:
            version.reason = ""
            self.revision += 1
        return actions

    def _take_over(self, version: _Version, now: float) -> list[Action]:
        """The successor serves from now on, or restarts the version if it is not ready yet; its predecessor, if it
        still lives, drains."""
        old, successor = version.worker, version.successor
        assert successor is not None
        moved, reformed = successor.path != version.path, successor.form != version.form
        version.worker, version.successor = successor.worker, None
        version.path, version.digest, version.form = successor.path, successor.digest, successor.form
        version.retry_at = None
        if not successor.socket_path:
            return []
        version.socket_path, version.signatures = successor.socket_path, successor.signatures
        version.available_since = now
        version.code = Code.OK
        if version.state is State.RESTARTING:
            self._move(version, Event.READY, "")
        version.reason = ""
        if moved:
            self._say(version, f"now served from {version.path}")
        if reformed:
            self._say(version, f"now served by {'its own model' if version.form is None else version.form.backend}")
        self.revision += 1
        actions: list[Action] = []
        if old is not None:
            del self._workers[old]
            actions.append(DrainWorker(old))
        return [*actions, *self._proceed(self._models[version.id.model], now)]

    def _drop_successor(self, version: _Version) -> None:
        if version.successor is not None:
            del self._workers[version.successor.worker]
            version.successor = None

    def _say(self, version: _Version, text: str) -> None:
        """A change for the log that is no change of state."""
        self._changes.append(StateChange(version.id, version.state.value, version.state.value, text))
        self.revision += 1

    def _move_labels(self, model: _Model) -> None:
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

    def _loadable(self, version: _Version) -> bool:
        if not version.present:
            return False
        if version.state in (State.SETTLING, State.ENDED):
            return version.settled and not version.incomplete
        return version.state is not State.FAILED

    def _drop_the_absent(self, model: _Model) -> list[Action]:
        actions: list[Action] = []
        for number, version in list(model.versions.items()):
            if version.present:
                continue
            if version.state in (State.LOADING, State.RESTARTING):
                actions += self._unload(version, "the model was removed" if model.removed else "its folder is gone")
            if version.state in _AT_REST:
                del model.versions[number]
                self._move_labels(model)
                self.revision += 1
        return actions

    def _remark(self, model: _Model, reason: str) -> None:
        if model.reason != reason:
            model.reason = reason
            self.revision += 1

    def _start(self, version: _Version) -> StartWorker:
        worker = self._next_worker
        self._next_worker += 1
        version.worker = worker
        self._workers[worker] = version
        is_first = version.state is State.LOADING
        return self._start_worker(version, worker, version.path, version.digest, version.form, is_first)

    def _start_worker(
        self, version: _Version, worker: int, path: str, digest: str | None, form: Form | None, is_first: bool
    ) -> StartWorker:
        names = self._models[version.id.model].names.get(path, frozenset())
        return StartWorker(worker, version.id, path, names, form, digest or "", is_first)

    def _schedule_restart(self, version: _Version, now: float) -> None:
        # The first restart is immediate; a worker that keeps dying is started ever more seldom.
        version.crashes += 1
        delay = 0.0 if version.crashes == 1 else min(2.0 ** (version.crashes - 2), _MAX_BACKOFF_SECONDS)
        version.retry_at = now + delay

    def _end_load(self, version: _Version) -> None:
        if version.state is State.LOADING:
            self._loads -= 1

    def _detach(self, version: _Version) -> None:
        self._end_load(version)
        if version.worker is not None:
            del self._workers[version.worker]
            version.worker = None
        version.socket_path = ""

    def _after_load(self, version: _Version, now: float) -> list[Action]:
        model = self._models[version.id.model]
        model.tried = True
        return self._proceed(model, now)

    def _move(self, version: _Version, event: Event, reason: str) -> None:
        old = version.state
        version.state = transition(old, event)
        version.reason = reason
        self.revision += 1
        self._move_labels(self._models[version.id.model])
        if version.state is State.ENDED or event in (Event.LOAD, Event.FILES_CHANGED):
            version.code = Code.OK
        self._changes.append(StateChange(version.id, old.value, version.state.value, reason))

"""All models and versions that the manager knows, the workers that they have, and how their states change."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.core.errors import Code
from appliance.core.routes import VersionRoute
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import StartWorker, StateChange
from appliance.lifecycle.models import Model, Version
from appliance.lifecycle.replicas import Attempt, Files, Replica, Role
from appliance.lifecycle.states import Event, State, transition

__all__ = ["Servables"]

_MAX_ENDED = 256  # versions that are gone and told of: a server that reloads for ever must not grow


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
        self.loading: dict[ServableId, Version] = {}  # those that are LOADING

    def version(self, servable: ServableId) -> Version | None:
        """Return the version, or None if it is not there or its model is not wanted any more."""
        model = self.models.get(servable.model)
        return None if model is None or model.removed else model.versions.get(servable.version)

    def wanted(self) -> Iterator[tuple[Model, Version]]:
        """Yield the versions of the models that are wanted."""
        for model in self.models.values():
            if not model.removed:
                for version in model.versions.values():
                    yield model, version

    def version_of(self, worker: int) -> Version | None:
        """Return the version that has this worker, or None if none has: it may have been taken from it."""
        return self._workers.get(worker)

    def model_of(self, version: Version) -> Model:
        return self.models[version.id.model]

    def ended(self) -> dict[str, tuple[VersionRoute, ...]]:
        """Return the last versions that are gone, by model."""
        found: dict[str, tuple[VersionRoute, ...]] = {}
        for servable, route in self._ended.items():
            found[servable.model] = (*found.get(servable.model, ()), route)
        return found

    def take_changes(self) -> list[StateChange]:
        """Return the changes since this was last asked."""
        changes, self._changes = self._changes, []
        return changes

    # -- workers ---------------------------------------------------------------------------------------------

    def start(
        self,
        version: Version,
        role: Role,
        files: Files,
        form: Form | None = None,
        *,
        until: float = 0.0,
        check_files: bool = True,
        left_out: tuple[Attempt, ...] = (),
        may_find_form: bool = False,
    ) -> StartWorker:
        """Give the version another replica, and return the action that starts its worker."""
        worker = self._next_worker
        self._next_worker += 1
        self._workers[worker] = version
        self._started[worker] = version.id, files.digest
        version.replicas.append(Replica(worker, role, files, form, until, left_out))
        is_first = role is Role.SERVING and version.state is State.LOADING
        suspects = version.suspects
        return StartWorker(
            worker,
            version.id,
            files.path,
            self.model_of(version).names.get(files.path, frozenset()),
            form,
            files.digest or "",
            files.content,
            may_find_form=may_find_form,
            is_tried=is_first or files.digest != version.service.digest,
            check_files=check_files,
            is_watched=suspects.is_watched and files.digest == suspects.files and form is None,
            left_out=left_out,
        )

    def forget_worker(self, version: Version, worker: int) -> None:
        """Take a worker from its version: its process may live on for a while."""
        version.replicas.remove(version.replica(worker))
        del self._workers[worker]

    def take_started(self, worker: int) -> tuple[ServableId, str | None] | None:
        """Return which version the worker, which has ended, was started for, and what identified the files; forget
        both. None if that was told before."""
        return self._started.pop(worker, None)

    # -- changes ---------------------------------------------------------------------------------------------

    def discover(self, model: Model, number: int, files: Files, remark: str) -> Version:
        """Add a version whose folder is seen for the first time."""
        version = model.versions[number] = Version(ServableId(model.name, number), files)
        self._changes.append(StateChange(version.id, "", State.SETTLING.value, remark))
        return version

    def forget(self, version: Version, why: str) -> None:
        """Forget a version that is at rest and whose folder is gone. Its last state is still shown, as by TensorFlow
        Serving's ServableStateMonitor."""
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

    def move(self, version: Version, event: Event, reason: str, is_warning: bool = False) -> None:
        """Change the state of a version by `event`. Raises IllegalTransitionError."""
        old = version.state
        version.state = transition(old, event)
        if version.state is State.LOADING:
            self.loading[version.id] = version
        else:
            self.loading.pop(version.id, None)
        version.reason = reason
        self.revision += 1
        self.move_labels(self.model_of(version))
        if version.state is State.ENDED and version.service.given_up:
            version.code = Code.UNAVAILABLE
        elif version.state is State.ENDED or event in (Event.LOAD, Event.FILES_CHANGED):
            version.code = Code.OK
        self._changes.append(StateChange(version.id, old.value, version.state.value, reason, is_warning))

    def say(self, version: Version, text: str, is_warning: bool = False) -> None:
        """Log `text` about a version whose state stays as it is."""
        self._changes.append(StateChange(version.id, version.state.value, version.state.value, text, is_warning))
        self.revision += 1

    def say_remarks(self, version: Version) -> None:
        """Log what the operator should know of a version that serves from now on."""
        remarks = () if version.loaded is None else version.loaded.remarks
        for text in (*remarks, *version.changes):
            self.say(version, text, is_warning=True)

    def remark(self, of: Model | Version, reason: str) -> None:
        """Change the reason for the state of a model or a version, which stays as it is."""
        if of.reason != reason:
            of.reason = reason
            self.revision += 1

    def move_labels(self, model: Model) -> None:
        """Point each label at its configured version as soon as that is available: until then it stays where it was,
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

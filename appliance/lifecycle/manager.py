"""The pure core: what is seen on disk and what happens to workers goes in, actions and routes come out.

No thread, socket, file or clock: the supervisor carries the actions out and says the time (monotonic seconds).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from appliance.config.version_policy import Latest, VersionPolicy
from appliance.core.routes import ModelRoute, VersionRoute
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import Action, GivenUp, StateChange
from appliance.lifecycle.loads import Loads
from appliance.lifecycle.models import Model
from appliance.lifecycle.observations import Observations
from appliance.lifecycle.poisoning import Poisoning
from appliance.lifecycle.reconciler import Reconciler
from appliance.lifecycle.release import ReleaseRules
from appliance.lifecycle.replicas import Role
from appliance.lifecycle.servables import Servables
from appliance.lifecycle.standing import Standing, standing
from appliance.lifecycle.states import State
from appliance.lifecycle.successors import ServedForm, Successors
from appliance.lifecycle.worker_events import WorkerEvents


class Manager:
    """Knows every model and version, and decides what happens next.

    What it is told returns actions: models here, folders in `Observations`, workers in `WorkerEvents`, requests that
    end processes in `Poisoning`.
    """

    def __init__(
        self,
        max_load_retries: int,
        load_retry_interval_seconds: float,
        max_concurrent_loads: int,
        labels_for_unavailable_versions: bool = False,
        slow_load_seconds: float = math.inf,
    ) -> None:
        servables = self._servables = Servables(labels_for_unavailable_versions)
        self._models = servables.models
        self._routes: Mapping[str, ModelRoute] = {}
        self._routed = 0  # the revision that `_routes` shows
        self._loads = Loads(
            servables, max_load_retries, load_retry_interval_seconds, max_concurrent_loads, slow_load_seconds
        )
        self._successors = Successors(servables)
        self._reconciler = Reconciler(servables, self._loads, self._successors)
        poisoning = Poisoning(servables)
        self.odd_shapes_tried = poisoning.odd_shapes_tried
        self.odd_shapes_skipped = poisoning.odd_shapes_skipped
        self.served = poisoning.served
        observations = Observations(servables, self._successors, self._reconciler)
        self.observe = observations.observe
        self.base_path_lost = observations.base_path_lost
        workers = WorkerEvents(servables, self._loads, self._successors, poisoning, self._reconciler)
        self.form_found = workers.form_found
        self.worker_ready = workers.ready
        self.worker_incomplete = workers.incomplete
        self.worker_failed = workers.failed
        self.worker_ended = workers.ended
        self.files_changed = workers.files_changed

    # -- models ----------------------------------------------------------------------------------------------

    def add_model(
        self,
        name: str,
        base_path: str,
        policy: VersionPolicy | None = None,
        labels: Mapping[str, int] | None = None,
        rules: ReleaseRules | None = None,
    ) -> None:
        """Serve a model from now on. It has no versions until they are observed.

        If a model of this name was removed and still drains, the new one waits for its workers, version by version.
        """
        old = self._models.get(name)
        draining = {} if old is None else old.versions
        model = self._models[name] = Model(
            name, base_path, policy or Latest(), labels or {}, rules or ReleaseRules(), versions=draining
        )
        self._servables.move_labels(model)
        self._servables.revision += 1

    def refuse_model(self, name: str, base_path: str, reason: str) -> None:
        """List a model that is not served, for `reason`, whatever is in its folder."""
        self.add_model(name, base_path)
        model = self._models[name]
        model.seen = model.tried = True
        self._servables.remark(model, reason)

    def update_model(
        self,
        name: str,
        base_path: str,
        policy: VersionPolicy,
        labels: Mapping[str, int],
        now: float,
        rules: ReleaseRules | None = None,
    ) -> list[Action]:
        """Configure a model that is there otherwise. What is served stays until what is asked for is loaded: versions,
        labels, and the same version in another folder too."""
        model = self._models[name]
        if base_path != model.base_path:
            model.seen = False
            model.base_path = base_path
        model.policy = policy
        model.rules = rules or model.rules
        for version in model.versions.values():
            version.service.forgive()
            if version.state is State.FAILED:  # as it was configured before, perhaps
                version.attempts, version.retry_at = 0, now
        model.labels = dict(labels)
        model.effective_labels = {label: v for label, v in model.effective_labels.items() if label in labels}
        self._servables.move_labels(model)
        self._servables.revision += 1
        return self._reconciler.reconcile(model, now)

    def remove_model(self, name: str, now: float) -> list[Action]:
        """Unload the versions of a model, and forget it when they have gone."""
        model = self._models[name]
        model.removed = True
        for version in model.versions.values():
            version.present = False
        return self._reconciler.reconcile(model, now)

    def tick(self, now: float) -> list[Action]:
        """Do what has become due by `now`."""
        actions: list[Action] = []
        for model in list(self._models.values()):
            if model.due is not None and model.due <= now:
                actions += self._reconciler.reconcile(model, now)
        return actions

    # -- forms -----------------------------------------------------------------------------------

    def accelerate(self, servable: ServableId, form: Form, digest: str, now: float) -> list[Action]:
        """Let `form`, which was made of the files with `digest`, take the place of the version's own model, if the
        version still serves these files."""
        version = self._servables.version(servable)
        return [] if version is None else self._successors.accelerate(version, form, digest)

    def stand_by(self, servable: ServableId, until: float, now: float) -> list[Action]:
        """Have a worker with the version's own model beside that of its form until then (monotonic), to
        judge what the form refused."""
        version = self._servables.version(servable)
        if version is None:
            return []
        actions = self._successors.stand_by(version, until)
        return actions + self._reconciler.reconcile(self._servables.model_of(version), now)

    def demote(self, servable: ServableId, why: str, now: float, form: Form | None = None) -> list[Action]:
        """Serve the version's own model again, instead of a form that failed where it should not; `form` is the one, if
        it may have another by now."""
        version = self._servables.version(servable)
        if version is None or form not in (None, version.form):
            return []
        actions = self._successors.demote(version, why, now)
        return actions + self._reconciler.reconcile(self._servables.model_of(version), now)

    def take_demotions(self) -> list[GivenUp]:
        """Return the forms that have failed since this was last asked, and why."""
        return self._successors.take_demotions()

    def forms(self) -> list[ServedForm]:
        """Return the versions that have a form."""
        return [
            ServedForm(version.id, version.form, version.files.path, version.files.digest or "", version.worker)
            for _, version in self._servables.wanted()
            if version.form is not None
        ]

    def own_models(self) -> list[tuple[ServableId, str, str, frozenset[str]]]:
        """Return the available versions that serve their own model: what, its folder, what identifies its files, and
        its model files. Those that have a successor are left out until that is decided, and those whose files have
        changed: a form of them would be that of another model."""
        return [
            (version.id, version.files.path, version.files.digest, model.names.get(version.files.path, frozenset()))
            for model, version in self._servables.wanted()
            if version.state is State.AVAILABLE
            and version.files.digest
            and not (version.form or version.second or version.has_changed)
        ]

    def own_socket(self, servable: ServableId) -> str | None:
        """Return where the version's own model listens, routed or standing by; "" while it is loaded, None if it is not
        served."""
        version = self._servables.version(servable)
        if version is None:
            return None
        if version.form is None and version.state in (State.AVAILABLE, State.RESTARTING):
            return version.socket_path
        second = version.second
        if second is None or second.role is not Role.STANDING_BY:
            return None
        return "" if second.loaded is None else second.loaded.socket_path

    # -- what the supervisor asks ----------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Grows with every change that `routes` shows."""
        return self._servables.revision

    @property
    def next_due(self) -> float | None:
        """When `tick` has something to do (monotonic), None if nothing is due."""
        return min((model.due for model in self._models.values() if model.due is not None), default=None)

    def names(self) -> Iterable[str]:
        """Return the names of the models that are wanted."""
        return [model.name for model in self._models.values() if not model.removed]

    def loaded_versions(self, name: str) -> frozenset[int]:
        """Return the versions that have their files: others under the same name are not loaded while these serve."""
        model = self._models.get(name)
        return frozenset() if model is None else model.loaded_versions()

    def all_tried(self) -> bool:
        """Tell whether each model has a version available, or has failed its first attempt and tries no other now."""
        return all(self._is_tried(model) for model in self._models.values() if not model.removed)

    def all_decided(self) -> bool:
        """Tell whether each model has a version available, has failed its first attempt, or has nothing to attempt."""
        return all(
            self._is_tried(model) or self.standing(model.name)[0] is not Standing.PENDING
            for model in self._models.values()
            if not model.removed
        )

    def _is_tried(self, model: Model) -> bool:
        if model.in_state(State.AVAILABLE):
            return True
        return model.tried and not self._loads.is_waiting(model.name) and not model.in_state(State.LOADING)

    def standing(self, name: str) -> tuple[Standing, str]:
        """Return how far the model has come with its configuration, and the reason if it is not LIVE."""
        return standing(self._models[name], self._loads.is_waiting(name))

    def take_changes(self) -> list[StateChange]:
        """Return the changes of state since this was last asked."""
        return self._servables.take_changes()

    def routes(self) -> Mapping[str, ModelRoute]:
        """Return every model with its versions, newest first: the same mapping until `revision` grows, since several
        ask after each change, and with 1,000 models it takes 10 ms (2026-11)."""
        if self._routed != self.revision:
            self._routed = self.revision
            self._routes = {model.name: model.route() for model in self._models.values()}
        return self._routes

    def ended(self) -> dict[str, tuple[VersionRoute, ...]]:
        """Return the last versions that `routes` does not show any more, by model."""
        return self._servables.ended()

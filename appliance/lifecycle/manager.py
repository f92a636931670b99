"""The pure core: what is seen on disk and what happens to workers goes in, actions and routes come out.

No thread, socket, file or clock: the supervisor carries the actions out and says the time (monotonic seconds).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from appliance.config.version_policy import Latest, VersionPolicy
from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.outcomes import Trials
from appliance.core.poison import NO_RUNS, Runs
from appliance.core.routes import ModelRoute, VersionRoute
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import Action, DrainWorker, KillWorker, StateChange
from appliance.lifecycle.judging import judge, note_death
from appliance.lifecycle.loads import Loads
from appliance.lifecycle.poisoning import Poisoning
from appliance.lifecycle.release import Gate, Refusal, ReleaseRules
from appliance.lifecycle.servables import AT_REST, Model, Servables, Version
from appliance.lifecycle.standing import Standing, standing
from appliance.lifecycle.states import Event, State
from appliance.lifecycle.successors import Successors
from appliance.lifecycle.wanted import wanted
from backends.contract import Signature

# What is no fault of a version that does not load: no memory or GPU, no time, a process that could not be started.
_OF_THE_MACHINE = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


class Manager:
    """Knows every model and version, and decides what happens next."""

    def __init__(
        self,
        max_load_retries: int,
        load_retry_interval_seconds: float,
        max_concurrent_loads: int,
        labels_for_unavailable_versions: bool = False,
    ) -> None:
        self._servables = Servables(labels_for_unavailable_versions)
        self._models = self._servables.models
        self._successors = Successors(self._servables)
        self._poisoning = Poisoning(self._servables)
        self.odd_shapes_tried = self._poisoning.odd_shapes_tried
        self.odd_shapes_skipped = self._poisoning.odd_shapes_skipped
        self.served = self._poisoning.served
        self._loads = Loads(max_load_retries, load_retry_interval_seconds, max_concurrent_loads)

    # -- what the supervisor tells ---------------------------------------------------------------------------

    def add_model(
        self,
        name: str,
        base_path: str,
        policy: VersionPolicy | None = None,
        labels: Mapping[str, int] | None = None,
        rules: ReleaseRules | None = None,
    ) -> None:
        """A model to serve from now on. It has no versions until they are observed.

        Where a model of this name was removed and still drains, the new one waits for its workers, version by version.
        """
        old = self._models.get(name)
        draining = {} if old is None else old.versions
        model = self._models[name] = Model(
            name, base_path, policy or Latest(), labels or {}, rules or ReleaseRules(), versions=draining
        )
        self._servables.move_labels(model)
        self._servables.revision += 1

    def update_model(
        self,
        name: str,
        base_path: str,
        policy: VersionPolicy,
        labels: Mapping[str, int],
        now: float,
        rules: ReleaseRules | None = None,
    ) -> list[Action]:
        """Another configuration for a model that is there. What is served stays until what is asked for is loaded:
        versions, labels, and the same version in another folder too."""
        model = self._models[name]
        if base_path != model.base_path:
            model.seen = False
            model.base_path = base_path
        model.policy = policy
        model.rules = rules or model.rules
        for version in model.versions.values():
            version.given_up, version.deaths = "", []
            if version.state is State.FAILED:  # as it was configured before, perhaps
                version.attempts, version.retry_at = 0, now
        model.labels = dict(labels)
        model.effective_labels = {label: v for label, v in model.effective_labels.items() if label in labels}
        self._servables.move_labels(model)
        self._servables.revision += 1
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
        self._servables.remark(model, reason)
        model.seen = True
        kept = {path for version in model.versions.values() for path in version.paths}
        model.names = {path: names for path, names in model.names.items() if path in kept} | {
            seen.path: seen.names for seen in observed.values() if seen.digest is not None
        }
        for number, seen in observed.items():
            version = model.versions.get(number)
            if version is None:
                version = self._servables.discover(model, number, seen.path, seen.digest, seen.reason)
            elif version.worker is not None and seen.path != version.path:
                version.present = True
                version.settled = version.settled and version.state is not State.DRAINING  # else of the old folder
                actions += self._follow(version, seen, now)
                continue
            elif version.state is State.AVAILABLE and seen.digest not in (None, version.digest):
                self._look_again(version, seen)
                actions += self._follow(version, seen, now)
                continue
            elif version.replacement is not None and (seen.digest or version.replacement.path != seen.path):
                actions += self._successors.stay(version)
            self._look_again(version, seen)
        for number, version in model.versions.items():
            version.present = number in observed
        return actions + self._proceed(model, now)

    def _follow(self, version: Version, seen: Observed, now: float) -> list[Action]:
        """Other files are there for a version than those that its worker was started on."""
        if version.state is not State.AVAILABLE or not seen.settled or seen.digest is None:
            return []
        return self._successors.follow(version, seen.path, seen.digest, now)

    def _look_again(self, version: Version, seen: Observed) -> None:
        """Takes in what is seen of a version's folder: files that have changed clear its failures."""
        if seen.digest not in (None, version.digest) and version.state in AT_REST:
            # While a worker is at it, the old digest is kept, so that the change counts once it has ended.
            version.digest = seen.digest
            version.incomplete, version.judge_at, version.trusts_loader = False, None, False
            version.given_up, version.deaths = "", []
            version.is_stale, version.refused_by_gate = False, False
            version.attempts = 0
            version.retry_at = None
            if version.state is not State.SETTLING:
                self._servables.move(version, Event.FILES_CHANGED, "its files changed")
        elif seen.digest not in (None, version.digest):
            version.is_stale = True
        if not version.present:
            version.settled = False  # it went and came back: these are other files
            if version.state is State.AVAILABLE:
                self._servables.remark(version, "")
        version.present = True
        version.path = seen.path
        if seen.digest is not None:
            version.settled = seen.settled
            if version.state is State.SETTLING and not version.incomplete:
                self._servables.remark(version, seen.reason)

    def base_path_lost(self, name: str, reason: str) -> None:
        """The base path cannot be read: nothing is unloaded, and the status says why nothing new is."""
        self._models[name].seen = True
        self._servables.remark(self._models[name], reason)

    def worker_ready(
        self,
        worker: int,
        socket_path: str,
        signatures: Mapping[str, Signature],
        now: float,
        form: Form | None = None,
        trials: Trials | None = None,
        remarks: Sequence[str] = (),
        unsupported: Mapping[str, str] | None = None,
    ) -> list[Action]:
        """The worker could serve, `form` or the version's own model: it does if its `trials` let it (None: there were
        none). `remarks` are for the version's operator; `unsupported` are signatures that it does not serve, with the
        reason for each."""
        version = self._servables.version_of(worker)
        if version is not None and version.successor is not None and version.successor.worker == worker:
            version.successor.socket_path, version.successor.signatures = socket_path, signatures
            version.successor.remarks, version.successor.unsupported = tuple(remarks), unsupported or {}
            return self._successor_ready(version, trials, now)
        if version is None or version.state not in (State.LOADING, State.RESTARTING):
            return []
        if version.state is State.LOADING or version.digest != version.served_digest:
            model = self._servables.model_of(version)
            refused, told = judge(model, version, signatures, trials, unsupported or {})
            if refused is not None:
                return self._refuse(version, refused, now)
            version.changes = told
        self._end_load(version)
        version.socket_path, version.signatures, version.form = socket_path, signatures, form
        version.unsupported = unsupported or {}
        version.serve_since(now)
        version.attempts = 0
        version.retry_at = None
        version.code = Code.OK
        self._servables.move(version, Event.READY, "")
        version.remarks = tuple(remarks)
        self._servables.say_remarks(version)
        return self._after_load(version, now)

    def _successor_ready(self, version: Version, trials: Trials | None, now: float) -> list[Action]:
        """A second worker of a version that is served could take over. One that has other files is judged as another
        version is."""
        successor = version.successor
        assert successor is not None
        if not version.has_files_of(successor):
            model = self._servables.model_of(version)
            refused, told = judge(model, version, successor.signatures, trials, successor.unsupported)
            if refused is not None:
                self._loads.retry_replacement(version, now)
                actions = self._successors.failed(version, refused.reason)
                return actions + self._proceed(model, now)
            successor.changes = told
        else:
            successor.changes = version.changes
        self._servables.revision += 1
        return [] if successor.stands_by else self._take_over(version, now)

    def _refuse(self, version: Version, refused: Refusal, now: float) -> list[Action]:
        """The version has loaded, and must not serve: its worker goes, and what serves stays."""
        assert version.worker is not None
        kill = KillWorker(version.worker)
        self._detach(version)
        version.refused_by_gate = True
        if version.state is State.RESTARTING:  # with other files than it served before
            return [kill, *self._failed_again(version, refused.code, refused.reason, now)]
        self._fail(version, refused.code, refused.reason, refused.is_final, now)
        return [kill, *self._after_load(version, now)]

    def worker_incomplete(self, worker: int, reason: str, now: float) -> list[Action]:
        """The version's folder is not all there. It is tried again when its files change."""
        version = self._servables.version_of(worker)
        if version is not None and version.is_succeeded_by(worker) and version.replacement is not None:
            seconds = self._servables.model_of(version).rules.incomplete_after_seconds
            version.replacement.retry_at, version.replacement.trusts_loader = now + seconds, True
            actions = self._successors.failed(version, f"incomplete: {reason}")
            return actions + self._proceed(self._servables.model_of(version), now)
        if version is None or version.state is not State.LOADING or version.is_succeeded_by(worker):
            return self.worker_failed(worker, Code.FAILED_PRECONDITION, f"incomplete: {reason}", now)
        self._detach(version)
        version.incomplete = True
        version.judge_at = now + self._servables.model_of(version).rules.incomplete_after_seconds
        self._servables.move(version, Event.INCOMPLETE, f"incomplete: {reason}")
        return self._after_load(version, now)

    def worker_failed(self, worker: int, code: Code, reason: str, now: float) -> list[Action]:
        """The version could not be loaded, or its worker died before it was."""
        version = self._servables.version_of(worker)
        if version is not None and version.is_succeeded_by(worker):
            if version.successor is not None and not version.has_files_of(version.successor):
                self._loads.retry_replacement(version, now)
            self._successors.failed(version, reason)  # its process has gone, or goes by itself
            return self._proceed(self._servables.model_of(version), now)
        if version is None or version.state not in (State.LOADING, State.RESTARTING):
            return []
        self._detach(version)
        if version.state is State.RESTARTING:
            return self._failed_again(version, code, reason, now)
        version.refused_by_gate = False
        self._fail(version, code, reason, version.trusts_loader and code not in _OF_THE_MACHINE, now)
        return self._after_load(version, now)

    def _failed_again(self, version: Version, code: Code, reason: str, now: float) -> list[Action]:
        """The version, whose worker has died, did not come up again."""
        version.code = code
        self._loads.restart(version, now)
        if code not in _OF_THE_MACHINE:
            self._note_death(version, reason)
        self._servables.move(version, Event.LOAD_FAILED, reason)
        return self._after_load(version, now)

    def _fail(self, version: Version, code: Code, reason: str, is_final: bool, now: float) -> None:
        """The version, which was loading, does not serve; it is tried again later, or when its files change."""
        retry = "it is tried again when its files change" if is_final else self._loads.retry(version, now)
        version.code = code
        self._servables.move(version, Event.LOAD_FAILED, f"{reason} ({retry})")

    def worker_ended(self, worker: int, how: str, now: float, runs: Runs = NO_RUNS, fatal: str = "") -> list[Action]:
        """The worker's process is gone: `how` says by what, `runs` what it ran, and `fatal` what it died of where that
        may be to blame."""
        self._poisoning.worker_ended(worker, runs, fatal)
        version = self._servables.version_of(worker)
        if version is None:
            return []
        if version.is_succeeded_by(worker) or version.state in (State.LOADING, State.RESTARTING):
            return self.worker_failed(worker, Code.INTERNAL, f"its worker died while loading: {how}", now)
        self._detach(version)
        if version.state is State.DRAINING:
            self._servables.move(version, Event.WORKER_ENDED, f"unloaded: {version.reason}")
        else:
            self._loads.restart(version, now)
            version.served += now - version.available_since
            if version.form is None:  # that one dies is a reason to give up the form
                self._note_death(version, how)
            version.code = Code.UNAVAILABLE
            self._servables.move(version, Event.WORKER_DIED, f"its worker died: {how}")
            self._successors.form_died(version, how)
            if version.successor is not None:  # it takes over at once
                return self._take_over(version, now)
        return self._proceed(self._servables.model_of(version), now)

    def tick(self, now: float) -> list[Action]:
        """Does what has become due by `now`."""
        actions: list[Action] = []
        for model in list(self._models.values()):
            if model.due is not None and model.due <= now:
                actions += self._proceed(model, now)
        return actions

    # -- accelerated forms -----------------------------------------------------------------------------------

    def accelerate(self, servable: ServableId, form: Form, digest: str, now: float) -> list[Action]:
        """Lets `form`, which was made of the files with `digest`, take the place of the version's own model, if that is
        what it still serves."""
        version = self._servables.version(servable)
        return [] if version is None else self._successors.accelerate(version, form, digest)

    def stand_by(self, servable: ServableId, until: float, now: float) -> list[Action]:
        """Has a worker with the version's own model beside that of its accelerated form, to judge what that refused."""
        version = self._servables.version(servable)
        if version is None:
            return []
        actions = self._successors.stand_by(version, until)
        return actions + self._proceed(self._servables.model_of(version), now)

    def demote(self, servable: ServableId, why: str, now: float) -> list[Action]:
        """Serves the version's own model again, instead of an accelerated form that failed where it should not."""
        version = self._servables.version(servable)
        if version is None:
            return []
        actions = self._successors.demote(version, why, now)
        return actions + self._proceed(self._servables.model_of(version), now)

    def take_demotions(self) -> list[tuple[ServableId, str]]:
        """The forms that have failed since this was last asked, and why."""
        return self._successors.take_demotions()

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
        version = self._servables.version(servable)
        if version is None:
            return None
        if version.form is None and version.state in (State.AVAILABLE, State.RESTARTING):
            return version.socket_path
        if version.successor is None or not version.successor.stands_by:
            return None
        return version.successor.socket_path

    # -- what the supervisor asks ----------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Grows with every change that `routes` shows."""
        return self._servables.revision

    @property
    def next_due(self) -> float | None:
        """When `tick` has something to do."""
        return min((model.due for model in self._models.values() if model.due is not None), default=None)

    def names(self) -> Iterable[str]:
        return [model.name for model in self._models.values() if not model.removed]

    def loaded_versions(self, name: str) -> frozenset[int]:
        """The versions whose files need no more looking at."""
        model = self._models.get(name)
        return frozenset() if model is None else model.loaded_versions()

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

    def _is_tried(self, model: Model) -> bool:
        if model.in_state(State.AVAILABLE):
            return True
        return model.tried and not self._loads.is_waiting(model.name) and not model.in_state(State.LOADING)

    def standing(self, name: str) -> tuple[Standing, str]:
        """How far the model has come with its configuration, and the reason where it is not LIVE."""
        return standing(self._models[name], self._loads.is_waiting(name))

    def take_changes(self) -> list[StateChange]:
        return self._servables.take_changes()

    def routes(self) -> dict[str, ModelRoute]:
        """Every model with its versions, newest first."""
        return {model.name: model.route() for model in self._models.values()}

    def ended(self) -> dict[str, tuple[VersionRoute, ...]]:
        """The last versions that `routes` does not show any more, by model."""
        return self._servables.ended()

    # -- decisions -------------------------------------------------------------------------------------------

    def _proceed(self, model: Model, now: float) -> list[Action]:
        """Decides on `model`, and on those that wait for a load where one has ended."""
        actions = self._decide(model, now)
        for name in self._loads.waiting:
            if self._loads.are_full:
                break
            actions += self._decide(self._models[name], now)
        return actions

    def _decide(self, model: Model, now: float) -> list[Action]:
        versions = model.versions
        actions = self._drop_the_absent(model)
        model.due = None
        self._trust_the_loader(model, now)
        self._reconsider(model, now)
        found = wanted(model)
        actions += self._successors.expire(model, now)
        actions += self._load(model, [versions[number] for number in sorted(found.loaded, reverse=True)], now)
        for number in sorted(found.surplus):
            version = versions[number]
            if version.given_up and not any(other < number for other in found.aspired):
                version.given_up = ""  # it is not for that that it goes
            why = version.given_up or ("a newer version has taken over" if version.present else "its folder is gone")
            actions += self._unload(version, "the model was removed" if model.removed else why)
        for number in model.in_state(State.AVAILABLE):
            if not versions[number].present and not model.removed:
                self._servables.remark(versions[number], "its folder is gone; it serves until another version does")
        if model.removed and not versions:
            del self._models[model.name]
            self._servables.revision += 1
        return actions

    @staticmethod
    def _trust_the_loader(model: Model, now: float) -> None:
        """What has looked incomplete for long, and does not change, is loaded as it is: our own look may delay a
        version, and never refuses what the framework loads."""
        for version in model.versions.values():
            if version.state is not State.SETTLING or version.judge_at is None:
                continue
            if version.judge_at > now:
                model.be_due(version.judge_at)
            else:
                version.incomplete, version.judge_at, version.trusts_loader = False, None, True

    @staticmethod
    def _reconsider(model: Model, now: float) -> None:
        """A gate for replacements alone has nothing against a version any more once no other is left to serve."""
        if model.rules.gate is not Gate.ONLY_REPLACING or any(v.is_served_or_coming for v in model.versions.values()):
            return
        for version in model.versions.values():
            if version.state is State.FAILED and version.refused_by_gate:
                version.retry_at, version.refused_by_gate = now, False

    def _note_death(self, version: Version, how: str) -> None:
        """The worker of a version that has been served died, or did not come up again."""
        if not version.given_up:
            version.given_up = note_death(self._servables.model_of(version), version, how)
            if version.given_up:
                self._servables.say(version, f"it gives way to an older version: {version.given_up}", is_warning=True)

    def _load(self, model: Model, wanted: Iterable[Version], now: float) -> list[Action]:
        """Starts workers for those of the `wanted` versions that have none, as many as may load now."""
        actions: list[Action] = []
        waits = False
        for version in wanted:
            if version.worker is not None or version.state in (State.AVAILABLE, State.DRAINING):
                continue
            if version.retry_at is not None and version.retry_at > now:
                model.be_due(version.retry_at)
                continue
            if version.state is not State.RESTARTING:
                # A restart never waits: it was admitted when it was first loaded.
                if self._loads.are_full:
                    waits = True
                    continue
                self._loads.begin()
                self._servables.move(version, Event.LOAD, "")
            version.retry_at = None
            is_first = version.state is State.LOADING
            start = self._servables.start_worker(
                version, version.path, version.digest, version.form, is_first, not version.trusts_loader
            )
            version.worker = start.worker
            actions.append(start)
        self._loads.wait(model.name, waits)
        return actions

    def _unload(self, version: Version, why: str) -> list[Action]:
        self._end_load(version)
        served = version.state is State.AVAILABLE
        version.retry_at = None
        self._servables.move(version, Event.DRAIN, why)
        actions = self._successors.dismiss(version)
        if version.worker is None:
            self._servables.move(version, Event.WORKER_ENDED, f"unloaded: {why}")
            return actions
        return [*actions, DrainWorker(version.worker) if served else KillWorker(version.worker)]

    def _drop_the_absent(self, model: Model) -> list[Action]:
        actions: list[Action] = []
        for version in list(model.versions.values()):
            if version.present:
                continue
            why = "the model was removed" if model.removed else "its folder is gone"
            if version.state in (State.LOADING, State.RESTARTING):
                actions += self._unload(version, why)
            if version.state in AT_REST:
                self._servables.forget(version, why)
        return actions

    def _take_over(self, version: Version, now: float) -> list[Action]:
        actions = self._successors.take_over(version, now)
        return actions + self._proceed(self._servables.model_of(version), now)

    def _end_load(self, version: Version) -> None:
        if version.state is State.LOADING:
            self._loads.end()

    def _detach(self, version: Version) -> None:
        self._end_load(version)
        if version.worker is not None:
            self._servables.forget_worker(version.worker)
            version.worker = None
        version.socket_path = ""

    def _after_load(self, version: Version, now: float) -> list[Action]:
        model = self._servables.model_of(version)
        model.tried = True
        return self._proceed(model, now)

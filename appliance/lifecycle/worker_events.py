"""What follows from what happens to workers: they load, fail and end. Pure."""

from __future__ import annotations

from appliance.core.errors import Code
from appliance.core.poison import NO_RUNS, Runs
from appliance.core.servable import Form
from appliance.lifecycle.actions import Action, KillWorker
from appliance.lifecycle.judging import judge, note_death
from appliance.lifecycle.loads import Loads
from appliance.lifecycle.models import Version
from appliance.lifecycle.poisoning import Poisoning
from appliance.lifecycle.reconciler import Reconciler
from appliance.lifecycle.release import Refusal
from appliance.lifecycle.replicas import Attempt, Files, Loaded, Replica, Role
from appliance.lifecycle.servables import Servables
from appliance.lifecycle.states import Event, State
from appliance.lifecycle.successors import Successors

__all__ = ["WorkerEvents"]

# What is no fault of a version that does not load: no memory or GPU, no time, a process that could not be started.
_OF_THE_MACHINE = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


class WorkerEvents:
    """Each event names a worker by its number, and says nothing of one that no version has any more. `now` is monotonic
    seconds."""

    def __init__(
        self,
        servables: Servables,
        loads: Loads,
        successors: Successors,
        poisoning: Poisoning,
        reconciler: Reconciler,
    ) -> None:
        self._servables = servables
        self._loads = loads
        self._successors = successors
        self._poisoning = poisoning
        self._reconciler = reconciler

    def form_found(self, worker: int, form: Form) -> None:
        """Note that the worker, whose process has not been started yet, will load `form`."""
        version = self._servables.version_of(worker)
        if version is not None:
            version.replica(worker).form = form

    def ready(self, worker: int, loaded: Loaded, now: float) -> list[Action]:
        """Let the worker serve, or take over, if what it has `loaded` may."""
        version = self._servables.version_of(worker)
        if version is None:
            return []
        replica = version.replica(worker)
        if replica.role is not Role.SERVING:
            return self._second_ready(version, replica, loaded, now)
        if version.state not in (State.LOADING, State.RESTARTING):
            return []
        if replica.form is not None and loaded.warmup_failure:
            return [KillWorker(worker), self._successors.without_form(version, replica, loaded.warmup_failure)]
        replica.changes = version.changes
        if version.state is State.LOADING or replica.files.digest != version.service.digest:
            refused, replica.changes = judge(self._servables.model_of(version), version, loaded)
            if refused is not None:
                return self._refuse(version, refused, now)
        replica.loaded = loaded
        if version.state is State.LOADING:
            self._loads.ended(version, now, has_loaded=True)
        has_other_files = version.has_served_others
        version.serve(replica, loaded, now)
        self._servables.move(version, Event.READY, "")
        if has_other_files:
            self._servables.say(version, "it serves other files than before", is_warning=True)
        self._servables.say_remarks(version)
        return self._after_load(version, now)

    def _second_ready(self, version: Version, replica: Replica, loaded: Loaded, now: float) -> list[Action]:
        """Let the second worker of a version that is served take over. One that has other files is judged as another
        version is."""
        replica.loaded, replica.changes = loaded, version.changes
        if replica.files != version.files:
            model = self._servables.model_of(version)
            refused, replica.changes = judge(model, version, loaded)
            if refused is not None:
                self._loads.retry_replacement(version, now)
                actions = self._successors.failed(version, refused.reason)
                return actions + self._reconciler.reconcile(model, now)
        self._servables.revision += 1
        return [] if replica.role is Role.STANDING_BY else self._take_over(version, now)

    def _refuse(self, version: Version, refused: Refusal, now: float) -> list[Action]:
        """Kill the worker of a version that has loaded and must not serve: what serves stays."""
        assert version.serving is not None
        kill = KillWorker(version.serving.worker)
        self._reconciler.end_worker(version)
        version.refused_by_gate = True
        if version.state is State.RESTARTING:  # with other files than it served before
            return [kill, *self._failed_again(version, refused.code, refused.reason, now)]
        self._fail(version, refused.code, refused.reason, refused.is_final, now)
        return [kill, *self._after_load(version, now)]

    def incomplete(self, worker: int, reason: str, now: float) -> list[Action]:
        """Wait until the files of the version change: its folder is not all there."""
        version = self._servables.version_of(worker)
        if version is None:
            return []
        replica = version.replica(worker)
        seconds = self._servables.model_of(version).rules.incomplete_after_seconds
        if replica.role is not Role.SERVING and version.replacement is not None:
            version.replacement.retry_at, version.replacement.trusts_loader = now + seconds, True
            actions = self._successors.failed(version, f"incomplete: {reason}")
            return actions + self._reconciler.reconcile(self._servables.model_of(version), now)
        if replica.role is not Role.SERVING or version.state is not State.LOADING or replica.form is not None:
            return self.failed(worker, Code.FAILED_PRECONDITION, f"incomplete: {reason}", now)
        self._reconciler.end_worker(version)
        version.incomplete = True
        version.judge_at = now + seconds
        self._servables.move(version, Event.INCOMPLETE, f"incomplete: {reason}{_of_changed_files(version)}")
        return self._after_load(version, now)

    def files_changed(self, worker: int, digest: str, content: str, now: float) -> list[Action]:
        """Take back a worker whose process was not started: the files in its folder, which `digest` and `content`
        identify, are not those that it was to load any more. They are loaded once they have settled, as those of a new
        version are; until then, and if they do not load, an older version serves if there is one."""
        version = self._servables.version_of(worker)
        if version is None:
            return []
        if version.replica(worker).role is not Role.SERVING:
            return self.failed(worker, Code.FAILED_PRECONDITION, "its files have changed since they were loaded", now)
        if version.state not in (State.LOADING, State.RESTARTING):
            return []
        self._reconciler.end_worker(version)
        reason = "its files have changed"
        if version.state is State.RESTARTING:
            reason = (
                f"{version.reason}; its files have changed since it was loaded: they count as those of a new version"
            )
        version.change_files(Files(version.files.path, digest, content))
        version.settled = False
        self._servables.move(version, Event.FILES_CHANGED, reason, is_warning=True)
        return self._after_load(version, now)

    def failed(self, worker: int, code: Code, reason: str, now: float) -> list[Action]:
        """Take back a worker that could not load, and whose process has ended, or ends by itself. A form gives way to
        the version's own model; else it is tried again later."""
        version = self._servables.version_of(worker)
        if version is None:
            return []
        replica = version.replica(worker)
        if replica.role is not Role.SERVING:
            if replica.files != version.files:
                self._loads.retry_replacement(version, now)
            self._successors.failed(version, reason)
            return self._reconciler.reconcile(self._servables.model_of(version), now)
        if version.state not in (State.LOADING, State.RESTARTING):
            return []
        if replica.form is not None:
            return [self._successors.without_form(version, replica, reason)]
        self._reconciler.end_worker(version)
        if version.state is State.RESTARTING:
            return self._failed_again(version, code, reason, now)
        version.refused_by_gate = False
        self._fail(version, code, reason, version.trusts_loader and code not in _OF_THE_MACHINE, now)
        return self._after_load(version, now)

    def ended(
        self,
        worker: int,
        how: str,
        now: float,
        runs: Runs = NO_RUNS,
        fatal: str = "",
        attempt: Attempt | None = None,
    ) -> list[Action]:
        """Replace a worker whose process is gone, if it is still wanted.

        `how` says by what it ended, `runs` what it ran, `fatal` what it died of if a request may be to blame, and
        `attempt` which made-up request of the warm-up it died of.
        """
        version = self._servables.version_of(worker)
        if version is None:
            self._poisoning.worker_ended(worker, runs, fatal)
            return []
        replica = version.replica(worker)
        is_second = replica.role is not Role.SERVING
        is_loading = is_second or version.state in (State.LOADING, State.RESTARTING)
        if is_loading and attempt is not None and (is_second or replica.form is None):
            self._poisoning.worker_ended(worker, NO_RUNS, "")  # nothing is held against clients that was made up here
            return [self._successors.without_attempt(version, replica, attempt)]
        self._poisoning.worker_ended(worker, runs, fatal)
        if is_loading:
            return self.failed(worker, Code.INTERNAL, f"its worker died while loading: {how}", now)
        self._reconciler.end_worker(version)
        if version.state is State.DRAINING:
            self._servables.move(version, Event.WORKER_ENDED, f"unloaded: {version.reason}")
            return self._reconciler.reconcile(self._servables.model_of(version), now)
        self._loads.restart(version, now)
        version.service.seconds += now - version.service.since
        if version.form is None:  # that one dies is a reason to give up the form
            self._note_death(version, how)
        version.code = Code.UNAVAILABLE
        self._servables.move(version, Event.WORKER_DIED, f"its worker died: {how}")
        self._successors.form_died(version, how)
        if version.second is not None:  # it takes over at once
            return self._take_over(version, now)
        return self._reconciler.reconcile(self._servables.model_of(version), now)

    def _failed_again(self, version: Version, code: Code, reason: str, now: float) -> list[Action]:
        """Restart a version, whose worker has died, once more: it did not come up again."""
        version.code = code
        self._loads.restart(version, now)
        if code not in _OF_THE_MACHINE:
            self._note_death(version, reason)
        self._servables.move(version, Event.LOAD_FAILED, reason)
        return self._after_load(version, now)

    def _fail(self, version: Version, code: Code, reason: str, is_final: bool, now: float) -> None:
        """Fail a version that was loading: it is tried again later, or when its files change."""
        self._loads.ended(version, now, has_loaded=False)
        retry = "it is tried again when its files change" if is_final else self._loads.retry(version, now)
        version.code = code
        self._servables.move(version, Event.LOAD_FAILED, f"{reason}{_of_changed_files(version)} ({retry})")

    def _note_death(self, version: Version, how: str) -> None:
        """Count that the worker of a version that has been served died, or did not come up again."""
        service = version.service
        if not service.given_up:
            service.given_up = note_death(self._servables.model_of(version), version, how)
            if service.given_up:
                text = f"it gives way to an older version: {service.given_up}"
                self._servables.say(version, text, is_warning=True)

    def _take_over(self, version: Version, now: float) -> list[Action]:
        actions = self._successors.take_over(version, now)
        return actions + self._reconciler.reconcile(self._servables.model_of(version), now)

    def _after_load(self, version: Version, now: float) -> list[Action]:
        model = self._servables.model_of(version)
        model.tried = True
        return self._reconciler.reconcile(model, now)


def _of_changed_files(version: Version) -> str:
    """Return what to add to the reason why a version does not load, if it has served before its files were changed."""
    return "; its files were changed after it had served" if version.has_served_others else ""

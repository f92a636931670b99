"""Second workers of versions that are served. One takes over as soon as it is ready, with a form, with the version's
own model again, or with other files; one that stands by takes over if it is needed. Until then nothing changes, and if
it does not load nothing has changed either.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import Action, DrainWorker, GivenUp, KillWorker, StartWorker
from appliance.lifecycle.models import Model, Replacement, Version
from appliance.lifecycle.replicas import Attempt, Files, Replica, Role
from appliance.lifecycle.servables import Servables
from appliance.lifecycle.states import Event, State


@dataclass(frozen=True, slots=True)
class ServedForm:
    """A version that has a form: the folder and the digest of the files that it was made of, and the worker that serves
    it, by its number; 0 while none does."""

    servable: ServableId
    form: Form
    path: str
    digest: str
    worker: int


class Successors:
    """Starts, promotes and ends the second worker of a version."""

    def __init__(self, servables: Servables) -> None:
        self._servables = servables
        self._demotions: list[GivenUp] = []

    def take_demotions(self) -> list[GivenUp]:
        """Return the forms that have been given up since this was last asked."""
        demotions, self._demotions = self._demotions, []
        return demotions

    # -- forms -----------------------------------------------------------------------------------------------

    def accelerate(self, version: Version, form: Form, digest: str) -> list[Action]:
        """Start a successor on `form`, if the files that it was made of, `digest`, are those that are served, and have
        not changed meanwhile."""
        if version.state is not State.AVAILABLE or version.files.digest != digest or version.form == form:
            return []
        if version.has_changed:
            return []
        return self._succeed(version, version.files, form)

    def stand_by(self, version: Version, until: float) -> list[Action]:
        """Start a worker with the version's own model beside that of its form, or keep the one that is there, `until`
        then (monotonic). None is started once the files have changed: it would be another model."""
        if version.form is None or version.state is not State.AVAILABLE:
            return []
        if version.second is not None:
            version.second.until = max(version.second.until, until)
            return []
        if version.has_changed:
            return []
        return [self._start(version, Role.STANDING_BY, version.files, until=until)]

    def demote(self, version: Version, why: str, now: float) -> list[Action]:
        """Serve the version's own model again, instead of a form."""
        if version.form is None or version.state is not State.AVAILABLE:
            return []
        self._demotions.append(GivenUp(version.id, why))
        second = version.second
        if second is None or second.role is not Role.STANDING_BY:
            return self._succeed(version, version.files)
        second.role = Role.SUCCEEDING
        return self.take_over(version, now) if second.loaded is not None else []

    def form_died(self, version: Version, how: str) -> None:
        """Give up a form whose worker has died: a request outside of what was proven may have killed it."""
        if version.form is not None:
            self._demotions.append(GivenUp(version.id, f"its worker on {version.form.backend} died: {how}"))
            version.form = None

    def expire(self, model: Model, now: float) -> list[Action]:
        """End what stands by and was not asked for in time."""
        actions: list[Action] = []
        for version in model.versions.values():
            if version.second is not None and version.second.role is Role.STANDING_BY:
                if version.second.until <= now:
                    actions += self.dismiss(version)
                else:
                    model.be_due(version.second.until)
        return actions

    # -- files -----------------------------------------------------------------------------------------------

    def follow(self, version: Version, files: Files, now: float) -> list[Action]:
        """Load other files, which have settled for a version that is served, beside those that it serves; again if
        that has failed and its time has come."""
        if version.replacement is None or version.replacement.files != files:
            version.replacement = Replacement(files)
        second = version.second
        # What is under way is not replaced, and neither is a demotion, say.
        if second is not None and second.role is Role.SUCCEEDING and second.files in (files, version.files):
            return []
        if version.replacement.retry_at > now:
            return []
        return self._succeed(version, files)

    def stay(self, version: Version) -> list[Action]:
        """Forget what was to replace the files that are served: these are asked for again."""
        version.replacement = None
        version.is_stale = False
        actions: list[Action] = []
        if version.second is not None and version.second.files != version.files:
            actions += self.dismiss(version)
        if version.state is State.AVAILABLE:
            self._servables.remark(version, "")
        return actions

    # -- what becomes of them --------------------------------------------------------------------------------

    def take_over(self, version: Version, now: float) -> list[Action]:
        """Let the second worker serve from now on, or restart the version if it is not ready yet; the one before it,
        if it still lives, drains."""
        old, successor = version.serving, version.second
        assert successor is not None
        moved = successor.files.path != version.files.path
        replaced = not moved and successor.files != version.files
        reformed = successor.form != version.form
        if moved or replaced:
            trusted = version.replacement is not None and version.replacement.trusts_loader
            version.replacement, version.is_stale, version.trusts_loader = None, False, trusted
        if old is not None:
            self._servables.forget_worker(version, old.worker)
        successor.role = Role.SERVING
        if successor.loaded is None:
            version.files, version.form = successor.files, successor.form
            version.retry_at = None
            return []
        version.serve(successor, successor.loaded, now)
        if version.state is State.RESTARTING:
            self._servables.move(version, Event.READY, "")
        version.reason = ""
        if moved:
            self._servables.say(version, f"now served from {version.files.path}")
        if replaced:
            self._servables.say(version, "now served from the files that have replaced those before")
        if reformed:
            by = "its own model" if version.form is None else version.form.backend
            self._servables.say(version, f"now served by {by}")
        self._servables.say_remarks(version)
        self._servables.revision += 1
        return [] if old is None else [DrainWorker(old.worker)]

    def failed(self, version: Version, reason: str) -> list[Action]:
        """Give up the second worker, which could not be loaded, or must not serve: a process that it still has is to be
        killed."""
        second = version.second
        assert second is not None
        actions = self.dismiss(version)
        if second.form is None and second.files != version.files:
            if second.files.path == version.files.path:
                old = "its files were replaced, and it is served as they were before: they do not load"
            else:
                old = f"still served from {version.files.path}: {second.files.path} does not load"
            version.reason = f"{old}: {reason}"
            self._servables.say(version, version.reason, is_warning=second.files.path == version.files.path)
        else:
            what = "TensorFlow, standing by," if second.form is None else f"its form for {second.form.backend}"
            self._servables.say(version, f"{what} does not load: {reason}")
            if second.form is not None:
                self._demotions.append(GivenUp(version.id, f"{what} does not load: {reason}", is_failure=False))
        return actions

    def dismiss(self, version: Version) -> list[Action]:
        """End the second worker of the version, if it has one."""
        if version.second is None:
            return []
        worker = version.second.worker
        self._servables.forget_worker(version, worker)
        return [KillWorker(worker)]

    # -- instead of a worker that has not loaded ----------------------------------------------------------------

    def without_form(self, version: Version, replica: Replica, reason: str) -> StartWorker:
        """Serve the version's own model, at once, instead of a form that does not load."""
        assert replica.form is not None
        text = f"its form for {replica.form.backend} does not load ({reason}): its own model is loaded instead"
        self._servables.say(version, text, is_warning=True)
        why = f"its form for {replica.form.backend} does not load: {reason}"
        self._demotions.append(GivenUp(version.id, why, is_failure=False))
        version.form = None
        return self._instead_of(version, replica, None, replica.left_out)

    def without_attempt(self, version: Version, replica: Replica, attempt: Attempt) -> StartWorker:
        """Load it anew, at once, without the made-up request that its process has died of."""
        text = (
            f"its process ended ({attempt.how}) while made-up inputs warmed it up ({attempt.text}); it starts again "
            "without those"
        )
        self._servables.say(version, text, is_warning=True)
        return self._instead_of(version, replica, replica.form, (*replica.left_out, attempt))

    def _instead_of(
        self, version: Version, replica: Replica, form: Form | None, left_out: tuple[Attempt, ...]
    ) -> StartWorker:
        self._servables.forget_worker(version, replica.worker)
        return self._start(version, replica.role, replica.files, form, until=replica.until, left_out=left_out)

    def _succeed(self, version: Version, files: Files, form: Form | None = None) -> list[Action]:
        """Start a successor in place of the second worker that is there, if any."""
        return [*self.dismiss(version), self._start(version, Role.SUCCEEDING, files, form)]

    def _start(
        self,
        version: Version,
        role: Role,
        files: Files,
        form: Form | None = None,
        *,
        until: float = 0.0,
        left_out: tuple[Attempt, ...] = (),
    ) -> StartWorker:
        trusts = version.trusts_loader
        if files != version.files:
            trusts = version.replacement is not None and version.replacement.trusts_loader
        return self._servables.start(version, role, files, form, until=until, check_files=not trusts, left_out=left_out)

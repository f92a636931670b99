"""Successors: second workers of versions that are served. One takes over as soon as it is ready, with an accelerated
form, with the version's own model again, or with the same version in another folder; one that stands by, when it is
needed. Until then nothing changes, and where it does not load nothing has.
"""

from __future__ import annotations

from appliance.core.errors import Code
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import Action, DrainWorker, KillWorker
from appliance.lifecycle.servables import Model, Replacement, Servables, Successor, Version
from appliance.lifecycle.states import Event, State


class Successors:
    def __init__(self, servables: Servables) -> None:
        self._servables = servables
        self._demotions: list[tuple[ServableId, str]] = []

    def take_demotions(self) -> list[tuple[ServableId, str]]:
        """The forms that have failed since this was last asked, and why."""
        demotions, self._demotions = self._demotions, []
        return demotions

    # -- forms -----------------------------------------------------------------------------------------------

    def accelerate(self, version: Version, form: Form, digest: str) -> list[Action]:
        """Lets `form`, which was made of the files with `digest`, follow, if these are what is served."""
        if version.state is not State.AVAILABLE or version.digest != digest or version.form == form:
            return []
        return self._succeed(version, Successor(version.path, version.digest, form))

    def stand_by(self, version: Version, until: float) -> list[Action]:
        """Has a worker with the version's own model beside that of its form."""
        if version.form is None or version.state is not State.AVAILABLE:
            return []
        if version.successor is not None:
            version.successor.until = max(version.successor.until, until)
            return []
        return self._succeed(version, Successor(version.path, version.digest, stands_by=True, until=until))

    def demote(self, version: Version, why: str, now: float) -> list[Action]:
        """Serves the version's own model again, instead of a form."""
        if version.form is None or version.state is not State.AVAILABLE:
            return []
        self._demotions.append((version.id, why))
        successor = version.successor
        if successor is None or not successor.stands_by:
            return self._succeed(version, Successor(version.path, version.digest))
        successor.stands_by = False
        return self.take_over(version, now) if successor.socket_path else []

    def form_died(self, version: Version, how: str) -> None:
        """The worker of a form has died. A shape that was not proven may have killed it: it is not trusted again."""
        if version.form is not None:
            self._demotions.append((version.id, f"its worker on {version.form.backend} died: {how}"))
            version.form = None

    def expire(self, model: Model, now: float) -> list[Action]:
        """Ends what stands by and was not asked for in time."""
        actions: list[Action] = []
        for version in model.versions.values():
            if version.successor is not None and version.successor.stands_by:
                if version.successor.until <= now:
                    actions += self.dismiss(version)
                else:
                    model.be_due(version.successor.until)
        return actions

    # -- folders ---------------------------------------------------------------------------------------------

    def follow(self, version: Version, path: str, digest: str, now: float) -> list[Action]:
        """Other files have settled for the version, which is served: they are loaded beside it, and again where that
        failed and it is time."""
        replacement = version.replacement
        if replacement is None or (replacement.path, replacement.digest) != (path, digest):
            replacement = version.replacement = Replacement(path, digest)
        successor = version.successor
        if successor is not None and not successor.stands_by:
            is_under_way = (successor.path, successor.digest) == (path, digest)
            if is_under_way or version.has_files_of(successor):  # a demotion, say, is not to be lost
                return []
        if replacement.retry_at > now:
            return []
        return self._succeed(version, Successor(path, digest), check_files=not replacement.trusts_loader)

    def stay(self, version: Version) -> list[Action]:
        """The files that the version is served from are those that are asked for: what was to replace them is
        forgotten."""
        version.replacement = None
        version.is_stale = False
        actions: list[Action] = []
        if version.successor is not None and not version.has_files_of(version.successor):
            actions += self.dismiss(version)
        if version.state is State.AVAILABLE:
            self._servables.remark(version, "")
        return actions

    # -- what becomes of them --------------------------------------------------------------------------------

    def take_over(self, version: Version, now: float) -> list[Action]:
        """The successor serves from now on, or restarts the version if it is not ready yet; its predecessor, if it
        still lives, drains."""
        old, successor = version.worker, version.successor
        assert successor is not None
        moved, reformed = successor.path != version.path, successor.form != version.form
        replaced = not moved and successor.digest != version.digest
        if moved or replaced:
            trusted = version.replacement is not None and version.replacement.trusts_loader
            version.replacement, version.is_stale, version.trusts_loader = None, False, trusted
        version.worker, version.successor = successor.worker, None
        version.path, version.digest, version.form = successor.path, successor.digest, successor.form
        version.retry_at = None
        if not successor.socket_path:
            return []
        version.socket_path, version.signatures = successor.socket_path, successor.signatures
        version.unsupported = successor.unsupported
        version.serve_since(now)
        version.code = Code.OK
        if version.state is State.RESTARTING:
            self._servables.move(version, Event.READY, "")
        version.reason = ""
        if moved:
            self._servables.say(version, f"now served from {version.path}")
        if replaced:
            self._servables.say(version, "now served from the files that have replaced those before")
        if reformed:
            by = "its own model" if version.form is None else version.form.backend
            self._servables.say(version, f"now served by {by}")
        version.remarks, version.changes = successor.remarks, successor.changes
        self._servables.say_remarks(version)
        self._servables.revision += 1
        if old is None:
            return []
        self._servables.forget_worker(old)
        return [DrainWorker(old)]

    def failed(self, version: Version, reason: str) -> list[Action]:
        """The successor could not be loaded, or must not serve: a process that it still has is to be killed."""
        successor = version.successor
        assert successor is not None
        actions = self.dismiss(version)
        if successor.form is None and successor.path == version.path and successor.digest != version.digest:
            version.reason = (
                f"its files were replaced, and it is served as they were before: they do not load: {reason}"
            )
            self._servables.say(version, version.reason, is_warning=True)
        elif successor.form is None and successor.path != version.path:
            version.reason = f"still served from {version.path}: {successor.path} does not load: {reason}"
            self._servables.say(version, version.reason)
        else:
            what = "TensorFlow, standing by," if successor.form is None else f"its form for {successor.form.backend}"
            self._servables.say(version, f"{what} does not load: {reason}")
        return actions

    def dismiss(self, version: Version) -> list[Action]:
        """The version has no successor any more: one that there was is to be killed."""
        if version.successor is None:
            return []
        worker, version.successor = version.successor.worker, None
        self._servables.forget_worker(worker)
        return [KillWorker(worker)]

    def _succeed(self, version: Version, successor: Successor, check_files: bool = True) -> list[Action]:
        """Starts `successor` in place of the one that is there, if any."""
        actions = self.dismiss(version)
        if version.has_files_of(successor):
            check_files = not version.trusts_loader
        start = self._servables.start_worker(
            version, successor.path, successor.digest, successor.form, check_files=check_files
        )
        successor.worker = start.worker
        version.successor = successor
        return [*actions, start]

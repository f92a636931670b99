"""What follows from what is seen of a model's folders. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.core.observed import Observed
from appliance.lifecycle.actions import Action
from appliance.lifecycle.models import AT_REST, HAS_CHANGED, Version
from appliance.lifecycle.reconciler import Reconciler
from appliance.lifecycle.replicas import Files
from appliance.lifecycle.servables import Servables
from appliance.lifecycle.states import Event, State
from appliance.lifecycle.successors import Successors

__all__ = ["Observations"]


class Observations:
    """Takes in what the source sees. `now` is monotonic seconds."""

    def __init__(self, servables: Servables, successors: Successors, reconciler: Reconciler) -> None:
        self._servables = servables
        self._successors = successors
        self._reconciler = reconciler

    def observe(self, name: str, observed: Mapping[int, Observed], reason: str, now: float) -> list[Action]:
        """Take in the version folders of a model as they are now; `reason` is a remark on its base path."""
        model = self._servables.models[name]
        self._servables.remark(model, reason)
        model.seen = True
        kept = {path for version in model.versions.values() for path in version.paths}
        model.names = {path: names for path, names in model.names.items() if path in kept} | {
            seen.path: seen.names for seen in observed.values() if seen.digest is not None and not seen.in_place
        }
        actions: list[Action] = []
        for number, seen in observed.items():
            version = model.versions.get(number)
            if version is None:
                files = Files(seen.path, seen.digest, seen.content)
                version = self._servables.discover(model, number, files, seen.reason)
            actions += self._see(version, seen, now)
        for number, version in model.versions.items():
            version.present = number in observed
        return actions + self._reconciler.reconcile(model, now)

    def base_path_lost(self, name: str, reason: str) -> None:
        """Note that the base path cannot be read: nothing is unloaded, and the status tells why nothing is loaded."""
        model = self._servables.models[name]
        model.seen = True
        self._servables.remark(model, reason)

    def _see(self, version: Version, seen: Observed, now: float) -> list[Action]:
        """Take in the folder of one version."""
        if seen.in_place:
            self._compare(version, seen)
            seen = replace(seen, digest=None, settled=True)
        if version.serving is not None and seen.path != version.files.path:
            version.present = True
            version.settled = version.settled and version.state is not State.DRAINING  # else of the old folder
            return self._follow(version, seen, now)
        if version.state is State.AVAILABLE and seen.digest not in (None, version.files.digest):
            self._look_again(version, seen)
            return self._follow(version, seen, now)
        replacement = version.replacement
        actions: list[Action] = []
        if replacement is not None and (seen.digest or replacement.files.path != seen.path):
            actions = self._successors.stay(version)
        self._look_again(version, seen)
        return actions

    def _compare(self, version: Version, seen: Observed) -> None:
        """Take in what is seen of the files that a loaded version was loaded from, once they have settled. They stay
        loaded, as TensorFlow Serving's do, and who changes them is told of it."""
        files = version.files
        if seen.path != files.path or not seen.settled:
            return
        if seen.digest == files.digest:
            version.files = replace(files, content=seen.content or files.content)
        is_same = seen.digest == files.digest or (files.content != "" and seen.content == files.content)
        if version.has_changed and is_same:
            self._servables.say(version, "its files are those that it was loaded from again")
        elif not version.has_changed and not is_same:
            self._servables.say(version, HAS_CHANGED, is_warning=True)
        version.has_changed = not is_same

    def _follow(self, version: Version, seen: Observed, now: float) -> list[Action]:
        """Load other files than those that the version's worker was started on, once they have settled."""
        if version.state is not State.AVAILABLE or not seen.settled or seen.digest is None:
            return []
        return self._successors.follow(version, Files(seen.path, seen.digest, seen.content), now)

    def _look_again(self, version: Version, seen: Observed) -> None:
        """Take in what is seen of a version's own folder: files that have changed clear its failures."""
        if seen.digest not in (None, version.files.digest):
            if version.state in AT_REST:
                version.change_files(Files(seen.path, seen.digest, seen.content))
                if version.state is not State.SETTLING:
                    self._servables.move(version, Event.FILES_CHANGED, "its files changed")
            else:
                # While a worker is at it, the old digest is kept, so that the change counts once it has ended.
                version.is_stale = True
        if not version.present:
            version.settled = False  # it went and came back: these are other files
            if version.state is State.AVAILABLE:
                self._servables.remark(version, "")
        version.present = True
        known = seen.content if seen.digest == version.files.digest else ""
        version.files = replace(version.files, path=seen.path, content=known or version.files.content)
        if seen.digest is not None:
            version.settled = seen.settled
            if version.state is State.SETTLING and not version.incomplete:
                self._servables.remark(version, seen.reason)

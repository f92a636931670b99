"""What follows from requests that end processes: what is known of each version, and what is refused. Pure."""

from __future__ import annotations

from collections.abc import Collection

from appliance.core.poison import Kind, Refused, Runs
from appliance.core.servable import ServableId
from appliance.lifecycle.models import Version
from appliance.lifecycle.replicas import Files
from appliance.lifecycle.servables import Servables
from appliance.lifecycle.states import State


class Poisoning:
    """Keeps the `suspects` of versions (`appliance.core.poison`), and says what is refused from now on."""

    def __init__(self, servables: Servables) -> None:
        self._servables = servables

    def worker_ended(self, worker: int, runs: Runs, fatal: str) -> None:
        """Learn from what a worker that is gone has run. `fatal` is what it died of while it ran requests, "" if it did
        not.

        What it has answered counts also if it served no more: another has taken over, or it stood by. The death of a
        form has another consequence: the form is given up.
        """
        started = self._servables.take_started(worker)
        version = None if started is None else self._served(*started)
        if version is None:
            return
        version.suspects.learn(runs)
        replica = next((replica for replica in version.replicas if replica.worker == worker), None)
        if replica is None or replica.form is not None or not fatal or not (runs.held or runs.unnamed):
            return
        signatures = version.signatures if replica.loaded is None else replica.loaded.signatures
        self._say(version, version.suspects.died(runs, fatal, signatures))

    def odd_shapes_tried(
        self, servable: ServableId, digest: str, fatal: Collection[Kind], how: str, answered: Runs
    ) -> None:
        """Learn that an expendable process has died of the kinds in `fatal`, and that it, or the version itself, has
        answered what `answered` says."""
        version = self._served(servable, digest)
        if version is not None:
            version.suspects.learn(answered)
            for kind in fatal:
                self._say(version, version.suspects.tried(kind, how, version.signatures))

    def odd_shapes_skipped(self, servable: ServableId, digest: str, why: str) -> None:
        """Note why no odd shapes were tried, or not all."""
        version = self._served(servable, digest)
        if version is not None:
            version.untried = f"inputs of shapes that contradict its signatures were not tried: {why}"
            self._servables.say(version, version.untried)

    def served(self) -> list[tuple[ServableId, Files, frozenset[str]]]:
        """Return the available versions: what, its files, which have a digest, and the names of its model files."""
        return [
            (version.id, version.files, model.names.get(version.files.path, frozenset()))
            for model, version in self._servables.wanted()
            if version.state is State.AVAILABLE and version.files.digest
        ]

    def _served(self, servable: ServableId, digest: str | None) -> Version | None:
        version = self._servables.version(servable)
        return version if version is not None and version.suspects.files == digest else None

    def _say(self, version: Version, refused: Refused | None) -> None:
        if refused is not None:
            self._servables.say(version, str(refused), is_warning=True)

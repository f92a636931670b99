"""One model and its versions: what is seen of each, the workers that it has, and how it has served."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.config.version_policy import Specific, VersionPolicy
from appliance.core.errors import Code
from appliance.core.poison import Suspects
from appliance.core.routes import ModelRoute, VersionRoute
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.release import ReleaseRules
from appliance.lifecycle.replicas import Files, Loaded, Replica, Role
from appliance.lifecycle.states import PUBLIC, State
from backends.contract import Signature

__all__ = ["AT_REST", "HAS_CHANGED", "Model", "Replacement", "Version"]

AT_REST = (State.SETTLING, State.FAILED, State.ENDED)
"""The states in which no worker is there, or due."""

HAS_CHANGED = (
    "its files have been changed since it was loaded: it goes on serving what was loaded, and if its worker has to be "
    "started again, they count as those of a new version; put the old ones back, or drop the new ones as a version of "
    "their own"
)


@dataclass(slots=True, eq=False)
class Replacement:
    """Other files that are seen for a version that is served: in another folder, or where its own lay."""

    files: Files
    attempts: int = 0
    retry_at: float = 0.0  # monotonic seconds; infinite: not before they change
    trusts_loader: bool = False


@dataclass(slots=True, eq=False)
class Service:
    """How a version has served since its files changed. Times are monotonic seconds."""

    seconds: float = 0.0  # that it was available before `since`
    since: float = 0.0  # when it became available, or was taken over, last
    digest: str | None = None  # of the files that it has answered from
    crashes: int = 0  # of its workers in a row
    deaths: list[float] = field(default_factory=list)  # after how many seconds of service its worker died, the last few
    given_up: str = ""  # why another version is served instead, if there is one: its worker died again and again

    def forgive(self) -> None:
        """Forget the deaths of its workers."""
        self.given_up, self.deaths = "", []


@dataclass(slots=True, eq=False)
class Version:
    id: ServableId
    files: Files  # at rest: those that are there now; else those that its serving worker was started on
    state: State = State.SETTLING
    reason: str = ""
    code: Code = Code.OK
    # What is seen of its folder.
    present: bool = True
    settled: bool = False
    incomplete: bool = False
    judge_at: float | None = None  # incomplete: when it is loaded all the same, if nothing changes
    trusts_loader: bool = False  # it has looked incomplete for long: the framework says what is wrong, if anything is
    is_stale: bool = False  # other files are there than those that its worker was started on: they are looked at
    replacement: Replacement | None = None
    has_changed: bool = False  # the files in its folder are not those that it was loaded from any more
    # Its workers: one that serves at most, and one beside it at most.
    replicas: list[Replica] = field(default_factory=list)
    form: Form | None = None  # that was made of `files`, and serves; its next worker is started on it
    loaded: Loaded | None = None  # what the worker that served last has reported
    changes: tuple[str, ...] = ()  # how its signatures differ from those of the version whose place it took
    # When it is loaded again.
    attempts: int = 0
    retry_at: float | None = None
    load_began: float = 0.0  # loading: since when (monotonic seconds)
    refused_by_gate: bool = False  # why it has failed
    service: Service = field(default_factory=Service)
    suspects: Suspects = field(default_factory=Suspects)  # of the files that it served last
    untried: str = ""  # why no odd shapes were tried, or not all

    @property
    def serving(self) -> Replica | None:
        """The worker that is routed, or will be once it is ready."""
        return next((replica for replica in self.replicas if replica.role is Role.SERVING), None)

    @property
    def second(self) -> Replica | None:
        """The worker beside the one that serves: it succeeds it, or stands by."""
        return next((replica for replica in self.replicas if replica.role is not Role.SERVING), None)

    def replica(self, worker: int) -> Replica:
        """Return the replica with this number. Raises StopIteration if it has none."""
        return next(replica for replica in self.replicas if replica.worker == worker)

    @property
    def worker(self) -> int:
        """The number of the worker that answers its requests; 0 while none does."""
        replica = self.serving
        return 0 if replica is None or replica.loaded is None or self.state is not State.AVAILABLE else replica.worker

    @property
    def socket_path(self) -> str:
        """Where its serving worker listens; "" while there is none, or it loads."""
        replica = self.serving
        return "" if replica is None or replica.loaded is None else replica.loaded.socket_path

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Those that it served last."""
        return {} if self.loaded is None else self.loaded.signatures

    @property
    def paths(self) -> frozenset[str]:
        """The folders that its workers load from."""
        return frozenset({self.files.path, *(replica.files.path for replica in self.replicas)})

    @property
    def has_served_others(self) -> bool:
        """Whether it has served other files than those that it has now."""
        return self.service.digest not in (None, self.files.digest)

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

    @property
    def is_coming_back(self) -> bool:
        """Whether it is there again, and its old worker or a look at its files must still be waited for."""
        is_looked_at = self.state is State.ENDED and not self.settled and not self.service.given_up
        return self.present and (self.state is State.DRAINING or is_looked_at)

    def change_files(self, files: Files) -> None:
        """Note that it has other files now: its failures and its form were those of the old ones."""
        self.files, self.form = files, None
        self.incomplete, self.judge_at, self.trusts_loader = False, None, False
        self.is_stale, self.has_changed, self.refused_by_gate = False, False, False
        self.attempts, self.retry_at = 0, None
        self.service.forgive()

    def serve(self, replica: Replica, loaded: Loaded, now: float) -> None:
        """Take up what `replica` has `loaded`: it serves from `now` (monotonic) on, without a gap if another did."""
        self.has_changed = self.has_changed and replica.files == self.files
        self.files, self.form, self.loaded, self.changes = replica.files, replica.form, loaded, replica.changes
        if self.suspects.files != self.files.digest:
            self.suspects, self.untried = Suspects(self.files.digest), ""
        if self.state is State.AVAILABLE:
            self.service.seconds += now - self.service.since
        self.service.since = now
        self.service.digest = self.files.digest
        self.attempts, self.retry_at = 0, None
        self.code = Code.OK

    def route(self) -> VersionRoute:
        """Return what clients see of it."""
        loaded = self.loaded if self.state is State.AVAILABLE else None
        form = "" if self.form is None else self.form.backend
        state = self.state.value, PUBLIC[self.state], self.code, self.reason
        if loaded is None:
            return VersionRoute(self.id.version, *state, "", {}, form)
        remarks = (
            *loaded.remarks,
            *self.changes,
            *([self.untried] if self.untried else []),
            *([HAS_CHANGED] if self.has_changed else []),
        )
        return VersionRoute(
            self.id.version,
            *state,
            self.socket_path,
            loaded.signatures,
            form,
            remarks,
            loaded.unsupported,
            self.suspects.refused,
            loaded.confined_by,
            self.has_changed,
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
        """Return the numbers of the versions that are in one of `states`."""
        return {number for number, version in self.versions.items() if version.state in states}

    def be_due(self, moment: float) -> None:
        """Note that there is something to do at `moment` (monotonic), if not before."""
        self.due = moment if self.due is None else min(self.due, moment)

    def loaded_versions(self) -> frozenset[int]:
        """Return the versions that have their files: others under the same name are not loaded while these serve."""
        states = (State.AVAILABLE, State.LOADING, State.RESTARTING, State.DRAINING)
        base_path = self.base_path.rstrip("/")
        return frozenset(
            n
            for n in self.in_state(*states)
            if os.path.dirname(self.versions[n].files.path) == base_path and not self.versions[n].is_to_be_looked_at
        )

    def route(self) -> ModelRoute:
        """Return what clients see of it, the newest version first."""
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

"""What the manager's tests share: the supervisor's side of the manager, without processes and with virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from appliance.config.version_policy import Latest, VersionPolicy
from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.outcomes import Trials
from appliance.core.servable import ServableId
from appliance.lifecycle.actions import Action, DrainWorker, KillWorker, StartWorker
from appliance.lifecycle.manager import Manager
from appliance.lifecycle.release import ReleaseRules
from appliance.lifecycle.replicas import Loaded
from backends.contract import Signature

RETRY_SECONDS = 60.0
SLOW_SECONDS = 30.0


class Host:
    """Stands where the supervisor stands: keeps the time, and knows of each worker what it runs."""

    def __init__(self, retries: int = 2, loads: int = 8) -> None:
        self.manager = Manager(retries, RETRY_SECONDS, loads, slow_load_seconds=SLOW_SECONDS)
        self.now = 100.0
        self.workers: dict[ServableId, int] = {}  # the last worker of each version
        self.by_number: dict[int, ServableId] = {}
        self.starts: list[str] = []

    def add(
        self,
        name: str = "a",
        policy: VersionPolicy | None = None,
        labels: Mapping[str, int] | None = None,
        rules: ReleaseRules | None = None,
    ) -> None:
        self.manager.add_model(name, f"/models/{name}", policy, labels, rules)

    def see(
        self, *versions: int, name: str = "a", settled: bool = True, digest: str = "1", base: str = ""
    ) -> list[str]:
        """Shows the folders of `versions`; as the source does, without digests of those that are loaded."""
        base = base or f"/models/{name}"
        loaded = self.manager.loaded_versions(name)
        observed = {
            number: Observed(f"{base}/{number}", None, settled=True)
            if number in loaded
            else Observed(f"{base}/{number}", digest, settled, "" if settled else "its files change")
            for number in versions
        }
        return self.did(self.manager.observe(name, observed, "", self.now))

    def remove(self, name: str = "a") -> list[str]:
        return self.did(self.manager.remove_model(name, self.now))

    def ready(
        self,
        version: int,
        name: str = "a",
        signatures: Mapping[str, Signature] | None = None,
        trials: Trials | None = None,
        remarks: Sequence[str] = (),
    ) -> list[str]:
        worker = self.worker(version, name)
        path = f"/run/w{worker}"
        return self.did(
            self.manager.worker_ready(worker, Loaded(path, signatures or {}, trials, tuple(remarks)), self.now)
        )

    def fail(self, version: int, name: str = "a") -> list[str]:
        return self.did(
            self.manager.worker_failed(self.worker(version, name), Code.INVALID_ARGUMENT, "a bad graph", self.now)
        )

    def incomplete(self, version: int, name: str = "a") -> list[str]:
        return self.did(self.manager.worker_incomplete(self.worker(version, name), "no variables", self.now))

    def end(self, version: int, name: str = "a") -> list[str]:
        return self.did(self.manager.worker_ended(self.worker(version, name), "killed by SIGKILL", self.now))

    def end_all_again(self) -> list[str]:
        """Tells of the end of every worker that there has been: nothing, where none is accounted for any more."""
        return [
            word
            for worker in list(self.by_number)
            for word in self.did(self.manager.worker_ended(worker, "gone", self.now))
        ]

    def wait(self, seconds: float) -> list[str]:
        self.now += seconds
        return self.did(self.manager.tick(self.now))

    def worker(self, version: int, name: str = "a") -> int:
        return self.workers[ServableId(name, version)]

    def did(self, actions: list[Action]) -> list[str]:
        words = []
        for action in actions:
            match action:
                case StartWorker(worker, servable, path, _, form):
                    self.workers[servable] = worker
                    self.by_number[worker] = servable
                    where = "" if path == f"/models/{servable}" else f" from {path}"
                    words.append(f"start {servable}" + where + ("" if form is None else f" on {form.backend}"))
                    self.starts.append(words[-1])
                case DrainWorker(worker) | KillWorker(worker):
                    servable = self.by_number[worker]
                    words.append(f"{'drain' if isinstance(action, DrainWorker) else 'kill'} {servable}")
        return words

    def states(self, name: str = "a") -> dict[int, str]:
        return {route.version: route.state for route in self.manager.routes()[name].versions}

    def reason(self, version: int, name: str = "a") -> str:
        return next(r.reason for r in self.manager.routes()[name].versions if r.version == version)

    def serving(
        self,
        *versions: int,
        name: str = "a",
        policy: VersionPolicy | None = None,
        rules: ReleaseRules | None = None,
    ) -> None:
        """Adds a model and brings the newest of `versions` up."""
        self.add(name, policy, rules=rules)
        self.see(*versions, name=name)
        self.ready(max(versions), name)

    def update(
        self,
        policy: VersionPolicy | None = None,
        labels: Mapping[str, int] | None = None,
        base_path: str = "",
        name: str = "a",
        rules: ReleaseRules | None = None,
    ) -> list[str]:
        """Reconfigures a model."""
        path = base_path or f"/models/{name}"
        return self.did(self.manager.update_model(name, path, policy or Latest(), labels or {}, self.now, rules))

    def code(self, version: int, name: str = "a") -> Code:
        return next(r.code for r in self.manager.routes()[name].versions if r.version == version)

    def remarks(self, version: int, name: str = "a") -> tuple[str, ...]:
        return next(r.remarks for r in self.manager.routes()[name].versions if r.version == version)

    def labels(self, name: str = "a") -> Mapping[str, int]:
        return self.manager.routes()[name].labels

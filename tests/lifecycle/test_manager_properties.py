"""Whatever is seen on disk and whatever happens to workers, in any order: what always holds of the manager."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.config.version_policy import All, Latest, Specific, VersionPolicy, aspired_versions
from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.routes import ModelRoute
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import Action, DrainWorker, KillWorker, StartWorker
from appliance.lifecycle.manager import Manager
from appliance.lifecycle.replicas import Attempt, Loaded
from appliance.lifecycle.standing import Standing

LOADS = 2
SLOW_SECONDS = 5.0
NAMES = st.sampled_from(["a", "b"])
VERSIONS = st.integers(1, 4)
LABELS = st.dictionaries(st.sampled_from(["stable", "canary"]), VERSIONS)
BASES = st.sampled_from(["/x", "/y"])
POLICIES = st.sampled_from([Latest(), Latest(2), All(), Specific(frozenset({1, 3}))])


@dataclass
class Process:
    """A worker process as the supervisor knows it."""

    servable: ServableId
    path: str
    digest: str
    form: Form | None = None
    may_find_form: bool = False
    reported: bool = False
    told: bool = False  # to drain, or killed


@dataclass
class World:
    """What is there, whatever the manager thinks of it."""

    disk: dict[str, dict[int, str]] = field(default_factory=lambda: {"a": {}, "b": {}})
    policies: dict[str, VersionPolicy] = field(default_factory=dict)  # of the models that are served
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    processes: dict[int, Process] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    dead: list[int] = field(default_factory=list)
    loads: dict[tuple[str, int], float] = field(default_factory=dict)  # what loads: since when
    digests: int = 0


class ManagerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.manager = Manager(1, 10.0, LOADS, slow_load_seconds=SLOW_SECONDS)
        self.world = World()
        self.now = 0.0
        self.shown = self.manager.routes()
        self.routed: set[str] = set()
        self.revision = self.manager.revision

    @initialize(policy=POLICIES)
    def serve_a_model(self, policy: VersionPolicy) -> None:
        self.add_model("a", policy)

    # -- the disk -----------------------------------------------------------------------------------------------

    @rule(name=NAMES, version=VERSIONS)
    def write(self, name: str, version: int) -> None:
        self.world.digests += 1
        self.world.disk[name][version] = str(self.world.digests)

    @rule(name=NAMES, version=VERSIONS)
    def delete(self, name: str, version: int) -> None:
        self.world.disk[name].pop(version, None)

    @rule(name=NAMES, settled=st.booleans(), at_loaded=st.booleans())
    def look(self, name: str, settled: bool, at_loaded: bool = False) -> None:
        if name not in self.world.policies:
            return
        loaded = self.manager.loaded_versions(name)
        base = self.world.bases[name]
        observed = {
            version: Observed(f"{base}/{version}", None, settled=True)
            if version in loaded and not at_loaded
            else Observed(
                f"{base}/{version}",
                base + digest,
                settled,
                "" if settled else "they change",
                content=digest,
                in_place=version in loaded,
            )
            for version, digest in self.world.disk[name].items()
        }
        self.act(self.manager.observe(name, observed, "", self.now))

    # -- the models ---------------------------------------------------------------------------------------------

    @rule(name=NAMES, policy=POLICIES)
    def add_model(self, name: str, policy: VersionPolicy) -> None:
        if name not in self.world.policies:
            self.world.policies[name] = policy
            self.world.labels[name] = {"stable": 1}
            self.world.bases[name] = "/x"
            self.manager.add_model(name, "/x", policy, {"stable": 1})

    @rule(name=NAMES, policy=POLICIES, labels=LABELS, base=BASES)
    def update_model(self, name: str, policy: VersionPolicy, labels: dict[str, int], base: str) -> None:
        if name in self.world.policies:
            self.world.policies[name], self.world.labels[name], self.world.bases[name] = policy, labels, base
            self.act(self.manager.update_model(name, base, policy, labels, self.now))

    @rule(name=NAMES, version=VERSIONS, kind=st.sampled_from(["accelerate", "stand by", "demote"]))
    def change_form(self, name: str, version: int, kind: str) -> None:
        servable = ServableId(name, version)
        if kind == "accelerate":
            digest = next((digest for found, _, digest, _ in self.manager.own_models() if found == servable), "")
            self.act(self.manager.accelerate(servable, Form("onnx", "/c"), digest, self.now))
        elif kind == "stand by":
            self.act(self.manager.stand_by(servable, self.now + 30, self.now))
        else:
            self.act(self.manager.demote(servable, "it raised", self.now))

    @rule(name=NAMES)
    def remove_model(self, name: str) -> None:
        if self.world.policies.pop(name, None) is not None:
            self.act(self.manager.remove_model(name, self.now))

    # -- the workers --------------------------------------------------------------------------------------------

    def pick(self, data: st.DataObject, *, reported: bool | None = None) -> int | None:
        numbers = [n for n, p in self.world.processes.items() if reported is None or p.reported is reported]
        return data.draw(st.sampled_from(numbers)) if numbers else None

    @rule(data=st.data(), outcome=st.sampled_from(["ready", "ready", "badly", "failed", "incomplete", "changed"]))
    def report(self, data: st.DataObject, outcome: str) -> None:
        worker = self.pick(data, reported=False)
        if worker is None:
            return
        self.world.processes[worker].reported = True
        if outcome == "ready":
            self.act(self.manager.worker_ready(worker, Loaded(f"/w{worker}"), self.now))
        elif outcome == "badly":
            self.act(self.manager.worker_ready(worker, Loaded(f"/w{worker}", warmup_failure="no"), self.now))
        elif outcome == "failed":
            self.act(self.manager.worker_failed(worker, Code.INTERNAL, "bad", self.now))
        elif outcome == "changed":
            self.act(self.manager.files_changed(worker, "other", "other", self.now))
        else:
            self.act(self.manager.worker_incomplete(worker, "half", self.now))
        if outcome in ("failed", "incomplete", "changed"):
            self.end(worker)

    @rule(data=st.data())
    def find_a_form(self, data: st.DataObject) -> None:
        waiting = [n for n, p in self.world.processes.items() if p.may_find_form and not p.reported]
        if waiting:
            worker = data.draw(st.sampled_from(waiting))
            self.world.processes[worker].form = Form("onnx", "/c")
            self.manager.form_found(worker, Form("onnx", "/c"))

    @rule(data=st.data())
    def die_in_warm_up(self, data: st.DataObject) -> None:
        worker = self.pick(data, reported=False)
        if worker is not None:
            self.world.processes.pop(worker)
            self.world.dead.append(worker)
            attempt = Attempt("f", 1, "gone", "attempt 1 at f")
            self.act(self.manager.worker_ended(worker, "gone", self.now, attempt=attempt), ended=worker)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        worker = self.pick(data)
        if worker is not None:
            self.end(worker)

    def end(self, worker: int) -> None:
        self.world.processes.pop(worker, None)
        self.world.dead.append(worker)
        self.act(self.manager.worker_ended(worker, "gone", self.now), ended=worker)

    @precondition(lambda self: self.world.dead)
    @rule(data=st.data())
    def late_report(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.world.dead))
        assert self.manager.worker_ready(worker, Loaded("/late"), self.now) == []
        assert self.manager.worker_failed(worker, Code.INTERNAL, "late", self.now) == []
        assert self.manager.worker_incomplete(worker, "late", self.now) == []
        assert self.manager.files_changed(worker, "late", "late", self.now) == []
        assert self.manager.worker_ended(worker, "late", self.now) == []

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.act(self.manager.tick(self.now))
        due = self.manager.next_due
        assert due is None or due > self.now, "tick would be called again and again, and do nothing"

    # -- what holds ---------------------------------------------------------------------------------------------

    def act(self, actions: list[Action], ended: int = 0) -> None:
        leaving = {ended}
        for action in actions:
            match action:
                case StartWorker(worker, servable, path, _, form, digest):
                    assert worker not in self.world.numbers
                    others = [p for p in self.world.processes.values() if p.servable == servable and not p.told]
                    assert [(p.path, p.digest, p.form) for p in others] != [(path, digest, form)], "two workers"
                    assert len(others) <= 1
                    self.world.numbers.add(worker)
                    self.world.processes[worker] = Process(servable, path, digest, form, action.may_find_form)
                case DrainWorker(worker) | KillWorker(worker):
                    process = self.world.processes[worker]
                    assert not process.told
                    assert isinstance(action, KillWorker) or process.reported
                    process.told = True
                    leaving.add(worker)
        loading = {
            (name, v.version)
            for name, model in self.manager.routes().items()
            for v in model.versions
            if v.state == "loading"
        }
        self.world.loads = {key: self.world.loads.get(key, self.now) for key in loading}
        before, self.routed = self.routed, self.sockets(self.manager.routes())
        assert before - self.routed <= {f"/w{worker}" for worker in leaving}, "a version vanished by itself"
        self.manager.take_changes()

    @staticmethod
    def sockets(routes: dict[str, ModelRoute]) -> set[str]:
        return {v.socket_path for model in routes.values() for v in model.versions if v.available}

    @invariant()
    def loads_stay_within_their_limit(self) -> None:
        """A slow one holds no slot, but there are never more than as many again."""
        fresh = [began for began in self.world.loads.values() if self.now < began + SLOW_SECONDS]
        assert len(fresh) <= LOADS
        assert len(self.world.loads) <= 2 * LOADS

    @invariant()
    def what_is_available_has_a_worker_that_is_ready(self) -> None:
        routed = self.sockets(self.manager.routes())
        assert routed <= {f"/w{n}" for n, p in self.world.processes.items() if p.reported and not p.told}

    @invariant()
    def the_revision_grows_with_every_change_of_the_routes(self) -> None:
        routes = self.manager.routes()
        assert routes == self.shown or self.manager.revision > self.revision
        self.shown, self.revision = routes, self.manager.revision

    @invariant()
    def the_models_are_those_served_and_those_that_drain(self) -> None:
        assert set(self.manager.names()) == set(self.world.policies)
        assert set(self.manager.routes()) == set(self.world.policies) | {
            p.servable.model for p in self.world.processes.values()
        }

    def teardown(self) -> None:
        """In the end every folder is healthy: then exactly what is wanted is served, and everything rests."""
        for name, folders in self.world.disk.items():
            for version in folders:
                self.write(name, version)
        for _ in range(30):
            for worker, process in list(self.world.processes.items()):
                if process.told:
                    self.end(worker)
                elif not process.reported:
                    process.reported = True
                    self.act(self.manager.worker_ready(worker, Loaded(f"/w{worker}"), self.now))
            for name in self.world.disk:
                self.look(name, settled=True)
            self.wait(70.0)
            self.loads_stay_within_their_limit()
        wanted = {name: aspired_versions(policy, self.world.disk[name]) for name, policy in self.world.policies.items()}
        for name, aspired in wanted.items():
            policy = self.world.policies[name]
            # Those on a version that a specific policy leaves out ask for nothing.
            asking = {
                label: v
                for label, v in self.world.labels[name].items()
                if not isinstance(policy, Specific) or v in policy.versions
            }
            labels = {label: v for label, v in asking.items() if v in self.world.disk[name]}
            route = self.manager.routes()[name]
            served = {v.version for v in route.versions if v.available}
            assert served == aspired | set(labels.values())
            assert labels.items() <= route.labels.items()
            # A label whose version is not there stays where it was, as long as that is served.
            assert route.labels.keys() <= self.world.labels[name].keys()
            assert set(route.labels.values()) <= served
            paths = {p.path for p in self.world.processes.values() if p.servable.model == name}
            assert paths == {f"{self.world.bases[name]}/{version}" for version in served}
            standing, reason = self.manager.standing(name)
            missing = set(asking.values()) - served
            if isinstance(policy, Specific):
                missing |= policy.versions - served
            assert (standing is Standing.LIVE) == bool(served and not missing), reason
            assert standing is not Standing.PENDING
        assert not any(process.told for process in self.world.processes.values())
        assert self.manager.next_due is None
        assert self.manager.all_tried() or not all(wanted.values())


ManagerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestManager = ManagerMachine.TestCase

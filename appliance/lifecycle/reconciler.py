"""What is to be done so that what is served becomes what is wanted. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from appliance.lifecycle.actions import Action, DrainWorker, KillWorker
from appliance.lifecycle.loads import Loads
from appliance.lifecycle.models import AT_REST, Model, Version
from appliance.lifecycle.release import Gate
from appliance.lifecycle.replicas import Role
from appliance.lifecycle.servables import Servables
from appliance.lifecycle.states import Event, State
from appliance.lifecycle.successors import Successors
from appliance.lifecycle.wanted import wanted

__all__ = ["Reconciler"]


class Reconciler:
    """Compares what each model has with what it should have, and starts and ends workers."""

    def __init__(self, servables: Servables, loads: Loads, successors: Successors) -> None:
        self._servables = servables
        self._loads = loads
        self._successors = successors

    def reconcile(self, model: Model, now: float) -> list[Action]:
        """Decide on `model`, and on those that wait for their turn to load if one has come. `now` is monotonic."""
        actions = self._decide(model, now)
        for name in self._loads.waiting(now):
            if not self._loads.may_begin(name, now):
                if (slot := self._loads.next_slot(now)) < math.inf:
                    self._servables.models[name].be_due(slot)
                break
            actions += self._decide(self._servables.models[name], now)
        return actions

    def end_worker(self, version: Version) -> None:
        """Take from the version the worker that serves it or loads to do so, if it has one."""
        if version.serving is not None:
            self._servables.forget_worker(version, version.serving.worker)

    def _decide(self, model: Model, now: float) -> list[Action]:
        versions = model.versions
        model.due = None
        actions = self._drop_the_absent(model)
        _trust_the_loader(model, now)
        _lift_the_gate(model, now)
        target = wanted(model)
        actions += self._successors.expire(model, now)
        actions += self._load(model, [versions[number] for number in sorted(target.loaded, reverse=True)], now)
        for number in sorted(target.surplus):
            service = versions[number].service
            if service.given_up and not any(other < number for other in target.aspired):
                service.given_up = ""  # it is not for that that it goes
            there = "a newer version has taken over" if versions[number].present else "its folder is gone"
            why = "the model was removed" if model.removed else service.given_up or there
            actions += self._unload(versions[number], why)
        for number in model.in_state(State.AVAILABLE):
            if not versions[number].present and not model.removed:
                self._servables.remark(versions[number], "its folder is gone; it serves until another version does")
        if model.removed and not versions:
            del self._servables.models[model.name]
            self._loads.forget(model.name)
            self._servables.revision += 1
        return actions

    def _drop_the_absent(self, model: Model) -> list[Action]:
        """Unload what still loads, and forget what is at rest, of versions whose folder is gone."""
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

    def _load(self, model: Model, versions: Iterable[Version], now: float) -> list[Action]:
        """Start workers for those of `versions` that have none, as many as may load now."""
        actions: list[Action] = []
        waits = False
        for version in versions:
            if version.serving is not None or version.state in (State.AVAILABLE, State.DRAINING):
                continue
            if version.retry_at is not None and version.retry_at > now:
                model.be_due(version.retry_at)
                continue
            if version.state is not State.RESTARTING:
                # A restart never waits: it was admitted when it was first loaded.
                if not self._loads.may_begin(model.name, now):
                    waits = True
                    continue
                version.load_began = now
                self._servables.move(version, Event.LOAD, "")
            version.retry_at = None
            start = self._servables.start(
                version,
                Role.SERVING,
                version.files,
                version.form,
                check_files=not version.trusts_loader,
                may_find_form=version.state is State.LOADING and version.form is None,
            )
            actions.append(start)
        self._loads.wait(model.name, waits)
        return actions

    def _unload(self, version: Version, why: str) -> list[Action]:
        """Drain the version's worker, or kill it if it still loads."""
        is_available = version.state is State.AVAILABLE
        version.retry_at = None
        self._servables.move(version, Event.DRAIN, why)
        actions = self._successors.dismiss(version)
        if version.serving is None:
            self._servables.move(version, Event.WORKER_ENDED, f"unloaded: {why}")
            return actions
        worker = version.serving.worker
        return [*actions, DrainWorker(worker) if is_available else KillWorker(worker)]


def _trust_the_loader(model: Model, now: float) -> None:
    """Let what has looked incomplete for long, and does not change, be loaded as it is: our own look may delay a
    version, and never refuses what the framework loads."""
    for version in model.versions.values():
        if version.state is not State.SETTLING or version.judge_at is None:
            continue
        if version.judge_at > now:
            model.be_due(version.judge_at)
        else:
            version.incomplete, version.judge_at, version.trusts_loader = False, None, True


def _lift_the_gate(model: Model, now: float) -> None:
    """Try again what a gate for replacements alone has refused, if no other version is left to serve."""
    if model.rules.gate is not Gate.ONLY_REPLACING or any(v.is_served_or_coming for v in model.versions.values()):
        return
    for version in model.versions.values():
        if version.state is State.FAILED and version.refused_by_gate:
            version.retry_at, version.refused_by_gate = now, False

"""What the controller tells of the manager's decisions."""

from __future__ import annotations

from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.servable import ServableId
from appliance.lifecycle.manager import Manager
from appliance.lifecycle.replicas import Attempt, Loaded
from appliance.supervisor.controller import Controller
from tests.support.effects import Effects


def test_a_worker_counts_as_dead_only_if_it_has_served() -> None:
    effects = Effects()
    controller = Controller(Manager(2, 60.0, 8), effects)
    controller.post(lambda manager, _: manager.add_model("a", "/models/a"))
    seen = {1: Observed("/models/a/1", "digest", settled=True)}
    controller.post(lambda manager, now: manager.observe("a", seen, "", now))
    controller.post(lambda manager, now: manager.worker_ready(effects.started[-1].worker, Loaded("/run/1"), now))
    controller.post(lambda manager, now: manager.worker_ended(effects.started[-1].worker, "killed", now))
    assert effects.died == [ServableId("a", 1)]
    attempt = Attempt("f", 1, "killed", "attempt 1 at f")
    controller.post(
        lambda manager, now: manager.worker_ended(effects.started[-1].worker, "killed", now, attempt=attempt)
    )
    controller.post(
        lambda manager, now: manager.worker_failed(effects.started[-1].worker, Code.INTERNAL, "a bad graph", now)
    )
    assert len(effects.started) == 3
    assert effects.died == [ServableId("a", 1)]

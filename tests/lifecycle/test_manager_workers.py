"""Crashes, limits and removals, in virtual time."""

from __future__ import annotations

import msgspec
import pytest

from appliance.config.version_policy import All
from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.routes import Snapshot
from appliance.core.servable import ModelSpec, PublicState
from appliance.lifecycle.replicas import Loaded
from tests.support.manager_host import RETRY_SECONDS, Host


@pytest.fixture
def host() -> Host:
    return Host()


# -- crashes ----------------------------------------------------------------------------------------------------


def test_a_crashed_worker_is_started_again_at_once_and_then_ever_more_seldom(host: Host) -> None:
    host.serving(1)
    assert host.end(1) == ["start a/1"]
    for delay in (1, 2, 4, 8, 16, 32, 60, 60):
        assert host.end(1) == []
        assert host.manager.next_due == host.now + delay
        assert host.wait(delay - 0.5) == []
        assert host.wait(0.5) == ["start a/1"]


def test_while_its_worker_restarts_a_version_says_why(host: Host) -> None:
    host.serving(1)
    host.end(1)
    (route,) = host.manager.routes()["a"].versions
    assert (route.state, route.public_state) == ("restarting", PublicState.LOADING)
    assert (route.code, route.reason) == (Code.UNAVAILABLE, "its worker died: killed by SIGKILL")
    assert route.socket_path == ""
    assert host.ready(1) == []
    (route,) = host.manager.routes()["a"].versions
    assert (route.state, route.code, route.reason) == ("available", Code.OK, "")


def test_a_worker_that_crashes_soon_after_it_was_ready_is_backed_off_from_too(host: Host) -> None:
    host.serving(1)
    host.end(1)
    host.ready(1)
    host.now += 59
    assert host.end(1) == []
    assert host.manager.next_due == host.now + 1


def test_a_stable_period_ends_the_back_off(host: Host) -> None:
    host.serving(1)
    host.end(1)
    host.end(1)
    host.wait(1)
    host.ready(1)
    host.now += 61
    assert host.end(1) == ["start a/1"]


def test_a_restart_that_fails_is_tried_again_without_end(host: Host) -> None:
    host.serving(1)
    host.end(1)
    for _ in range(10):
        assert host.fail(1) == []
        assert host.states() == {1: "restarting"}
        assert host.wait(60) == ["start a/1"]
    assert host.incomplete(1) == []
    assert host.states() == {1: "restarting"}


def test_a_crash_changes_nothing_of_another_model(host: Host) -> None:
    host.serving(1, name="a")
    host.serving(1, name="b")
    before = host.manager.routes()["b"]
    host.end(1, "a")
    host.end(1, "a")
    assert host.manager.routes()["b"] == before


def test_a_restart_does_not_wait_for_loads() -> None:
    host = Host(loads=1)
    host.serving(1, name="a")
    host.add("b")
    assert host.see(1, name="b") == ["start b/1"]
    assert host.end(1, "a") == ["start a/1"]


def test_reports_of_dead_workers_are_ignored(host: Host) -> None:
    host.serving(1)
    dead = host.worker(1)
    host.end(1)
    host.ready(1)
    before = host.manager.routes()
    manager = host.manager
    assert manager.worker_ready(dead, Loaded("/run/late"), host.now) == []
    assert manager.worker_failed(dead, Code.INTERNAL, "late", host.now) == []
    assert manager.worker_incomplete(dead, "late", host.now) == []
    assert manager.worker_ended(dead, "late", host.now) == []
    assert manager.worker_ended(99, "never started", host.now) == []
    assert manager.routes() == before


def test_the_end_of_a_worker_that_had_failed_is_no_further_attempt(host: Host) -> None:
    host.add()
    host.see(1)
    host.fail(1)
    assert host.end(1) == []
    assert "attempt 1 of 3" in host.reason(1)


# -- loads at once ----------------------------------------------------------------------------------------------


def test_no_more_versions_load_at_once_than_allowed_and_the_waiting_go_on() -> None:
    host = Host(loads=2)
    host.add(policy=All())
    assert host.see(1, 2, 3, 4, 5) == ["start a/5", "start a/4"]
    assert host.ready(5) == ["start a/3"]
    assert host.fail(4) == ["start a/2"]
    assert host.end(3) == ["start a/1"]
    assert host.incomplete(2) == []


def test_models_that_wait_go_on_in_the_order_in_which_they_came() -> None:
    host = Host(loads=1)
    for name in "abc":
        host.add(name)
    assert host.see(1, name="a") == ["start a/1"]
    assert host.see(1, name="c") == []
    assert host.see(1, name="b") == []
    assert host.see(1, name="c") == []
    assert host.ready(1, "a") == ["start c/1"]
    assert host.fail(1, "c") == ["start b/1"]


def test_a_waiting_load_goes_on_when_a_loading_version_is_deleted() -> None:
    host = Host(loads=1)
    host.add("a")
    host.add("b")
    host.see(1, name="a")
    host.see(1, name="b")
    assert host.see(name="a") == ["kill a/1", "start b/1"]


def test_a_waiting_load_goes_on_when_a_loading_model_is_removed() -> None:
    host = Host(loads=1)
    host.add("a")
    host.add("b")
    host.see(1, name="a")
    host.see(1, name="b")
    assert host.remove("a") == ["kill a/1", "start b/1"]


def test_a_retry_that_waits_for_other_loads_makes_nothing_due() -> None:
    host = Host(loads=1)
    host.add("a")
    host.see(1, name="a")
    host.fail(1, "a")
    host.add("b")
    host.see(1, name="b")
    assert host.wait(RETRY_SECONDS) == []
    assert host.manager.next_due is None
    assert host.ready(1, "b") == ["start a/1"]


# -- deletions and removals -------------------------------------------------------------------------------------


def test_a_version_deleted_while_it_loads_is_killed(host: Host) -> None:
    host.add()
    host.see(1)
    assert host.see() == ["kill a/1"]
    assert host.states() == {1: "draining"}
    assert host.ready(1) == []  # its report was on the way
    assert host.fail(1) == []
    assert host.end(1) == []
    assert host.states() == {}


def test_a_version_deleted_while_its_worker_restarts_is_killed(host: Host) -> None:
    host.serving(1)
    host.end(1)
    assert host.see() == ["kill a/1"]
    assert host.end(1) == []
    assert host.states() == {}


def test_a_version_deleted_while_it_waits_for_its_restart_is_forgotten(host: Host) -> None:
    host.serving(1)
    host.end(1)
    host.end(1)
    assert host.see() == []
    assert host.states() == {}
    assert host.manager.next_due is None


def test_a_version_deleted_while_it_settles_or_after_it_failed_is_forgotten(host: Host) -> None:
    host.add()
    host.see(1, settled=False)
    host.see()
    assert host.states() == {}
    host.see(1)
    host.fail(1)
    assert host.see() == []
    assert host.states() == {}
    assert host.wait(RETRY_SECONDS) == []


def test_a_version_that_comes_back_while_it_drains_waits_until_its_files_have_settled(host: Host) -> None:
    host.serving(1)
    host.see()
    assert host.see(1) == []  # the source looks at no files of what is loaded
    assert host.end(1) == []
    assert host.see(1, settled=False, digest="2") == []
    assert host.see(1, digest="2") == ["start a/1"]


@pytest.mark.parametrize("state", ["settling", "loading", "available", "restarting", "waiting", "draining", "failed"])
def test_a_removed_model_is_unloaded_and_forgotten(host: Host, state: str) -> None:
    host.add()
    host.see(1, settled=state != "settling")
    if state in ("available", "restarting", "waiting", "draining"):
        host.ready(1)
    if state in ("restarting", "waiting"):
        host.end(1)
    if state == "waiting":
        host.end(1)
    if state == "failed":
        host.fail(1)
    if state == "draining":
        host.see()
    expected = {"loading": ["kill a/1"], "restarting": ["kill a/1"], "available": ["drain a/1"]}.get(state, [])
    assert host.remove() == expected
    assert "a" not in host.manager.names()
    if expected or state == "draining":
        assert host.states() == {1: "draining"}
        assert host.end(1) == []
    assert host.manager.routes() == {}
    assert host.end_all_again() == []
    assert host.manager.next_due is None
    assert host.wait(86400) == []


def test_a_model_that_is_removed_and_added_again_waits_for_its_old_worker_and_loads(host: Host) -> None:
    host.serving(1)
    host.remove()
    host.add()
    assert host.states() == {1: "draining"}
    assert host.see(1) == []
    assert host.end(1) == []
    assert host.see(1) == ["start a/1"]
    assert host.ready(1) == []
    assert host.states() == {1: "available"}


def test_another_version_of_a_model_added_again_does_not_wait_for_the_old_worker(host: Host) -> None:
    host.serving(1)
    host.remove()
    host.add()
    assert host.see(2) == ["start a/2"]
    host.ready(2)
    assert host.end(1) == []
    assert host.states() == {2: "available"}


def test_a_model_that_is_removed_again_before_its_old_worker_has_ended_is_forgotten_when_it_has(host: Host) -> None:
    host.serving(1)
    host.remove()
    host.add()
    assert host.remove() == []
    assert host.end(1) == []
    assert host.manager.routes() == {}
    assert host.end_all_again() == []


def test_what_is_gone_is_told_of_as_ended_with_the_error_that_it_had(host: Host) -> None:
    host.add(policy=All())
    host.see(1, 2, 3, settled=False)
    host.see(1, 2)
    host.ready(1)
    host.fail(2)
    host.remove()
    host.end(1)
    assert host.manager.routes() == {}
    failed, unloaded = host.manager.ended()["a"]
    assert (unloaded.version, unloaded.state, unloaded.public_state) == (1, "ended", PublicState.END)
    assert (unloaded.code, unloaded.reason) == (Code.OK, "unloaded: the model was removed")
    assert (failed.version, failed.public_state, failed.code) == (2, PublicState.END, Code.INVALID_ARGUMENT)
    assert failed.reason.startswith("the model was removed; it had failed: a bad graph (attempt 1 of 3")


def test_of_what_is_gone_only_the_last_few_hundred_are_told_of(host: Host) -> None:
    for number in range(300):
        name = f"m{number}"
        host.serving(1, name=name)
        host.remove(name)
        host.end(1, name)
    assert list(host.manager.ended()) == [f"m{number}" for number in range(300 - 256, 300)]
    host.serving(1, name="m100")
    host.remove("m100")
    host.end(1, "m100")
    assert list(host.manager.ended())[-1] == "m100"
    assert len(host.manager.ended()) == 256


def test_a_version_that_comes_back_is_listed_once(host: Host) -> None:
    host.serving(1, 2)
    host.remove()
    host.end(2)
    host.serving(2, 3)
    snapshot = msgspec.convert(
        msgspec.to_builtins(Snapshot(1, True, host.manager.routes(), host.manager.ended())), Snapshot
    )
    assert [(v.version, v.state) for v in snapshot.status(ModelSpec("a"))] == [(3, "available"), (2, "ended")]
    assert [v.state for v in snapshot.status(ModelSpec("a", 2))] == ["ended"]
    host.update(All())
    host.see(2, 3)
    snapshot = Snapshot(2, True, host.manager.routes(), host.manager.ended())
    assert [(v.version, v.state) for v in snapshot.status(ModelSpec("a"))] == [(3, "available"), (2, "loading")]


def test_a_model_that_is_added_again_has_its_new_base_path_and_labels(host: Host) -> None:
    host.serving(1)
    host.remove()
    host.manager.add_model("a", "/elsewhere/a", All(), {"stable": 1})
    route = host.manager.routes()["a"]
    assert (route.base_path, route.labels) == ("/elsewhere/a", {})


# -- what the supervisor asks -----------------------------------------------------------------------------------


def test_all_models_are_tried_when_each_has_a_version_or_a_failure(host: Host) -> None:
    host.add("a")
    host.add("b")
    assert not host.manager.all_tried()
    host.see(1, name="a")
    host.see(1, name="b")
    assert not host.manager.all_tried()
    host.ready(1, "a")
    assert not host.manager.all_tried()
    host.fail(1, "b")
    assert host.manager.all_tried()


def test_a_fallback_that_loads_is_still_to_be_tried(host: Host) -> None:
    host.add()
    host.see(1, 2)
    assert host.fail(2) == ["start a/1"]
    assert not host.manager.all_tried()
    host.fail(1)
    assert host.manager.all_tried()


def test_a_failed_model_that_waits_for_its_next_load_is_still_to_be_tried() -> None:
    host = Host(loads=1)
    host.add("a")
    host.see(1, name="a")
    host.fail(1, "a")
    host.serving(1, name="b")
    assert host.manager.all_tried()
    host.see(1, 2, name="b")
    host.wait(RETRY_SECONDS)
    assert not host.manager.all_tried()


def test_all_is_decided_when_each_model_serves_or_failed_or_has_nothing_to_load(host: Host) -> None:
    for name in ("empty", "missing", "copied", "broken", "good"):
        host.add(name)
    host.see(name="empty")
    host.manager.base_path_lost("missing", "No such file or directory")
    host.see(1, name="copied")
    host.incomplete(1, "copied")
    host.see(1, name="broken")
    host.fail(1, "broken")
    assert not host.manager.all_decided()  # nobody has looked at the last one
    host.see(1, name="good", settled=False)
    assert not host.manager.all_decided()
    host.see(1, name="good")
    assert not host.manager.all_decided()
    host.ready(1, "good")
    assert host.manager.all_decided()
    assert not host.manager.all_tried()  # the empty and the missing one


def test_a_removed_model_need_not_be_tried(host: Host) -> None:
    host.add("a")
    host.see(1)
    host.remove("a")
    assert host.manager.all_tried()


def test_the_versions_whose_files_need_no_look_are_those_with_a_worker_or_due_for_one(host: Host) -> None:
    host.add(policy=All())
    host.see(1, 2, 3, 4)
    host.ready(1)
    host.fail(2)
    host.ready(3)
    host.end(3)
    assert host.manager.loaded_versions("a") == {1, 3, 4}
    assert host.manager.loaded_versions("unknown") == frozenset()


def test_every_change_of_state_is_told_once(host: Host) -> None:
    host.serving(1)
    told = [(str(c.servable), c.old, c.new) for c in host.manager.take_changes()]
    assert told == [("a/1", "", "settling"), ("a/1", "settling", "loading"), ("a/1", "loading", "available")]
    assert host.manager.take_changes() == []


def test_the_path_of_a_version_is_where_it_was_last_seen(host: Host) -> None:
    host.add()
    host.manager.observe("a", {1: Observed("/models/a/001", "1", settled=False)}, "", host.now)
    actions = host.manager.observe("a", {1: Observed("/models/a/1", "2", settled=True)}, "", host.now)
    assert host.did(actions) == ["start a/1"]

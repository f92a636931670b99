"""The life of versions, in virtual time: what is seen and what happens to workers goes in, actions come out."""

from __future__ import annotations

import pytest

from appliance.config.version_policy import All, Latest, Specific
from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.servable import PublicState
from appliance.lifecycle.actions import StartWorker
from appliance.lifecycle.release import ReleaseRules
from appliance.lifecycle.replicas import Loaded
from tests.support.manager_host import RETRY_SECONDS, Host


@pytest.fixture
def host() -> Host:
    return Host()


# -- from a folder to a route -----------------------------------------------------------------------------------


def test_a_settled_version_is_loaded_and_routed_when_its_worker_is_ready(host: Host) -> None:
    host.add()
    assert host.see(1) == ["start a/1"]
    assert host.states() == {1: "loading"}
    assert host.ready(1) == []
    (route,) = host.manager.routes()["a"].versions
    assert (route.state, route.public_state, route.socket_path) == ("available", PublicState.AVAILABLE, "/run/w1")
    assert (route.code, route.reason) == (Code.OK, "")


def test_a_worker_is_started_with_the_names_of_the_model_files_that_were_seen_last(host: Host) -> None:
    manager = host.manager
    host.add()

    def see(digest: str | None, *names: str) -> list[frozenset[str]]:
        seen = {1: Observed("/models/a/1", digest, True, names=frozenset(names))}
        return [action.names for action in manager.observe("a", seen, "", host.now) if isinstance(action, StartWorker)]

    assert see("one", "model.tflite") == [{"model.tflite"}]
    assert see(None) == []
    manager.worker_ready(1, Loaded("/run/w1"), host.now)
    (restarted,) = manager.worker_ended(1, "killed by SIGKILL", host.now)
    assert isinstance(restarted, StartWorker)
    assert restarted.names == {"model.tflite"}


def test_files_that_change_before_a_version_loads_are_told_anew(host: Host) -> None:
    manager = host.manager
    host.add()
    first = {1: Observed("/models/a/1", "one", True, names=frozenset({"saved_model.pb"}))}
    manager.observe("a", first, "", host.now)
    manager.worker_incomplete(1, "saved_model.pb is cut off", host.now)
    second = {1: Observed("/models/a/1", "two", True, names=frozenset({"model.tflite"}))}
    (started,) = manager.observe("a", second, "", host.now)
    assert isinstance(started, StartWorker)
    assert started.names == {"model.tflite"}


def test_a_version_that_still_changes_is_not_loaded_and_says_why(host: Host) -> None:
    host.add()
    assert host.see(1, settled=False) == []
    assert host.states() == {1: "settling"}
    assert host.reason(1) == "its files change"
    assert host.see(1) == ["start a/1"]


def test_a_loaded_version_is_not_started_again_by_further_looks(host: Host) -> None:
    host.serving(1)
    assert host.see(1) == []
    assert host.see(1) == []


def test_versions_that_were_never_wanted_are_not_shown(host: Host) -> None:
    host.add()
    assert host.see(1, 2, 3) == ["start a/3"]
    assert host.states() == {3: "loading"}


def test_routes_tell_of_the_base_path_and_list_the_newest_version_first(host: Host) -> None:
    host.add(policy=All())
    host.see(1, 3, 2)
    host.manager.base_path_lost("a", "/models/a cannot be read")
    route = host.manager.routes()["a"]
    assert [version.version for version in route.versions] == [3, 2, 1]
    assert (route.name, route.base_path, route.reason) == ("a", "/models/a", "/models/a cannot be read")
    host.see(1, 2, 3)
    assert host.manager.routes()["a"].reason == ""


def test_a_model_without_versions_has_a_route_without_versions(host: Host) -> None:
    host.add()
    host.manager.observe("a", {}, "no numbered version folder", host.now)
    assert host.manager.routes()["a"].versions == ()
    assert host.manager.routes()["a"].reason == "no numbered version folder"


def test_workers_are_numbered_without_a_number_coming_twice(host: Host) -> None:
    host.serving(1)
    first = host.worker(1)
    assert host.end(1) == ["start a/1"]
    assert host.worker(1) != first


# -- from version to version ------------------------------------------------------------------------------------


def test_the_old_version_serves_until_the_new_one_is_ready(host: Host) -> None:
    host.serving(1)
    assert host.see(1, 2) == ["start a/2"]
    assert host.states() == {2: "loading", 1: "available"}
    assert host.ready(2) == ["drain a/1"]
    assert host.states() == {2: "available", 1: "draining"}
    assert host.end(1) == []
    assert host.states() == {2: "available", 1: "ended"}


def test_the_old_version_serves_while_the_new_one_settles_or_fails(host: Host) -> None:
    host.serving(1)
    assert host.see(1, 2, settled=False) == []
    host.see(1, 2)
    assert host.fail(2) == []
    assert host.states() == {2: "failed", 1: "available"}


def test_an_old_version_that_crashes_while_the_new_one_loads_is_started_again(host: Host) -> None:
    host.serving(1)
    host.see(1, 2)
    assert host.end(1) == ["start a/1"]
    assert host.ready(1) == []
    assert host.states() == {2: "loading", 1: "available"}
    assert host.ready(2) == ["drain a/1"]


def test_an_old_version_that_is_restarting_goes_when_the_new_one_is_ready(host: Host) -> None:
    host.serving(1)
    host.see(1, 2)
    host.end(1)
    assert host.ready(2) == ["kill a/1"]
    assert host.end(1) == []
    assert host.states() == {2: "available", 1: "ended"}
    assert host.manager.next_due is None


def test_an_old_version_that_waits_for_its_restart_goes_when_the_new_one_is_ready(host: Host) -> None:
    host.serving(1)
    host.see(1, 2)
    host.end(1)
    host.end(1)
    assert host.manager.next_due == host.now + 1
    assert host.ready(2) == []
    assert host.states() == {2: "available", 1: "ended"}
    assert host.manager.next_due is None


def test_when_the_newest_folder_is_deleted_the_newest_that_remains_is_loaded_first(host: Host) -> None:
    host.serving(1, 2, 3)
    assert host.see(1, 2) == ["start a/2"]
    assert host.states()[3] == "available"
    assert host.ready(2) == ["drain a/3"]
    assert host.end(3) == []
    assert host.states() == {2: "available"}


def test_when_the_only_folder_is_deleted_its_version_is_unloaded(host: Host) -> None:
    host.serving(1)
    assert host.see() == ["drain a/1"]
    assert host.reason(1) == "its folder is gone"
    assert host.end(1) == []
    assert host.states() == {}


def test_a_lost_base_path_unloads_nothing(host: Host) -> None:
    host.serving(1)
    host.manager.base_path_lost("a", "gone")
    assert host.wait(3600) == []
    assert host.states() == {1: "available"}


def test_a_broken_newest_version_falls_back_to_an_older_one_at_a_cold_start(host: Host) -> None:
    host.add()
    assert host.see(1, 2, 3) == ["start a/3"]
    assert host.fail(3) == ["start a/2"]
    assert host.ready(2) == []
    assert host.states() == {3: "failed", 2: "available"}


def test_an_incomplete_newest_version_falls_back_to_an_older_one_at_a_cold_start(host: Host) -> None:
    host.add()
    assert host.see(1, 2) == ["start a/2"]
    assert host.incomplete(2) == ["start a/1"]
    assert host.ready(1) == []
    assert host.states() == {2: "settling", 1: "available"}


def test_the_retry_of_the_newest_version_takes_over_from_the_fallback(host: Host) -> None:
    host.add()
    host.see(1, 2)
    host.fail(2)
    host.ready(1)
    assert host.wait(RETRY_SECONDS) == ["start a/2"]
    assert host.states() == {2: "loading", 1: "available"}
    assert host.ready(2) == ["drain a/1"]


def test_a_fallback_that_loads_while_the_newest_becomes_ready_is_dropped_when_it_is_ready(host: Host) -> None:
    host.add()
    host.see(1, 2)
    host.fail(2)
    host.wait(RETRY_SECONDS)
    host.ready(2)
    assert host.ready(1) == ["drain a/1"]


def test_all_versions_are_served_where_all_are_wanted(host: Host) -> None:
    host.add(policy=All())
    assert host.see(1, 2, 3) == ["start a/3", "start a/2", "start a/1"]
    host.fail(2)
    assert [host.ready(1), host.ready(3)] == [[], []]
    assert host.states() == {3: "available", 2: "failed", 1: "available"}


def test_specific_versions_are_served_and_no_others(host: Host) -> None:
    host.add(policy=Specific(frozenset({1, 7})))
    assert host.see(1, 2, 3) == ["start a/1"]
    assert host.see(1, 2, 3, 7) == ["start a/7"]


def test_the_latest_two_are_served_and_the_third_goes_when_a_new_one_is_ready(host: Host) -> None:
    host.add(policy=Latest(2))
    host.see(1, 2)
    host.ready(1)
    host.ready(2)
    assert host.see(1, 2, 3) == ["start a/3"]
    assert host.ready(3) == ["drain a/1"]


def test_labels_point_only_at_versions_that_are_served(host: Host) -> None:
    host.add(policy=All(), labels={"stable": 1, "canary": 2, "gone": 9})
    host.see(1, 2)
    assert host.manager.routes()["a"].labels == {}
    host.ready(1)
    assert host.manager.routes()["a"].labels == {"stable": 1}
    host.ready(2)
    host.end(1)
    assert host.manager.routes()["a"].labels == {"stable": 1, "canary": 2}  # it restarts: UNAVAILABLE, not unknown
    host.ready(1)
    host.see(1)
    assert host.manager.routes()["a"].labels == {"stable": 1}


# -- failures and retries ---------------------------------------------------------------------------------------


def test_a_failed_load_is_retried_at_its_interval_then_given_up(host: Host) -> None:
    host.add()
    host.see(1)
    for attempt in (1, 2):
        assert host.fail(1) == []
        assert f"a bad graph (attempt {attempt} of 3; the next in 60 s" in host.reason(1)
        assert host.manager.next_due == host.now + RETRY_SECONDS
        assert host.wait(RETRY_SECONDS - 0.1) == []
        assert host.wait(0.1) == ["start a/1"]
        assert host.manager.next_due is None
    assert host.fail(1) == []
    assert "given up after 3 attempts; change the files to try again" in host.reason(1)
    assert host.manager.next_due is None
    assert host.wait(86400) == []
    (route,) = host.manager.routes()["a"].versions
    assert (route.code, route.public_state) == (Code.INVALID_ARGUMENT, PublicState.END)


def test_a_worker_that_dies_while_it_loads_is_a_failed_attempt(host: Host) -> None:
    host.add()
    host.see(1)
    assert host.end(1) == []
    assert host.states() == {1: "failed"}
    assert "its worker died while loading: killed by SIGKILL" in host.reason(1)
    assert host.wait(RETRY_SECONDS) == ["start a/1"]


def test_changed_files_clear_a_failure_and_count_attempts_afresh() -> None:
    host = Host(retries=0)
    host.add()
    host.see(1)
    host.fail(1)
    assert host.see(1) == []
    assert host.see(1, settled=False, digest="2") == []
    assert host.states() == {1: "settling"}
    assert host.see(1, digest="2") == ["start a/1"]
    assert host.manager.routes()["a"].versions[0].code is Code.OK
    host.fail(1)
    assert "given up after 1 attempts" in host.reason(1)
    assert host.see(1, digest="3") == ["start a/1"]


def test_changed_files_cancel_the_retry_that_was_due(host: Host) -> None:
    host.add()
    host.see(1)
    host.fail(1)
    host.see(1, settled=False, digest="2")
    assert host.manager.next_due is None
    assert host.wait(RETRY_SECONDS) == []
    assert host.see(1, digest="2") == ["start a/1"]


def test_an_incomplete_version_waits_for_a_change_of_its_files(host: Host) -> None:
    host.add(rules=ReleaseRules(incomplete_after_seconds=86400))
    host.see(1)
    assert host.incomplete(1) == []
    assert host.reason(1) == "incomplete: no variables"
    assert host.see(1) == []
    assert host.wait(86399) == []
    assert host.reason(1) == "incomplete: no variables"
    assert host.see(1, settled=False, digest="2") == []
    assert host.see(1, digest="2") == ["start a/1"]


def test_a_file_that_arrives_while_the_worker_looks_counts_as_a_change(host: Host) -> None:
    host.add()
    host.see(1)
    late = {1: Observed("/models/a/1", "2", settled=False)}  # a scan that had begun before the load
    assert host.did(host.manager.observe("a", late, "", host.now)) == []
    host.incomplete(1)
    assert host.see(1, digest="2") == ["start a/1"]


def test_a_failed_version_that_is_no_longer_wanted_makes_nothing_due(host: Host) -> None:
    host.add()
    host.see(1)
    host.fail(1)
    assert host.see(1, 2) == ["start a/2"]
    host.ready(2)
    assert host.manager.next_due is None
    assert host.wait(RETRY_SECONDS) == []


def test_the_status_of_a_retry_carries_no_error_of_the_last_attempt(host: Host) -> None:
    host.add()
    host.see(1)
    host.fail(1)
    host.wait(RETRY_SECONDS)
    (route,) = host.manager.routes()["a"].versions
    assert (route.state, route.code, route.reason) == ("loading", Code.OK, "")


def test_a_model_that_is_refused_is_listed_with_the_reason_and_keeps_nothing_waiting(host: Host) -> None:
    host.manager.refuse_model("d\\xff", "/models/d\\xff", "its name is not UTF-8")
    route = host.manager.routes()["d\\xff"]
    assert (route.versions, route.reason, route.base_path) == ((), "its name is not UTF-8", "/models/d\\xff")
    assert host.manager.all_tried()
    assert host.manager.all_decided()
    assert host.manager.remove_model("d\\xff", host.now) == []
    assert host.manager.routes() == {}

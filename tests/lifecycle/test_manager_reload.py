"""A model whose configuration changes while it is served: policy, labels, folder; and how it then stands."""

from __future__ import annotations

import pytest

from appliance.config.version_policy import All, Latest, Specific
from appliance.lifecycle.manager import Manager
from appliance.lifecycle.standing import Standing
from tests.support.manager_host import Host


@pytest.fixture
def host() -> Host:
    return Host()


def both(host: Host) -> None:
    """Versions 1 and 2, served by name."""
    host.add(policy=Specific(frozenset({1, 2})), labels={"stable": 1, "canary": 2})
    host.see(1, 2)
    host.ready(1)
    host.ready(2)


# -- policy -----------------------------------------------------------------------------------------------------


def test_another_policy_loads_and_unloads_what_it_says(host: Host) -> None:
    host.serving(1, 2)
    assert host.update(All()) == ["start a/1"]
    host.ready(1)
    assert host.update(Specific(frozenset({1}))) == ["drain a/2"]


def test_what_is_served_stays_until_what_the_new_policy_wants_is_loaded(host: Host) -> None:
    host.serving(1, 2)
    assert host.update(Specific(frozenset({1}))) == ["start a/1"]
    assert host.states()[2] == "available"
    assert host.ready(1) == ["drain a/2"]


# -- labels -----------------------------------------------------------------------------------------------------


def test_a_promotion_moves_the_label_at_once_where_its_version_is_available(host: Host) -> None:
    both(host)
    host.update(Specific(frozenset({1, 2})), {"stable": 2, "canary": 2})
    assert host.labels() == {"stable": 2, "canary": 2}
    host.update(Specific(frozenset({1, 2})), {"stable": 1})
    assert host.labels() == {"stable": 1}


def test_a_label_stays_where_it_was_until_its_new_version_is_available(host: Host) -> None:
    host.add(policy=Specific(frozenset({1})), labels={"stable": 1})
    host.see(1, 2)
    host.ready(1)
    assert host.update(Specific(frozenset({2})), {"stable": 2}) == ["start a/2"]
    assert host.labels() == {"stable": 1}
    assert host.ready(2) == ["drain a/1"]
    assert host.labels() == {"stable": 2}


def test_a_version_with_a_label_is_kept_although_the_policy_has_a_newer_one(host: Host) -> None:
    host.add(policy=Latest(), labels={"stable": 1})
    host.see(1)
    host.ready(1)
    assert host.see(1, 2) == ["start a/2"]
    assert host.ready(2) == []
    assert host.states() == {2: "available", 1: "available"}
    assert host.update(Latest(), {}) == ["drain a/1"]


def test_a_new_label_for_an_unavailable_version_is_routed_only_where_that_is_allowed() -> None:
    for allowed in (False, True):
        manager = Manager(1, 1.0, 1, allowed)
        manager.add_model("a", "/models/a", All(), {"stable": 5})
        assert manager.routes()["a"].labels == ({"stable": 5} if allowed else {})


def test_a_label_that_exists_never_moves_to_an_unavailable_version() -> None:
    host = Host()
    host.manager = Manager(1, 1.0, 2, labels_for_unavailable_versions=True)
    both(host)
    host.update(Specific(frozenset({1, 2})), {"stable": 7, "new": 7})
    assert host.labels() == {"stable": 1, "new": 7}


# -- the folder -------------------------------------------------------------------------------------------------


def test_the_same_version_in_another_folder_replaces_the_old_one_without_a_gap(host: Host) -> None:
    host.serving(1)
    old = host.worker(1)
    assert host.update(base_path="/new/a") == []
    assert host.see(1, base="/new/a", settled=False) == []
    assert host.see(1, base="/new/a") == ["start a/1 from /new/a/1"]
    assert host.see(1, base="/new/a") == []
    assert host.states() == {1: "available"}
    assert host.ready(1) == ["drain a/1"]
    (route,) = host.manager.routes()["a"].versions
    assert route.socket_path == f"/run/w{host.worker(1)}"
    assert host.manager.worker_ended(old, "drained", host.now) == []
    assert host.states() == {1: "available"}
    assert host.see(1, base="/new/a") == []


def test_a_bad_version_in_another_folder_leaves_the_old_one_and_says_why(host: Host) -> None:
    host.serving(1)
    host.update(base_path="/new/a")
    host.see(1, base="/new/a")
    assert host.fail(1) == []
    assert host.states() == {1: "available"}
    assert host.reason(1) == "still served from /models/a/1: /new/a/1 does not load: a bad graph"
    assert host.manager.standing("a")[0] is Standing.FAILED
    assert host.see(1, base="/new/a") == []  # not again and again
    assert host.see(1, base="/new/a", digest="mended") == ["start a/1 from /new/a/1"]
    assert host.ready(1) == ["drain a/1"]
    assert host.reason(1) == ""


def test_a_third_folder_replaces_the_second_one_that_still_loads(host: Host) -> None:
    host.serving(1)
    host.update(base_path="/new/a")
    host.see(1, base="/new/a")
    host.update(base_path="/newer/a")
    assert host.see(1, base="/newer/a", digest="2") == ["kill a/1", "start a/1 from /newer/a/1"]
    assert host.ready(1) == ["drain a/1"]
    assert host.see(1, base="/newer/a", digest="2") == []


def test_back_to_the_old_folder_while_the_new_one_loads_nothing_changes(host: Host) -> None:
    host.serving(1)
    host.update(base_path="/new/a")
    host.see(1, base="/new/a")
    host.update()
    assert host.see(1) == ["kill a/1"]
    assert host.manager.standing("a") == (Standing.LIVE, "")
    host.update(base_path="/new/a")
    assert host.see(1, base="/new/a") == ["start a/1 from /new/a/1"]
    assert host.ready(1) == ["drain a/1"]
    assert host.manager.standing("a") == (Standing.LIVE, "")


def test_back_to_the_old_folder_after_the_new_one_failed_the_model_is_live_again(host: Host) -> None:
    host.serving(1)
    host.update(base_path="/new/a")
    host.see(1, base="/new/a")
    host.fail(1)
    host.update()
    assert host.see(1) == []
    assert host.reason(1) == ""
    assert host.manager.standing("a") == (Standing.LIVE, "")
    host.update(base_path="/new/a")
    assert host.see(1, base="/new/a") == ["start a/1 from /new/a/1"]  # it was asked for again


def test_where_the_old_worker_dies_while_its_successor_loads_that_one_takes_over(host: Host) -> None:
    host.serving(1)
    old = host.worker(1)
    host.update(base_path="/new/a")
    host.see(1, base="/new/a")
    assert host.did(host.manager.worker_ended(old, "killed", host.now)) == []
    assert host.states() == {1: "restarting"}
    assert host.ready(1) == []
    assert host.states() == {1: "available"}


def test_a_model_that_is_removed_takes_its_successor_with_it(host: Host) -> None:
    host.serving(1)
    old = host.worker(1)
    host.update(base_path="/new/a")
    host.see(1, base="/new/a")
    assert sorted(host.remove()) == ["drain a/1", "kill a/1"]
    assert host.end(1) == []
    host.manager.worker_ended(old, "drained", host.now)
    assert host.manager.routes() == {}


# -- where it stands --------------------------------------------------------------------------------------------


def test_a_model_is_pending_until_its_folder_was_looked_at_and_its_version_loaded(host: Host) -> None:
    host.add()
    assert host.manager.standing("a") == (Standing.PENDING, "/models/a has not been looked at yet")
    host.see(1, settled=False)
    assert host.manager.standing("a") == (Standing.PENDING, "version 1 is settling: its files change")
    host.see(1)
    assert host.manager.standing("a") == (Standing.PENDING, "version 1 is loading")
    host.ready(1)
    assert host.manager.standing("a") == (Standing.LIVE, "")


def test_a_model_that_has_a_version_is_live_while_the_next_one_is_still_copied(host: Host) -> None:
    host.serving(1)
    host.see(1, 2, settled=False)
    assert host.manager.standing("a") == (Standing.LIVE, "")


def test_what_will_not_come_has_failed_with_its_reason(host: Host) -> None:
    host.add()
    host.manager.base_path_lost("a", "/models/a cannot be read (No such file)")
    assert host.manager.standing("a") == (Standing.FAILED, "/models/a cannot be read (No such file)")
    host.see(1)
    host.fail(1)
    assert host.manager.standing("a")[0] is Standing.FAILED
    assert "a bad graph" in host.manager.standing("a")[1]


def test_a_version_or_a_label_that_is_asked_for_by_number_must_be_there(host: Host) -> None:
    host.add(policy=Specific(frozenset({1, 3})))
    host.see(1, 2)
    host.ready(1)
    assert host.manager.standing("a") == (Standing.FAILED, "version 3 is not under /models/a")
    host.update(Latest(), {"stable": 9})
    host.see(1, 2)
    host.ready(2)
    assert host.manager.standing("a") == (Standing.FAILED, "version 9 (label stable) is not under /models/a")


def test_a_version_whose_folder_is_gone_is_unloaded_although_another_still_loads(host: Host) -> None:
    host.add(policy=All())
    host.see(1, 2)
    host.ready(1)
    host.ready(2)
    assert host.see(2, 3) == ["start a/3", "drain a/1"]

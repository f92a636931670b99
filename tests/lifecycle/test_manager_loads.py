"""Which versions load first, and how long one that hangs or fails delays the others: in virtual time."""

from __future__ import annotations

import pytest

from appliance.config.version_policy import All
from appliance.lifecycle.replicas import Attempt
from tests.support.manager_host import RETRY_SECONDS, SLOW_SECONDS, Host


@pytest.fixture
def host() -> Host:
    """Two versions may load at once."""
    return Host(loads=2)


def drop(host: Host, *names: str) -> list[str]:
    """Drops a version of each new model."""
    done = []
    for name in names:
        host.add(name)
        done += host.see(1, name=name)
    return done


def test_loads_that_hang_keep_another_model_waiting_only_until_they_are_slow(host: Host) -> None:
    assert drop(host, "a", "b", "c") == ["start a/1", "start b/1"]
    assert host.wait(SLOW_SECONDS - 1) == []
    assert host.manager.next_due == host.now + 1
    assert host.wait(1) == ["start c/1"]
    assert host.states("a") == host.states("c") == {1: "loading"}


def test_there_are_at_most_twice_as_many_loads_as_slots(host: Host) -> None:
    drop(host, "a", "b", "c", "d", "e")
    assert host.wait(SLOW_SECONDS) == ["start c/1", "start d/1"]
    assert host.wait(SLOW_SECONDS) == []
    assert host.manager.next_due is None
    assert host.ready(1, "a") == ["start e/1"]


def test_a_slot_that_becomes_free_after_the_bound_was_reached_is_waited_for_again(host: Host) -> None:
    drop(host, "a", "b", "c", "d", "e")
    host.wait(SLOW_SECONDS)
    host.wait(1)
    assert host.ready(1, "a") == []
    assert host.wait(SLOW_SECONDS - 1) == ["start e/1"]


def test_other_versions_of_a_model_that_hangs_get_no_load_beyond_the_slots(host: Host) -> None:
    host.add("a", All())
    assert host.see(1, 2, 3, 4, name="a") == ["start a/4", "start a/3"]
    assert host.wait(SLOW_SECONDS) == []
    assert drop(host, "b") == ["start b/1"]
    assert host.fail(4, "a") == []
    assert host.ready(1, "b") == ["start a/2"]


def test_a_model_whose_last_load_failed_waits_behind_the_others(host: Host) -> None:
    drop(host, "bad")
    host.fail(1, "bad")
    drop(host, "a", "b")
    assert host.wait(RETRY_SECONDS - SLOW_SECONDS) == []
    assert host.wait(SLOW_SECONDS) == []
    drop(host, "c", "d", "e")
    assert host.ready(1, "c") == ["start e/1"]
    assert host.ready(1, "d") == []
    assert host.ready(1, "a") == []
    assert host.ready(1, "b") == ["start bad/1"]


def test_a_model_whose_last_load_was_slow_waits_behind_the_others() -> None:
    host = Host(loads=1)
    drop(host, "slow")
    host.wait(SLOW_SECONDS)
    host.ready(1, "slow")
    drop(host, "a")
    assert host.see(1, 2, name="slow") == []
    assert drop(host, "b") == []
    assert host.ready(1, "a") == ["start b/1"]
    assert host.ready(1, "b") == ["start slow/2"]


def test_a_load_in_time_makes_up_for_a_failure() -> None:
    host = Host(loads=1)
    drop(host, "once")
    host.fail(1, "once")
    host.wait(RETRY_SECONDS)
    host.ready(1, "once")
    drop(host, "a")
    host.see(1, 2, name="once")
    drop(host, "b")
    assert host.ready(1, "a") == ["start once/2"]


def test_a_failed_version_gives_the_slot_to_another_model_before_its_own_older_version() -> None:
    host = Host(loads=1)
    host.add("a")
    host.see(1, 2, name="a")
    drop(host, "b")
    assert host.fail(2, "a") == ["start b/1"]
    assert host.ready(1, "b") == ["start a/1"]


def test_a_model_that_was_removed_and_comes_back_is_not_held_against_its_past() -> None:
    host = Host(loads=1)
    drop(host, "a")
    host.fail(1, "a")
    host.remove("a")
    drop(host, "b")
    assert drop(host, "a", "c") == []
    assert host.ready(1, "b") == ["start a/1"]


def test_a_load_that_begins_again_without_what_its_process_died_of_is_as_old_as_before(host: Host) -> None:
    drop(host, "a", "b", "c")
    host.wait(SLOW_SECONDS - 1)
    attempt = Attempt("f", 1, "killed by SIGSEGV", "attempt 1 at f")
    assert host.did(host.manager.worker_ended(host.worker(1, "a"), "gone", host.now, attempt=attempt)) == ["start a/1"]
    assert host.wait(1) == ["start c/1"]

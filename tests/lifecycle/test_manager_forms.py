"""A version changes between its own model and an accelerated form of it, and loses nothing."""

from __future__ import annotations

import pytest

from appliance.config.version_policy import Latest
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import GivenUp
from tests.support.manager_host import Host

A1 = ServableId("a", 1)
ONNX = Form("onnx", "/cache/1")


@pytest.fixture
def host() -> Host:
    """Version 1, which serves its own model."""
    host = Host()
    host.serving(1)
    return host


def accelerate(host: Host, digest: str = "1") -> list[str]:
    return host.did(host.manager.accelerate(A1, ONNX, digest, host.now))


def accelerated(host: Host) -> Host:
    accelerate(host)
    host.ready(1)
    return host


def form(host: Host) -> str:
    (route,) = host.manager.routes()["a"].versions
    return route.form_backend


def stand_by(host: Host, seconds: float = 30.0) -> list[str]:
    return host.did(host.manager.stand_by(A1, host.now + seconds, host.now))


def demote(host: Host) -> list[str]:
    return host.did(host.manager.demote(A1, "it raised", host.now))


def test_the_form_takes_over_when_it_is_ready_and_then_the_old_worker_goes(host: Host) -> None:
    old = host.worker(1)
    assert accelerate(host) == ["start a/1 on onnx"]
    assert form(host) == ""
    assert host.states() == {1: "available"}
    assert host.ready(1) == ["drain a/1"]
    assert form(host) == "onnx"
    assert host.manager.worker_ended(old, "drained", host.now) == []
    assert host.states() == {1: "available"}


def test_a_form_of_other_files_is_not_served(host: Host) -> None:
    assert accelerate(host, digest="older") == []


def test_a_form_that_does_not_load_changes_nothing(host: Host) -> None:
    accelerate(host)
    assert host.fail(1) == []
    assert form(host) == ""
    assert host.states() == {1: "available"}
    assert host.reason(1) == ""
    (given_up,) = host.manager.take_demotions()
    assert given_up.why.startswith("its form for onnx does not load: ")
    assert not given_up.is_failure


def test_a_form_whose_worker_dies_is_demoted_and_the_version_restarts_with_its_own_model(host: Host) -> None:
    accelerated(host)
    assert host.end(1) == ["start a/1"]
    assert host.states() == {1: "restarting"}
    assert host.manager.take_demotions() == [GivenUp(A1, "its worker on onnx died: killed by SIGKILL")]
    host.ready(1)
    assert form(host) == ""


def test_the_own_model_stands_by_beside_the_form_and_goes_when_nobody_asks_for_it(host: Host) -> None:
    accelerated(host)
    assert host.manager.own_socket(A1) is None
    assert stand_by(host) == ["start a/1"]
    assert host.manager.own_socket(A1) == ""
    assert stand_by(host) == []
    assert host.ready(1) == []
    assert host.manager.own_socket(A1) == f"/run/w{host.worker(1)}"
    assert form(host) == "onnx"
    assert host.wait(29) == []
    stand_by(host)  # asked for again
    assert host.wait(29) == []
    assert host.wait(2) == ["kill a/1"]
    assert host.manager.own_socket(A1) is None
    assert form(host) == "onnx"
    assert host.manager.next_due is None


def test_a_demotion_lets_what_stands_by_take_over_at_once(host: Host) -> None:
    accelerated(host)
    stand_by(host)
    host.ready(1)
    assert demote(host) == ["drain a/1"]
    assert form(host) == ""
    assert host.manager.take_demotions() == [GivenUp(A1, "it raised")]
    assert demote(host) == []


def test_a_demotion_while_the_own_model_still_loads_waits_for_it(host: Host) -> None:
    accelerated(host)
    stand_by(host)
    assert demote(host) == []
    assert form(host) == "onnx"
    assert host.ready(1) == ["drain a/1"]
    assert form(host) == ""


def test_a_demotion_with_nothing_beside_it_loads_the_own_model_first(host: Host) -> None:
    accelerated(host)
    assert demote(host) == ["start a/1"]
    assert form(host) == "onnx"
    assert host.ready(1) == ["drain a/1"]
    assert form(host) == ""


def test_where_the_form_dies_what_stands_by_serves_at_once(host: Host) -> None:
    accelerated(host)
    served = host.worker(1)
    stand_by(host)
    host.ready(1)
    assert host.did(host.manager.worker_ended(served, "killed", host.now)) == []
    assert host.states() == {1: "available"}
    assert form(host) == ""


def test_a_version_without_a_form_has_nothing_to_stand_by_or_to_demote(host: Host) -> None:
    assert stand_by(host) == []
    assert demote(host) == []
    assert stand_by(Host()) == []


def test_a_newer_version_replaces_a_form_and_what_stands_by(host: Host) -> None:
    accelerated(host)
    stand_by(host)
    host.ready(1)
    assert host.see(1, 2) == ["start a/2"]
    assert sorted(host.ready(2)) == ["drain a/1", "kill a/1"]


def test_a_model_that_moves_gives_its_form_up(host: Host) -> None:
    accelerated(host)
    host.update(Latest(), base_path="/new/a")
    assert host.see(1, base="/new/a") == ["start a/1 from /new/a/1"]
    assert host.ready(1) == ["drain a/1"]
    assert form(host) == ""


def test_it_tells_which_worker_serves_a_form_and_of_which_files(host: Host) -> None:
    assert host.manager.forms() == []
    accelerated(host)
    (found,) = host.manager.forms()
    assert (found.servable, found.form, found.digest, found.worker) == (A1, ONNX, "1", host.worker(1))
    demote(host)
    assert host.manager.forms() == [found]  # until its own model is loaded
    host.ready(1)
    assert host.manager.forms() == []


def test_a_form_is_not_given_up_for_what_another_did(host: Host) -> None:
    accelerated(host)
    other = Form("litert", "/cache/2")
    assert host.did(host.manager.demote(A1, "it was wrong", host.now, other)) == []
    assert host.did(host.manager.demote(A1, "it was wrong", host.now, ONNX)) == ["start a/1"]
    assert host.manager.take_demotions() == [GivenUp(A1, "it was wrong")]

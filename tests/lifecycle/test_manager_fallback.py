"""A worker that does not load gives way at once to one that asks less: without a form, or without a made-up request."""

from __future__ import annotations

import pytest

from appliance.core.errors import Code
from appliance.core.poison import ANY, Held, Kind, Runs
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import KillWorker, StartWorker
from appliance.lifecycle.replicas import Attempt, Loaded
from backends.contract import Signature, TensorSpec
from tests.support.manager_host import RETRY_SECONDS, Host

A1 = ServableId("a", 1)
ONNX = Form("onnx", "/cache/1")
FIRST = Attempt("f", 1, "was killed by SIGABRT", "attempt 1 at f")
SECOND = Attempt("f", 2, "was killed by SIGSEGV", "attempt 2 at f")


@pytest.fixture
def host() -> Host:
    """Version 1, which loads."""
    host = Host()
    host.add()
    host.see(1)
    return host


@pytest.fixture
def prepared(host: Host) -> Host:
    """Version 1, which loads a form that was waited for."""
    host.manager.form_found(host.worker(1), ONNX)
    return host


def said(host: Host) -> list[str]:
    return [change.reason for change in host.manager.take_changes() if change.is_warning]


def dies_of(host: Host, attempt: Attempt) -> StartWorker:
    (action,) = host.manager.worker_ended(host.worker(1), attempt.how, host.now, attempt=attempt)
    assert isinstance(action, StartWorker)
    host.did([action])
    return action


# -- forms ------------------------------------------------------------------------------------------------------


def test_only_the_first_load_may_wait_for_a_form(host: Host) -> None:
    host.fail(1)
    (start,) = host.manager.tick(host.now + RETRY_SECONDS)
    assert isinstance(start, StartWorker)
    assert start.may_find_form
    host.did([start])
    host.ready(1)
    (again,) = host.manager.worker_ended(start.worker, "killed", host.now)
    assert isinstance(again, StartWorker)
    assert not again.may_find_form


def test_a_form_that_was_waited_for_is_served_from_the_first_request(prepared: Host) -> None:
    prepared.ready(1)
    assert prepared.manager.routes()["a"].versions[0].form_backend == "onnx"
    assert prepared.manager.own_models() == []


@pytest.mark.parametrize("how", ["fails", "is incomplete", "dies", "dies in warm-up"])
def test_where_a_form_does_not_load_the_model_itself_is_loaded_at_once(prepared: Host, how: str) -> None:
    worker = prepared.worker(1)
    manager = prepared.manager
    match how:
        case "fails":
            actions = manager.worker_failed(worker, Code.INTERNAL, "a bad graph", prepared.now)
        case "is incomplete":
            actions = manager.worker_incomplete(worker, "no model.onnx", prepared.now)
        case "dies":
            actions = manager.worker_ended(worker, "killed by SIGSEGV", prepared.now)
        case _:
            actions = manager.worker_ended(worker, FIRST.how, prepared.now, attempt=FIRST)
    (start,) = actions
    assert isinstance(start, StartWorker)
    assert (start.form, start.may_find_form, start.is_tried, start.left_out) == (None, False, True, ())
    prepared.did(actions)
    assert prepared.states() == {1: "loading"}
    (told,) = said(prepared)
    assert told.startswith("its form for onnx does not load (")
    (given_up,) = manager.take_demotions()
    assert given_up.why.startswith("its form for onnx does not load: ")
    assert not given_up.is_failure
    prepared.ready(1)
    assert prepared.manager.routes()["a"].versions[0].form_backend == ""
    assert prepared.end_all_again() == ["start a/1"]  # of the one that serves


def test_where_a_form_fails_the_requests_of_its_warm_up_the_model_itself_is_loaded(prepared: Host) -> None:
    worker = prepared.worker(1)
    failed = Loaded("/run/w1", warmup_failure="f: no kernel")
    kill, start = prepared.manager.worker_ready(worker, failed, prepared.now)
    assert kill == KillWorker(worker)
    assert isinstance(start, StartWorker)
    assert start.form is None
    assert prepared.states() == {1: "loading"}


def test_a_model_whose_own_warm_up_fails_is_for_the_gate_to_judge(host: Host) -> None:
    assert host.manager.worker_ready(host.worker(1), Loaded("/run/w1", warmup_failure="f: no kernel"), host.now) == []
    assert host.states() == {1: "available"}


def test_a_form_that_has_to_serve_before_it_is_ready_gives_way_as_well(host: Host) -> None:
    host.ready(1)
    served = host.worker(1)
    assert host.did(host.manager.accelerate(A1, ONNX, "1", host.now)) == ["start a/1 on onnx"]
    assert host.did(host.manager.worker_ended(served, "killed", host.now)) == []
    assert host.states() == {1: "restarting"}
    assert host.fail(1) == ["start a/1"]
    assert host.ready(1) == []
    assert host.states() == {1: "available"}


def test_files_that_have_changed_are_not_served_by_the_form_of_those_before(host: Host) -> None:
    host.ready(1)
    host.did(host.manager.accelerate(A1, ONNX, "1", host.now))
    host.ready(1)
    host.see(1, 2)
    assert host.ready(2) == ["drain a/1"]
    host.end(1)
    assert host.see(1, 2, digest="2") == []
    assert host.see(1, digest="2") == ["start a/1"]


def test_a_version_that_comes_back_with_the_same_files_has_its_form_still(host: Host) -> None:
    host.ready(1)
    host.did(host.manager.accelerate(A1, ONNX, "1", host.now))
    host.ready(1)
    host.see(1, 2)
    host.ready(2)
    host.end(1)
    assert host.see(1, 2) == []
    assert host.see(1) == ["start a/1 on onnx"]
    assert host.fail(1) == ["start a/1"]


# -- made-up requests ---------------------------------------------------------------------------------------------


def test_what_dies_of_a_made_up_request_loads_again_without_it_and_is_not_failed_by_that(host: Host) -> None:
    assert dies_of(host, FIRST).left_out == (FIRST,)
    assert dies_of(host, SECOND).left_out == (FIRST, SECOND)
    assert host.states() == {1: "loading"}
    assert said(host) == [
        f"its process ended ({attempt.how}) while made-up inputs warmed it up ({attempt.text}); it starts again "
        "without those"
        for attempt in (FIRST, SECOND)
    ]
    assert host.ready(1) == []
    assert host.states() == {1: "available"}


def test_what_dies_of_something_else_afterwards_fails(host: Host) -> None:
    dies_of(host, FIRST)
    assert host.end(1) == []
    assert host.states() == {1: "failed"}
    (again,) = host.manager.tick(host.now + RETRY_SECONDS)
    assert isinstance(again, StartWorker)
    assert again.left_out == ()  # another attempt, perhaps of other luck


def test_a_load_slot_is_kept_while_a_worker_is_started_again() -> None:
    host = Host(loads=1)
    host.add("a")
    host.add("b")
    host.see(1, name="a")
    assert host.see(1, name="b") == []
    dies_of(host, FIRST)
    assert host.states("b") == {}
    assert host.ready(1) == ["start b/1"]


def test_a_restarted_worker_and_a_successor_leave_out_what_processes_died_of(host: Host) -> None:
    host.ready(1)
    host.end(1)
    assert dies_of(host, FIRST).left_out == (FIRST,)
    host.ready(1)
    host.did(host.manager.accelerate(A1, ONNX, "1", host.now))
    again = dies_of(host, FIRST)
    assert (again.form, again.left_out) == (ONNX, (FIRST,))
    assert host.states() == {1: "available"}
    assert host.ready(1) == ["drain a/1"]


def test_made_up_requests_are_not_held_against_those_of_clients(host: Host) -> None:
    signatures = {"f": Signature(inputs={"x": TensorSpec("DT_FLOAT", (-1, 2))}, outputs={})}
    host.ready(1, signatures=signatures)
    host.end(1)
    runs = Runs(held=(Held(Kind("f", (("x", "DT_FLOAT", (ANY, 3)),))),))
    for _ in range(4):
        (start,) = host.manager.worker_ended(host.worker(1), "killed", host.now, runs, "SIGABRT", FIRST)
        host.did([start])
    host.ready(1, signatures=signatures)
    assert host.manager.routes()["a"].versions[0].refused == ()
    for _ in range(2):  # the same of clients' requests
        host.did(host.manager.worker_ended(host.worker(1), "killed", host.now, runs, "SIGABRT"))
        host.wait(60.0)
        host.ready(1, signatures=signatures)
    assert len(host.manager.routes()["a"].versions[0].refused) == 1


def test_a_worker_that_is_unloaded_while_it_warms_up_is_not_started_again(host: Host) -> None:
    worker = host.worker(1)
    assert host.remove() == ["kill a/1"]
    assert host.manager.worker_ended(worker, FIRST.how, host.now, attempt=FIRST) == []
    assert "a" not in host.manager.routes()

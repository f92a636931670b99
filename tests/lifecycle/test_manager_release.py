"""What never replaces what serves, and what gives way, in virtual time."""

from __future__ import annotations

import pytest

from appliance.config.version_policy import All, Latest, Specific
from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.outcomes import Outcome, Trial
from appliance.core.servable import Form, PublicState, ServableId
from appliance.lifecycle.actions import StartWorker
from appliance.lifecycle.release import Gate, ReleaseRules
from appliance.lifecycle.replicas import Loaded
from appliance.lifecycle.standing import Standing
from backends.contract import Signature, TensorSpec
from tests.support.manager_host import RETRY_SECONDS, Host

GOOD = {"f": Trial(Outcome.ANSWERED)}
BAD = {"f": Trial(Outcome.FAILED, Code.FAILED_PRECONDITION, "Table not initialized.")}
FLOATS = {"f": Signature({"x": TensorSpec("float32", (-1,))}, {"y": TensorSpec("float32", (-1,))})}
IDS = {"f": Signature({"x": TensorSpec("int64", (-1,))}, {"y": TensorSpec("float32", (-1,))})}
CHANGE = 'its signatures differ from those of version 1: input "x" of signature "f" is int64, and was float32'


@pytest.fixture
def host() -> Host:
    return Host()


# -- the gate ---------------------------------------------------------------------------------------------------


def test_a_version_that_cannot_answer_fails_and_the_old_one_stays(host: Host) -> None:
    host.serving(1)
    host.see(1, 2)
    assert host.ready(2, trials=BAD) == ["kill a/2"]
    assert host.states() == {1: "available", 2: "failed"}
    assert host.code(2) is Code.FAILED_PRECONDITION
    assert host.reason(2).startswith('signature "f" cannot answer: Table not initialized. (attempt 1 of 3')
    assert host.end_all_again() == ["start a/1"]  # the worker that was killed is forgotten; that of version 1 is not


def test_a_version_that_cannot_answer_is_tried_again_and_takes_over_once_it_can(host: Host) -> None:
    host.serving(1)
    host.see(1, 2)
    host.ready(2, trials=BAD)
    assert host.wait(RETRY_SECONDS) == ["start a/2"]
    assert host.ready(2, trials=GOOD) == ["drain a/1"]
    assert host.states() == {1: "draining", 2: "available"}


@pytest.mark.parametrize("gate", [Gate.ONLY_REPLACING, Gate.OFF])
def test_a_gate_for_replacements_lets_the_first_version_serve_as_it_is(host: Host, gate: Gate) -> None:
    host.add(rules=ReleaseRules(gate))
    host.see(1)
    assert host.ready(1, trials=BAD) == []
    assert host.states() == {1: "available"}


def test_a_strict_gate_holds_for_the_first_version_too_and_lets_the_next_model_load(host: Host) -> None:
    host = Host(loads=1)
    host.add("a")
    host.add("b")
    assert host.see(1, name="a") == ["start a/1"]
    assert host.see(1, name="b") == []
    assert host.ready(1, trials=BAD) == ["kill a/1", "start b/1"]
    assert host.states("a") == {1: "failed"}
    assert host.manager.standing("a")[0] is Standing.FAILED


def test_a_version_that_was_served_before_is_not_judged_again_when_its_worker_restarts(host: Host) -> None:
    host.serving(1)
    host.end(1)
    assert host.ready(1, trials=BAD) == []
    assert host.states() == {1: "available"}


def test_a_version_whose_worker_restarts_still_counts_as_one_that_serves(host: Host) -> None:
    host.serving(1, rules=ReleaseRules(Gate.ONLY_REPLACING))
    host.see(1, 2)
    host.end(1)
    assert host.ready(2, trials=BAD) == ["kill a/2"]


def test_what_a_gate_for_replacements_refused_is_served_once_nothing_else_is_left(host: Host) -> None:
    host.serving(1, rules=ReleaseRules(Gate.ONLY_REPLACING))
    host.see(1, 2)
    for _ in range(3):
        host.ready(2, trials=BAD)
        host.wait(RETRY_SECONDS)
    assert host.states() == {1: "available", 2: "failed"}
    host.see(2)
    assert host.end(1) == ["start a/2"]
    assert host.ready(2, trials=BAD) == []
    assert host.states() == {2: "available"}
    assert host.remarks(2) == ('signature "f" cannot answer: Table not initialized.',)


def test_a_gate_that_is_opened_by_a_reload_tries_what_it_had_refused(host: Host) -> None:
    host.serving(1)
    host.see(1, 2)
    host.ready(2, trials=BAD)
    assert host.update(rules=ReleaseRules(Gate.OFF)) == ["start a/2"]
    assert host.ready(2, trials=BAD) == ["drain a/1"]


def test_a_model_that_is_configured_anew_tries_again_what_it_had_given_up(host: Host) -> None:
    host.serving(1)
    host.see(1, 2)
    host.fail(2)
    while host.wait(RETRY_SECONDS):
        host.fail(2)
    assert "given up" in host.reason(2)
    assert host.update() == ["start a/2"]


def test_a_version_without_a_signature_that_can_be_served_tells_why(host: Host) -> None:
    host.add()
    host.see(1)
    unsupported = {"f": "the tensor 'x' is sparse"}
    manager, worker = host.manager, host.worker(1)
    host.did(manager.worker_ready(worker, Loaded("/run/w1", trials={}, unsupported=unsupported), host.now))
    assert host.states() == {1: "failed"}
    assert "'f' cannot be: the tensor 'x' is sparse" in host.reason(1)


def test_the_same_version_from_another_folder_is_judged_as_another_version_is(host: Host) -> None:
    host.serving(1)
    host.update(base_path="/new/a")
    assert host.see(1, base="/new/a") == ["start a/1 from /new/a/1"]
    assert host.ready(1, trials=BAD) == ["kill a/1"]
    assert host.states() == {1: "available"}
    assert "Table not initialized." in host.reason(1)
    assert host.see(1, base="/new/a", digest="2") == ["start a/1 from /new/a/1"]
    assert host.ready(1, trials=GOOD) == ["drain a/1"]


def test_what_a_worker_remarks_is_shown_while_it_serves_and_logged_as_a_warning(host: Host) -> None:
    host.add()
    host.see(1)
    host.manager.take_changes()
    host.ready(1, remarks=["its variables were repaired"])
    assert host.remarks(1) == ("its variables were repaired",)
    assert [change.reason for change in host.manager.take_changes() if change.is_warning] == [
        "its variables were repaired"
    ]


# -- signatures -------------------------------------------------------------------------------------------------


def test_signatures_that_differ_from_those_of_the_version_before_are_told(host: Host) -> None:
    host.add()
    host.see(1)
    host.ready(1, signatures=FLOATS)
    host.see(1, 2)
    host.manager.take_changes()
    assert host.ready(2, signatures=IDS) == ["drain a/1"]
    assert host.remarks(2) == (CHANGE,)
    assert [change.reason for change in host.manager.take_changes() if change.is_warning] == [CHANGE]


def test_signatures_that_differ_are_refused_where_that_is_asked_for(host: Host) -> None:
    host.add(rules=ReleaseRules(refuse_signature_changes=True))
    host.see(1)
    assert host.ready(1, signatures=FLOATS) == []
    host.see(1, 2)
    assert host.ready(2, signatures=IDS) == ["kill a/2"]
    assert host.states() == {1: "available", 2: "failed"}
    assert CHANGE in host.reason(2)
    assert host.wait(10 * RETRY_SECONDS) == []  # the same files would have the same signatures
    assert host.see(1, 2, digest="2") == ["start a/2"]
    assert host.ready(2, signatures=FLOATS) == ["drain a/1"]


def test_going_back_to_an_older_version_is_not_refused_for_its_signatures(host: Host) -> None:
    host.add(rules=ReleaseRules(refuse_signature_changes=True))
    host.see(2)
    host.ready(2, signatures=IDS)
    assert host.see(1) == ["start a/1"]
    assert host.ready(1, signatures=FLOATS) == ["drain a/2"]


def test_a_version_beside_one_that_stays_is_not_refused_for_its_signatures(host: Host) -> None:
    host.add(policy=All(), rules=ReleaseRules(refuse_signature_changes=True))
    host.see(1)
    host.ready(1, signatures=FLOATS)
    host.see(1, 2)
    assert host.ready(2, signatures=IDS) == []
    assert host.states() == {1: "available", 2: "available"}


def test_a_remark_on_signatures_stays_when_a_form_takes_over(host: Host) -> None:
    host.add()
    host.see(1)
    host.ready(1, signatures=FLOATS)
    host.see(1, 2)
    host.ready(2, signatures=IDS)
    host.did(host.manager.accelerate(ServableId("a", 2), Form("onnx", "/cache/f"), "1", host.now))
    assert host.ready(2, signatures=IDS, remarks=["on the CPU"]) == ["drain a/2"]
    assert host.remarks(2) == ("on the CPU", CHANGE)


def test_an_older_version_that_is_served_beside_a_newer_one_is_not_compared_with_it(host: Host) -> None:
    host.add(policy=All())
    host.see(1, 2)
    host.ready(2, signatures=IDS)
    host.ready(1, signatures=FLOATS)
    assert host.remarks(1) == ()


# -- what serves stays ------------------------------------------------------------------------------------------


def test_a_version_whose_folder_is_gone_serves_until_the_one_that_settles_does(host: Host) -> None:
    host.serving(1)
    assert host.see(2, settled=False) == []
    assert host.states() == {1: "available", 2: "settling"}
    assert host.reason(1) == "its folder is gone; it serves until another version does"
    assert host.see(2) == ["start a/2"]
    assert host.states() == {1: "available", 2: "loading"}
    assert host.ready(2) == ["drain a/1"]


def test_a_version_whose_folder_is_gone_stays_if_the_only_other_one_fails(host: Host) -> None:
    host.serving(1)
    host.see(2)
    for _ in range(3):
        assert host.ready(2, trials=BAD) == ["kill a/2"]
        host.wait(RETRY_SECONDS)
    assert host.states() == {1: "available", 2: "failed"}
    assert "given up" in host.reason(2)


def test_a_version_whose_folder_is_gone_goes_if_no_other_is_there(host: Host) -> None:
    host.serving(1)
    host.see(2, settled=False)
    assert host.see() == ["drain a/1"]


def test_a_version_whose_folder_is_back_has_no_remark_any_more(host: Host) -> None:
    host.serving(1)
    host.see(2, settled=False)
    host.see(1, 2, settled=False)
    assert host.reason(1) == ""


def test_what_serves_stays_while_the_version_that_a_new_policy_asks_for_settles(host: Host) -> None:
    host.serving(1, policy=Specific(frozenset({1})))
    host.see(1, 2, settled=False)
    assert host.update(Specific(frozenset({2}))) == []
    assert host.see(1, 2) == ["start a/2"]
    assert host.fail(2) == []
    assert host.states() == {1: "available", 2: "failed"}


def test_a_model_that_is_asked_for_again_while_it_drains_is_pending_and_then_loaded(host: Host) -> None:
    host.serving(1)
    assert host.remove() == ["drain a/1"]
    host.add()
    assert host.see(1) == []
    assert host.manager.standing("a") == (
        Standing.PENDING,
        "version 1 is draining, and is loaded again after that",
    )
    assert host.end(1) == []
    assert host.manager.standing("a")[0] is Standing.PENDING  # whether these are still the same files is not known
    assert host.see(1) == ["start a/1"]
    host.ready(1)
    assert host.manager.standing("a")[0] is Standing.LIVE


def test_a_model_that_is_asked_for_again_from_another_folder_is_loaded_from_there(host: Host) -> None:
    host.serving(1)
    host.remove()
    host.manager.add_model("a", "/new/a")
    assert host.see(1, base="/new/a") == []
    assert host.end(1) == []  # the new folder has not been looked at since
    assert host.see(1, base="/new/a") == ["start a/1 from /new/a/1"]


def replace(host: Host, digest: str, settled: bool = True) -> list[str]:
    """Shows the folder of version 1 with other files, as the source does with one that went and came back."""
    seen = {1: Observed("/models/a/1", digest, settled, names=frozenset({"saved_model.pb"}))}
    return host.did(host.manager.observe("a", seen, "", host.now))


def test_files_that_replace_those_of_a_served_version_are_loaded_beside_it_and_take_over(host: Host) -> None:
    host.serving(1)
    assert replace(host, "2", settled=False) == []
    assert replace(host, "2") == ["start a/1"]
    assert replace(host, "2") == []
    assert host.states() == {1: "available"}
    assert host.ready(1, trials=GOOD) == ["drain a/1"]
    assert replace(host, "2") == []
    assert host.reason(1) == ""


def test_files_that_replace_those_of_a_served_version_and_cannot_answer_change_nothing(host: Host) -> None:
    host.serving(1)
    replace(host, "2")
    assert host.ready(1, trials=BAD) == ["kill a/1"]
    assert host.states() == {1: "available"}
    assert replace(host, "2") == []
    assert host.reason(1).startswith("its files were replaced, and it is served as they were before")
    assert "Table not initialized" in host.reason(1)
    assert host.manager.loaded_versions("a") == frozenset()  # so that a change of them is seen
    for _ in range(2):
        host.now += RETRY_SECONDS
        assert replace(host, "2") == ["start a/1"]
        host.ready(1, trials=BAD)
    host.now += RETRY_SECONDS
    assert replace(host, "2") == []
    assert replace(host, "3") == ["start a/1"]
    assert host.ready(1, trials=GOOD) == ["drain a/1"]
    assert host.reason(1) == ""


def test_files_that_are_replaced_while_they_are_loaded_are_loaded_again(host: Host) -> None:
    host.add()
    host.see(1)
    assert replace(host, "2") == []
    host.ready(1)
    assert host.manager.loaded_versions("a") == frozenset()
    assert replace(host, "2") == ["start a/1"]
    host.ready(1)
    assert host.manager.loaded_versions("a") == {1}


def test_files_that_replace_those_of_a_served_version_wait_for_a_demotion(host: Host) -> None:
    host.serving(1)
    host.did(host.manager.accelerate(ServableId("a", 1), Form("onnx", "/cache/f"), "1", host.now))
    host.ready(1)
    assert host.did(host.manager.demote(ServableId("a", 1), "it refused a request", host.now)) == ["start a/1"]
    assert replace(host, "2") == []
    host.ready(1)
    assert replace(host, "2") == ["start a/1"]


def test_only_files_that_have_not_served_are_tried(host: Host) -> None:
    host.add()
    seen = {1: Observed("/models/a/1", "1", settled=True)}
    (first,) = host.manager.observe("a", seen, "", host.now)
    host.did([first])
    host.ready(1)
    (again,) = host.manager.worker_ended(host.worker(1), "killed by SIGKILL", host.now)
    host.did([again])
    host.ready(1)
    (other,) = host.manager.observe("a", {1: Observed("/models/a/1", "2", settled=True)}, "", host.now)
    starts = [action for action in (first, again, other) if isinstance(action, StartWorker)]
    assert [start.is_tried for start in starts] == [True, False, True]


def test_files_that_replace_those_of_a_served_version_and_are_incomplete_are_loaded_as_they_are_after_a_while(
    host: Host,
) -> None:
    host.serving(1)
    replace(host, "2")
    assert host.incomplete(1) == ["kill a/1"]
    assert "incomplete: no variables" in host.reason(1)
    host.now += 29
    assert replace(host, "2") == []
    host.now += 1
    seen = {1: Observed("/models/a/1", "2", settled=True)}
    (start,) = host.manager.observe("a", seen, "", host.now)
    assert isinstance(start, StartWorker)
    assert not start.check_files


def test_a_version_that_comes_back_with_other_files_after_long_is_loaded_anew(host: Host) -> None:
    host.serving(1)
    host.see(2)
    host.fail(2)
    assert host.states() == {1: "available", 2: "failed"}
    assert host.manager.loaded_versions("a") == frozenset()
    assert host.see(1, 2, digest="9") == ["start a/1", "start a/2"]
    assert host.states() == {1: "available", 2: "loading"}


def test_the_worker_of_replaced_files_is_judged_too_if_the_old_one_dies_meanwhile(host: Host) -> None:
    host.serving(1)
    replace(host, "2")
    assert host.did(host.manager.worker_ended(1, "killed by SIGKILL", host.now)) == []
    assert host.states() == {1: "restarting"}
    assert host.ready(1, trials=BAD) == ["kill a/1"]
    assert host.states() == {1: "restarting"}
    assert "Table not initialized" in host.reason(1)
    host.wait(2)
    assert host.ready(1, trials=GOOD) == []
    assert host.states() == {1: "available"}


# -- what looks incomplete --------------------------------------------------------------------------------------


def test_what_has_looked_incomplete_for_long_is_loaded_as_it_is(host: Host) -> None:
    host.add()
    host.see(1)
    host.incomplete(1)
    assert host.wait(29) == []
    host.now += 1
    (start,) = host.manager.tick(host.now)
    assert isinstance(start, StartWorker)
    assert not start.check_files
    host.did([start])
    assert host.ready(1) == []
    assert host.states() == {1: "available"}


def test_what_the_loader_says_of_an_incomplete_folder_is_final_until_its_files_change(host: Host) -> None:
    host.add()
    host.see(1)
    host.incomplete(1)
    assert host.wait(30) == ["start a/1"]
    assert host.fail(1) == []
    assert host.states() == {1: "failed"}
    assert host.reason(1) == "a bad graph (it is tried again when its files change)"
    assert host.manager.standing("a")[0] is Standing.FAILED
    assert host.wait(86400) == []
    seen = {1: Observed("/models/a/1", "2", settled=True)}
    (start,) = host.manager.observe("a", seen, "", host.now)
    assert isinstance(start, StartWorker)
    assert start.check_files


def test_a_change_of_an_incomplete_folder_begins_its_time_anew(host: Host) -> None:
    host.add()
    host.see(1)
    host.incomplete(1)
    host.now += 20
    host.see(1, digest="2")
    host.incomplete(1)
    assert host.wait(29) == []
    assert host.wait(1) == ["start a/1"]


# -- what keeps dying -------------------------------------------------------------------------------------------


def die(host: Host, version: int, times: int) -> list[str]:
    """The worker dies so often, soon after it was ready each time; what follows the last death."""
    did: list[str] = []
    for number in range(times):
        did = host.end(version)
        if number < times - 1:
            if not did:
                host.wait(1)
            host.ready(version)
    return did


def test_a_version_that_dies_three_times_in_a_minute_gives_way_to_the_one_before(host: Host) -> None:
    host.serving(1, 2)
    assert die(host, 2, 3) == ["start a/1"]
    assert host.states() == {1: "loading", 2: "restarting"}
    assert host.wait(2) == ["start a/2"]  # it is all that there is meanwhile
    host.ready(2)
    assert host.ready(1) == ["drain a/2"]
    host.end(2)
    assert host.states() == {1: "available", 2: "ended"}
    assert host.code(2) is Code.UNAVAILABLE
    assert "its worker died 3 times within 0 s of service, the last time: killed by SIGKILL" in host.reason(2)
    assert host.see(1, 2) == []
    assert host.wait(86400) == []
    assert host.see(1, 2, digest="2") == ["start a/2"]
    assert host.ready(2) == ["drain a/1"]


def test_a_version_that_gives_way_while_it_restarts_is_unloaded_once_the_other_is_ready(host: Host) -> None:
    host.serving(1, 2)
    die(host, 2, 3)
    assert host.ready(1) == []
    assert host.states() == {1: "available", 2: "ended"}


def test_a_version_that_keeps_dying_goes_on_if_the_one_before_does_not_load(host: Host) -> None:
    host.serving(1, 2)
    die(host, 2, 3)
    assert host.ready(1, trials=BAD) == ["kill a/1"]
    assert host.wait(2) == ["start a/2"]
    assert host.ready(2) == []
    assert host.states() == {1: "failed", 2: "available"}


def test_a_version_that_keeps_dying_is_started_again_if_no_other_is_there(host: Host) -> None:
    host.serving(2)
    assert die(host, 2, 3) == []
    assert host.states() == {2: "restarting"}
    assert host.wait(2) == ["start a/2"]


def test_deaths_that_lie_further_apart_than_the_window_do_not_add_up(host: Host) -> None:
    host.serving(1, 2)
    for _ in range(4):
        host.now += 61
        assert host.end(2) == ["start a/2"]
        host.ready(2)


@pytest.mark.parametrize("policy", [All(), Specific(frozenset({1, 2}))])
def test_a_version_that_is_asked_for_by_its_number_does_not_give_way(host: Host, policy: All | Specific) -> None:
    host.serving(1, 2, policy=policy)
    host.ready(1)
    assert die(host, 2, 3) == []
    assert host.states() == {1: "available", 2: "restarting"}


def test_a_labelled_version_does_not_give_way(host: Host) -> None:
    host.add(policy=Latest(), labels={"stable": 2})
    host.see(1, 2)
    host.ready(2)
    assert die(host, 2, 3) == []


@pytest.mark.parametrize("policy", [All(), Specific(frozenset({2}))])
def test_a_version_that_gave_way_is_loaded_when_it_is_asked_for_by_its_number(
    host: Host, policy: All | Specific
) -> None:
    host.serving(1, 2)
    die(host, 2, 3)
    host.ready(1)
    assert host.states() == {1: "available", 2: "ended"}
    assert host.update(policy) == ["start a/2"]


def test_a_version_that_died_often_and_is_replaced_by_a_newer_one_ends_in_peace(host: Host) -> None:
    host.serving(1, 2)
    die(host, 2, 3)
    host.see(2)  # version 1, which was to take its place, is gone
    host.wait(2)
    host.ready(2)
    host.see(2, 3)
    host.ready(3)
    host.end(2)
    assert host.states()[3] == "available"
    assert host.code(2) is Code.OK


def test_want_of_a_gpu_is_no_death(host: Host) -> None:
    host.serving(1, 2)
    host.end(2)
    for _ in range(5):
        host.did(host.manager.worker_failed(host.worker(2), Code.RESOURCE_EXHAUSTED, "no GPU has room", host.now))
        host.wait(60)
    assert host.states() == {2: "restarting"}


def test_no_version_gives_way_without_a_window(host: Host) -> None:
    host.serving(1, 2, rules=ReleaseRules(crash_window_seconds=0))
    assert die(host, 2, 3) == []


def test_restarts_that_do_not_load_count_as_deaths(host: Host) -> None:
    host.serving(1, 2)
    host.end(2)
    host.fail(2)
    host.wait(1)
    assert host.fail(2) == ["start a/1"]


def test_the_deaths_of_a_form_are_no_reason_to_give_up_the_version(host: Host) -> None:
    host.serving(1, 2)
    for _ in range(3):
        host.did(host.manager.accelerate(ServableId("a", 2), Form("onnx", "/cache/f"), "1", host.now))
        host.ready(2)
        host.end(2)
        host.wait(60)
        host.ready(2)
    assert host.states() == {2: "available"}


def test_the_state_of_a_version_that_gave_way_is_end_with_its_error(host: Host) -> None:
    host.serving(1, 2)
    die(host, 2, 3)
    host.ready(1)
    route = next(route for route in host.manager.routes()["a"].versions if route.version == 2)
    assert route.public_state is PublicState.END
    assert route.code is Code.UNAVAILABLE

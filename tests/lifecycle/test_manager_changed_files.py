"""Files of a loaded version that are changed in place: noticed, and never loaded as if nothing had happened."""

from __future__ import annotations

import pytest

from appliance.core.errors import Code
from appliance.core.observed import Observed
from appliance.core.outcomes import Outcome, Trial
from appliance.core.servable import Form, ServableId
from appliance.lifecycle.actions import StartWorker
from appliance.lifecycle.release import ReleaseRules
from appliance.lifecycle.standing import Standing
from backends.contract import Signature, TensorSpec
from tests.support.manager_host import Host

GOOD = {"serving_default": Trial(Outcome.ANSWERED)}
BAD = {"serving_default": Trial(Outcome.FAILED, Code.FAILED_PRECONDITION, "Table not initialized")}
WARNING = "its files have been changed since it was loaded"


@pytest.fixture
def host() -> Host:
    """Serves version 1, whose files are in state "1" and contain "one"."""
    host = Host()
    host.add()
    look(host, "1", "one", in_place=False)
    host.ready(1)
    host.manager.take_changes()
    return host


def look(host: Host, digest: str, content: str, *, settled: bool = True, in_place: bool = True) -> list[str]:
    seen = Observed("/models/a/1", digest, settled, content=content if settled else "", in_place=in_place)
    return host.did(host.manager.observe("a", {1: seen}, "", host.now))


def warnings(host: Host) -> list[str]:
    return [change.reason for change in host.manager.take_changes() if change.is_warning]


def has_changed(host: Host) -> bool:
    (version,) = host.manager.routes()["a"].versions
    assert any(WARNING in remark for remark in version.remarks) is version.has_changed
    return version.has_changed


def find_changes(host: Host, digest: str = "2", content: str = "two") -> list[str]:
    """What the supervisor does that is to start the worker and finds other files."""
    return host.did(host.manager.files_changed(host.worker(1), digest, content, host.now))


# -- while it serves --------------------------------------------------------------------------------------------


def test_files_that_change_are_warned_of_once_and_what_was_loaded_serves_on(host: Host) -> None:
    assert look(host, "2", "two") == []
    (warning,) = warnings(host)
    assert WARNING in warning
    assert has_changed(host)
    assert look(host, "3", "three") == []
    assert warnings(host) == []
    assert host.states() == {1: "available"}
    assert host.manager.standing("a") == (Standing.LIVE, "")


def test_files_that_still_change_are_not_warned_of_yet(host: Host) -> None:
    look(host, "2", "two", settled=False)
    assert not has_changed(host)


def test_files_that_are_touched_or_copied_anew_are_no_change(host: Host) -> None:
    look(host, "2", "one")
    assert not has_changed(host)
    assert warnings(host) == []


def test_files_whose_content_is_unknown_count_as_changed(host: Host) -> None:
    look(host, "2", "")
    assert has_changed(host)


def test_files_that_are_put_back_end_the_warning(host: Host) -> None:
    look(host, "2", "two")
    look(host, "3", "one")
    assert not has_changed(host)
    assert [change.reason for change in host.manager.take_changes()][-1] == (
        "its files are those that it was loaded from again"
    )


def test_content_that_was_not_known_when_it_was_loaded_is_learnt_later() -> None:
    host = Host()
    host.serving(1)
    look(host, "1", "one")
    look(host, "2", "one")
    assert not has_changed(host)


def test_a_change_during_the_load_is_warned_of_too() -> None:
    host = Host()
    host.add()
    look(host, "1", "one", in_place=False)
    look(host, "2", "two")
    host.ready(1)
    assert has_changed(host)


def test_no_form_is_made_of_files_that_have_changed_and_none_takes_over(host: Host) -> None:
    assert [digest for _, _, digest, _ in host.manager.own_models()] == ["1"]
    look(host, "2", "two")
    assert host.manager.own_models() == []
    assert host.manager.accelerate(ServableId("a", 1), Form("onnx", "/c"), "1", host.now) == []


def test_a_folder_that_is_replaced_whole_is_still_loaded_beside_and_takes_over(host: Host) -> None:
    look(host, "2", "two")
    assert look(host, "2", "two", in_place=False) == ["start a/1"]
    assert host.ready(1, trials=GOOD) == ["drain a/1"]
    assert not has_changed(host)
    look(host, "2", "two")
    assert not has_changed(host)


# -- when a worker is to be started -----------------------------------------------------------------------------


def test_a_worker_is_started_for_files_by_what_identifies_them(host: Host) -> None:
    (start,) = host.manager.worker_ended(host.worker(1), "killed by SIGKILL", host.now)
    assert isinstance(start, StartWorker)
    assert (start.digest, start.content) == ("1", "one")


def test_changed_files_are_not_loaded_after_a_crash_before_they_have_settled_and_answered(host: Host) -> None:
    host.end(1)
    assert find_changes(host) == []
    assert host.states() == {1: "settling"}
    assert "its files have changed since it was loaded" in warnings(host)[-1]
    assert look(host, "2", "", settled=False, in_place=False) == []
    (start,) = host.manager.observe("a", {1: Observed("/models/a/1", "2", True, content="two")}, "", host.now)
    assert isinstance(start, StartWorker)
    assert start.is_tried
    host.did([start])
    assert host.ready(1, trials=GOOD) == []
    assert host.states() == {1: "available"}
    assert warnings(host) == ["it serves other files than before"]
    assert not has_changed(host)


def test_changed_files_that_cannot_answer_after_a_crash_are_not_served_and_say_why(host: Host) -> None:
    host.end(1)
    find_changes(host)
    look(host, "2", "two", in_place=False)
    assert host.ready(1, trials=BAD) == ["kill a/1"]
    assert host.states() == {1: "failed"}
    assert "Table not initialized" in host.reason(1)
    assert "its files were changed after it had served" in host.reason(1)


def test_changed_files_with_other_signatures_are_refused_after_a_crash_where_that_is_asked_for() -> None:
    old, new = ({"f": Signature({"x": TensorSpec(dtype, (-1,))}, {})} for dtype in ("float32", "int64"))
    host = Host()
    host.add(rules=ReleaseRules(refuse_signature_changes=True))
    host.see(1)
    host.ready(1, signatures=old)
    host.end(1)
    find_changes(host)
    look(host, "2", "two", in_place=False)
    assert host.ready(1, signatures=new, trials=GOOD) == ["kill a/1"]
    assert 'input "x" of signature "f" is int64, and was float32' in host.reason(1)


def test_files_that_were_cut_off_are_waited_for_after_a_crash_and_say_so(host: Host) -> None:
    host.end(1)
    find_changes(host)
    look(host, "2", "two", in_place=False)
    assert host.incomplete(1) == []
    assert host.states() == {1: "settling"}
    assert host.reason(1) == "incomplete: no variables; its files were changed after it had served"
    assert look(host, "3", "one", in_place=False) == ["start a/1"]


def test_an_older_version_serves_while_changed_files_settle_after_a_crash() -> None:
    host = Host()
    host.serving(1, 2)
    host.end(2)
    assert host.did(host.manager.files_changed(host.worker(2), "2", "two", host.now)) == ["start a/1"]
    host.ready(1)
    assert host.states() == {2: "settling", 1: "available"}
    assert host.see(1, 2, digest="2") == ["start a/2"]
    assert host.ready(2, trials=GOOD) == ["drain a/1"]


def test_files_that_change_before_the_first_load_are_loaded_once_they_have_settled() -> None:
    host = Host()
    host.add()
    look(host, "1", "one", in_place=False)
    assert find_changes(host) == []
    assert host.states() == {1: "settling"}
    assert look(host, "2", "two", in_place=False) == ["start a/1"]
    host.ready(1)
    assert not has_changed(host)
    assert host.manager.all_tried()


def test_its_own_model_does_not_stand_by_for_a_form_once_its_files_have_changed(host: Host) -> None:
    servable = ServableId("a", 1)
    host.did(host.manager.accelerate(servable, Form("onnx", "/c"), "1", host.now))
    host.ready(1)
    assert host.did(host.manager.stand_by(servable, host.now + 30, host.now)) == ["start a/1"]
    assert find_changes(host) == []
    assert host.manager.own_socket(servable) is None
    assert host.states() == {1: "available"}


def test_once_its_files_are_known_to_have_changed_its_own_model_is_not_started_to_stand_by(host: Host) -> None:
    servable = ServableId("a", 1)
    host.did(host.manager.accelerate(servable, Form("onnx", "/c"), "1", host.now))
    host.ready(1)
    look(host, "2", "two")
    assert host.manager.stand_by(servable, host.now + 30, host.now) == []
    assert host.manager.own_socket(servable) is None
    look(host, "3", "one")
    assert host.did(host.manager.stand_by(servable, host.now + 30, host.now)) == ["start a/1"]


def test_a_report_of_changed_files_for_a_worker_that_is_gone_is_ignored(host: Host) -> None:
    gone = host.worker(1)
    host.end(1)
    assert host.manager.files_changed(gone, "2", "two", host.now) == []
    assert host.states() == {1: "restarting"}

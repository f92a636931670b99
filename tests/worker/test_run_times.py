"""Which requests the leader runs itself. Times are passed in."""

from __future__ import annotations

from appliance.worker.run_times import RunTimes

LIMIT = 100.0
KIND, OTHER = b"one row", b"ten rows"


def known(seconds: float, limit: float = LIMIT) -> RunTimes:
    """Times in which `KIND` has been tried, with this result."""
    times = RunTimes(limit)
    while not times.may_keep_lead(KIND):
        times.gave_up_lead(KIND, seconds)
    times.kept_lead(KIND, seconds)
    return times


def runs_to_trial(times: RunTimes, seconds: float) -> int:
    """How many requests run beside a leader before the next one runs in it."""
    count = 0
    while not times.may_keep_lead(KIND):
        times.gave_up_lead(KIND, seconds)
        count += 1
    return count


def test_a_new_kind_is_handed_over_until_it_is_tried() -> None:
    times = RunTimes(LIMIT)
    assert not times.may_keep_lead(KIND)
    assert 1 <= runs_to_trial(times, 10.0) < 10
    assert not times.may_keep_lead(OTHER)


def test_a_short_kind_keeps_the_lead_and_tells_how_many_are_short_together() -> None:
    times = known(10.0)
    for _ in range(1000):
        assert times.may_keep_lead(KIND)
        times.kept_lead(KIND, 10.0)
    assert times.number_of_short(KIND) == 10
    assert times.number_of_short(OTHER) == 0


def test_a_longer_kind_is_tried_now_and_then() -> None:
    times = known(200.0)
    for _ in range(3):
        assert runs_to_trial(times, 200.0) > 10
        times.kept_lead(KIND, 200.0)
    assert times.number_of_short(KIND) == 0


def test_waiting_for_the_interpreter_does_not_keep_a_kind_from_its_trial_and_a_long_run_does() -> None:
    times = known(200.0)
    assert runs_to_trial(times, 300.0) < 100
    times.kept_lead(KIND, 200.0)
    for _ in range(1000):
        times.gave_up_lead(KIND, 5000.0)
        assert not times.may_keep_lead(KIND)


def test_one_interrupted_run_changes_nothing_and_several_do() -> None:
    times = known(50.0)
    times.kept_lead(KIND, 1e6)
    assert times.may_keep_lead(KIND)
    for _ in range(5):
        times.kept_lead(KIND, 1e6)
    assert not times.may_keep_lead(KIND)


def test_a_kind_that_has_lost_the_lead_is_handed_over_for_long() -> None:
    times = known(10.0)
    usual = runs_to_trial(known(200.0), 10.0)
    times.lost_lead(KIND)
    assert times.number_of_short(KIND) == 0
    assert runs_to_trial(times, 10.0) > 3 * usual
    times.kept_lead(KIND, 10.0)
    assert times.may_keep_lead(KIND)


def test_only_so_many_kinds_are_remembered_and_no_long_ones() -> None:
    times = known(10.0)
    for number in range(1000):
        times.gave_up_lead(b"%d" % number, 10.0)
    assert not times.may_keep_lead(KIND)
    times.kept_lead(KIND, 10.0)  # it was forgotten while it ran
    times.lost_lead(KIND)
    for _ in range(100):
        times.gave_up_lead(bytes(10_000), 10.0)
    assert not times.may_keep_lead(bytes(10_000))

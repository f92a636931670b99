"""The processor time of a background task: bounded over any hour, whatever a batch takes."""

from __future__ import annotations

import pytest

from appliance.supervisor.cpu_budget import CpuBudget


def test_it_is_full_at_first_and_grows_to_no_more() -> None:
    budget = CpuBudget(18.0, 0.005, 100.0)
    assert budget.level(100.0) == budget.level(1e6) == 18.0
    assert budget.seconds_until(18.0, 1e6) == 0.0


def test_what_was_used_comes_back_with_time() -> None:
    budget = CpuBudget(18.0, 0.005, 0.0)
    budget.charge(10.0, 0.0)
    assert budget.level(0.0) == 8.0
    assert budget.seconds_until(10.0, 0.0) == pytest.approx(400.0)
    assert budget.level(400.0) == pytest.approx(10.0)


def test_more_than_there_can_be_is_waited_for_until_it_is_full() -> None:
    budget = CpuBudget(18.0, 0.005, 0.0)
    budget.charge(28.0, 0.0)
    assert budget.level(0.0) == -10.0
    assert budget.seconds_until(100.0, 0.0) == pytest.approx(28.0 / 0.005)
    assert budget.seconds_until(100.0, 28.0 / 0.005) == pytest.approx(0.0)


def test_in_no_hour_is_more_used_than_one_percent_of_a_core() -> None:
    budget = CpuBudget(18.0, 0.005, 0.0)
    used: list[tuple[float, float]] = []
    now = 0.0
    while now < 4 * 3600.0:
        now += budget.seconds_until(5.0, now)
        budget.charge(5.0, now)
        used.append((now, 5.0))
    for begun, _ in used:
        assert sum(seconds for at, seconds in used if begun <= at < begun + 3600.0) <= 36.0

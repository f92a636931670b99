"""What counts as a hang, by the signs that a process gives and what the kernel tells of it: no process, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from appliance.host.activity import ThreadActivity
from appliance.supervisor.liveness import Liveness, could_run

Threads = Mapping[int, ThreadActivity]
LOOK = 2.0  # seconds between two
HANG = 10.0


class World:
    """A process "p" that is looked at every two seconds, with threads as `threads` has them at a moment."""

    def __init__(self, threads: Callable[[float], Threads], hang: float = HANG, run_limit: float = 0.0) -> None:
        self.now = 100.0
        self._threads = threads
        self.liveness: Liveness[str] = Liveness(hang, LOOK, self.now)
        self.liveness.add("p", run_limit)

    def look(self, seconds: float = LOOK) -> list[str]:
        """Why it hangs, after so many further seconds; [] if it does not."""
        self.now += seconds
        return [why for _, why in self.liveness.look(self.now, lambda _: self._threads(self.now))]

    def seconds_until_hang(self, most: float = 600.0) -> float | None:
        began = self.now
        while self.now - began < most:
            if self.look():
                return self.now - began
        return None


def sleeping(now: float) -> Threads:
    return {1: ThreadActivity("S", 5.0, 1.0)}


def stopped(now: float) -> Threads:
    return {1: ThreadActivity("T", 5.0, 1.0), 2: ThreadActivity("T")}


def computing(now: float) -> Threads:
    return {1: ThreadActivity("R", now), 2: ThreadActivity("S")}


def starved(now: float) -> Threads:
    """It runs for a tenth of the time, and waits for a processor for the rest."""
    return {1: ThreadActivity("R", now / 10, now * 9 / 10)}


def starved_altogether(now: float) -> Threads:
    """It has waited ever since: the kernel adds a wait only when it ends."""
    return {1: ThreadActivity("R", 5.0, 1.0)}


def waiting_for_a_disk(now: float) -> Threads:
    return {1: ThreadActivity("S"), 2: ThreadActivity("D", 5.0)}


def swapping(now: float) -> Threads:
    return {1: ThreadActivity("S", 5.0, 1.0, faults=int(now * 1000))}


def in_a_debugger(now: float) -> Threads:
    return {1: ThreadActivity("t", 5.0)}


def unknown(now: float) -> Threads:
    return {}


@pytest.mark.parametrize(
    ("threads", "least", "most"),
    [
        (sleeping, HANG, HANG + 3 * LOOK),
        (stopped, HANG, HANG + 3 * LOOK),
        (computing, 3 * HANG, 3 * HANG + 3 * LOOK),
        (unknown, 3 * HANG, 3 * HANG + 3 * LOOK),
        (starved, 10 * HANG, 10 * HANG + 3 * LOOK),
    ],
)
def test_a_silent_process_hangs_after_the_time_in_which_it_could_have_answered(
    threads: Callable[[float], Threads], least: float, most: float
) -> None:
    world = World(threads)
    assert world.look() == [], "it has only just been asked"
    seconds = world.seconds_until_hang()
    assert seconds is not None
    assert least <= seconds <= most


@pytest.mark.parametrize("threads", [starved_altogether, waiting_for_a_disk, swapping, in_a_debugger])
def test_a_process_that_cannot_run_does_not_hang(threads: Callable[[float], Threads]) -> None:
    world = World(threads)
    assert world.seconds_until_hang() is None
    assert world.liveness.suspects() == set()


def test_a_sign_of_life_takes_back_all_silence() -> None:
    world = World(stopped)
    for _ in range(10):
        for _ in range(5):
            assert world.look() == []
        world.liveness.heard("p")


def test_time_in_which_the_supervisor_did_not_run_does_not_count() -> None:
    world = World(sleeping)
    for _ in range(100):
        assert world.look(3600.0) == []
    assert world.seconds_until_hang() is not None, "and it is judged once the supervisor runs again"


def test_a_process_that_is_removed_or_not_to_be_judged_does_not_hang() -> None:
    gone = World(stopped)
    gone.look()
    gone.liveness.remove("p")
    gone.liveness.heard("p")
    assert gone.seconds_until_hang() is None
    assert World(stopped, hang=0.0).seconds_until_hang() is None


def test_a_process_is_suspected_half_way_and_no_more_once_it_answers() -> None:
    world = World(sleeping)
    looks = 0
    while not world.liveness.suspects():
        assert world.look() == []
        looks += 1
    assert HANG / 2 <= looks * LOOK <= HANG
    world.liveness.heard("p")
    world.look()
    assert world.liveness.suspects() == set()


def overdue(world: World, runs: Mapping[int, int]) -> float | None:
    """When it hangs, in seconds, if it answers at each look, with the run of the number of looks as overdue."""
    began, run = world.now, 0
    for look in range(100):
        run = runs.get(look, run)
        world.liveness.heard("p", run)
        if world.look():
            return world.now - began
    return None


def test_a_run_that_outlives_its_requests_by_the_limit_ends_its_process_although_that_answers() -> None:
    seconds = overdue(World(computing, run_limit=20.0), {0: 7})
    assert seconds is not None
    assert 20.0 <= seconds <= 20.0 + 2 * LOOK
    assert overdue(World(computing, run_limit=0.0), {0: 7}) is None


def test_runs_that_end_in_time_do_not_add_up() -> None:
    assert overdue(World(computing, run_limit=20.0), {look: look + 1 for look in range(0, 100, 5)}) is None
    assert overdue(World(computing, run_limit=20.0), {0: 7, 9: 0}) is None


def test_a_run_that_gets_no_processor_is_not_late() -> None:
    assert overdue(World(starved_altogether, run_limit=20.0), {0: 7}) is None


def test_a_run_is_judged_also_if_silent_processes_are_not() -> None:
    assert overdue(World(computing, hang=0.0, run_limit=20.0), {0: 7}) is not None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([ThreadActivity("S")], [ThreadActivity("S")], (2.0, 0.0)),
        ([ThreadActivity("S")], [ThreadActivity("S", 0.5, 0.5)], (1.5, 0.5)),
        ([ThreadActivity("S")], [ThreadActivity("S", 2.0), ThreadActivity("S", 1.0, 1.0)], (1.0, 3.0)),
        ([ThreadActivity("R")], [ThreadActivity("R", 2.0)], (2.0, 2.0)),
        ([ThreadActivity("R")], [ThreadActivity("R", 0.5)], (0.5, 0.5)),
        ([ThreadActivity("S")], [ThreadActivity("S", faults=1)], (0.0, 0.0)),
        ([ThreadActivity("S")] * 2, [ThreadActivity("S"), ThreadActivity("D")], (0.0, 0.0)),
    ],
)
def test_the_thread_that_waited_most_decides_for_how_long_a_process_could_run(
    before: list[ThreadActivity], after: list[ThreadActivity], expected: tuple[float, float]
) -> None:
    assert could_run(2.0, dict(enumerate(before)), dict(enumerate(after))) == expected

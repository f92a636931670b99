"""Batches that requests wait in, in virtual time: when they close, what they hold, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from appliance.config.batching_parameters import BatchingParameters
from appliance.worker.batching import BatchQueue, Entry, Extent, Refusal
from backends.contract import Code

MICRO = 1000
Q = "queue"


def parameters(size: int = 4, timeout: int = 0, enqueued: int = 10, execution: int = 0) -> BatchingParameters:
    return BatchingParameters(
        max_batch_size=size,
        batch_timeout_micros=timeout,
        max_enqueued_batches=enqueued,
        enable_large_batch_splitting=bool(execution),
        max_execution_batch_size=execution or size,
    )


def queue(size: int = 4, timeout: int = 0, enqueued: int = 10, execution: int = 0) -> BatchQueue[str]:
    return BatchQueue(parameters(size, timeout, enqueued, execution), 1000, 1_000_000)


def offer(
    batches: BatchQueue[str], item: str, rows: int = 1, now: int = 0, group: str = "g", name: str = Q, idle: int = 0
) -> Refusal | None:
    return batches.offer(Entry(item, 10, 0), name, Extent(group, rows), now, idle)


def taken(batches: BatchQueue[str], now: int = 0, drain: bool = False) -> list[str] | None:
    found = batches.take(now, drain)
    return None if found is None else [entry.item for entry in found]


def test_an_empty_queue_gives_nothing_and_is_never_due() -> None:
    batches = queue()
    assert (taken(batches), batches.due_ns, len(batches), batches.nbytes) == (None, None, 0, 0)


def test_without_a_timeout_a_free_thread_takes_what_is_there() -> None:
    batches = queue()
    for item in "ab":
        offer(batches, item)
    assert taken(batches) == ["a", "b"]
    assert taken(batches) is None


def test_a_batch_waits_for_the_timeout_after_its_first_request() -> None:
    batches = queue(timeout=50)
    offer(batches, "a", now=100 * MICRO)
    offer(batches, "b", now=140 * MICRO)
    assert batches.due_ns == 150 * MICRO
    assert taken(batches, 149 * MICRO) is None
    assert taken(batches, 150 * MICRO) == ["a", "b"]
    assert batches.due_ns is None


def test_a_full_batch_does_not_wait() -> None:
    batches = queue(size=3, timeout=10**6)
    for item in "abcd":
        offer(batches, item)
    assert batches.due_ns == 0
    assert taken(batches) == ["a", "b", "c"]
    assert taken(batches) is None


def test_a_request_that_does_not_fit_closes_the_batch() -> None:
    batches = queue(size=4, timeout=10**6)
    offer(batches, "a", rows=3)
    offer(batches, "b", rows=2)
    assert taken(batches) == ["a"]
    assert taken(batches) is None
    assert taken(batches, drain=True) == ["b"]


def test_requests_of_other_shapes_or_outputs_are_no_part_of_a_batch() -> None:
    batches = queue()
    offer(batches, "a", group="x", now=1)
    offer(batches, "b", group="y", now=2)
    offer(batches, "c", group="x", now=3)
    offer(batches, "d", group="x", name="other", now=4)
    assert [taken(batches, 9), taken(batches, 9), taken(batches, 9), taken(batches, 9)] == [
        ["a", "c"],
        ["b"],
        ["d"],
        None,
    ]


def test_batches_run_in_the_order_of_their_first_requests() -> None:
    batches = queue(size=2, timeout=10)
    offer(batches, "old", group="x", now=0)
    offer(batches, "b", group="y", now=5 * MICRO)
    offer(batches, "c", group="y", now=6 * MICRO)
    assert taken(batches, 7 * MICRO) == ["b", "c"]  # it is full, and the older one may still wait
    offer(batches, "d", group="y", now=8 * MICRO)
    offer(batches, "e", group="y", now=9 * MICRO)
    assert taken(batches, 10 * MICRO) == ["old"]
    assert taken(batches, 10 * MICRO) == ["d", "e"]


def test_a_request_without_rows_runs_at_once_and_alone() -> None:
    batches = queue(timeout=10**6)
    offer(batches, "a")
    offer(batches, "empty", rows=0)
    assert taken(batches) == ["empty"]
    assert taken(batches) is None


def test_draining_waits_for_nothing() -> None:
    batches = queue(timeout=10**6)
    offer(batches, "a", group="x")
    offer(batches, "b", group="y")
    assert [taken(batches, drain=True) for _ in range(3)] == [["a"], ["b"], None]


def test_a_request_larger_than_a_batch_is_refused_in_tensorflow_servings_words() -> None:
    assert offer(queue(size=4), "a", rows=5) == Refusal(
        Code.INVALID_ARGUMENT, "Task size 5 is larger than maximum input batch size 4"
    )


def test_a_full_queue_refuses_in_tensorflow_servings_words() -> None:
    batches = queue(size=2, timeout=10**6, enqueued=2)
    for item in "abc":
        assert offer(batches, item) is None
    assert offer(batches, "wide", rows=2) == Refusal(
        Code.RESOURCE_EXHAUSTED,
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
        "max_enqueued_batches is 2",
    )
    assert offer(batches, "d") is None  # there is room in the open batch
    assert offer(batches, "e") is not None
    assert offer(batches, "e", name="another signature") is None
    assert taken(batches) == ["a", "b"]
    assert offer(batches, "e") is None


def test_idle_threads_leave_room_for_as_many_batches_more() -> None:
    batches = queue(size=1, enqueued=1)
    assert [offer(batches, item, idle=1) is None for item in "ab"] == [True, True]
    refusal = offer(batches, "c", idle=1)  # the idle thread is about to take one: only the other counts as enqueued
    assert refusal is not None
    assert "currently 1 batches enqueued and max_enqueued_batches is 1" in refusal.message


def test_the_queues_limits_hold_beside_those_of_batching() -> None:
    batches: BatchQueue[str] = BatchQueue(parameters(size=100), 2, 1_000_000)
    assert [offer(batches, item) for item in "ab"] == [None, None]
    refusal = offer(batches, "c")
    assert refusal == Refusal(Code.RESOURCE_EXHAUSTED, "2 requests wait already (max_queue_requests is 2)")
    small: BatchQueue[str] = BatchQueue(parameters(size=100), 10, 15)
    assert offer(small, "a") is None
    refusal = offer(small, "b")
    assert refusal == Refusal(Code.RESOURCE_EXHAUSTED, "10 bytes wait already (at most 15 may)")


def parts(batches: BatchQueue[str], drain: bool = True) -> list[list[tuple[str, int, int | None]]]:
    found = []
    while (batch := batches.take(0, drain)) is not None:
        found.append([(entry.item, entry.start, entry.stop) for entry in batch])
    return found


def test_a_large_request_is_split_over_batches() -> None:
    batches = queue(size=100, execution=4, timeout=10**6)
    offer(batches, "a", rows=3)
    assert offer(batches, "large", rows=6) is None
    offer(batches, "b", rows=1)
    assert len(batches) == 3
    assert parts(batches) == [
        [("a", 0, None), ("large", 0, 1)],
        [("large", 1, 5)],
        [("large", 5, 6), ("b", 0, None)],
    ]
    assert (len(batches), batches.nbytes) == (0, 0)


def test_a_split_request_is_refused_whole_where_not_all_of_it_fits() -> None:
    batches = queue(size=100, execution=4, enqueued=2)
    offer(batches, "a", rows=3)
    refusal = offer(batches, "large", rows=6)
    assert refusal == Refusal(
        Code.RESOURCE_EXHAUSTED,
        "The batch scheduling queue to which this task was submitted is full; task size is 6 but scheduling capacity "
        "is only 5 (num_enqueued_batches=1, max_enqueued_batches=2, open_batch_size=3, max_execution_batch_size=4)",
    )
    assert parts(batches) == [[("a", 0, None)]]
    refusal = offer(batches, "too large", rows=101)
    assert refusal is not None
    assert refusal.code == Code.INVALID_ARGUMENT


OFFER = st.tuples(st.just("offer"), st.integers(0, 9), st.sampled_from("xy"), st.sampled_from("pq"))
STEPS = st.lists(OFFER | st.tuples(st.sampled_from(["take", "later"]), st.integers(0, 60)), max_size=80)


@given(
    st.builds(parameters, st.integers(1, 8), st.sampled_from([0, 20]), st.integers(1, 4), st.sampled_from([0, 1, 3])),
    STEPS,
)
def test_nothing_is_lost_doubled_or_reordered_and_all_bounds_hold(limits: BatchingParameters, steps: list) -> None:
    if limits.enable_large_batch_splitting:
        execution = min(limits.max_execution_batch_size, limits.max_batch_size)
        limits = dataclasses.replace(limits, max_execution_batch_size=execution)
    batches: BatchQueue[tuple] = BatchQueue(limits, 1000, 1_000_000)
    now = 0
    came: dict[tuple, int] = {}  # accepted, with the time
    ran: dict[tuple, list[tuple[int, int]]] = {}  # the rows that were taken
    order: list[tuple] = []

    def check(batch: list[Entry[tuple]]) -> None:
        assert len({(entry.item[2], entry.item[3]) for entry in batch}) == 1
        spans = [(entry.start, entry.item[1] if entry.stop is None else entry.stop) for entry in batch]
        assert sum(stop - start for start, stop in spans) <= limits.max_execution_batch_size
        assert len(batch) == 1 or all(start < stop for start, stop in spans)
        for entry, span in zip(batch, spans, strict=True):
            ran.setdefault(entry.item, []).append(span)
            order.append(entry.item)

    for number, step in enumerate(steps):
        if step[0] == "offer":
            item = (number, *step[1:])
            before = (len(batches), batches.nbytes)
            refusal = batches.offer(Entry(item, 10, 0), step[3], Extent(step[2], step[1]), now)
            if refusal is None:
                came[item] = now
            else:
                assert (len(batches), batches.nbytes) == before
                assert (refusal.code == Code.INVALID_ARGUMENT) == (step[1] > limits.max_batch_size)
        elif step[0] == "later":
            now += step[1] * MICRO
        else:
            due = batches.due_ns
            batch = batches.take(now)
            assert (batch is not None) == (due is not None and due <= now)
            if batch is not None:
                check(batch)
        waiting = [item for item in came if item[1] and sum(b - a for a, b in ran.get(item, [])) < item[1]]
        waiting += [item for item in came if not item[1] and item not in ran]
        assert (len(batches), batches.nbytes) == (len(waiting), 10 * len(waiting))
        for name in "pq":
            rows = sum(item[1] for item in waiting if item[3] == name)
            assert rows <= limits.max_enqueued_batches * max(limits.max_execution_batch_size, limits.max_batch_size)
    while (batch := batches.take(now, drain=True)) is not None:
        check(batch)
    assert (len(batches), batches.nbytes, batches.due_ns) == (0, 0, None)
    assert ran.keys() == came.keys()
    for item, spans in ran.items():
        assert spans[0][0] == 0
        assert spans[-1][1] == item[1]
        assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(spans))
    for group in "xy":
        for name in "pq":
            kind = [item for item in order if item[1] and item[2:] == (group, name)]
            assert kind == sorted(kind)

"""The queue of one version: order, limits, and what is never refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.worker.batching import Entry, Extent, RequestQueue


def entry(item: str, nbytes: int = 10) -> Entry[str]:
    return Entry(item, nbytes, deadline_ns=0)


def drained(queue: RequestQueue[str]) -> list[str]:
    items = []
    while (taken := queue.take()) is not None:
        items.append(taken.item)
    return items


def test_requests_leave_in_the_order_in_which_they_came() -> None:
    queue: RequestQueue[str] = RequestQueue(10, 1000)
    for item in "abc":
        assert queue.offer(entry(item)) is None
    assert drained(queue) == ["a", "b", "c"]


def test_an_empty_queue_gives_nothing() -> None:
    queue: RequestQueue[str] = RequestQueue(10, 1000)
    assert queue.take() is None
    assert (len(queue), queue.nbytes) == (0, 0)


def test_a_full_queue_refuses_with_the_limit_that_was_met() -> None:
    queue: RequestQueue[str] = RequestQueue(2, 1000)
    queue.offer(entry("a"))
    queue.offer(entry("b"))
    assert queue.offer(entry("c")) == "2 requests wait already (max_queue_requests is 2)"
    assert drained(queue) == ["a", "b"]


def test_too_many_bytes_are_refused_with_the_limit_that_was_met() -> None:
    queue: RequestQueue[str] = RequestQueue(10, 3000)
    assert queue.offer(entry("a", 2000)) is None
    assert queue.offer(entry("b", 1001)) == "2,000 bytes wait already (at most 3,000 may)"
    assert queue.offer(entry("c", 1000)) is None
    assert queue.nbytes == 3000


def test_a_request_beyond_the_limit_on_bytes_is_taken_where_none_waits() -> None:
    queue: RequestQueue[str] = RequestQueue(10, 100)
    assert queue.offer(entry("large", 1_000_000)) is None
    assert queue.offer(entry("small", 1)) is not None
    queue.take()
    assert queue.offer(entry("small", 1)) is None


def test_there_is_room_again_when_a_request_was_taken() -> None:
    queue: RequestQueue[str] = RequestQueue(1, 1000)
    queue.offer(entry("a"))
    assert queue.offer(entry("b")) is not None
    queue.take()
    assert queue.offer(entry("b")) is None


def test_a_queue_of_no_requests_refuses_each_that_would_have_to_wait() -> None:
    queue: RequestQueue[str] = RequestQueue(0, 1000)
    assert queue.offer(entry("a")) == "0 requests wait already (max_queue_requests is 0)"


def test_a_request_that_need_not_wait_is_queued_whatever_the_limits() -> None:
    queue: RequestQueue[str] = RequestQueue(0, 0)
    queue.push(entry("a", 10))
    queue.push(entry("b", 10))
    assert (len(queue), queue.nbytes) == (2, 20)
    assert drained(queue) == ["a", "b"]


@given(
    st.integers(0, 4),
    st.integers(0, 100),
    st.lists(st.tuples(st.sampled_from(["offer", "push", "take"]), st.integers(0, 80)), max_size=60),
)
def test_what_waits_is_counted_exactly_and_within_its_limits(
    max_requests: int, max_bytes: int, steps: list[tuple[str, int]]
) -> None:
    queue: RequestQueue[str] = RequestQueue(max_requests, max_bytes)
    waiting: list[int] = []
    for step, nbytes in steps:
        if step == "take":
            taken = queue.take()
            assert (None if taken is None else taken.nbytes) == (waiting.pop(0) if waiting else None)
        elif step == "push":
            queue.push(entry("x", nbytes))
            waiting.append(nbytes)
        elif queue.offer(entry("x", nbytes)) is None:
            waiting.append(nbytes)
            assert len(waiting) <= max_requests
            assert len(waiting) == 1 or sum(waiting) <= max_bytes
        assert (len(queue), queue.nbytes) == (len(waiting), sum(waiting))


def extent(item: str) -> Extent | None:
    """Items of these tests: "a3" is 3 rows of the kind a; "-" runs alone."""
    return None if item == "-" else Extent(item[0], int(item[1:]))


def taken_like(queue: RequestQueue[str], max_rows: int) -> list[str]:
    first = queue.take()
    assert first is not None
    return [each.item for each in queue.take_like(first, extent, max_rows)]


def queued(*items: str) -> RequestQueue[str]:
    queue: RequestQueue[str] = RequestQueue(1000, 100_000)
    for item in items:
        assert queue.offer(entry(item)) is None
    return queue


def test_what_may_run_together_is_taken_in_the_order_in_which_it_came() -> None:
    queue = queued("a1", "b1", "a2", "-", "a1", "b1")
    assert taken_like(queue, 8) == ["a1", "a2", "a1"]
    assert (len(queue), queue.nbytes) == (3, 30)
    assert drained(queue) == ["b1", "-", "b1"]


def test_what_runs_alone_takes_nothing_with_it() -> None:
    queue = queued("-", "a1", "-")
    assert taken_like(queue, 8) == ["-"]
    assert drained(queue) == ["a1", "-"]


def test_no_more_rows_are_taken_than_allowed() -> None:
    queue = queued("a3", "a3", "a3", "a1")
    assert taken_like(queue, 8) == ["a3", "a3"]
    assert drained(queue) == ["a3", "a1"]  # the last would fit, but overtakes none of its kind


def test_a_request_with_more_rows_than_allowed_runs_alone() -> None:
    queue = queued("a9", "a1")
    assert taken_like(queue, 8) == ["a9"]


def test_a_long_queue_of_others_is_not_searched_to_its_end() -> None:
    queue = queued("a1", *["b1"] * 500, "a1")
    assert taken_like(queue, 8) == ["a1"]
    assert drained(queue) == [*["b1"] * 500, "a1"]


@given(st.lists(st.sampled_from(["a1", "a2", "a5", "b1", "b3", "-"]), max_size=100), st.integers(1, 9))
def test_merging_loses_nothing_and_keeps_each_kind_in_order(items: list[str], max_rows: int) -> None:
    queue = queued(*items)
    found: list[str] = []
    while len(queue):
        oldest = items[len(found)] if not found else None
        group = taken_like(queue, max_rows)
        assert oldest is None or group[0] == oldest
        assert len({item[0] for item in group}) == 1
        assert len(group) == 1 or sum(int(item[1:]) for item in group) <= max_rows
        found += group
    assert queue.nbytes == 0
    for kind in "ab-":
        assert [item for item in found if item[0] == kind] == [item for item in items if item[0] == kind]

"""Which answers of a form are kept to be verified, and that keeping them harms no request."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.worker.sampling import DUE_COUNT, DUE_SECONDS, Chances, Sampler, Waiting
from backends.samples import Sample, new_file, read_samples

NEVER, ALWAYS = (lambda: 1.0), (lambda: 0.0)


def wants(chances: Chances, answered: int, *values: Any, dtype: Any = np.float32, looks: bool = True) -> Any:
    return chances.wants(answered, "s", {"x": np.array(values, dtype)}, looks)


def sample(number: int, nbytes: int = 8) -> Sample:
    return Sample(number, 1, "s", {"x": np.zeros(nbytes, np.uint8)}, {"y": np.zeros(0, np.uint8)})


# -- chances


def test_the_first_are_kept_and_then_a_fraction_by_chance() -> None:
    chances = Chances(2, 0.1, NEVER)
    assert [wants(chances, number, 1.0) for number in (1, 2, 3)] == [(True, True), (True, False), (False, False)]
    assert wants(Chances(0, 0.1, lambda: 0.09), 1, 1.0)[0]
    seen = Chances(0, 0.1, lambda: 0.1)
    wants(seen, 1, 1.0)
    assert wants(seen, 2, 1.0) == (False, False)


def test_with_a_fraction_of_nothing_it_is_over_after_the_first() -> None:
    assert [Chances(3, 0.0).are_over(number) for number in (1, 3, 4)] == [False, False, True]
    assert not Chances(3, 0.001).are_over(4)


@pytest.mark.parametrize(
    ("dtype", "inside", "outside"),
    [
        (np.float32, [2.0, 2.5], [2.0, 3.5]),
        (np.float64, [2.0, 2.5], [-0.5, 2.0]),
        (np.float16, [2.0, 2.5], [2.0, 3.5]),
        ("bfloat16", [2.0, 2.5], [2.0, 3.5]),
        (np.int64, [2, 2], [2, 2**40]),
        (np.uint8, [1, 2], [0, 4]),
        (np.float32, [1.0, 2.0], [float("inf"), 2.0]),
        (np.float32, [1.0, 2.0], [float("nan"), 2.0]),
        (np.float16, [1.0, 2.0], [float("nan"), 2.0]),
        (object, [b"ab", b"abc"], [b"", b"abcd"]),
        (np.int32, [2, 2], [2, 2, 2]),
    ],
)
def test_what_lies_beyond_all_before_is_kept_whatever_chance_says(dtype: Any, inside: Any, outside: Any) -> None:
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: PLC0415

        dtype = ml_dtypes.bfloat16
    chances = Chances(0, 0.1, NEVER)
    first = [b"a", b"abc"] if dtype is object else [1, 3]
    wants(chances, 1, *first, dtype=dtype)
    assert wants(chances, 2, *inside, dtype=dtype) == (False, False)
    assert wants(chances, 3, *outside, dtype=dtype) == (True, True)


def test_values_that_are_not_looked_at_tell_nothing_and_shapes_do() -> None:
    chances = Chances(0, 0.1, NEVER)
    wants(chances, 1, 1.0, looks=False)
    assert wants(chances, 2, 5.0, looks=False) == (False, False)
    assert wants(chances, 3, 1.0, 1.0, looks=False) == (True, True)


def test_a_signature_is_judged_by_itself() -> None:
    chances = Chances(0, 0.1, NEVER)
    wants(chances, 1, 1.0)
    assert chances.wants(2, "t", {"x": np.ones(1, np.float32)}, True) == (True, True)


def test_a_value_that_grows_with_each_request_does_not_keep_all() -> None:
    chances = Chances(0, 0.1, NEVER)
    kept = [wants(chances, number, float(number))[0] for number in range(1, 4001)]
    assert all(kept[:64])
    assert sum(kept) == 64 + 4000 // 200


# -- what waits


def test_it_is_time_when_many_wait_or_the_first_has_waited_long() -> None:
    waiting = Waiting()
    assert waiting.due(100.0) is None
    waiting.put(sample(1), False, 100.0)
    waiting.put(sample(2), False, 104.0)
    assert waiting.due(104.0) == DUE_SECONDS - 4.0
    assert waiting.due(100.0 + DUE_SECONDS) == 0.0
    for number in range(3, DUE_COUNT + 1):
        waiting.put(sample(number), False, 104.0)
    assert waiting.due(104.0) == 0.0
    assert len(waiting.take()) == DUE_COUNT
    assert waiting.due(200.0) is None


def test_a_full_queue_gives_up_what_is_like_others_for_what_is_not() -> None:
    waiting = Waiting(max_count=3, max_bytes=1000)
    for number in (1, 2, 3, 4):
        waiting.put(sample(number), False, 0.0)
    waiting.put(sample(5), True, 0.0)
    waiting.put(sample(6), True, 0.0)
    assert waiting.dropped == 3
    assert [found.number for found in waiting.take()] == [5, 6, 1]
    for number in (7, 8, 9, 10):
        waiting.put(sample(number), True, 0.0)
    assert [found.number for found in waiting.take()] == [7, 8, 9]


def test_a_full_queue_counts_bytes() -> None:
    waiting = Waiting(max_count=100, max_bytes=100)
    waiting.put(sample(1, 60), False, 0.0)
    waiting.put(sample(2, 60), False, 0.0)
    waiting.put(sample(3, 101), True, 0.0)  # there would be no room for it in an empty one
    assert waiting.dropped == 2
    waiting.put(sample(4, 100), True, 0.0)
    assert [found.number for found in waiting.take()] == [4]


# -- a sampler


class Form:
    """A sampler, and what it counts."""

    def __init__(self, chances: Chances) -> None:
        self.doubtful: list[int] = []
        self.sampler = Sampler(chances, self.doubtful.append)

    def answer(self, array: np.ndarray, requests: int = 1) -> None:
        self.sampler.ran("s", ["y"], {"x": array}, [array * 2], requests)
        self.sampler.look()

    def taken(self, path: Path) -> tuple[dict[str, int], list[Sample]]:
        file = new_file(str(path))
        about = self.sampler.take(file)
        os.close(file)
        return about, list(read_samples(str(path)))


def test_what_was_answered_is_taken_with_its_number(tmp_path: Path) -> None:
    form = Form(Chances(5, 0.0))
    form.answer(np.array([1.0]), 3)
    form.answer(np.array([2.0]), 2)
    form.answer(np.array([3.0]))
    about, samples = form.taken(tmp_path / "samples")
    assert about == {"count": 2, "requests": 5, "dropped": 0, "answered": 6}
    found = {(found.number, found.requests): found.outputs["y"].tolist() for found in samples}
    assert found == {(3, 3): [2.0], (5, 2): [4.0]}
    assert form.taken(tmp_path / "more") == ({"count": 0, "requests": 0, "dropped": 0, "answered": 6}, [])


def test_inputs_in_memory_that_is_written_again_are_copied_before_the_answer(tmp_path: Path) -> None:
    form = Form(Chances(10, 0.0))
    shared = np.ones(1 << 18, np.float32)
    form.sampler.ran("s", ["y"], {"x": shared}, [np.ones(1)], 1)
    shared[:] = 7.0  # the front's next request
    form.sampler.look()
    _, (found,) = form.taken(tmp_path / "samples")
    assert found.inputs["x"].tolist() == [1.0] * (1 << 18)


def test_a_failure_ends_the_sampling_and_no_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    form = Form(Chances(10, 0.5, ALWAYS))
    form.sampler.ran("s", ["y"], {"x": "no array"}, [], 1)  # type: ignore[dict-item]
    form.answer(np.array([1.0]))
    assert form.taken(tmp_path / "samples")[0] == {"count": 0, "requests": 0, "dropped": 0, "answered": 2}
    assert capsys.readouterr().err.count("its answers are not verified any more") == 1


def test_doubtful_answers_are_counted_from_the_last_that_was_right_to_the_end() -> None:
    form = Form(Chances(0, 0.0))
    for _ in range(10):
        form.answer(np.array([1.0]))
    assert form.sampler.doubt(4) == 6
    form.answer(np.array([1.0]), 3)
    assert form.doubtful == [6, 3]
    assert form.sampler.doubt(4) == 9
    assert form.doubtful == [6, 3]


def test_who_waits_for_samples_is_woken_when_enough_are_there() -> None:
    form = Form(Chances(1000, 0.0))
    found: list[bool] = []
    waiter = threading.Thread(target=lambda: found.append(form.sampler.wait_until_due(60.0)))
    waiter.start()
    for _ in range(DUE_COUNT):
        form.answer(np.array([1.0]))
    waiter.join(30.0)
    assert found == [True]
    assert Form(Chances(1, 0.0)).sampler.wait_until_due(0.0) is False

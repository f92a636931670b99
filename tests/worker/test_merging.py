"""Running requests as one: what each gets, what is padded, and that no request fails by another's fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from appliance.config.batching_parameters import BatchingParameters
from appliance.transport.wire import WireError, pack_arrays, predict_meta
from appliance.worker.merging import Call, Merging, joined, mergeable_extent, place
from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.dtypes import DTYPES

Arrays = Mapping[str, np.ndarray]

ANY = TensorSpec("float32", (-1,))
SIGNATURE = Signature({"x": ANY}, {"y": ANY, "z": ANY})


class Recorded:
    """A backend whose every run is a function's, and is remembered."""

    def __init__(self, function: Callable[[Arrays], list[np.ndarray]]) -> None:
        self.signatures = dict.fromkeys("st", SIGNATURE)
        self.runs: list[dict[str, np.ndarray]] = []
        self._function = function

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        self.runs.append({name: array.copy() for name, array in inputs.items()})
        return self._function(inputs)


def echo(inputs: Arrays) -> list[np.ndarray]:
    return [array.copy() for array in inputs.values()]


def call(*rows: Any, dtype: Any = np.float32) -> Call:
    array = np.array(rows, dtype)
    return Call({"x": array}, len(array))


def values(outcomes: Sequence[Any]) -> list[Any]:
    return [
        outcome if isinstance(outcome, Exception) else [array.tolist() for array in outcome] for outcome in outcomes
    ]


def batching(**fields: Any) -> BatchingParameters:
    return BatchingParameters(**fields)


def test_each_request_gets_its_own_rows_of_every_output() -> None:
    backend = Recorded(lambda inputs: [inputs["x"] * 2, np.stack([inputs["x"], -inputs["x"]], 1)])
    outcomes = Merging(backend, frozenset("s"), None).run("s", ["y", "z"], [call(1), call(2, 3), call(4)])
    assert values(outcomes) == [
        [[2], [[1, -1]]],
        [[4, 6], [[2, -2], [3, -3]]],
        [[8], [[4, -4]]],
    ]
    assert len(backend.runs) == 1


@pytest.mark.parametrize("dtype", [element.numpy for element in DTYPES], ids=[element.name for element in DTYPES])
@pytest.mark.parametrize("size", [1, 9000])
def test_every_element_type_is_merged(dtype: np.dtype, size: int) -> None:
    def some(first: int) -> np.ndarray:
        numbers = np.arange(first, first + 2 * size).reshape(2, size) % 2
        return (
            np.array([b"\0a\0" * (1 + n) for n in numbers.ravel().tolist()], object).reshape(2, size)
            if dtype.hasobject
            else numbers.astype(dtype)
        )

    calls = [Call({"x": some(first)}, 2) for first in (0, 1)]
    backend = Recorded(echo)
    outcomes = Merging(backend, frozenset("s"), batching(allowed_batch_sizes=(8,))).run("s", ["y"], calls)
    for outcome, expected in zip(outcomes, calls, strict=True):
        assert isinstance(outcome, list)
        assert outcome[0].dtype == dtype
        assert np.array_equal(outcome[0], expected.inputs["x"])
    assert len(backend.runs[0]["x"]) == 8


def test_large_inputs_are_aligned_so_that_a_backend_need_not_copy_them() -> None:
    addresses = []

    def note(inputs: Arrays) -> list[np.ndarray]:
        addresses.append(inputs["x"].ctypes.data % 64)
        return echo(inputs)

    large = [Call({"x": np.ones((1, 100_000), np.float32)}, 1) for _ in range(2)]
    for _ in range(8):
        Merging(Recorded(note), frozenset("s"), None).run("s", ["y"], large)
    assert set(addresses) == {0}


def test_a_failing_batch_fails_only_the_request_that_is_at_fault() -> None:
    def root(inputs: Arrays) -> list[np.ndarray]:
        if (inputs["x"] < 0).any():
            raise BackendError(Code.INVALID_ARGUMENT, "x must not be negative")
        return [np.sqrt(inputs["x"])]

    for parameters in (None, batching()):
        outcomes = values(
            Merging(Recorded(root), frozenset("s"), parameters).run("s", ["y"], [call(4), call(-1), call(9)])
        )
        assert outcomes[0] == [[2]]
        assert isinstance(outcomes[1], BackendError)
        assert outcomes[2] == [[3]]


def test_any_error_of_a_merged_run_is_met_again_alone() -> None:
    def small(inputs: Arrays) -> list[np.ndarray]:
        if len(inputs["x"]) > 1:
            raise MemoryError
        return echo(inputs)

    assert values(Merging(Recorded(small), frozenset("s"), None).run("s", ["y"], [call(1), call(2)])) == [[[1]], [[2]]]


def test_a_signature_whose_outputs_have_other_rows_is_not_merged_again() -> None:
    merging = Merging(Recorded(lambda inputs: [inputs["x"].sum(keepdims=True)]), frozenset({"s", "t"}), None)
    same = meta(x=np.zeros(2, np.float32))
    assert merging.extent(same) is not None
    assert values(merging.run("s", ["y"], [call(1), call(2)])) == [[[1]], [[2]]]
    assert merging.mergeable.keys() == {"t"}
    assert merging.extent(same) is None


def test_without_batching_an_output_of_a_lone_request_may_have_any_shape() -> None:
    merging = Merging(Recorded(lambda inputs: [inputs["x"].sum()]), frozenset("s"), None)
    assert values(merging.run("s", ["y"], [call(1, 2)])) == [[3]]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda inputs: [inputs["x"].sum()], "Batched output tensor has 0 dimensions"),
        (lambda inputs: [inputs["x"][:1]], "Batched output tensor's 0th dimension does not equal the sum of"),
    ],
)
def test_with_batching_outputs_without_the_rows_are_an_error_as_in_tensorflow_serving(
    function: Callable[[Arrays], list[np.ndarray]], words: str
) -> None:
    for calls in ([call(1, 2)], [call(1, 2), call(3, 4)]):
        for outcome in Merging(Recorded(function), frozenset(), batching()).run("s", ["y"], calls):
            assert isinstance(outcome, BackendError)
            assert outcome.code == Code.FAILED_PRECONDITION
            assert outcome.message.startswith(words)


def test_a_batch_is_padded_to_the_next_allowed_size_with_the_last_requests_first_row() -> None:
    backend = Recorded(echo)
    merging = Merging(backend, frozenset(), batching(max_batch_size=8, allowed_batch_sizes=(2, 4, 8)))
    assert values(merging.run("s", ["y"], [call(1), call(2, 3)])) == [[[1]], [[2, 3]]]
    assert values(merging.run("s", ["y"], [call(5)])) == [[[5]]]
    assert values(merging.run("s", ["y"], [call(6, 7)])) == [[[6, 7]]]
    assert [run["x"].tolist() for run in backend.runs] == [[1, 2, 3, 2], [5, 5], [6, 7]]


def test_variable_lengths_are_padded_with_each_requests_first_element() -> None:
    backend = Recorded(echo)
    merging = Merging(backend, frozenset(), batching(pad_variable_length_inputs=True, allowed_batch_sizes=(3,)))
    merging.run("s", ["y"], [call([1, 2, 3]), call([7, 8])])
    assert backend.runs[0]["x"].tolist() == [[1, 2, 3], [7, 8, 7], [7, 8, 7]]
    strings = [call([b"a\0", b"b"], dtype=object), call([b"c\0", b"d", b"e"], dtype=object)]
    merging.run("s", ["y"], strings)
    assert backend.runs[1]["x"].tolist() == [[b"a\0", b"b", b"a\0"], [b"c\0", b"d", b"e"], [b"c\0", b"d", b"e"]]


def test_padding_beyond_all_bounds_is_refused_before_memory_is_taken() -> None:
    merging = Merging(Recorded(echo), frozenset(), batching(max_batch_size=10**6, allowed_batch_sizes=(10**6,)))
    (outcome,) = merging.run("s", ["y"], [Call({"x": np.zeros((1, 100_000), np.float32)}, 1)])
    assert isinstance(outcome, BackendError)
    assert outcome.code == Code.RESOURCE_EXHAUSTED
    assert "[1000000, 100000]" in outcome.message


def test_every_execution_is_told_with_its_rows_and_requests() -> None:
    told = []
    merging = Merging(Recorded(echo), frozenset("s"), None)
    merging.on_run = lambda *what: told.append(what)
    merging.run("s", ["y"], [call(1), call(2, 3)])
    merging.run("s", ["y"], [call(1)])
    assert [what[:3] for what in told] == [("s", 3, 2), ("s", 1, 1)]
    assert all(seconds >= 0 for *_, seconds in told)


def test_the_parts_of_a_split_request_make_one_answer_and_its_first_error_counts() -> None:
    parts = [[np.array([1]), np.array([[2]])], [np.array([3, 4]), np.array([[5], [6]])]]
    assert values([joined(parts)]) == [[[1, 3, 4], [[2], [5], [6]]]]
    error = BackendError(Code.INTERNAL, "first")
    assert joined([parts[0], error, BackendError(Code.INTERNAL, "second")]) is error


def meta(outputs: Sequence[str] = ("y",), signature: str = "s", **arrays: np.ndarray) -> bytes:
    return predict_meta(signature, outputs, pack_arrays(arrays.items()).table)


ROWS = np.zeros((3, 5), np.float32)
MATRIX, COLUMN = TensorSpec("float32", (-1, -1)), TensorSpec("float32", (-1,))
MERGEABLE = {
    "s": Signature({"a": MATRIX, "b": COLUMN}, {"y": COLUMN}),
    "t": Signature({"x": MATRIX, "z": MATRIX, "n": TensorSpec("float32", ())}, {"y": COLUMN}),
    "fixed": Signature({"x": TensorSpec("float32", (-1, 4))}, {"y": COLUMN}),
    "unknown": Signature({"x": TensorSpec("float32", None)}, {"y": COLUMN}),
}


def test_requests_that_agree_in_all_but_their_rows_may_be_merged() -> None:
    first = mergeable_extent(meta(a=ROWS, b=ROWS[:, 0]), MERGEABLE)
    second = mergeable_extent(meta(b=ROWS[:2, 0], a=ROWS[:2]), MERGEABLE)
    assert first is not None
    assert second is not None
    assert first.group == second.group
    assert (first.rows, second.rows) == (3, 2)


@pytest.mark.parametrize(
    "other",
    [
        meta(a=ROWS, signature="s"),
        meta(x=ROWS, signature="t", outputs=("z",)),
        meta(z=ROWS, signature="t"),
        meta(x=ROWS.astype(np.int32), signature="t"),
        meta(x=ROWS[:, :4], signature="t"),
        meta(x=ROWS, z=ROWS, signature="t"),
    ],
)
def test_requests_that_differ_otherwise_are_not_merged(other: bytes) -> None:
    one = mergeable_extent(meta(x=ROWS, signature="t"), MERGEABLE)
    two = mergeable_extent(other, MERGEABLE)
    assert one is not None
    assert two is not None
    assert one.group != two.group


@pytest.mark.parametrize(
    "alone",
    [
        meta(x=ROWS, signature="not proven"),
        meta(x=ROWS[:0], signature="t"),
        meta(x=ROWS, n=np.array(1), signature="t"),
        meta(x=ROWS, z=ROWS[:2], signature="t"),
        meta(signature="t"),
        meta(unknown=ROWS, signature="t"),
        meta(x=ROWS[:, :, None], signature="t"),
        meta(x=ROWS, signature="fixed"),
        meta(x=ROWS, signature="unknown"),
    ],
)
def test_what_has_no_rows_or_is_not_proven_runs_alone(alone: bytes) -> None:
    assert mergeable_extent(alone, MERGEABLE) is None


@pytest.mark.parametrize(
    ("request_meta", "words"),
    [
        (meta(), "Batching Run() must have at least one input tensor"),
        (meta(x=ROWS, n=np.array(1)), "Batching Run() input tensors must have at least one dimension"),
        (meta(x=ROWS, y=ROWS[:2]), "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
)
def test_inputs_without_common_rows_are_refused_in_tensorflow_servings_words(request_meta: bytes, words: str) -> None:
    with pytest.raises(BackendError) as caught:
        place(request_meta, pad_variable_length_inputs=False)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, words)


def test_batches_are_of_one_shape_unless_variable_lengths_are_padded() -> None:
    wide, narrow, empty = meta(x=ROWS), meta(x=ROWS[:, :2]), meta(x=ROWS[:, :0])
    assert place(wide, False).queue == place(narrow, False).queue == ("s", ("y",))
    assert place(wide, False).extent.group != place(narrow, False).extent.group
    assert place(wide, True).extent.group == place(narrow, True).extent.group
    assert place(wide, True).extent.group != place(meta(x=ROWS[:, :, None]), True).extent.group
    assert place(wide, True).extent.group != place(empty, True).extent.group  # it has nothing to pad with


@pytest.mark.parametrize("broken", [b"", b"\xff\xff\xff\xff", meta(x=ROWS)[:-12], b"\1\0\0\0\xff\0\0"])
def test_a_meta_that_cannot_be_read_is_said_to_be_broken(broken: bytes) -> None:
    with pytest.raises(WireError):
        mergeable_extent(broken, MERGEABLE)
    with pytest.raises(WireError):
        place(broken, False)

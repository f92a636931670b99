"""Operators that take from places, and that put into places."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.operators.variants import Input, Role, Variant, call, variants

_INDEXES = ("int32", "int64")


@variants("Gather")
def _gather(op: str, dtype: str) -> Iterator[Variant]:
    indices = Input("int32", (None,), Role.INDEX, limit=5)
    yield Variant("", {"x": Input(dtype, (5, 2)), "at": indices}, lambda raw, x, at: call(raw, op, x, at))


@variants("GatherV2", of="Tparams")
def _gather_v2(op: str, dtype: str) -> Iterator[Variant]:
    for index in _INDEXES:
        at = Input(index, (None,), Role.INDEX, limit=5)
        table = (np.arange(10).reshape(5, 2) % 2 if dtype == "bool" else np.arange(10).reshape(5, 2) * 7 + 3).astype(
            dtype
        )
        yield Variant(
            f"of a table, by {index}",
            {"at": at},
            partial(lambda raw, at, table: call(raw, op, table, at, np.int32(0)), table=table),
        )
        if index == "int32":
            yield Variant(
                "of rows", {"x": Input(dtype, (5, 2)), "at": at}, lambda raw, x, at: call(raw, op, x, at, np.int32(0))
            )
        of_four = Input(index, (3,), Role.INDEX, limit=4)
        yield Variant(
            f"of columns, by {index}",
            {"x": Input(dtype), "at": of_four},
            lambda raw, x, at: call(raw, op, x, at, np.int32(1)),
        )
    each = Input("int32", (None, 3), Role.INDEX, limit=4)
    yield Variant(
        "row by row",
        {"x": Input(dtype), "at": each},
        lambda raw, x, at: call(raw, op, x, at, np.int32(1), batch_dims=1),
    )


@variants("GatherNd", of="Tparams")
def _gather_nd(op: str, dtype: str) -> Iterator[Variant]:
    for index in _INDEXES:
        at = Input(index, (None, 2), Role.INDEX, limit=3)
        yield Variant(f"by {index}", {"x": Input(dtype, (3, 3)), "at": at}, lambda raw, x, at: call(raw, op, x, at))


@variants("ScatterNd", of="T")
def _scatter_nd(op: str, dtype: str) -> Iterator[Variant]:
    for index in _INDEXES:
        at = Input(index, (None, 1), Role.INDEX, limit=6)
        shape = np.array([6, 4], index)
        yield Variant(
            f"by {index}",
            {"at": at, "x": Input(dtype)},
            partial(lambda raw, at, x, shape: call(raw, op, at, x, shape), shape=shape),
        )


@variants("TensorScatterAdd", "TensorScatterMax", "TensorScatterMin", "TensorScatterSub", "TensorScatterUpdate", of="T")
def _tensor_scatter(op: str, dtype: str) -> Iterator[Variant]:
    inputs = {
        "x": Input(dtype, (6, 2)),
        "at": Input("int32", (None, 1), Role.INDEX, limit=6),
        "updates": Input(dtype, (None, 2)),
    }
    yield Variant("", inputs, lambda raw, x, at, updates: call(raw, op, x, at, updates))


@variants("Bucketize")
def _bucketize(op: str, dtype: str) -> Iterator[Variant]:
    limits = [-1.5, 0.0, 0.37, 3.0, 100.0]
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: raw.Bucketize(input=x, boundaries=limits))


@variants("LowerBound", "UpperBound")
def _bounds(op: str, dtype: str) -> Iterator[Variant]:
    if dtype == "bool":  # TensorFlow has no kernel, and none of the other types then runs
        return
    ordered = np.array([[0, 1, 1, 5, 100]]).astype(dtype)
    yield Variant(
        "",
        {"x": Input(dtype)},
        lambda raw, x: getattr(raw, op)(sorted_inputs=ordered, values=raw.Reshape(tensor=x, shape=[1, -1])),
    )


@variants("OneHot", of="TI")
def _one_hot(op: str, dtype: str) -> Iterator[Variant]:
    at = {"at": Input(dtype, (None, 2), Role.INDEX, limit=5)}
    for on, off in ((np.float32(1), np.float32(0)), (np.int32(5), np.int32(-5)), (np.True_, np.False_)):
        build = partial(lambda raw, at, on, off: call(raw, op, at, np.int32(5), on, off), on=on, off=off)
        yield Variant(f"of {on.dtype}", at, build)
    build = partial(
        lambda raw, at, axis: call(raw, op, at, np.int32(5), np.float32(1), np.float32(0), axis=axis), axis=1
    )
    yield Variant("along the middle", at, build)


@variants("DynamicStitch", "ParallelDynamicStitch", of="T")
def _stitch(op: str, dtype: str) -> Iterator[Variant]:
    def build(raw: Any, x: Any) -> Any:
        indices = [np.array([0, 2], np.int32), np.array([3, 1], np.int32)]
        return getattr(raw, op)(indices=indices, data=[x, x])

    yield Variant("", {"x": Input(dtype, (2, 3))}, build)


@variants("DynamicPartition", of="T")
def _partition(op: str, dtype: str) -> Iterator[Variant]:
    inputs = {"x": Input(dtype), "ids": Input("int32", (None,), Role.INDEX, limit=2)}
    yield Variant("", inputs, lambda raw, x, ids: call(raw, op, x, ids, num_partitions=2))


@variants("SparseToDense", of="T")
def _sparse_to_dense(op: str, dtype: str) -> Iterator[Variant]:
    def build(raw: Any, at: Any, x: Any) -> Any:
        return call(raw, op, at, np.array([6], np.int32), x, np.array(0, dtype), validate_indices=False)

    inputs = {"at": Input("int32", (None,), Role.SORTED, limit=6), "x": Input(dtype, (None,))}
    yield Variant("", inputs, build)


@variants("ReverseSequence", of="T")
def _reverse_sequence(op: str, dtype: str) -> Iterator[Variant]:
    for index in _INDEXES:
        lengths = Input(index, (None,), Role.INDEX, limit=5)
        yield Variant(
            f"by {index}",
            {"x": Input(dtype), "lengths": lengths},
            lambda raw, x, lengths: call(raw, op, x, lengths, seq_dim=1, batch_dim=0),
        )


@variants("Slice", of="T")
def _slice(op: str, dtype: str) -> Iterator[Variant]:
    for begin, size in (([0, 1], [-1, 2]), ([1, 0], [1, -1])):
        build = partial(
            lambda raw, x, begin, size: call(raw, op, x, np.array(begin, np.int32), np.array(size, np.int32)),
            begin=begin,
            size=size,
        )
        yield Variant(f"from {begin} of {size}", {"x": Input(dtype)}, build)
    for index in _INDEXES:
        inputs = {"x": Input(dtype, (5, 4)), "begin": Input(index, (2,), Role.INDEX, limit=2)}
        build = partial(lambda raw, x, begin, size: call(raw, op, x, begin, size), size=np.array([3, 2], index))
        yield Variant(f"from anywhere, by {index}", inputs, build)


@variants("StridedSlice", of="T")
def _strided_slice(op: str, dtype: str) -> Iterator[Variant]:
    def of(x: Any, raw: Any, begin: Any, end: Any, strides: Any, **masks: int) -> Any:
        ends = (np.array(part, np.int32) if isinstance(part, list) else part for part in (begin, end, strides))
        return call(raw, op, x, *ends, **masks)

    for name, begin, end, strides, masks in (
        ("x[1:3]", [1], [3], [1], {}),
        ("x[-2:]", [-2], [0], [1], {"end_mask": 1}),
        ("x[:, ::-1]", [0, 0], [0, 0], [1, -1], {"begin_mask": 3, "end_mask": 3}),
        ("x[:, 3:0:-2]", [0, 3], [0, 0], [1, -2], {"begin_mask": 1, "end_mask": 1}),
        ("x[:, 1]", [0, 1], [0, 2], [1, 1], {"begin_mask": 1, "end_mask": 1, "shrink_axis_mask": 2}),
        ("x[:, None, ..., -1]", [0, 0, 0, -1], [0, 0, 0, 0], [1, 1, 1, 1],
         {"begin_mask": 1, "end_mask": 1, "new_axis_mask": 2, "ellipsis_mask": 4, "shrink_axis_mask": 8}),
        ("x[:100, 2:2]", [0, 2], [100, 2], [1, 1], {}),
    ):  # fmt: skip
        build = partial(
            lambda raw, x, begin, end, strides, masks: of(x, raw, begin, end, strides, **masks),
            begin=begin,
            end=end,
            strides=strides,
            masks=masks,
        )
        yield Variant(name, {"x": Input(dtype)}, build)
    inputs = {"x": Input(dtype, (5, 4)), "begin": Input("int32", (1,), Role.INDEX, limit=5)}
    yield Variant("x[begin:]", inputs, lambda raw, x, begin: of(x, raw, begin, [9], [1]))
    yield Variant(
        "x[begin]",
        inputs,
        lambda raw, x, begin: of(x, raw, begin, raw.Add(x=begin, y=np.int32([1])), [1], shrink_axis_mask=1),
    )

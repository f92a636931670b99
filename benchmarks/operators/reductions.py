"""Operators that make one value of several: sums, extremes, orders, counts, segments."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.operators.variants import FLOATS, Input, Role, Variant, call, variants


@variants("All", "Any", "EuclideanNorm", "Max", "Mean", "Min", "Prod", "Sum")
def _reduction(op: str, dtype: str) -> Iterator[Variant]:
    for name, axes, keep in (("of rows", [1], False), ("of columns", [0], True), ("of all", [0, 1], False)):
        build = partial(
            lambda raw, x, axes, keep: getattr(raw, op)(input=x, axis=np.array(axes, np.int32), keep_dims=keep),
            axes=axes,
            keep=keep,
        )
        yield Variant(name, {"x": Input(dtype)}, build)
    middle = {"x": Input(dtype, (None, 3, 2))}
    yield Variant("of the middle", middle, lambda raw, x: getattr(raw, op)(input=x, axis=np.array([-2], np.int32)))


@variants("ArgMax", "ArgMin")
def _extreme(op: str, dtype: str) -> Iterator[Variant]:
    import tensorflow as tf  # noqa: PLC0415

    for name, axis, output in (("of rows", 1, tf.int64), ("of rows, int32", -1, tf.int32), ("of columns", 0, tf.int64)):
        build = partial(
            lambda raw, x, axis, output: getattr(raw, op)(input=x, dimension=np.int32(axis), output_type=output),
            axis=axis,
            output=output,
        )
        yield Variant(name, {"x": Input(dtype)}, build)


@variants("Cumprod", "Cumsum")
def _cumulative(op: str, dtype: str) -> Iterator[Variant]:
    for exclusive, reverse in ((False, False), (True, False), (False, True)):
        build = partial(
            lambda raw, x, **flags: getattr(raw, op)(x=x, axis=np.int32(1), **flags),
            exclusive=exclusive,
            reverse=reverse,
        )
        name = " and ".join(["of rows", *["exclusive"] * exclusive, *["reverse"] * reverse])
        yield Variant(name, {"x": Input(dtype)}, build)


@variants("TopKV2")
def _top_k(op: str, dtype: str) -> Iterator[Variant]:
    for k in (1, 3):
        yield Variant(
            f"of {k}", {"x": Input(dtype)}, partial(lambda raw, x, k: raw.TopKV2(input=x, k=np.int32(k)), k=k)
        )


@variants("Softmax", "LogSoftmax")
def _softmax(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: call(raw, op, x))
    yield Variant("of three dimensions", {"x": Input(dtype, (None, 3, 2))}, lambda raw, x: call(raw, op, x))


@variants("L2Loss")
def _loss(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: call(raw, op, x))


@variants("SoftmaxCrossEntropyWithLogits")
def _cross_entropy(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype), "labels": Input(dtype)}, lambda raw, x, labels: call(raw, op, x, labels))


@variants("SparseSoftmaxCrossEntropyWithLogits")
def _sparse_cross_entropy(op: str, dtype: str) -> Iterator[Variant]:
    labels = Input("int64", (None,), Role.INDEX, limit=4)
    yield Variant("", {"x": Input(dtype), "labels": labels}, lambda raw, x, labels: call(raw, op, x, labels))


@variants("Unique", "UniqueWithCounts")
def _unique(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype, (None,))}, lambda raw, x: call(raw, op, x))


@variants("Where")
def _where(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: raw.Where(condition=x))


@variants("Bincount", of="T")
def _bincount(op: str, dtype: str) -> Iterator[Variant]:
    def build(raw: Any, x: Any) -> Any:
        return raw.Bincount(arr=x, size=np.int32(6), weights=np.zeros(0, dtype))

    yield Variant("", {"x": Input("int32", (None,), Role.INDEX, limit=6)}, build)


@variants("DenseBincount", of="Tidx")
def _dense_bincount(op: str, dtype: str) -> Iterator[Variant]:
    for shape in ((None,), (None, 4)):

        def build(raw: Any, x: Any) -> Any:
            return raw.DenseBincount(input=x, size=np.array(6, dtype), weights=np.zeros(0, np.float32))

        name = f"of {len(shape)} dimensions"
        yield Variant(name, {"x": Input(dtype, shape, Role.INDEX, limit=6)}, build)


@variants("SegmentMax", "SegmentMean", "SegmentMin", "SegmentProd", "SegmentSum", of="T")
def _segment(op: str, dtype: str) -> Iterator[Variant]:
    ids = Input("int32", (None,), Role.SORTED, limit=4)
    yield Variant("", {"x": Input(dtype), "ids": ids}, lambda raw, x, ids: call(raw, op, x, ids))


@variants("UnsortedSegmentMax", "UnsortedSegmentMin", "UnsortedSegmentProd", "UnsortedSegmentSum", of="T")
def _unsorted_segment(op: str, dtype: str) -> Iterator[Variant]:
    for index in ("int32", "int64"):
        ids = Input(index, (None,), Role.INDEX, limit=4)
        yield Variant(
            f"by {index}", {"x": Input(dtype), "ids": ids}, lambda raw, x, ids: call(raw, op, x, ids, np.int32(5))
        )


@variants("SparseSegmentMean", "SparseSegmentSqrtN", "SparseSegmentSum", of="T")
def _sparse_segment(op: str, dtype: str) -> Iterator[Variant]:
    inputs = {
        "x": Input(dtype, (6, 2)),
        "indices": Input("int32", (None,), Role.INDEX, limit=6),
        "ids": Input("int32", (None,), Role.SORTED, limit=3),
    }
    yield Variant("", inputs, lambda raw, x, indices, ids: call(raw, op, x, indices, ids))


@variants("InTopKV2", of="T")
def _in_top_k(op: str, dtype: str) -> Iterator[Variant]:
    inputs = {"x": Input("float32"), "targets": Input(dtype, (None,), Role.INDEX, limit=4)}
    yield Variant("", inputs, lambda raw, x, targets: call(raw, op, x, targets, np.array(2, dtype)))


@variants("MatrixDeterminant", "MatrixInverse")
def _of_matrix(op: str, dtype: str) -> Iterator[Variant]:
    if dtype in FLOATS:
        yield Variant("", {"x": Input(dtype, (None, 3, 3))}, lambda raw, x: call(raw, op, x))

"""Operators that move elements, repeat them, or make tensors of a shape."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.operators.variants import Input, Role, Variant, call, variants


def _i32(*values: Any) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 else values, np.int32)


_IMAGE = (None, 4, 4, 4)


@variants("Reshape", "BroadcastTo", "Tile", "ReverseV2", "Transpose", "Pad", "Roll", "ExpandDims", of="T")
def _by_numbers(op: str, dtype: str) -> Iterator[Variant]:
    """x and constants."""
    numbers = {
        "Reshape": [[_i32([-1, 2])]],
        "BroadcastTo": [[_i32([3, 2, 4])]],
        "Tile": [[_i32([2, 3])], [_i32([1, 0])]],
        "ReverseV2": [[_i32([1])], [_i32([0, 1])], [_i32([0])]],
        "Transpose": [[_i32([1, 0])]],
        "Pad": [[_i32([[1, 0], [0, 2]])]],
        "Roll": [[_i32([1]), _i32([1])], [_i32([-2, 5]), _i32([0, 1])]],
        "ExpandDims": [[np.int32(1)], [np.int32(-1)]],
    }[op]
    for taken in numbers:
        # A row of 4 fits all of them, with 2 rows or any.
        shape = (2, 4) if op == "BroadcastTo" else (None, 4)
        name = " ".join(str(number.tolist()) for number in taken)
        yield Variant(
            name, {"x": Input(dtype, shape)}, partial(lambda raw, x, taken: call(raw, op, x, *taken), taken=taken)
        )


@variants("PadV2", of="T")
def _pad(op: str, dtype: str) -> Iterator[Variant]:
    filled = np.array(1, dtype)
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: call(raw, op, x, _i32([[1, 0], [0, 2]]), filled))


@variants("MirrorPad", of="T")
def _mirror(op: str, dtype: str) -> Iterator[Variant]:
    for mode in ("REFLECT", "SYMMETRIC"):
        build = partial(lambda raw, x, mode: call(raw, op, x, _i32([[0, 0], [2, 1]]), mode=mode), mode=mode)
        yield Variant(mode, {"x": Input(dtype)}, build)


@variants("Concat", "ConcatV2", "Pack", of="T")
def _joined(op: str, dtype: str) -> Iterator[Variant]:
    inputs = {"x": Input(dtype), "y": Input(dtype)}
    for axis in (0, 1):
        if op == "Concat":
            build = partial(lambda raw, x, y, axis: raw.Concat(concat_dim=np.int32(axis), values=[x, y]), axis=axis)
        elif op == "Pack":
            build = partial(lambda raw, x, y, axis: raw.Pack(values=[x, y], axis=axis), axis=axis)
        else:
            build = partial(lambda raw, x, y, axis: raw.ConcatV2(values=[x, y], axis=np.int32(axis)), axis=axis)
        yield Variant(f"along {axis}", inputs, build)


@variants("Split", of="T")
def _split(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: raw.Split(axis=np.int32(1), value=x, num_split=2))


@variants("SplitV", of="T")
def _split_v(op: str, dtype: str) -> Iterator[Variant]:
    sizes = _i32([1, -1])
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: call(raw, op, x, sizes, np.int32(1), num_split=2))


@variants("Unpack", of="T")
def _unpack(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype)}, lambda raw, x: raw.Unpack(value=x, num=4, axis=1))


@variants("Squeeze", of="T")
def _squeeze(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype, (None, 1, 3))}, lambda raw, x: raw.Squeeze(input=x, axis=[1]))


@variants("Shape", "Size", "Rank", "EnsureShape", of="T")
def _about(op: str, dtype: str) -> Iterator[Variant]:
    attributes = {"shape": [None, 4]} if op == "EnsureShape" else {}
    yield Variant("", {"x": Input(dtype, (None, 4))}, lambda raw, x: call(raw, op, x, **attributes))


@variants("Fill", of="T")
def _fill(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype, ())}, lambda raw, x: call(raw, op, _i32([2, 3]), x))
    sized = {"x": Input(dtype, ()), "size": Input("int32", (2,), Role.INDEX, limit=4)}
    yield Variant("of any size", sized, lambda raw, x, size: call(raw, op, size, x))


@variants("Range", of="Tidx")
def _range(op: str, dtype: str) -> Iterator[Variant]:
    end = Input(dtype, (), Role.INDEX, limit=20)
    for start, step in ((0, 1), (3, 2)):
        build = partial(lambda raw, x, ends: call(raw, op, ends[0], x, ends[1]), ends=np.array([start, step], dtype))
        yield Variant(f"from {start} by {step}", {"x": end}, build)
    if dtype != "uint8":
        ends = np.array([9, -2], dtype)
        yield Variant("from 9 by -2", {"x": end}, lambda raw, x: call(raw, op, ends[0], x, ends[1]))


@variants("LinSpace", of="T")
def _linspace(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant(
        "", {"x": Input(dtype, ()), "y": Input(dtype, ())}, lambda raw, x, y: call(raw, op, x, y, np.int32(5))
    )


@variants("MatrixBandPart", of="T")
def _band(op: str, dtype: str) -> Iterator[Variant]:
    for low, high in ((0, -1), (-1, 0), (1, 1)):
        build = partial(lambda raw, x, ends: call(raw, op, x, *ends), ends=(np.int64(low), np.int64(high)))
        yield Variant(f"{low} to {high}", {"x": Input(dtype, (None, 3, 3))}, build)


@variants("MatrixDiag", "MatrixDiagPart", of="T")
def _diagonal(op: str, dtype: str) -> Iterator[Variant]:
    shape = (None, 3) if op == "MatrixDiag" else (None, 3, 3)
    yield Variant("", {"x": Input(dtype, shape)}, lambda raw, x: call(raw, op, x))


@variants("MatrixDiagV3", "MatrixDiagPartV3", "MatrixSetDiagV3", of="T")
def _diagonal_v3(op: str, dtype: str) -> Iterator[Variant]:
    if op == "MatrixDiagV3":
        none = np.int32(-1)
        padding = np.array(0, dtype)
        yield Variant(
            "", {"x": Input(dtype, (None, 3))}, lambda raw, x: call(raw, op, x, np.int32(0), none, none, padding)
        )
    elif op == "MatrixDiagPartV3":
        padding = np.array(0, dtype)
        for k in (0, 1):
            build = partial(lambda raw, x, k: call(raw, op, x, np.int32(k), padding), k=k)
            yield Variant(f"the {k}th", {"x": Input(dtype, (None, 3, 3))}, build)
    else:
        inputs = {"x": Input(dtype, (None, 3, 3)), "y": Input(dtype, (None, 3))}
        yield Variant("", inputs, lambda raw, x, y: call(raw, op, x, y, np.int32(0)))


@variants("DepthToSpace", "SpaceToDepth", of="T")
def _depth(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype, _IMAGE)}, lambda raw, x: call(raw, op, x, block_size=2))


@variants("SpaceToBatchND", "BatchToSpaceND", of="T")
def _batch(op: str, dtype: str) -> Iterator[Variant]:
    shape = (4, 2, 2, 1) if op == "BatchToSpaceND" else _IMAGE
    build = partial(lambda raw, x: call(raw, op, x, _i32([2, 2]), _i32([[0, 0], [0, 0]])))
    yield Variant("", {"x": Input(dtype, shape)}, build)


@variants("ExtractImagePatches", of="T")
def _patches(op: str, dtype: str) -> Iterator[Variant]:
    attributes = {"ksizes": [1, 2, 2, 1], "strides": [1, 1, 1, 1], "rates": [1, 1, 1, 1]}
    for padding in ("VALID", "SAME"):
        build = partial(lambda raw, x, padding: call(raw, op, x, padding=padding, **attributes), padding=padding)
        yield Variant(padding, {"x": Input(dtype, (None, 4, 4, 1))}, build)


@variants("InvertPermutation", of="T")
def _invert(op: str, dtype: str) -> Iterator[Variant]:
    order = Input(dtype, (4,), Role.GIVEN, given=[2, 0, 3, 1])
    yield Variant("", {"x": order}, lambda raw, x: call(raw, op, x))

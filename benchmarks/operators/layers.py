"""Operators of networks and of images: products, convolutions, pools, normalisations, resizes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.operators.variants import FLOATS, Input, Role, Variant, call, variants

_IMAGE = (None, 5, 5, 2)


def _weights(dtype: str, *shape: int) -> np.ndarray:
    """Fixed ones of both signs."""
    numbers = np.arange(int(np.prod(shape))) % 7 - 3
    return (numbers if dtype not in FLOATS else numbers / 4 + 0.1).reshape(shape).astype(dtype)


@variants("MatMul", of="T")
def _matmul(op: str, dtype: str) -> Iterator[Variant]:
    weights = _weights(dtype, 4, 3)
    yield Variant("by weights", {"x": Input(dtype)}, lambda raw, x: call(raw, op, x, weights))
    two = {"x": Input(dtype), "y": Input(dtype, (4, 3))}
    yield Variant("", two, lambda raw, x, y: call(raw, op, x, y))
    both = {"x": Input(dtype), "y": Input(dtype)}
    yield Variant("transposed", both, lambda raw, x, y: call(raw, op, x, y, transpose_b=True))


@variants("BatchMatMul", "BatchMatMulV2", of="T")
def _batch_matmul(op: str, dtype: str) -> Iterator[Variant]:
    two = {"x": Input(dtype, (None, 2, 3)), "y": Input(dtype, (None, 3, 2))}
    yield Variant("", two, lambda raw, x, y: call(raw, op, x, y))


@variants("Einsum", of="T")
def _einsum(op: str, dtype: str) -> Iterator[Variant]:
    two = {"x": Input(dtype, (None, 2, 3)), "y": Input(dtype, (None, 3, 2))}
    for equation in ("bij,bjk->bik", "bij,bji->b"):
        build = partial(lambda raw, x, y, equation: raw.Einsum(inputs=[x, y], equation=equation), equation=equation)
        yield Variant(equation, two, build)
    yield Variant(
        "bij->bji", {"x": Input(dtype, (None, 2, 3))}, lambda raw, x: raw.Einsum(inputs=[x], equation="bij->bji")
    )


@variants("BiasAdd", "BiasAddV1", of="T")
def _bias(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype), "bias": Input(dtype, (4,))}, lambda raw, x, bias: call(raw, op, x, bias))


@variants("Conv2D", "DepthwiseConv2dNative", of="T")
def _conv(op: str, dtype: str) -> Iterator[Variant]:
    weights = _weights(dtype, 3, 3, 2, 2)
    for padding, stride, dilation in (("SAME", 1, 1), ("VALID", 2, 1), ("SAME", 2, 1), ("VALID", 1, 2)):
        build = partial(
            lambda raw, x, padding, stride, dilation: call(
                raw,
                op,
                x,
                weights,
                strides=[1, stride, stride, 1],
                padding=padding,
                dilations=[1, dilation, dilation, 1],
            ),
            padding=padding,
            stride=stride,
            dilation=dilation,
        )
        yield Variant(f"{padding}, stride {stride}, dilation {dilation}", {"x": Input(dtype, _IMAGE)}, build)


@variants("Conv3D", of="T")
def _conv_3d(op: str, dtype: str) -> Iterator[Variant]:
    weights = _weights(dtype, 2, 2, 2, 1, 2)
    attributes = {"strides": [1] * 5, "padding": "SAME"}
    yield Variant("", {"x": Input(dtype, (None, 3, 3, 3, 1))}, lambda raw, x: call(raw, op, x, weights, **attributes))


@variants("Conv2DBackpropInput", of="T")
def _deconv(op: str, dtype: str) -> Iterator[Variant]:
    weights = _weights(dtype, 3, 3, 2, 2)
    for padding, stride, size in (("SAME", 2, 6), ("VALID", 1, 5)):
        build = partial(
            lambda raw, x, padding, stride, size: call(
                raw,
                op,
                np.array([2, size, size, 2], np.int32),
                weights,
                x,
                strides=[1, stride, stride, 1],
                padding=padding,
            ),
            padding=padding,
            stride=stride,
            size=size,
        )
        yield Variant(f"{padding}, stride {stride}", {"x": Input(dtype, (2, 3, 3, 2))}, build)


@variants("AvgPool", "MaxPool", of="T")
def _pool(op: str, dtype: str) -> Iterator[Variant]:
    for padding, stride in (("SAME", 2), ("VALID", 1)):
        attributes = {"ksize": [1, 2, 2, 1], "strides": [1, stride, stride, 1], "padding": padding}
        build = partial(lambda raw, x, attributes: call(raw, op, x, **attributes), attributes=attributes)
        yield Variant(f"{padding}, stride {stride}", {"x": Input(dtype, _IMAGE)}, build)


@variants("MaxPoolV2", of="T")
def _pool_v2(op: str, dtype: str) -> Iterator[Variant]:
    ends = np.array([1, 2, 2, 1], np.int32)
    yield Variant("", {"x": Input(dtype, _IMAGE)}, lambda raw, x: call(raw, op, x, ends, ends, padding="VALID"))


@variants("AvgPool3D", "MaxPool3D", of="T")
def _pool_3d(op: str, dtype: str) -> Iterator[Variant]:
    attributes = {"ksize": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "SAME"}
    yield Variant("", {"x": Input(dtype, (None, 3, 3, 3, 1))}, lambda raw, x: call(raw, op, x, **attributes))


@variants("MaxPoolWithArgmax", of="T")
def _pool_argmax(op: str, dtype: str) -> Iterator[Variant]:
    attributes = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
    yield Variant("", {"x": Input(dtype, (1, 4, 4, 2))}, lambda raw, x: call(raw, op, x, **attributes))


@variants("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", of="T")
def _normalised(op: str, dtype: str) -> Iterator[Variant]:
    scale, offset, mean = (np.array(pair, np.float32) for pair in ((1.5, 0.5), (0.1, -0.2), (0.3, 0.7)))
    variance = np.array((1.2, 0.4), np.float32)

    def build(raw: Any, x: Any) -> Any:
        return call(raw, op, x, scale, offset, mean, variance, is_training=False)[0]

    yield Variant("", {"x": Input(dtype, _IMAGE)}, build)


@variants("LRN", of="T")
def _local_response(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype, _IMAGE)}, lambda raw, x: call(raw, op, x, depth_radius=1))


@variants("ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor", of="T")
def _resize(op: str, dtype: str) -> Iterator[Variant]:
    for corners, centers in ((False, False), (True, False), (False, True)):
        for size in (10, 3):
            build = partial(
                lambda raw, x, size, **flags: call(raw, op, x, np.array([size, size], np.int32), **flags),
                size=size,
                align_corners=corners,
                half_pixel_centers=centers,
            )
            how = "aligned corners, " if corners else "half-pixel centers, " if centers else ""
            yield Variant(f"{how}5 to {size}", {"x": Input(dtype, _IMAGE)}, build)


@variants("ResizeArea", of="T")
def _resize_area(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("5 to 3", {"x": Input(dtype, _IMAGE)}, lambda raw, x: call(raw, op, x, np.array([3, 3], np.int32)))


_BOXES = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.9, 0.8]], np.float32)


@variants("CropAndResize", of="T")
def _crop(op: str, dtype: str) -> Iterator[Variant]:
    places, size = np.zeros(2, np.int32), np.array([3, 3], np.int32)
    yield Variant("", {"x": Input(dtype, _IMAGE)}, lambda raw, x: call(raw, op, x, _BOXES, places, size))


@variants("NonMaxSuppressionV3", "NonMaxSuppressionV4", "NonMaxSuppressionV5", of="T")
def _suppression(op: str, dtype: str) -> Iterator[Variant]:
    boxes = np.array([[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 2, 1, 3], [0, 2, 1, 3.2]], dtype)
    numbers = [np.array(number, dtype) for number in ((0.5, -9.0, 0.0) if op.endswith("5") else (0.5, -9.0))]
    scores = {"scores": Input(dtype, (4,))}
    yield Variant("", scores, lambda raw, scores: call(raw, op, boxes, scores, np.int32(3), *numbers))


@variants("AdjustContrastv2", "AdjustHue", "AdjustSaturation", of="T")
def _adjusted(op: str, dtype: str) -> Iterator[Variant]:
    by = np.float32(0.3)
    yield Variant("", {"x": Input(dtype, (None, 2, 2, 3))}, lambda raw, x: call(raw, op, x, by))


@variants("RFFT", of="Treal")
def _spectrum(op: str, dtype: str) -> Iterator[Variant]:
    def build(raw: Any, x: Any) -> Any:
        spectrum = raw.RFFT(input=x, fft_length=np.array([4], np.int32))
        return raw.Real(input=spectrum), raw.Imag(input=spectrum)

    yield Variant("", {"x": Input(dtype)}, build)


@variants("CTCGreedyDecoder", of="T")
def _decoded(op: str, dtype: str) -> Iterator[Variant]:
    lengths = Input("int32", (2,), Role.GIVEN, given=[5, 3])
    inputs = {"x": Input(dtype, (5, 2, 3)), "lengths": lengths}
    yield Variant("", inputs, lambda raw, x, lengths: call(raw, op, x, lengths))


@variants("Dilation2D", of="T")
def _dilation(op: str, dtype: str) -> Iterator[Variant]:
    weights = _weights(dtype, 2, 2, 2)
    attributes = {"strides": [1, 1, 1, 1], "rates": [1, 1, 1, 1], "padding": "SAME"}
    yield Variant("", {"x": Input(dtype, _IMAGE)}, lambda raw, x: call(raw, op, x, weights, **attributes))

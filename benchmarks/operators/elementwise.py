"""Operators that work element by element."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.operators.variants import FLOATS, NUMBERS, SIGNED, Input, Role, Variant, call, variants


def _on(op: str, **attributes: Any) -> Any:
    def build(raw: Any, *args: Any, **tensors: Any) -> Any:
        return call(raw, op, *tensors.values(), **attributes)

    return build


@variants(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "CheckNumerics", "Cos", "Cosh", "Elu", "Erf"),
    *("Erfc", "Exp", "Expm1", "Floor", "Identity", "Inv", "Invert", "IsFinite", "IsInf", "IsNan", "Lgamma", "Log"),
    *("Log1p", "LogicalNot", "Neg", "OnesLike", "Reciprocal", "Relu", "Relu6", "Rint", "Round", "Rsqrt"),
    *("Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Square", "StopGradient", "Tan"),
    *("Tanh", "ZerosLike"),
)
def _unary(op: str, dtype: str) -> Iterator[Variant]:
    attributes = {"message": "odd"} if op == "CheckNumerics" else {}
    yield Variant("", {"x": Input(dtype)}, _on(op, **attributes), by_element=True)


@variants("LeakyRelu")
def _leaky(op: str, dtype: str) -> Iterator[Variant]:
    for alpha in (0.2, 2.0, -0.5):
        yield Variant(f"alpha {alpha:g}", {"x": Input(dtype)}, _on(op, alpha=alpha), by_element=True)


@variants(
    *("Add", "AddV2", "Atan2", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterEqual", "Less"),
    *("LessEqual", "LogicalAnd", "LogicalOr", "Maximum", "Minimum", "Mul", "MulNoNan", "NotEqual", "SquaredDifference"),
    *("Sub", "Xlogy"),
)
def _binary(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype), "y": Input(dtype)}, _on(op), by_element=True)
    if op in ("Add", "Sub", "Mul", "Maximum", "Less", "Equal") and dtype != "bool":
        row = np.array([3, 1, 2, 5], dtype)
        yield Variant("by a row of numbers", {"x": Input(dtype)}, lambda raw, x: call(raw, op, x, row), by_element=True)
    if op == "Maximum" and dtype in (*FLOATS, *SIGNED):  # what converters make one operator of
        for low, high in ((0, 6), (-1, 1), (0, 1)):
            yield Variant(f"and Minimum, {low} to {high}", {"x": Input(dtype)}, _clipped(low, high), by_element=True)


@variants("AddN")
def _add_n(op: str, dtype: str) -> Iterator[Variant]:
    def build(raw: Any, x: Any, y: Any) -> Any:
        return raw.AddN(inputs=[x, y, x])

    yield Variant("", {"x": Input(dtype), "y": Input(dtype)}, build, by_element=True)


@variants("Div", "DivNoNan", "FloorDiv", "FloorMod", "Mod", "RealDiv", "TruncateDiv", "TruncateMod", "Xdivy")
def _division(op: str, dtype: str) -> Iterator[Variant]:
    two = {"x": Input(dtype), "y": Input(dtype, role=Role.DIVISOR)}
    yield Variant("", two, _on(op), by_element=True)
    for divisor in (7, -7, 4):
        if divisor > 0 or dtype in (*SIGNED, *FLOATS):
            number = np.array(divisor, dtype)
            build = partial(lambda raw, x, number: call(raw, op, x, number), number=number)
            yield Variant(f"by {divisor}", {"x": Input(dtype)}, build, by_element=True)


@variants("Pow")
def _power(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype), "y": Input(dtype, role=Role.EXPONENT)}, _on(op), by_element=True)
    for exponent in (0.5, 2, 3, 0) if dtype in FLOATS else (2, 3, 0):
        number = np.array(exponent, dtype)
        build = partial(lambda raw, x, number: call(raw, op, x, number), number=number)
        yield Variant(f"by {exponent:g}", {"x": Input(dtype)}, build, by_element=True)


@variants("LeftShift", "RightShift")
def _shift(op: str, dtype: str) -> Iterator[Variant]:
    yield Variant("", {"x": Input(dtype), "y": Input(dtype, role=Role.SHIFT)}, _on(op), by_element=True)
    three = np.array(3, dtype)
    yield Variant("by 3", {"x": Input(dtype)}, lambda raw, x: call(raw, op, x, three), by_element=True)


@variants("Cast", of="SrcT")
def _cast(op: str, dtype: str) -> Iterator[Variant]:
    import tensorflow as tf  # noqa: PLC0415

    for target in (*NUMBERS, "bool"):
        if target != dtype:
            build = partial(lambda raw, x, target: raw.Cast(x=x, DstT=tf.as_dtype(target)), target=target)
            yield Variant(f"to {target}", {"x": Input(dtype)}, build, by_element=True)
    if dtype in FLOATS:
        build = partial(lambda raw, x: raw.Cast(x=x, DstT=tf.int32, Truncate=True))
        yield Variant("to int32, truncating", {"x": Input(dtype)}, build, by_element=True)


@variants("Select", "SelectV2", of="T")
def _select(op: str, dtype: str) -> Iterator[Variant]:
    inputs = {"condition": Input("bool"), "x": Input(dtype), "y": Input(dtype)}
    yield Variant("", inputs, _on(op), by_element=True)
    if op == "SelectV2":
        guarded = {"x": Input(dtype)}
        zero = np.array(0, dtype)
        yield Variant(
            "where not 0",
            guarded,
            lambda raw, x: raw.SelectV2(condition=raw.NotEqual(x=x, y=zero), t=x, e=raw.OnesLike(x=x)),
            by_element=True,
        )


@variants("ClipByValue")
def _clip(op: str, dtype: str) -> Iterator[Variant]:
    for low, high in ((0, 6), (1, 3)):
        ends = np.array(low, dtype), np.array(high, dtype)
        build = partial(
            lambda raw, x, ends: raw.ClipByValue(t=x, clip_value_min=ends[0], clip_value_max=ends[1]), ends=ends
        )
        yield Variant(f"from {low} to {high}", {"x": Input(dtype)}, build, by_element=True)


@variants("FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars")
def _fake_quant(op: str, dtype: str) -> Iterator[Variant]:
    x = {"x": Input(dtype)}
    if op == "FakeQuantWithMinMaxArgs":
        yield Variant("", x, lambda raw, x: raw.FakeQuantWithMinMaxArgs(inputs=x, min=-6.0, max=6.0), by_element=True)
    else:
        ends = np.float32(-6), np.float32(6)
        yield Variant(
            "", x, lambda raw, x: raw.FakeQuantWithMinMaxVars(inputs=x, min=ends[0], max=ends[1]), by_element=True
        )


def _clipped(low: float, high: float) -> Any:
    def build(raw: Any, x: Any) -> Any:
        least, most = np.array(low, x.dtype.as_numpy_dtype), np.array(high, x.dtype.as_numpy_dtype)
        return raw.Minimum(x=raw.Maximum(x=x, y=least), y=most)

    return build

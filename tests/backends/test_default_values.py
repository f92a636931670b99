"""Defaults of inputs, read without TensorFlow: as TensorFlow reads them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import BackendError, Signature, TensorSpec
from backends.default_values import default_arrays
from backends.dtypes import DTYPES, DType


def read(data: bytes, dtype: str) -> np.ndarray:
    return default_arrays(Signature({"x": TensorSpec(dtype, None)}, {}, "", {"x": data}))["x"]


@pytest.mark.parametrize("element", DTYPES, ids=lambda element: element.name)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 2)])
def test_every_element_type_is_read_in_every_form(element: DType, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    values = [b"a\xff", b"", b"c"] * 2 if element.name == "string" else [1, 100, 0, 3, 2, 2]
    array = np.array(values[:count], element.numpy).reshape(shape)
    if element.numpy.kind in "if":
        array = -array
    number = tf.dtypes.as_dtype(element.number)
    as_content = tf.make_tensor_proto(array, number)
    as_values = tf.make_tensor_proto(array.reshape(-1).tolist() or array, number, shape=shape)
    for proto in (as_content, as_values):
        found = read(proto.SerializeToString(), element.name)
        assert (found.dtype, found.shape) == (element.numpy, shape)
        assert found.tolist() == array.tolist() == tf.make_ndarray(proto).tolist()


def test_one_value_stands_for_all_and_none_for_zeros() -> None:
    proto = tf.make_tensor_proto(7, tf.int32, shape=(2, 2))
    assert read(proto.SerializeToString(), "int32").tolist() == [[7, 7], [7, 7]]
    proto.ClearField("int_val")
    assert read(proto.SerializeToString(), "int32").tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda proto: proto.tensor_shape.dim.add(size=1 << 40), "bytes"),
        (lambda proto: proto.tensor_shape.dim.add(size=-1), "unknown size"),
        (lambda proto: proto.float_val.extend([1, 2]), "values for the shape"),
        (lambda proto: setattr(proto, "dtype", 99), "no element type 99"),
        (lambda proto: setattr(proto, "dtype", 9), "is int64, the input float32"),
    ],
)
def test_what_cannot_be_read_is_refused(change: object, words: str) -> None:
    proto = tf.make_tensor_proto(1.0)
    change(proto)  # type: ignore[operator]
    with pytest.raises(BackendError, match=words):
        read(proto.SerializeToString(), "float32")


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read(b"\x08\x01" + data, "float32")
    except BackendError as error:
        assert "the default of 'x'" in error.message  # noqa: PT017 - either is right

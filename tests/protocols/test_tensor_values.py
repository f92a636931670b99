"""TensorProtos and examples of recorded requests, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import Code, ServingError
from appliance.protocols import protos
from appliance.protocols.example_inputs import examples_of
from appliance.protocols.tensor_values import array_of
from tests.support.official_protos import samples
from tests.support.tensor_messages import decode_tensor, encode_tensor


def shaped(*dims: int, **fields: Any) -> Any:
    message = protos.TensorProto(**fields)
    for size in dims:
        message.tensor_shape.dim.add(size=size)
    return message


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("name", samples())
def test_every_type_is_read_in_either_form(name: str, content: bool) -> None:
    array = samples()[name]
    read = array_of(protos.TensorProto.FromString(encode_tensor(array, content)))
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes() if name != "string" else read.tolist() == array.tolist()


@given(
    st.sampled_from(["float_val", "int_val", "string_val", "bool_val", "half_val", "scomplex_val"]),
    st.sampled_from([1, 3, 4, 7, 8, 10, 19, 14, 21, 0]),
    st.integers(0, 4),
    st.lists(st.integers(-1, 3), max_size=3),
    st.none() | st.binary(max_size=12),
)
def test_what_a_client_may_send_is_read_alike(
    field: str, number: int, count: int, dims: list[int], content: bytes | None
) -> None:
    value: Any = b"ab" if field == "string_val" else 1
    message = shaped(*dims, dtype=number, **{field: [value] * count})
    if content is not None:
        message.tensor_content = content
    try:
        expected = decode_tensor(message.SerializeToString())
    except ServingError:
        with pytest.raises(ServingError):
            array_of(message)
    else:
        read = array_of(message)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
        assert read.shape == expected.shape


def test_strings_in_tensor_content() -> None:
    message = shaped(3, dtype=7, tensor_content=b"\x01\x00\x82\x01" + b"a" + b"x" * 130)
    assert array_of(message).tolist() == [b"a", b"", b"x" * 130]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (shaped(2, dtype=21), "dtype DT_VARIANT is not supported"),
        (shaped(2, dtype=99), "dtype 99 is not supported"),
        (shaped(-1, dtype=1), r"\[-1\] is not the shape of an array"),
        (shaped(1 << 40, dtype=1, float_val=[1]), "takes more than 67,108,864 bytes"),
        (shaped(0, 1 << 62, 4, dtype=1), "takes more than"),
        (shaped(1 << 22, dtype=7, string_val=[b"x" * 1000]), "a string of 1,000 bytes, repeated"),
        (shaped(2, dtype=1, tensor_content=b"123"), "tensor_content has 3 bytes"),
        (shaped(1, dtype=10, tensor_content=b"\x02"), "neither 0 nor 1"),
        (shaped(2, dtype=7, tensor_content=b"\x01"), "no lengths for 2 strings"),
        (shaped(1, dtype=7, tensor_content=b"\x05ab"), "does not match its lengths"),
        (shaped(*[1] * 65, dtype=1), "is not the shape of an array"),
    ],
)
def test_what_is_no_array_is_refused(message: Any, words: str) -> None:
    with pytest.raises(ServingError, match=words) as caught:
        array_of(message)
    assert caught.value.code == Code.INVALID_ARGUMENT


# -- examples


def example(**features: float) -> bytes:
    message = protos.Example()
    for name, value in features.items():
        message.features.feature[name].float_list.value.append(value)
    return bytes(message.SerializeToString())


def test_examples_are_taken_as_they_are() -> None:
    message = protos.SerializedInput()
    message.example_list.examples.extend([example(x=1), b"", example(y=2)])
    assert examples_of(message).array().tolist() == [example(x=1), b"", example(y=2)]


def test_a_context_is_in_every_example_and_yields_to_it() -> None:
    message = protos.SerializedInput()
    message.example_list_with_context.context.append(example(x=1, c=5))
    message.example_list_with_context.examples.extend([example(x=2), b""])
    read = [protos.Example.FromString(data).features.feature for data in examples_of(message).array()]
    assert [features["c"].float_list.value[:] for features in read] == [[5], [5]]
    assert [features["x"].float_list.value[:] for features in read] == [[2], [1]]


@pytest.mark.parametrize("kind", ["", "example_list", "example_list_with_context"])
def test_no_examples_are_refused(kind: str) -> None:
    message = protos.SerializedInput()
    if kind:
        getattr(message, kind).SetInParent()
    with pytest.raises(ServingError, match=r"^Input is empty\."):
        examples_of(message).check(1 << 20)


def test_a_context_that_multiplies_the_request_is_refused() -> None:
    message = protos.SerializedInput()
    message.example_list_with_context.context.append(bytes(1 << 20))
    message.example_list_with_context.examples.extend([b""] * 100)
    with pytest.raises(ServingError, match="repeated in 100 examples takes 104,857,600 bytes"):
        examples_of(message).check(64 << 20)

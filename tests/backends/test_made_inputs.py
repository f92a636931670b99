"""Inputs made from signatures, and what a model's refusals teach about the examples that it parses."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocols import protos
from appliance.worker.learned_examples import LearnedExamples
from backends.contract import Signature, TensorSpec
from backends.crc32c import crc32c, masked_crc32c
from backends.dtypes import DTYPES, of_array
from backends.made_inputs import MAX_MADE_BYTES, TooLargeError, made_inputs

ALL = Signature({element.name: TensorSpec(element.name, (-1, 200)) for element in DTYPES}, {})

specs = st.builds(
    TensorSpec,
    st.sampled_from([element.name for element in DTYPES]),
    st.none() | st.lists(st.integers(-1, 4), max_size=4).map(tuple),
)


@given(st.dictionaries(st.text(max_size=5), specs, max_size=4), st.integers(0, 5), st.integers(0, 9), st.integers(1, 6))
def test_arrays_have_the_names_types_and_shapes_of_the_signature(
    inputs: dict[str, TensorSpec], batch: int, seed: int, unknown: int
) -> None:
    arrays = made_inputs(Signature(inputs, {}), batch, seed, unknown)
    assert arrays.keys() == inputs.keys()
    for name, spec in inputs.items():
        assert of_array(arrays[name]).name == spec.dtype
        if spec.shape is None:
            assert arrays[name].shape == (batch,)
        else:
            assert arrays[name].ndim == len(spec.shape)
            for position, (size, said) in enumerate(zip(arrays[name].shape, spec.shape, strict=True)):
                assert size == (said if said >= 0 else batch if position == 0 else unknown)
        assert all(type(element) is bytes for element in arrays[name].reshape(-1)) or spec.dtype != "string"


def test_the_same_seed_gives_the_same_values_and_another_seed_others() -> None:
    one, same, other = (made_inputs(ALL, 3, seed, strings=(b"a", b"b")) for seed in (5, 5, 6))
    for name in ALL.inputs:
        assert np.array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])


def test_an_input_does_not_hang_on_which_others_there_are() -> None:
    alone = Signature({"int32": ALL.inputs["int32"]}, {})
    assert np.array_equal(made_inputs(alone, 2, 1)["int32"], made_inputs(ALL, 2, 1)["int32"])


def test_values_are_in_the_documented_ranges() -> None:
    for name, array in made_inputs(ALL, 20, 1, id_range=7).items():
        kind = array.dtype.kind
        if name == "uint8":
            assert array.max() > 200
        elif kind in "iu":
            assert set(np.unique(array).tolist()) == set(range(7))
        elif kind == "b":
            assert array.any()
            assert not array.all()
        elif name == "string":
            assert set(array.reshape(-1)) == {b""}
        else:
            parts = [array.real, array.imag] if kind == "c" else [array.astype(np.float64)]
            assert all(part.min() >= 0 and 0.9 < part.max() <= 1 for part in parts)


def test_floats_fill_the_range_that_is_asked_for() -> None:
    arrays = made_inputs(ALL, 20, 1, float_range=10.0)
    assert 9 < arrays["float32"].max() <= 10
    assert 9 < arrays["complex64"].imag.max() <= 10
    assert arrays["float64"].min() >= 0


def test_signed_floats_are_of_the_standard_normal_distribution() -> None:
    for name, array in made_inputs(ALL, 100, 1, signed=True).items():
        if name in ("float16", "bfloat16", "float32", "float64"):
            assert abs(array.astype(np.float64).mean()) < 0.05
            assert abs(array.astype(np.float64).std() - 1) < 0.05


def test_a_small_type_bounds_the_ids() -> None:
    arrays = made_inputs(Signature({"x": TensorSpec("int8", (-1,))}, {}), 5000, 1, id_range=1000)
    assert arrays["x"].min() == 0
    assert arrays["x"].max() == 127


@pytest.mark.parametrize("dtype", ["float32", "string"])
def test_too_large_inputs_are_refused_before_they_are_made(dtype: str) -> None:
    signature = Signature({"x": TensorSpec(dtype, (-1, 1 << 40))}, {})
    with pytest.raises(TooLargeError, match=rf"batch size 1, more than {MAX_MADE_BYTES:,}"):
        made_inputs(signature, 1, 0)


# -- learned examples


def test_the_features_that_are_required_come_to_light_one_refusal_at_a_time() -> None:
    learned = LearnedExamples()
    assert not learned
    assert learned.learn("Name: <unknown>, Feature: x (data type: float) is required but could not be found.")
    assert learned.learn("Name: <unknown>, Feature: my id (data type: int64) is required but could not be found.")
    assert learned.learn("Feature: word (data type: string) is required but could not be found.\n\t [[{{node P}}]]")
    assert learned.learn(
        "Name: a, Key: x, Index: 0.  Number of float values != expected.  Values size: 1 but output shape: [2,3]"
    )
    features = protos.Example.FromString(learned.example(1)).features.feature
    assert len(features["x"].float_list.value) == 6
    assert all(0 <= value < 1 for value in features["x"].float_list.value)
    assert len(features["my id"].int64_list.value) == 1
    assert len(features["word"].bytes_list.value) == 1
    assert learned.example(1) != learned.example(2)
    assert learned.example(1) == learned.example(1)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "x must not be negative",
        "Feature: x (data type: float) is required but could not be found.",  # known already
        "Key: x, Index: 0.  Number of float values != expected.  Values size: 1 but output shape: [1]",  # as it is
        "Key: z, Index: 0.  Number of float values != expected.  Values size: 1 but output shape: [4]",
        "Key: x, Index: 0.  Number of float values != expected.  Values size: 1 but output shape: [9999999999]",
        "Key: x, Index: 0.  Data types don't match. Data type: int64 but expected type: float",
    ],
)
def test_what_teaches_nothing_ends_the_lesson(message: str) -> None:
    learned = LearnedExamples()
    learned.learn("Feature: x (data type: float) is required but could not be found.")
    assert not learned.learn(message)


# -- the checksum of records


def bitwise_crc32c(data: bytes) -> int:
    """RFC 3720's checksum by its definition: the remainder of a division of polynomials."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_of_the_rfc(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize("size", [0, 1, 3, 4, 2047, 2048, 2049, 2050, 4096, 5000, 100_003])
def test_long_data_has_the_checksum_of_its_definition(size: int) -> None:
    data = np.random.Generator(np.random.PCG64(size)).bytes(size)
    assert crc32c(data) == bitwise_crc32c(data)


def test_chunks_join() -> None:
    data = np.random.Generator(np.random.PCG64(0)).bytes((4 << 20) + 5)
    head, tail = data[: 4 << 20], data[4 << 20 :]
    # A register goes on where it stopped: the checksum of the whole from that of its head.
    register = crc32c(head) ^ 0xFFFFFFFF
    for byte in tail:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    assert crc32c(data) == register ^ 0xFFFFFFFF


def test_the_mask_is_that_of_record_files() -> None:
    # TFRecordWriter's file of the one record 0123456789: length, checksum, data, checksum.
    file = bytes.fromhex("0a00000000000000aea3bf3a30313233343536373839f03abfaf")
    assert struct.pack("<I", masked_crc32c(file[:8])) == file[8:12]
    assert struct.pack("<I", masked_crc32c(file[12:22])) == file[22:]

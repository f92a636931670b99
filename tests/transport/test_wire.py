"""Frames and tables: what goes in comes out, and what is broken is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.transport.wire import (
    ALIGNMENT,
    FLAG_SHARED,
    HEADER,
    MAX_META_BYTES,
    Buffer,
    Decoder,
    Frame,
    Kind,
    WireError,
    header,
    inline,
    pack_arrays,
    parse_predict_meta,
    predict_meta,
    unpack_arrays,
)
from backends.dtypes import DTYPES, STRING, DType

LIMIT = 64 * 1024 * 1024


def feed(decoder: Decoder, data: bytes, step: int | None = None) -> list[Frame]:
    """Gives `data` to `decoder` as a socket would: at most `step` bytes, and what its target holds, at a time."""
    frames: list[Frame] = []
    position = 0
    while position < len(data):
        target = decoder.target()
        assert len(target), "no room to receive into"
        count = min(len(target), len(data) - position, step or len(data))
        target[:count] = data[position : position + count]
        frames += decoder.received(count)
        position += count
    return frames


def frame(meta: bytes, payload: bytes, request_id: int = 7, deadline_ns: int = 9) -> bytes:
    return header(Kind.PREDICT, len(meta), len(payload), request_id, deadline_ns) + meta + payload


def said(frames: list[Frame]) -> list[tuple[int, int, int, int, bytes, bytes]]:
    return [(f.kind, f.flags, f.request_id, f.deadline_ns, f.meta, bytes(f.payload or b"")) for f in frames]


def together(arrays: dict[str, np.ndarray]) -> tuple[bytes, bytes]:
    packed = pack_arrays(arrays.items())
    payload = b"".join(bytes(buffer) for buffer in inline(packed))
    assert len(payload) == packed.payload_bytes
    return packed.table, payload


def round_trip(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return unpack_arrays(*together(arrays))


def assert_equal(array: np.ndarray, expected: np.ndarray) -> None:
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    if array.dtype == object:
        assert array.reshape(-1).tolist() == expected.reshape(-1).tolist()
    else:
        assert array.tobytes() == expected.tobytes()


# -- frames -----------------------------------------------------------------------------------------------------


def test_a_frame_may_be_split_at_every_byte() -> None:
    data = frame(b"meta", b"payload") + frame(b"", b"") + frame(b"m", b"p" * 100)
    expected = said(feed(Decoder(LIMIT), data))
    assert [f[4:] for f in expected] == [(b"meta", b"payload"), (b"", b""), (b"m", b"p" * 100)]
    for cut in range(1, len(data)):
        decoder = Decoder(LIMIT)
        assert said(feed(decoder, data[:cut]) + feed(decoder, data[cut:])) == expected
    assert said(feed(Decoder(LIMIT), data, step=1)) == expected


def test_many_frames_may_come_in_one_piece() -> None:
    data = b"".join(frame(b"%d" % n, b"x" * n, request_id=n) for n in range(500))
    frames = feed(Decoder(LIMIT), data)
    assert [(f.request_id, f.meta, f.payload) for f in frames] == [(n, b"%d" % n, b"x" * n) for n in range(500)]


@pytest.mark.parametrize("size", [16 * 1024, 16 * 1024 + 1, 256 * 1024 - HEADER.size, 256 * 1024, 3_000_000])
@pytest.mark.parametrize("step", [None, 1400, 65536])
def test_a_large_payload_arrives_whole_between_small_ones(size: int, step: int | None) -> None:
    payload = np.random.default_rng(size).bytes(size)
    data = frame(b"a", b"1") + frame(b"b", payload) + frame(b"c", b"2")
    frames = feed(Decoder(LIMIT), data, step)
    assert [(f.meta, bytes(f.payload or b"")) for f in frames] == [(b"a", b"1"), (b"b", payload), (b"c", b"2")]
    assert frames[1].payload_bytes == size


@pytest.mark.parametrize("meta_bytes", [200_000, 262_144 - HEADER.size, 1_000_000, MAX_META_BYTES])
def test_a_large_meta_arrives_whole(meta_bytes: int) -> None:
    meta = b"m" * meta_bytes
    frames = feed(Decoder(LIMIT), frame(meta, b"payload") + frame(b"", b"next"), step=100_000)
    assert [(f.meta == meta, f.payload) for f in frames] == [(True, b"payload"), (False, b"next")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=40), st.integers(0, 40_000) | st.sampled_from([262_144, 500_000])), max_size=8
    ),
    st.integers(1, 300_000),
)
def test_any_frames_in_any_pieces_come_out_as_they_went_in(parts: list[tuple[bytes, int]], step: int) -> None:
    whole = [(meta, bytes([index]) * size) for index, (meta, size) in enumerate(parts)]
    frames = feed(Decoder(LIMIT), b"".join(frame(meta, payload) for meta, payload in whole), max(step, 100))
    assert [(f.meta, bytes(f.payload or b"")) for f in frames] == whole


@pytest.mark.parametrize("size", [100_001, 262_144, 3_000_000])
@pytest.mark.parametrize("step", [None, 1400, 65536])
def test_a_payload_that_is_too_large_to_be_kept_is_dropped_between_others(size: int, step: int | None) -> None:
    kept = b"k" * 100_000
    data = frame(b"a", kept) + frame(b"b", bytes(size)) + frame(b"c", kept)
    frames = feed(Decoder(LIMIT, max_kept_bytes=100_000), data, step)
    assert [(f.meta, f.payload_bytes) for f in frames] == [(b"a", 100_000), (b"b", size), (b"c", 100_000)]
    assert [bytes(f.payload or b"") for f in frames[::2]] == [kept, kept]
    if size >= 262_144:  # a smaller one fits the buffer that is there anyway
        assert frames[1].payload == b""


def test_a_frame_whose_payload_is_in_shared_memory_has_none_in_the_stream() -> None:
    head = header(Kind.RESULT, 4, 50_000_000, 3, flags=FLAG_SHARED)
    (first, second) = feed(Decoder(LIMIT), head + b"meta" + frame(b"next", b""))
    assert (first.payload, first.payload_bytes, first.meta) == (None, 50_000_000, b"meta")
    assert second.meta == b"next"


def test_the_end_of_a_stream_inside_a_frame_gives_no_frame() -> None:
    assert feed(Decoder(LIMIT), frame(b"meta", b"payload")[:-1]) == []
    assert feed(Decoder(LIMIT), frame(b"meta", b"x" * 100_000)[:-1]) == []


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="HTTP"),
        pytest.param(bytes(HEADER.size), id="zeros"),
        pytest.param(b"\xff" * HEADER.size, id="ones"),
        pytest.param(header(Kind.PREDICT, MAX_META_BYTES + 1, 0), id="too much meta"),
        pytest.param(header(Kind.PREDICT, 0, LIMIT + 1), id="too much payload"),
        pytest.param(header(Kind.PREDICT, 0, LIMIT + 1, flags=FLAG_SHARED), id="too much shared payload"),
        pytest.param(header(Kind.PREDICT, 0, 2**64 - 1), id="an absurd payload"),
        pytest.param(frame(b"good", b"frame") + b"x" * HEADER.size, id="garbage behind a frame"),
    ],
)
def test_what_is_no_frame_is_refused(garbage: bytes) -> None:
    with pytest.raises(WireError, match="not a frame"):
        feed(Decoder(LIMIT), garbage)


# -- arrays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 3, 4), (1,) * 32, (90, 100)], ids=str)
def test_an_array_of_every_element_type_and_shape_round_trips(dtype: DType, shape: tuple[int, ...]) -> None:
    element = dtype.numpy
    count = int(np.prod(shape))
    if dtype is STRING:
        values = np.empty(count, object)
        values[:] = [b"\x00\xff" * (index % 3) for index in range(count)]
    else:
        values = np.random.default_rng(1).integers(0, 2, count * element.itemsize, np.uint8).view(element)
    array = values.reshape(shape)
    assert_equal(round_trip({"x": array})["x"], array)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(40_000, dtype="f4").reshape(200, 200).T, id="transposed"),
        pytest.param(np.arange(40_000, dtype="f4")[::2], id="strided"),
        pytest.param(np.arange(40_000, dtype="i8")[::-1], id="reversed"),
        pytest.param(np.broadcast_to(np.float32(3), (100, 100)), id="broadcast"),
        pytest.param(np.asfortranarray(np.arange(30_000, dtype="f8").reshape(100, 300)), id="Fortran order"),
        pytest.param(np.arange(6, dtype="f4").reshape(2, 3).T, id="small and transposed"),
        pytest.param(np.array([[b"a", b"bc"], [b"", b"\x00"]], object).T, id="strings, transposed"),
    ],
)
def test_an_array_that_is_not_contiguous_round_trips(array: np.ndarray) -> None:
    assert_equal(round_trip({"x": array})["x"], array)


def test_names_and_their_order_are_kept() -> None:
    arrays = {name: np.float32(index).reshape(()) for index, name in enumerate(["ü", "", "b:0", "a" * 1000, "x/y"])}
    assert list(round_trip(arrays)) == list(arrays)


def test_no_arrays_are_an_empty_table_without_a_payload() -> None:
    packed = pack_arrays([])
    assert (packed.payload_bytes, inline(packed)) == (0, [])
    assert unpack_arrays(packed.table, b"") == {}


@pytest.mark.parametrize("sizes", [(1, 1), (63, 64, 65), (100_000, 3, 0, 5), (0, 0), (0, 7)], ids=str)
def test_each_part_of_a_payload_begins_at_a_multiple_of_64_bytes(sizes: tuple[int, ...]) -> None:
    arrays = {str(index): np.full(size, index + 1, np.uint8) for index, size in enumerate(sizes)}
    packed = pack_arrays(arrays.items())
    assert all(offset % ALIGNMENT == 0 for offset, _ in packed.chunks)
    table, payload = together(arrays)
    for (offset, data), array in zip(packed.chunks, arrays.values(), strict=True):
        assert payload[offset : offset + len(data)] == array.tobytes()
    base = np.frombuffer(payload, np.uint8).ctypes.data if payload else 0
    for array in unpack_arrays(table, payload).values():
        assert not array.size or (array.ctypes.data - base) % ALIGNMENT == 0


def test_a_numeric_array_is_a_view_of_its_payload_and_copies_nothing() -> None:
    table, payload = together({"x": np.arange(1000, dtype="f4")})
    array = unpack_arrays(table, payload)["x"]
    assert np.shares_memory(array, np.frombuffer(payload, np.uint8))
    assert not array.flags.writeable


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_tables_and_payloads_may_be_any_buffer(buffer: type) -> None:
    array = np.array([b"a", b"bcd"], object)
    table, payload = together({"n": np.arange(3), "s": array})
    arrays = unpack_arrays(buffer(table), buffer(payload))
    assert_equal(arrays["s"], array)
    assert arrays["n"].tolist() == [0, 1, 2]


# -- broken tables ----------------------------------------------------------------------------------------------


def entry(number: int, shape: tuple[int, ...], nbytes: int, rank: int | None = None) -> bytes:
    rank = len(shape) if rank is None else rank
    return struct.pack(f"<HH1sBB{len(shape)}qQ", 1, 1, b"x", number, rank, *shape, nbytes)


@pytest.mark.parametrize(
    ("table", "payload"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(struct.pack("<H", 1), b"", id="fewer entries than promised"),
        pytest.param(entry(1, (2,), 8), b"1234", id="beyond the payload"),
        pytest.param(entry(1, (2,), 2**64 - 1), b"12345678", id="an absurd size"),
        pytest.param(entry(1, (3,), 8), b"12345678", id="a shape of other size"),
        pytest.param(entry(1, (-1,), 8), b"12345678", id="a negative dimension"),
        pytest.param(entry(1, (-2, -1), 8), b"12345678", id="negative dimensions whose product fits"),
        pytest.param(entry(1, (2**62, 4), 0), b"", id="an overflowing shape"),
        pytest.param(entry(1, (), 0), b"", id="a scalar without data"),
        pytest.param(entry(1, (1,), 3), b"123", id="a broken element"),
        pytest.param(entry(99, (1,), 4), b"1234", id="an unknown element type"),
        pytest.param(entry(1, (1,), 4, rank=200), b"1234", id="more dimensions than there are"),
        pytest.param(entry(1, (1,) * 100, 4), b"1234", id="more dimensions than numpy has"),
        pytest.param(entry(STRING.number, (2,), 4), b"\0\0\0\0", id="strings without lengths"),
        pytest.param(entry(STRING.number, (1,), 5), b"\2\0\0\0a", id="a string beyond its data"),
        pytest.param(entry(STRING.number, (1,), 6), b"\1\0\0\0ab", id="data beyond the strings"),
        pytest.param(entry(STRING.number, (-1, -1), 5), b"\1\0\0\0a", id="strings with negative dimensions"),
        pytest.param(entry(1, (1,), 4).replace(b"x", b"\xff"), b"1234", id="a name that is not UTF-8"),
    ],
)
def test_a_table_that_does_not_describe_its_payload_is_refused(table: bytes, payload: bytes) -> None:
    with pytest.raises(WireError):
        unpack_arrays(table, payload)


GOOD = together(
    {"x": np.arange(6, dtype="f4").reshape(2, 3), "s": np.array([b"ab", b"c"], object), "e": np.empty((0, 2), "i8")}
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD[0]) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 200))
def test_a_corrupted_table_is_refused_or_read_and_nothing_else(changes: list[tuple[int, int]], length: int) -> None:
    table = bytearray(GOOD[0])
    for position, value in changes:
        table[position] = value
    check(table[:length], GOOD[1])


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_as_a_table_are_refused_or_read_and_nothing_else(table: bytes, payload: bytes) -> None:
    check(table, payload)
    check(b"\1\0\1\0x\7" + table, payload)


def check(table: Buffer, payload: bytes) -> None:
    try:
        arrays = unpack_arrays(table, payload)
    except WireError:
        return
    assert sum(array.nbytes for array in arrays.values() if array.dtype != object) <= len(payload)


# -- the meta of a request --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [[], ["y"], ["y", "", "ü:0"]], ids=str)
@pytest.mark.parametrize("signature", ["serving_default", "", "ü"])
def test_the_meta_of_a_request_round_trips(signature: str, outputs: list[str]) -> None:
    table = together({"x": np.arange(3)})[0]
    assert parse_predict_meta(predict_meta(signature, outputs, table)) == (signature, outputs, table)


@pytest.mark.parametrize("meta", [b"", b"\1\0", b"\2\0\0\0\xff\xfe"])
def test_a_meta_that_cannot_be_read_is_refused(meta: bytes) -> None:
    with pytest.raises(WireError):
        parse_predict_meta(meta)

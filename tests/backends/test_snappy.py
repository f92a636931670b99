"""Snappy's raw format: what encoders write is read, and what nobody wrote is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.snappy import decoded
from tests.support.tables import copies, literals, varint

TEXTS = st.one_of(st.binary(max_size=2000), st.text("ab", max_size=2000).map(str.encode))


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_what_was_encoded_is_read(data: bytes) -> None:
    assert decoded(literals(data), len(data)) == data
    assert decoded(copies(data), len(data)) == data


@pytest.mark.parametrize("extra", [1, 2, 3, 4])
def test_literal_may_have_its_length_in_up_to_four_bytes(extra: int) -> None:
    data = bytes(range(200))
    literal = bytes([59 + extra << 2]) + (len(data) - 1).to_bytes(extra, "little") + data
    assert decoded(varint(len(data)) + literal, 200) == data


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 100))
def test_anything_else_is_refused_or_stays_within_its_bound(data: bytes, most: int) -> None:
    with contextlib.suppress(ValueError):
        assert len(decoded(data, most)) <= most


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "does not begin with its length"),
        (b"\xff\xff\xff\xff\xff", "does not begin with its length"),
        (varint(101), "holds 101 bytes, over 100"),
        (varint(2) + b"\x04a", "a literal ends outside"),
        (varint(5) + b"\0a" + b"\x01\0", "a copy begins outside"),
        (varint(5) + b"\0a" + b"\x01\2", "a copy begins outside"),
        (varint(5) + b"\0a" + b"\x0e\1", "a copy begins outside"),
        (varint(2) + b"\0a" + b"\x01\1", "more than it says"),
        (varint(9) + b"\0a" + b"\x01\1", "less than it says"),
    ],
)
def test_damage_is_named(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decoded(data, 100)

"""Which answers are compressed."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.rest.compression import MIN_BYTES, gzipped, is_gzip_wanted


@pytest.mark.parametrize(
    "header",
    [
        "gzip",
        "GZip",
        "x-gzip",
        "gzip, deflate",
        "deflate, br , gzip",
        "gzip;q=0.5",
        "gzip ; Q=1.000",
        "br;q=1.0, gzip;q=0.8, *;q=0.1",
        "*",
        "br, *;q=0.1",
        "gzip;q=0.5, identity;q=0.5",
        "identity;q=0, gzip",
        "*;q=0, gzip;q=0.001",
        "nonsense;;, gzip",
    ],
)
def test_gzip_is_sent_to_clients_that_like_it_no_less_than_plain_bytes(header: str) -> None:
    assert is_gzip_wanted(header, MIN_BYTES)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "identity",
        "deflate, br",
        "gzip;q=0",
        "gzip;q=0.0, *",
        "*;q=0",
        "identity, gzip;q=0.5",
        "identity;q=0.8, *;q=0.5",
        "gzip;q=2",
        "gzip;level=1",
        "notgzip",
    ],
)
def test_plain_bytes_are_sent_to_the_others(header: str | None) -> None:
    assert not is_gzip_wanted(header, 10 * MIN_BYTES)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("gzip", False),
        ("gzip;q=0.5", False),
        ("gzip;q=1.0, identity;q=0.1", False),
        ("identity;q=0, gzip", True),
        ("identity;q=0.000, gzip;q=0.1", True),
        ("gzip, *;q=0", True),
        ("gzip, *;q=0, identity", False),
        ("identity;q=0", False),
    ],
)
def test_a_small_answer_is_compressed_only_for_a_client_that_refuses_plain_bytes(header: str, wanted: bool) -> None:
    assert is_gzip_wanted(header, MIN_BYTES - 1) is wanted


@given(st.text(max_size=50))
def test_no_header_is_too_strange(header: str) -> None:
    assert is_gzip_wanted(header, MIN_BYTES) in (True, False)


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_what_is_compressed_comes_back_and_is_always_the_same(size: int) -> None:
    data = bytes(i * i % 251 for i in range(size))
    first, second = asyncio.run(gzipped(data)), asyncio.run(gzipped(data))
    assert gzip.decompress(first) == data
    assert first == second

"""What workers print: what of it is logged, and what is heard."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from appliance.supervisor.stderr import Allowance, LastWords, relay_stderr


def test_a_burst_is_taken_and_then_so_many_lines_a_second() -> None:
    allowance = Allowance(0.0)
    assert [allowance.takes(10, 0.0) for _ in range(502)] == [True] * 500 + [False] * 2
    assert allowance.dropped == 2
    assert allowance.resumed(1.0) == 0
    assert not allowance.takes(10, 5.0)
    assert allowance.resumed(10.0) == 3
    assert [allowance.takes(10, 10.0) for _ in range(101)] == [True] * 100 + [False]


def test_bytes_are_bounded_like_lines() -> None:
    allowance = Allowance(0.0)
    assert [allowance.takes(100_000, 0.0) for _ in range(3)] == [True, True, False]


def test_a_clock_that_stands_gives_nothing() -> None:
    allowance = Allowance(5.0)
    taken = [allowance.takes(1, 5.0) for _ in range(600)]
    assert sum(taken) == 500
    assert allowance.resumed(5.0) == 0


def relayed(printed: bytes, chunk: int = 65536) -> tuple[LastWords, list[int]]:
    """Relay what a thread writes to a pipe, piece by piece."""
    words, dropped = LastWords(), list[int]()
    read_end, write_end = os.pipe()

    def write() -> None:
        with open(write_end, "wb") as file:
            for at in range(0, len(printed), chunk):
                file.write(printed[at : at + chunk])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    asyncio.run(relay_stderr("m/1", read_end, words.hear, count_dropped=dropped.append))
    writer.join()
    return words, dropped


@pytest.mark.parametrize("chunk", [1, 7, 65536])
def test_lines_are_logged_whole_however_they_come(caplog: pytest.LogCaptureFixture, chunk: int) -> None:
    words, dropped = relayed("one\n\nI0000 chatter\ntwö\nlast".encode(), chunk)
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert logged == ["m/1 says: one", "m/1 says: twö", "m/1 says: last"]
    assert (words.text, dropped) == ("last", [])


def test_a_flood_is_read_counted_and_not_logged_and_its_last_words_are_heard(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    flood = b"".join(b"line %d\n" % number for number in range(300_000))
    words, dropped = relayed(flood + b"F0000 x.cc:1] Check failed: no\n@ 0x1\n")
    assert len(caplog.records) < 1000
    assert words.text == "F0000 x.cc:1] Check failed: no"
    says = [record for record in caplog.records if "says:" in record.getMessage()]
    assert len(says) + sum(dropped) == 300_002
    told = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert told[0] == "m/1 prints more than its log may take: the next lines are dropped"
    assert f"m/1: {sum(dropped)} lines that it printed were dropped" in told


def test_a_line_without_an_end_takes_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    relayed(b"x" * 10_000_000)
    assert sum(len(record.getMessage()) for record in caplog.records) < 5000

"""What a worker says is bounded: its process may do what its model wants, and every front gets it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from appliance.config.model_options import ModelOptions
from appliance.core.servable import ServableId
from appliance.lifecycle.actions import StartWorker
from appliance.lifecycle.replicas import Loaded
from appliance.supervisor.worker_process import WorkerProcess
from appliance.supervisor.worker_reports import (
    MAX_LINE_BYTES,
    UNREADABLE,
    Failure,
    OddReport,
    Progress,
    loaded_of,
    next_report,
    odd_reports,
)
from backends.contract import Code, Signature, TensorSpec

SPEC = TensorSpec("float32", (-1,), "x:0")
SIGNATURE = msgspec.to_builtins(Signature({"x": SPEC}, {"y": SPEC}))


def told(**details: Any) -> Loaded | Failure:
    report = {
        "event": "ready",
        "signatures": {"s": SIGNATURE},
        "unsupported": {},
        "warmup": {"source": "none", "message": ""},
        "warmup_trials": {},
        "trials": None,
        "remarks": [],
    }
    return loaded_of({**report, **details}, ServableId("m", 1), "/socket", ("seccomp",))


def heard(*lines: bytes) -> tuple[dict[str, Any] | None, Progress]:
    """The report that a worker's lines end with, and what it said before."""

    async def read() -> tuple[dict[str, Any] | None, Progress]:
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        for line in lines:
            reader.feed_data(line + b"\n")
        reader.feed_eof()
        progress = Progress()
        return await next_report(reader, ServableId("m", 1), progress), progress

    return asyncio.run(read())


def test_a_version_with_too_many_signatures_has_failed_and_the_reason_says_what_to_do() -> None:
    for too_many in (
        {"signatures": {f"signature_{n}": SIGNATURE for n in range(150_000)}},
        {"unsupported": {f"signature_{n}": "it is sparse" for n in range(150_000)}},
    ):
        found = told(**too_many)
        assert isinstance(found, Failure)
        assert found.code is Code.INVALID_ARGUMENT
        assert "150,00" in found.reason
        assert "more than 1,048,576; export it with fewer signatures" in found.reason
    assert isinstance(told(signatures={f"signature_{n}": SIGNATURE for n in range(5_000)}), Loaded)


def test_reasons_and_remarks_that_go_to_every_front_are_cut() -> None:
    failed = told(event="failed", code=3, message="x" * 1_000_000)
    assert isinstance(failed, Failure)
    assert failed.reason == "x" * 10_000
    loaded = told(remarks=["x" * 1_000_000] * 1_000)
    assert isinstance(loaded, Loaded)
    assert loaded.remarks == ("x" * 10_000,) * 100


def test_what_fronts_do_not_expect_is_not_passed_on_to_them() -> None:
    """Each of them ends at what it cannot read, and would end again when it is started again."""
    for strange in (
        {"remarks": [["x"]]},
        {"remarks": None},
        {"unsupported": {"s": ["x"]}},
        {"trials": {"s": {"outcome": "answered", "message": ["x"]}}},
        {"signatures": {"s": {**SIGNATURE, "method_name": 3}}},
        {"signatures": {"s": {"inputs": {"x": ["float31", None]}, "outputs": {}}}},
        {"event": "failed", "message": ["x"]},
        {"event": "incomplete", "message": {"x": 1}},
    ):
        with pytest.raises(UNREADABLE):
            told(**strange)


def test_reasons_of_trials_are_cut_too() -> None:
    trials = {"s": {"outcome": "failed", "code": 13, "message": "x" * 1_000_000}}
    loaded = told(trials=trials, warmup_trials=trials)
    assert isinstance(loaded, Loaded)
    assert loaded.trials is not None
    assert len(loaded.trials["s"].message) == 10_000
    assert len(loaded.warmup_failure) < 10_100


def test_what_confines_a_worker_is_what_it_said_before_its_model_could_speak() -> None:
    _, progress = heard(
        b'{"event": "confined", "by": ["seccomp"], "missing": ["no Landlock"]}',
        b'{"event": "confined", "by": [["everything"]], "missing": []}',
        b'{"event": "confined", "by": ["everything"], "missing": []}',
    )
    assert (progress.confined.by, progress.confined.missing) == (("seccomp",), ("no Landlock",))


def test_a_worker_that_says_things_for_ever_before_it_serves_is_not_heard_on() -> None:
    line = b'{"event": "progress", "stage": "warming up", "attempt": ["%s", 1]}' % (b"s" * 1_000_000)
    with pytest.raises(ValueError, match="says more than 16,777,216 bytes"):
        heard(*[line] * 20)
    assert heard(line)[1].attempt == ("s" * 1_000_000, 1)
    with pytest.raises(UNREADABLE):
        heard(b'{"event": "progress", "stage": "warming up", "attempt": ["s", ["x"]]}')


def test_a_process_that_tries_odd_shapes_says_numbers_and_texts() -> None:
    async def read(data: bytes) -> list[OddReport]:
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        reader.feed_data(data)
        reader.feed_eof()
        return [report async for report in odd_reports(reader)]

    trying, skipped = asyncio.run(read(b'{"event": "trying", "index": 3}\n{"event": "skipped", "message": "late"}\n'))
    assert (trying.index, skipped.index, skipped.message) == (3, None, "late")
    for strange in (b'{"event": "skipped", "message": ["x"]}\n', b'{"event": "trying", "index": "x"}\n', b"[" * 10**6):
        with pytest.raises(UNREADABLE):
            asyncio.run(read(strange + b"\n"))


def test_a_worker_that_serves_says_what_it_is_asked_for_and_no_more() -> None:
    worker = WorkerProcess(StartWorker(1, ServableId("m", 1), "/m/1", frozenset()), ModelOptions(), None)
    with pytest.raises(ValueError, match="more than it was asked for"):
        worker.check_asked()

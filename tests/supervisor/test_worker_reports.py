"""What a worker says is bounded: its process may do what its model wants, and every front gets it."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.core.servable import ServableId
from appliance.lifecycle.replicas import Loaded
from appliance.supervisor.worker_reports import Failure, loaded_of
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
    return loaded_of({**report, **details}, ServableId("m", 1), "/socket")


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

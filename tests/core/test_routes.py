"""The routes as JSON, on their way from the supervisor to the fronts."""

from __future__ import annotations

import json

import msgspec

from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import PublicState
from backends.contract import Code, Signature, TensorSpec

SIGNATURE = Signature(
    {"x": TensorSpec("float32", (-1, 3), "x:0"), "any": TensorSpec("string", None)},
    {"y": TensorSpec("float32", (), "y:0", is_reference=True)},
    defaults={"any": b"\x00\xff"},
)


def test_all_that_routes_have_survives_json() -> None:
    available = VersionRoute(2, "available", PublicState.AVAILABLE, signatures={"s": SIGNATURE}, remarks=("slow",))
    failed = VersionRoute(
        2**63 - 1, "failed", PublicState.END, Code.INTERNAL, "it has no graph", unsupported={"t": "?"}
    )
    model = ModelRoute("m", (failed, available), {"stable": 2}, "/models/m")
    snapshot = Snapshot(7, True, {"m": model}, {"gone": (failed,)})
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(snapshot))), Snapshot) == snapshot


def test_a_path_that_is_no_utf8_survives_json() -> None:
    snapshot = Snapshot(1, False, {"m": ModelRoute("m", base_path="/models/\udcff", reason="/models/\udcff is empty")})
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(snapshot))), Snapshot) == snapshot

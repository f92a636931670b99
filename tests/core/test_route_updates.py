"""What changes from one snapshot to a later one: it suffices to make the later one, and costs what it changes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.route_updates import LostUpdateError, RouteReader, encoded, update
from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import PublicState
from backends.contract import Code, Signature, TensorSpec

X = TensorSpec("float32", (-1, 3), "x:0")
Y = TensorSpec("float32", (), "y:0", is_reference=True)
SIGNATURES = [
    {},
    {"s": Signature({"x": X}, {"y": Y}, defaults={"x": b"\x00\xff"})},
    {"s": Signature({"x": X}, {"y": Y}), "t": Signature({"text": TensorSpec("string", None)}, {"y": Y})},
]

versions = st.builds(
    VersionRoute,
    version=st.integers(1, 3),
    state=st.sampled_from(["available", "failed"]),
    public_state=st.sampled_from([PublicState.AVAILABLE, PublicState.END]),
    code=st.sampled_from([Code.OK, Code.INTERNAL]),
    reason=st.sampled_from(["", "/models/\udcff is empty"]),
    signatures=st.sampled_from(SIGNATURES),
    unsupported=st.sampled_from([{}, {"u": "it is sparse"}]),
)
some_versions = st.lists(versions, max_size=3, unique_by=lambda version: version.version).map(tuple)
models = st.dictionaries(
    st.sampled_from(["a", "b", "c\udcff"]), st.tuples(some_versions, st.sampled_from([{}, {"stable": 1}]))
).map(lambda found: {name: ModelRoute(name, routes, labels) for name, (routes, labels) in found.items()})
ended = st.dictionaries(st.sampled_from(["a", "gone"]), some_versions.filter(len))
snapshots = st.lists(st.tuples(st.booleans(), models, ended), min_size=1, max_size=5).map(
    lambda found: [Snapshot(serial, *content) for serial, content in enumerate(found, 1)]
)


def lines_of(old: Snapshot, new: Snapshot) -> list[dict[str, Any]]:
    return [json.loads(line) for chunk in encoded(update(old, new)) for line in chunk.splitlines()]


def heard(reader: RouteReader, lines: Iterable[dict[str, Any]]) -> list[bool]:
    return [reader.hear(line) for line in lines]


@given(snapshots)
def test_what_has_changed_makes_the_next_snapshot(found: list[Snapshot]) -> None:
    reader = RouteReader()
    for old, new in itertools.pairwise([Snapshot(), *found]):
        news = heard(reader, lines_of(old, new))
        assert news == [False] * (len(news) - 1) + [True], "the last line alone makes the snapshot count"
        assert reader.snapshot == new


def many(count: int) -> Snapshot:
    route = VersionRoute(1, "available", PublicState.AVAILABLE, socket_path="/run/w", signatures=SIGNATURES[2])
    return Snapshot(1, True, {f"m{n}": ModelRoute(f"m{n}", (route,)) for n in range(count)})


def bytes_of(old: Snapshot, new: Snapshot) -> int:
    return sum(map(len, encoded(update(old, new))))


def test_a_change_costs_what_it_changes_whatever_else_there_is() -> None:
    costs = []
    for count in (1, 1000):
        old = many(count)
        route = replace(old.models["m0"].versions[0], state="draining", public_state=PublicState.UNLOADING)
        new = Snapshot(2, True, {**old.models, "m0": ModelRoute("m0", (route,))})
        costs.append(bytes_of(old, new))
    assert costs[0] == costs[1] < 1000


def test_signatures_that_stay_the_same_are_not_sent_again() -> None:
    large = {f"s{n}": SIGNATURES[1]["s"] for n in range(1000)}
    route = VersionRoute(1, "available", PublicState.AVAILABLE, signatures=large, unsupported={"u" * 10_000: "?"})
    old = Snapshot(1, True, {"m": ModelRoute("m", (route,))})
    again = replace(route, remarks=("slow",), signatures=dict(large))
    beside = VersionRoute(2, "loading", PublicState.LOADING)
    new = Snapshot(2, True, {"m": ModelRoute("m", (beside, again))})
    assert bytes_of(Snapshot(), old) > 100_000
    assert bytes_of(old, new) < 2000
    reader = RouteReader()
    heard(reader, lines_of(Snapshot(), old))
    heard(reader, lines_of(old, new))
    assert reader.snapshot == new


def test_a_large_snapshot_comes_in_pieces() -> None:
    chunks = list(encoded(update(Snapshot(), many(5000))))
    assert len(chunks) > 10
    assert max(map(len, chunks)) < 1_000_000


def test_who_has_lost_an_update_says_so_and_the_whole_snapshot_mends_it() -> None:
    first, second = many(1), replace(many(2), serial=2)
    third = replace(many(3), serial=3)
    reader = RouteReader()
    heard(reader, lines_of(Snapshot(), first))
    with pytest.raises(LostUpdateError, match="for snapshot 2, not for 1"):
        heard(reader, lines_of(second, third))
    assert reader.snapshot == first, "what it has still counts"
    heard(reader, lines_of(Snapshot(), third))
    assert reader.snapshot == third

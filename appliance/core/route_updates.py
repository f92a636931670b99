"""How the routes travel from the supervisor to the fronts: as what has changed since an earlier snapshot. Pure.

An update is a line {"version": ...} for each version that has changed, then a line {"routes": ...}, with which the new
snapshot counts. A version whose signatures are the same comes without them. A front that starts has the empty snapshot:
all that there is has changed since. So a change costs what it changes, and no line is longer than one version takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from appliance.core.routes import ModelRoute, Snapshot, VersionRoute

__all__ = ["LostUpdateError", "RouteReader", "RouteUpdate", "encoded", "update"]

_CHUNK_BYTES = 65536


class LostUpdateError(Exception):
    """An update is not for the snapshot that is there: the whole snapshot is needed."""


@dataclass(frozen=True, slots=True)
class _VersionUpdate:
    """A version that is new or has changed; with `keeps_signatures` it has those that it had, and `route` has none."""

    model: str
    route: VersionRoute
    keeps_signatures: bool


@dataclass(frozen=True, slots=True)
class _ModelUpdate:
    """A model that is new or has changed, with the numbers of its versions."""

    name: str
    versions: tuple[int, ...]
    labels: Mapping[str, int]
    base_path: str
    reason: str


@dataclass(frozen=True, slots=True)
class _RoutesUpdate:
    """What else changes snapshot `since` into snapshot `serial`. Of `ended`, an empty entry is gone."""

    serial: int
    since: int
    ready: bool
    models: tuple[_ModelUpdate, ...]
    removed: tuple[str, ...]
    ended: Mapping[str, tuple[VersionRoute, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouteUpdate:
    """What changes one snapshot into a later one."""

    versions: tuple[_VersionUpdate, ...]
    routes: _RoutesUpdate


def update(old: Snapshot, new: Snapshot) -> RouteUpdate:
    """Return what changes `old`, which may be the empty snapshot, into `new`."""
    versions: list[_VersionUpdate] = []
    models: list[_ModelUpdate] = []
    for name, model in new.models.items():
        before = old.models.get(name)
        if before == model:
            continue
        known = {} if before is None else {version.version: version for version in before.versions}
        changed = [route for route in model.versions if route != known.get(route.version)]
        versions += [_version_update(name, known.get(route.version), route) for route in changed]
        numbers = tuple(route.version for route in model.versions)
        models.append(_ModelUpdate(name, numbers, model.labels, model.base_path, model.reason))
    ended = {name: routes for name, routes in new.ended.items() if routes != old.ended.get(name)}
    ended |= dict.fromkeys(old.ended.keys() - new.ended.keys(), ())
    removed = tuple(name for name in old.models if name not in new.models)
    routes = _RoutesUpdate(new.serial, old.serial, new.ready, tuple(models), removed, ended)
    return RouteUpdate(tuple(versions), routes)


def _version_update(model: str, before: VersionRoute | None, route: VersionRoute) -> _VersionUpdate:
    keeps = before is not None and (before.signatures, before.unsupported) == (route.signatures, route.unsupported)
    if keeps:
        route = replace(route, signatures={}, unsupported={})
    return _VersionUpdate(model, route, keeps)


def encoded(changes: RouteUpdate) -> Iterator[bytes]:
    """Yield the lines of an update, encoded as they are taken; short ones together."""
    chunk = b""
    for version in changes.versions:
        chunk += _line("version", version)
        if len(chunk) >= _CHUNK_BYTES:
            yield chunk
            chunk = b""
    yield chunk + _line("routes", changes.routes)


def _line(kind: str, value: object) -> bytes:
    # Not by msgspec's encoder: a path may have bytes that are no UTF-8.
    return json.dumps({kind: msgspec.to_builtins(value)}).encode() + b"\n"


class RouteReader:
    """A front's side: makes snapshots of the messages of updates."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._versions: dict[tuple[str, int], _VersionUpdate] = {}

    def hear(self, message: Mapping[str, Any]) -> bool:
        """Take in one message; return whether `snapshot` is a newer one now. Raise LostUpdateError."""
        if "version" in message:
            version = msgspec.convert(message["version"], _VersionUpdate)
            self._versions[version.model, version.route.version] = version
            return False
        routes = msgspec.convert(message["routes"], _RoutesUpdate)
        versions, self._versions = self._versions, {}
        if routes.since not in (0, self.snapshot.serial):
            raise LostUpdateError(f"the update is for snapshot {routes.since}, not for {self.snapshot.serial}")
        self.snapshot = _updated(self.snapshot if routes.since else Snapshot(), versions, routes)
        return True


def _updated(old: Snapshot, versions: Mapping[tuple[str, int], _VersionUpdate], routes: _RoutesUpdate) -> Snapshot:
    models = {name: model for name, model in old.models.items() if name not in routes.removed}
    for model in routes.models:
        before = models.get(model.name, ModelRoute(model.name))
        known = {version.version: version for version in before.versions}
        new = []
        for number in model.versions:
            changed = versions.get((model.name, number))
            if changed is None:
                new.append(known[number])
            elif changed.keeps_signatures:
                kept = known[number]
                new.append(replace(changed.route, signatures=kept.signatures, unsupported=kept.unsupported))
            else:
                new.append(changed.route)
        models[model.name] = ModelRoute(model.name, tuple(new), model.labels, model.base_path, model.reason)
    ended = {name: found for name, found in {**old.ended, **routes.ended}.items() if found}
    return Snapshot(routes.serial, routes.ready, models, ended)

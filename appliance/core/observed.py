"""What the source reports to the manager about a version folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observed:
    """One version folder as the source last saw it."""

    path: str
    digest: str | None
    settled: bool
    reason: str = ""
    names: frozenset[str] = frozenset()

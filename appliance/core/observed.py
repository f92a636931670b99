"""What the source tells the manager of a version folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observed:
    """One version folder as the source saw it."""

    path: str
    digest: str | None
    settled: bool
    reason: str = ""
    names: frozenset[str] = frozenset()

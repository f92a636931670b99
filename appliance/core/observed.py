"""What the source reports to the manager about a version folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observed:
    """One version folder as the source last saw it.

    `digest` identifies the state of its files (None: they were not looked at), `content` what they contain ("": it is
    not known, or they still change). `in_place` says that the version is loaded and its folder is the one that it was
    loaded from, whatever its files are now.
    """

    path: str
    digest: str | None
    settled: bool
    reason: str = ""
    names: frozenset[str] = frozenset()
    content: str = ""
    in_place: bool = False

"""The findings of `dropserve doctor`.

A finding has failed if no server would start, or if something configured would not be served. It is a warning if a
server would run with less than it could have, or if something looks wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "Found", "Level"]


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check, in one line, and its remedy."""

    check: str
    level: Level
    text: str
    remedy: str = ""


Found = Iterator[tuple[Level, str, str]]
"""What a check yields: level, text, remedy."""

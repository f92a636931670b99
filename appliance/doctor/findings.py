"""What a check of `dropserve doctor` says.

A finding has failed where no server starts, or where what was configured is not served; it is a warning where a server
runs with less than it could, or where something looks wrong.
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
    """What one check found, in one line, and what to do about it."""

    check: str
    level: Level
    text: str
    remedy: str = ""


Found = Iterator[tuple[Level, str, str]]
"""What a check yields: level, text, remedy."""

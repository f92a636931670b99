"""The description of an option beside its default: help, group, and the check of its value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

__all__ = ["GIB", "About", "Group", "option"]

T = TypeVar("T")

GIB = 1024**3


class Group(StrEnum):
    """The headings under which options are listed."""

    MODEL = "Options of a model"
    MODELS = "Which models"
    NETWORK = "Network"
    LIMITS = "Limits"
    LIFE = "Life of versions"
    PROCESS = "Processes"
    LOG = "Logs"
    BATCHING = "Batching"
    WARMUP = "Warm-up"
    SAFETY = "Security"
    MONITORING = "Monitoring"
    ACCELERATION = "Acceleration"


@dataclass(frozen=True, slots=True)
class About:
    """The description of an option, and the check of its value.

    `check` raises ConfigError for a value that is not allowed; `normal` does too, and returns the value to keep.
    `file_only` options are keys in the TOML file but not flags.
    """

    help: str
    group: Group
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], object] | None = None
    normal: Callable[[Any], Any] | None = None
    file_only: bool = False


def option(
    default: T,
    group: Group,
    text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], object] | None = None,
    normal: Callable[[Any], Any] | None = None,
    file_only: bool = False,
) -> T:
    """Return a field of an options dataclass, with its description as metadata."""
    about = About(text, group, minimum, maximum, choices, check, normal, file_only)
    return field(default=default, metadata={"about": about})

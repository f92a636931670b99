"""What is said of an option beside its default: help, group, and what its value is checked against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

__all__ = ["GIB", "MIB", "About", "Group", "option"]

T = TypeVar("T")

GIB = 1024**3
MIB = 1024**2


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
    """What is said of an option, and what its value is checked against.

    `check` raises ConfigError; `normal` does too, and returns the value in the form that is kept. `file_only`: it is a
    key in the TOML file, and no flag.
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
    """A field of a dataclass of options, with what is said of it."""
    about = About(text, group, minimum, maximum, choices, check, normal, file_only)
    return field(default=default, metadata={"about": about})

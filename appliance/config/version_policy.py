"""Which of a model's versions are wanted: stateless functions of a snapshot of version numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latest:
    """The `num_versions` highest versions."""

    num_versions: int = 1


@dataclass(frozen=True, slots=True)
class All:
    """Every version there is."""


@dataclass(frozen=True, slots=True)
class Specific:
    """These versions, where they are there."""

    versions: frozenset[int]


VersionPolicy = Latest | All | Specific


def aspired_versions(policy: VersionPolicy, present: Collection[int]) -> frozenset[int]:
    """The versions among `present` that `policy` wants loaded."""
    match policy:
        case All():
            return frozenset(present)
        case Specific(versions):
            return versions & frozenset(present)
        case Latest(num_versions):
            return frozenset(sorted(present, reverse=True)[:num_versions])


def surplus_versions(aspired: Collection[int], loaded: Collection[int]) -> frozenset[int]:
    """The versions among `loaded` that may go now: those not aspired, once every aspired one is loaded.

    Availability comes first, as in TensorFlow Serving's availability-preserving policy: a new version is loaded
    before an old one is unloaded.
    """
    if not set(aspired) <= set(loaded):
        return frozenset()
    return frozenset(loaded) - frozenset(aspired)

"""Version policies: which of a model's versions are wanted, as text and as functions of their numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from appliance.core.errors import ConfigError

_MAX_DIGITS = 19  # of a version, which is at most 2**63 - 1


@dataclass(frozen=True, slots=True)
class Latest:
    """The `num_versions` highest versions."""

    num_versions: int = 1


@dataclass(frozen=True, slots=True)
class All:
    """All versions."""


@dataclass(frozen=True, slots=True)
class Specific:
    """The listed versions, if they exist."""

    versions: frozenset[int]


VersionPolicy = Latest | All | Specific


def aspired_versions(policy: VersionPolicy, present: Collection[int]) -> frozenset[int]:
    """Return the versions among `present` that `policy` wants loaded."""
    match policy:
        case All():
            return frozenset(present)
        case Specific(versions):
            return versions & frozenset(present)
        case Latest(num_versions):
            return frozenset(sorted(present, reverse=True)[:num_versions])


def surplus_versions(aspired: Collection[int], loaded: Collection[int]) -> frozenset[int]:
    """Return the versions among `loaded` that may be unloaded now: the others, once all aspired ones are loaded.

    Availability comes first, as in TensorFlow Serving's availability-preserving policy: a new version is loaded before
    an old one is unloaded.
    """
    if not set(aspired) <= set(loaded):
        return frozenset()
    return frozenset(loaded) - frozenset(aspired)


def parse_version_policy(text: str) -> VersionPolicy:
    """Return the policy that `latest`, `latest:N`, `all` or `specific:V,V` means. Raise ConfigError."""
    kind, colon, rest = text.partition(":")
    numbers = [n.strip() for n in rest.split(",")] if colon else []
    if all(n.isascii() and n.isdigit() and len(n) <= _MAX_DIGITS for n in numbers):
        versions = [int(n) for n in numbers]
        if kind == "latest" and (not versions or (len(versions) == 1 and versions[0] >= 1)):
            return Latest(*versions)
        if kind == "all" and not versions:
            return All()
        if kind == "specific" and versions:
            return Specific(frozenset(versions))
    raise ConfigError(
        f"version_policy is {text!r}", "it is one of latest, latest:N (N at least 1), all, specific:V or specific:V,V"
    )


def format_version_policy(policy: VersionPolicy) -> str:
    """Return the text that `parse_version_policy` reads as `policy`."""
    match policy:
        case Latest(num_versions):
            return f"latest:{num_versions}"
        case Specific(versions):
            return f"specific:{','.join(map(str, sorted(versions)))}"
        case All():
            return "all"

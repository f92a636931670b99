"""What the process that verifies a signature is told: whoever starts it needs nothing of what that loads."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VerifyTask"]


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """Verify the folder `path`, which owners of the keys and certificates in the files `keys` may have signed."""

    path: str
    keys: tuple[str, ...]

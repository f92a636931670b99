"""Why a folder is not what somebody trusted has signed."""

from __future__ import annotations

__all__ = ["SignatureError"]


class SignatureError(Exception):
    """A folder has no signature that is trusted: the message says why, and what to do. `is_missing` if it has none."""

    def __init__(self, message: str, is_missing: bool = False) -> None:
        super().__init__(message)
        self.is_missing = is_missing

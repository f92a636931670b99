"""How much the signatures of one version may take: every front holds them, and parses them when they come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["why_too_large"]

_MAX_BYTES = 1 << 20


def why_too_large(signatures: Mapping[str, Any], unsupported: Mapping[str, str]) -> str:
    """Return why a version with such signatures is not loaded; "" if it may be. `signatures` are JSON values."""
    nbytes = len(json.dumps([signatures, dict(unsupported)]))
    if nbytes <= _MAX_BYTES:
        return ""
    count = len(signatures) + len(unsupported)
    return (
        f"its {count:,} signatures take {nbytes:,} bytes as JSON, more than {_MAX_BYTES:,}; export it with fewer "
        "signatures, inputs and outputs, or with shorter names"
    )

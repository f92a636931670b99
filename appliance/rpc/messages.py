"""Reads the serialized messages of requests that are no inference."""

from __future__ import annotations

from typing import Any

from appliance.core.errors import Code, ServingError

__all__ = ["parse", "parse_question"]

_MAX_QUESTION_BYTES = 1 << 20  # of the requests that ask about a model


def parse_question(kind: Any, data: bytes) -> Any:
    """Return the message of class `kind` that asks about a model. Raise ServingError (INVALID_ARGUMENT)."""
    if len(data) > _MAX_QUESTION_BYTES:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"the {kind.DESCRIPTOR.name} has {len(data):,} bytes, more than {_MAX_QUESTION_BYTES:,}",
            "send only the model and what is asked",
        )
    return parse(kind, data)


def parse(kind: Any, data: bytes) -> Any:
    """Return the message of class `kind` in `data`. Raise ServingError (INVALID_ARGUMENT)."""
    try:
        return kind.FromString(data)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError and, for bad text, UnicodeDecodeError
        raise ServingError(Code.INVALID_ARGUMENT, f"Not a {kind.DESCRIPTOR.full_name}: {error}") from None

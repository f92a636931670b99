"""Which model the request at hand asks for: whoever decodes the request knows it, whoever counts it wants it."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["asked_model"]

# Each request is handled in a task of its own, so that this is one request's.
asked_model: ContextVar[str] = ContextVar("asked_model", default="")

"""Answers of the REST API as plain values, the same in both lanes: refusals, headers, and entries of the access log."""

from __future__ import annotations

from typing import NamedTuple

from appliance.core.errors import Code, ServingError
from appliance.inference.accounting import Access, Exchange
from appliance.rest.bodies import UnwantedBodyError
from appliance.rest.documents import error_document

__all__ = ["CORS", "REFUSALS", "Answer", "access_entry", "internal_error", "refusal"]

# What web pages of other origins may do; the same headers as TensorFlow Serving's.
CORS = (
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "POST, GET"),
    ("access-control-allow-headers", "Content-Type"),
)

REFUSALS = (ServingError, UnwantedBodyError, MemoryError)
"""The errors that `refusal` knows. Any other is a fault of the server."""

_LOOPBACK = ("127.0.0.1", "::1")


class Answer(NamedTuple):
    """The status, the body, and the headers besides those that every answer has."""

    status: int
    data: bytes
    headers: tuple[tuple[str, str], ...] = ()


def refusal(error: Exception) -> tuple[Code, Answer]:
    """Return how a request that fails with `error`, one of `REFUSALS`, is counted and answered."""
    if isinstance(error, ServingError):
        seconds = error.retry_after_seconds
        headers = () if seconds is None else (("retry-after", str(seconds)),)
        return error.code, Answer(error.http_status, error_document(str(error)), headers)
    if isinstance(error, UnwantedBodyError):
        code = Code.DEADLINE_EXCEEDED if error.status == 408 else Code.RESOURCE_EXHAUSTED
        return code, Answer(error.status, error_document(str(error)), (("connection", "close"),))
    text = "The server has no memory for this request; try again, or send a smaller one"
    return Code.RESOURCE_EXHAUSTED, Answer(429, error_document(text))


def internal_error(error: Exception) -> Answer:
    """Return the answer to a request that met a fault of the server."""
    text = f"Internal error: {type(error).__name__}; the server's log has the details"
    return Answer(500, error_document(text))


def access_entry(
    exchange: Exchange, client: str, forwarded_for: str, method: str, path: str, status: int, request_bytes: int | None
) -> Access:
    """Return a request's entry in the access log. `forwarded_for` is its X-Forwarded-For header, or ""."""
    gone = exchange.code is Code.CANCELLED
    if client in _LOOPBACK and forwarded_for:  # a proxy on this machine names its client in the header
        client = forwarded_for.rpartition(",")[2].strip()[:100]
    fields = {"method": method, "path": path, "status": 0 if gone else status, "request_bytes": request_bytes}
    return Access(client, f"{method} {path[:200]}", "-" if gone else str(status), fields)

"""The access log's entry of a gRPC call."""

from __future__ import annotations

from typing import Any

from appliance.inference.accounting import Access, Exchange

__all__ = ["access_of"]


def access_of(exchange: Exchange, name: str, data: bytes, context: Any) -> Access:
    """Return the entry of a request of `data` to the method `name`."""
    status = exchange.code.name
    return Access(context.peer(), name, status, {"method": name, "status": status, "request_bytes": len(data)})

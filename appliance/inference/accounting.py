"""Counts and logs each request once, for every protocol, method and outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from appliance.core.errors import Code
from appliance.inference.router import Router
from appliance.metrics.recording import RequestMetrics

__all__ = ["Access", "Accounting", "Exchange"]

access_logger = logging.getLogger("dropserve.access")


class Exchange:
    """One request and its answer, as far as they are known.

    The decoder sets `model`; the code that answers sets `code` and `response_bytes`. `method` is its name in the
    metrics.
    """

    __slots__ = ("code", "method", "model", "response_bytes", "started")

    def __init__(self, method: str) -> None:
        self.started = time.monotonic()  # monotonic seconds
        self.method = method
        self.model = ""
        self.code = Code.INTERNAL  # the default, for an unexpected exception
        self.response_bytes = 0


class Access(NamedTuple):
    """An access log entry: `what` was asked for and its `status`, for people; `fields`, for programs."""

    client: str
    what: str
    status: str
    fields: Mapping[str, Any]


class Accounting:
    """Counts and logs the requests of one front; `protocol` is "rest" or "grpc"."""

    def __init__(self, counts: RequestMetrics, router: Router, protocol: str, access_log: bool) -> None:
        self._counts = counts
        self._router = router
        self._protocol = protocol
        self._access_log = access_log

    def account(self, exchange: Exchange, access: Callable[[], Access]) -> None:
        """Record a request that was answered, or whose client has gone.

        `access` is called only if the request is logged.
        """
        seconds = time.monotonic() - exchange.started
        # An unknown model is counted as "", so that clients cannot create labels.
        model = exchange.model if exchange.model in self._router.snapshot.models else ""
        self._counts.record(model, exchange.method, exchange.code, seconds)
        if self._access_log:
            self._log(exchange, access(), seconds * 1000)

    def _log(self, exchange: Exchange, access: Access, milliseconds: float) -> None:
        fields = {
            "protocol": self._protocol,
            "client": access.client,
            **access.fields,
            "response_bytes": exchange.response_bytes,
            "milliseconds": round(milliseconds, 3),
        }
        size = exchange.response_bytes
        text = f"{access.client} {access.what} {access.status} {size} B {milliseconds:.1f} ms"
        access_logger.info(text, extra={"fields": fields})

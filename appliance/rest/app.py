"""The ASGI application of one REST process: falcon, which hands every request to a `RestFront`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import falcon.asgi

from appliance.config.front_settings import FrontSettings
from appliance.rest.bounds import ANSWER_BYTES, CYCLE
from appliance.rest.documents import error_document
from appliance.rest.front import RestFront

__all__ = ["App", "make_app"]

logger = logging.getLogger(__name__)

App = Callable[[Any, Any, Any], Awaitable[None]]


def make_app(settings: FrontSettings) -> App:
    """Return the ASGI application of one REST process."""
    front = RestFront(settings)
    app = falcon.asgi.App(middleware=[_Startup(front)])  # type: ignore[arg-type]  # falcon's protocols want more hooks
    app.add_sink(front.dispatch, prefix="/")

    async def on_failure(
        req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
    ) -> None:
        logger.error("a request failed: %s %s", req.method, req.path[:200], exc_info=error)
        resp.status = "500"
        resp.content_type = "application/json"
        resp.data = error_document(f"Internal error: {type(error).__name__}; the server's log has the details")

    app.add_error_handler(Exception, on_failure)
    return _from_head_to_sent(app, front.router.release)


def _from_head_to_sent(app: App, release: Callable[[int], None]) -> App:
    """Wrap `app` so that handlers are called before the body arrives, and large answers count until they are sent.

    Without this, falcon waits for the start of the body: a client that sends none would keep its connection for ever,
    and one that sends "Expect: 100-continue" would always be told to continue. `release` stops counting an answer.
    """

    async def nothing_yet() -> Any:
        return {"type": "http.request", "body": b"", "more_body": True}

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, nothing_yet if scope["type"] == "http" else receive, send)  # `read_body` asks uvicorn
        finally:
            cycle = scope.pop(CYCLE, None)  # break the reference cycle, so that no garbage collection is needed
            if ANSWER_BYTES in scope:
                try:
                    await cycle.flow.drain()  # ends with the connection, whose client must read at a pace
                finally:
                    release(scope[ANSWER_BYTES])

    return serve


class _Startup:
    """Starts the front in the event loop that serves it."""

    def __init__(self, front: RestFront) -> None:
        self._front = front

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        await self._front.start()

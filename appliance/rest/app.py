"""The ASGI application of one REST process: falcon, which hands every request to a `RestFront`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import falcon.asgi

from appliance.config.front_settings import FrontSettings
from appliance.rest.answers import internal_error
from appliance.rest.bounds import ANSWER_BYTES, CYCLE
from appliance.rest.fast_lane import FAST
from appliance.rest.front import RestFront

__all__ = ["App"]

logger = logging.getLogger(__name__)

_App = Callable[[Any, Any, Any], Awaitable[None]]


class App:
    """The ASGI application of one REST process, and the fast lane beside it.

    Handlers are called before the body arrives. Otherwise falcon would wait for its start: a client that sends none
    would keep its connection for ever, and one that sends "Expect: 100-continue" would always be told to continue.
    Large answers count as in flight until they are sent.
    """

    def __init__(self, settings: FrontSettings) -> None:
        front = RestFront(settings)
        self.fast_lane = front.fast_lane
        self._release = front.router.release
        self._app = _falcon_app(front)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        try:
            await self._app(
                scope, _nothing_yet if scope["type"] == "http" else receive, send
            )  # `read_body` asks uvicorn
        finally:
            scope.pop(FAST, None)
            cycle = scope.pop(CYCLE, None)  # break the reference cycle, so that no garbage collection is needed
            if ANSWER_BYTES in scope:
                try:
                    await cycle.flow.drain()  # ends with the connection, whose client must read at a pace
                finally:
                    self._release(scope[ANSWER_BYTES])


async def _nothing_yet() -> Any:
    return {"type": "http.request", "body": b"", "more_body": True}


def _falcon_app(front: RestFront) -> _App:
    app = falcon.asgi.App(middleware=[_Startup(front)])  # type: ignore[arg-type]  # falcon's protocols want more hooks
    app.add_sink(front.dispatch, prefix="/")

    async def on_failure(
        req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
    ) -> None:
        logger.error("a request failed: %s %s", req.method, req.path[:200], exc_info=error)
        answer = internal_error(error)
        resp.status = str(answer.status)
        resp.content_type = "application/json"
        resp.data = answer.data

    app.add_error_handler(Exception, on_failure)
    return app


class _Startup:
    """Starts the front in the event loop that serves it."""

    def __init__(self, front: RestFront) -> None:
        self._front = front

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        await self._front.start()

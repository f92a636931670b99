"""TensorFlow Serving's REST API: falcon.asgi under gunicorn with uvicorn's worker.

`main()` is gunicorn's master, started by the supervisor with the listening socket as descriptor 3: the socket outlives
the master, so while one is replaced connections wait instead of being refused. A route is a line in `_ROUTES`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
import urllib.parse
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import falcon
import falcon.asgi
import orjson
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from uvicorn_worker import UvicornWorker

from appliance import logs
from appliance.dataplane.router import Router, VersionRoute
from appliance.errors import Code, ServingError
from appliance.fronts.http_bounds import BoundedProtocol
from appliance.fronts.json_output import encode_predict
from appliance.fronts.json_tensors import parse_predict
from appliance.fronts.metadata import metadata_json
from appliance.fronts.settings import FrontSettings
from appliance.processes import die_with_parent, set_name
from appliance.servable import ModelSpec
from backends.contract import Signature

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("dropserve.access")

_DEFAULT_SIGNATURE = "serving_default"
_INFLATE_IN_THREAD_BYTES = 256 * 1024
_INFLATE_STEP_BYTES = 4 * 1024 * 1024
_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_SECONDS = 2.0
_JSON = "application/json"

Request = falcon.asgi.Request
Response = falcon.asgi.Response
App = Callable[[Any, Any, Any], Awaitable[None]]
Handler = Callable[["RestFront", Request, Response, re.Match[str]], Awaitable[None]]


class _UnwantedBodyError(Exception):
    """A body that is too large or too slow: the connection ends, since what still comes of it is not wanted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RestFront:
    """The handlers, over one router."""

    def __init__(self, settings: FrontSettings) -> None:
        self._options = settings.options
        self.router = Router(
            settings.control_path, "rest", settings.options.shared_memory_bytes, settings.max_inflight_bytes
        )

    async def start(self) -> None:
        """Gets the first routes; from then on requests can be taken."""
        await self.router.start(on_lost=lambda: os.kill(os.getpid(), signal.SIGKILL))
        self.router.say_serving()

    async def dispatch(self, req: Request, resp: Response | None, **_: Any) -> None:
        """Every request comes here: the paths are matched on their raw form, in which an escaped slash is no slash."""
        assert resp is not None  # falcon has none for WebSockets only
        started = time.monotonic()
        path: str = req.scope["raw_path"].decode("latin-1")
        try:
            await self._route(req, resp, path)
        except ServingError as error:
            resp.status = str(error.http_status)
            resp.data = _json({"error": str(error)})
            if error.retry_after_seconds is not None:
                resp.set_header("retry-after", str(error.retry_after_seconds))
        except _UnwantedBodyError as error:
            resp.status = str(error.status)
            resp.data = _json({"error": str(error)})
            resp.set_header("connection", "close")
        except MemoryError:
            resp.status = "429"
            resp.data = _json({"error": "The server has no memory for this request; try again, or send a smaller one"})
        resp.content_type = _JSON
        if self._options.access_log:
            self._log_access(req, resp, path, started)

    async def _route(self, req: Request, resp: Response, path: str) -> None:
        asked = "GET" if req.method == "HEAD" else req.method
        for method, pattern, handler in _ROUTES:
            if method == asked and (match := pattern.fullmatch(path)):
                await handler(self, req, resp, match)
                return
        if path == "/v1" or path.lower().startswith("/v1/"):
            raise ServingError(Code.INVALID_ARGUMENT, f"Malformed request: {req.method} {path[:1000]}")
        raise ServingError(
            Code.NOT_FOUND, f"Not found: {req.method} {path[:1000]}", "the models are listed at GET /v1/models"
        )

    def _log_access(self, req: Request, resp: Response, path: str, started: float) -> None:
        status, size = int(str(resp.status)[:3]), len(resp.data or b"")
        milliseconds = (time.monotonic() - started) * 1000
        fields = {
            "protocol": "rest",
            "client": req.remote_addr,
            "method": req.method,
            "path": path,
            "status": status,
            "request_bytes": req.content_length,
            "response_bytes": size,
            "milliseconds": round(milliseconds, 3),
        }
        text = f"{req.remote_addr} {req.method} {path[:200]} {status} {size} B {milliseconds:.1f} ms"
        access_logger.info(text, extra={"fields": fields})

    # -- handlers --------------------------------------------------------------------------------------------

    async def predict(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        deadline_ns = time.monotonic_ns() + int(self._options.rest_api_timeout_in_ms * 1e6)
        reserved = _Reservation(self.router)
        try:
            body = await self._body(req, reserved)
            parsed = parse_predict(body)
            spec = _spec(match)
            _, version = self.router.snapshot.resolve(spec)
            name = parsed.signature_name or _DEFAULT_SIGNATURE
            signature = _signature(version, name)
            inputs = parsed.inputs(signature)
            row_format = parsed.row_format
            del parsed, body
            outputs = await self.router.predict(spec, name, inputs, list(signature.outputs), deadline_ns)
            resp.data = encode_predict(outputs, row_format)
        finally:
            reserved.release()

    async def unimplemented(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        raise ServingError(
            Code.UNIMPLEMENTED, f"{match['verb']} is not implemented", "use :predict with the signature_name"
        )

    async def models(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        snapshot = self.router.snapshot
        resp.data = _json(
            {
                "models": [
                    {
                        "name": model.name,
                        "base_path": model.base_path,
                        "reason": model.reason,
                        "labels": dict(model.labels),
                        "versions": [
                            {
                                "version": str(version.version),
                                "state": version.public_state.name,
                                "phase": version.state,
                                "reason": version.reason,
                            }
                            for version in model.versions
                        ],
                    }
                    for model in sorted(snapshot.models.values(), key=lambda m: m.name)
                ]
            }
        )

    async def status(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        versions = self.router.snapshot.status(_spec(match))
        resp.data = _json(
            {
                "model_version_status": [
                    {
                        "version": str(version.version),
                        "state": version.public_state.name,
                        "status": {"error_code": version.code.name, "error_message": version.reason},
                    }
                    for version in versions
                ]
            }
        )

    async def metadata(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        model, version = self.router.snapshot.resolve(_spec(match))
        resp.data = _json(metadata_json(model.name, version.version, version.signatures))

    async def healthz(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        resp.data = _json({"status": "alive"})

    async def readyz(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        ready = self.router.snapshot.ready
        resp.status = "200" if ready else "503"
        resp.data = _json({"status": "ready" if ready else "not ready; see GET /v1/models"})

    # -- bodies ----------------------------------------------------------------------------------------------

    async def _body(self, req: Request, reserved: _Reservation) -> bytes:
        limit = self._options.max_request_bytes
        declared = req.content_length
        if declared is not None and declared > limit:
            if req.get_header("expect") is None:  # else the client waits for leave to send it
                await self._discard(aiter(req.stream))
            raise _UnwantedBodyError(413, f"The body has {declared:,} bytes; max_request_bytes is {limit:,}")
        body = await self._received(req, limit, reserved)
        encoding = (req.get_header("content-encoding") or "identity").strip().lower()
        if encoding in ("identity", ""):
            return body
        if encoding not in ("gzip", "x-gzip"):
            raise ServingError(Code.INVALID_ARGUMENT, f"Content-Encoding is {encoding[:100]!r}", "send gzip, or none")
        return await _inflated(body, limit, reserved)

    async def _received(self, req: Request, limit: int, reserved: _Reservation) -> bytes:
        """The body as it was sent, at the pace that is asked for."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        grace = self._options.body_grace_seconds
        rate = self._options.min_body_bytes_per_second
        chunks: list[bytes] = []
        total = 0
        try:
            async with asyncio.timeout_at(started + grace) as pace:
                stream = aiter(req.stream)
                async for chunk in stream:
                    total += len(chunk)
                    if total > limit:
                        break
                    reserved.add(len(chunk))
                    chunks.append(chunk)
                    pace.reschedule(started + grace + total / rate)
        except TimeoutError:
            raise _UnwantedBodyError(
                408,
                f"The body came too slowly: {total:,} bytes in {loop.time() - started:.1f} s; "
                f"at least {rate:,} bytes a second are asked for (min_body_bytes_per_second)",
            ) from None
        if total > limit:
            chunks.clear()
            await self._discard(stream)
            raise _UnwantedBodyError(413, f"The body is larger than max_request_bytes, {limit:,}")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _discard(self, stream: AsyncIterator[bytes]) -> None:
        """Reads a little of an unwanted body: a client that is still writing it would not see the answer otherwise."""
        total = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for chunk in stream:
                    total += len(chunk)
                    if total > _DRAIN_BYTES:
                        return
        except TimeoutError:
            pass


class _Startup:
    """Starts the front in the event loop that serves it."""

    def __init__(self, front: RestFront) -> None:
        self._front = front

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        await self._front.start()


class _Reservation:
    """The bytes of one request that count as in flight."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._nbytes = 0

    def add(self, nbytes: int) -> None:
        self._router.reserve(nbytes, already=self._nbytes)
        self._nbytes += nbytes

    def release(self) -> None:
        self._router.release(self._nbytes)


async def _inflated(body: bytes, limit: int, reserved: _Reservation) -> bytes:
    """A gzip body, inflated in steps that count as in flight as they come: many bombs at once stay bounded too."""
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    pieces: list[bytes] = []
    total = 0
    position = 0
    rest: bytes | memoryview = b""
    view = memoryview(body)
    try:
        while not inflater.eof:
            if not rest:
                rest = view[position : position + _INFLATE_STEP_BYTES]
                position += len(rest)
            size = min(_INFLATE_STEP_BYTES, limit + 1 - total)
            if len(body) < _INFLATE_IN_THREAD_BYTES and not pieces:
                piece = inflater.decompress(rest, size)
            else:
                piece = await asyncio.to_thread(inflater.decompress, rest, size)
            rest = inflater.unconsumed_tail
            total += len(piece)
            if total > limit:
                raise _UnwantedBodyError(413, f"The body inflates to more than max_request_bytes, {limit:,}")
            if not piece and not rest and position == len(body) and not inflater.eof:
                raise ServingError(Code.INVALID_ARGUMENT, "The gzip body is cut off", "send it whole")
            reserved.add(len(piece))
            pieces.append(piece)
    except zlib.error as error:
        raise ServingError(Code.INVALID_ARGUMENT, f"The body is not gzip: {error}") from None
    if inflater.unused_data:
        raise ServingError(Code.INVALID_ARGUMENT, "There is something behind the gzip body", "send one gzip member")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"


def _spec(match: re.Match[str]) -> ModelSpec:
    groups = match.groupdict()
    name = urllib.parse.unquote(groups["model"])
    label = urllib.parse.unquote(groups["label"] or "")
    version = groups["version"]
    if version is None:
        return ModelSpec(name, label=label)
    if len(version) > 30 or int(version) > 2**63 - 1:
        raise ServingError(Code.INVALID_ARGUMENT, f"Malformed request: version {version[:40]} is no 64-bit number")
    return ModelSpec(name, int(version), label)


def _signature(version: VersionRoute, name: str) -> Signature:
    signature = version.signatures.get(name)
    if signature is None:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f'Serving signature name: "{name[:200]}" not found in signature def',
            f"the model has {', '.join(sorted(version.signatures)) or 'none'}",
        )
    return signature


def _pattern(rest: str) -> re.Pattern[str]:
    model = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    return re.compile(model + rest, re.IGNORECASE)


_ROUTES: tuple[tuple[str, re.Pattern[str], Handler], ...] = (
    ("POST", _pattern(":predict"), RestFront.predict),
    ("POST", _pattern(":(?P<verb>classify|regress)"), RestFront.unimplemented),
    ("GET", _pattern("/metadata"), RestFront.metadata),
    ("GET", _pattern(""), RestFront.status),
    ("GET", re.compile("/v1/models/?", re.IGNORECASE), RestFront.models),
    ("GET", re.compile("/healthz"), RestFront.healthz),
    ("GET", re.compile("/readyz"), RestFront.readyz),
)


def make_app(settings: FrontSettings) -> App:
    """The ASGI application of one REST process."""
    front = RestFront(settings)
    app = falcon.asgi.App(middleware=[_Startup(front)])  # type: ignore[arg-type]  # falcon's protocols want more hooks
    app.add_sink(front.dispatch, prefix="/")

    async def on_failure(req: Request, resp: Response, error: Exception, params: dict[str, Any]) -> None:
        logger.error("a request failed: %s %s", req.method, req.path[:200], exc_info=error)
        resp.status = "500"
        resp.content_type = _JSON
        resp.data = _json({"error": f"Internal error: {type(error).__name__}; the server's log has the details"})

    app.add_error_handler(Exception, on_failure)
    return _without_waiting_for_the_body(app)


def _without_waiting_for_the_body(app: App) -> App:
    """`app`, which otherwise calls no handler before the body has begun: a client that sends none would hold its
    connection for ever, and one that asks for leave to send it (100-continue) would always be given it."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begun = False

        async def receive_at_once() -> Any:
            nonlocal begun
            if begun:
                return await receive()
            begun = True
            return {"type": "http.request", "body": b"", "more_body": True}

        await app(scope, receive_at_once, send)

    return serve


class RestWorker(UvicornWorker):  # type: ignore[misc]  # the base has no types
    """uvicorn with the bounds that gunicorn does not enforce for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        server_log = logging.getLogger("uvicorn.error")
        server_log.propagate = True
        server_log.setLevel(logging.ERROR)  # below that it tells of clients' mistakes, one line each


class _GunicornLogger(Logger):  # type: ignore[misc]  # the base has no types
    """gunicorn's messages through our logging."""

    def setup(self, cfg: Any) -> None:
        self.error_log.handlers[:] = []
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Application(BaseApplication):  # type: ignore[misc]  # the base has no types
    def __init__(self, settings: FrontSettings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options = settings.options

        def post_fork(arbiter: Any, worker: Any) -> None:
            set_name("ds-rest")
            die_with_parent(arbiter.pid)  # uvicorn's worker does not notice that its master is gone

        values: dict[str, Any] = {
            "bind": "fd://3",
            "workers": settings.workers,
            "worker_class": RestWorker,
            "logger_class": _GunicornLogger,
            "graceful_timeout": max(int(options.shutdown_grace_seconds), 1),
            "timeout": 120,
            "keepalive": 75,
            "backlog": 2048,
            "post_fork": post_fork,
            "control_socket_disable": True,
            "proc_name": "dropserve-rest",
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self) -> App:
        return make_app(self._settings)


def main() -> None:
    settings = FrontSettings.from_environment()
    options = settings.options
    die_with_parent(settings.supervisor)
    set_name("ds-rest-master")
    logs.configure(options.log_format, options.log_level)
    BoundedProtocol.max_header_bytes = options.max_header_bytes
    BoundedProtocol.header_timeout_seconds = options.header_timeout_seconds
    RestWorker.CONFIG_KWARGS = {
        "loop": "uvloop",
        "http": BoundedProtocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        "limit_concurrency": options.max_connections,
        "timeout_graceful_shutdown": max(int(options.shutdown_grace_seconds), 1),
    }
    _Application(settings).run()


if __name__ == "__main__":
    main()

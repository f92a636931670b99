"""TensorFlow Serving's REST API as a falcon.asgi application. A route is a handler, and a line in `_ROUTES`."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import falcon
import falcon.asgi
import orjson

from appliance.config.front_settings import FrontSettings
from appliance.core.errors import Code, ServingError
from appliance.inference.asked import asked_model
from appliance.inference.examples import Inference
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router, VersionRoute
from appliance.metrics.recording import Recorder, RequestMetrics
from appliance.metrics.text import CONTENT_TYPE, TENSORFLOW_SERVING_CONTENT_TYPE
from appliance.protocols.classify_regress import DEFAULT_SIGNATURE, Method
from appliance.protocols.json_examples import parse_examples
from appliance.protocols.json_output import encode_predict, encode_result
from appliance.protocols.json_tensors import parse_predict
from appliance.protocols.metadata import metadata_json
from appliance.rest.bodies import UnwantedBodyError, read_body
from appliance.rest.bounds import CYCLE
from appliance.rest.compression import gzipped, is_gzip_wanted
from appliance.rest.gpu_pages import gpu_page, gpu_status, scraped_gpu_status
from appliance.rest.metrics_pages import MetricsPages
from appliance.rest.paths import VERSION, anything, model_path, model_spec
from backends.contract import Signature

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("dropserve.access")

_JSON = "application/json"
# What a web page of another origin may do, as TensorFlow Serving tells its browser.
_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}

_LOOPBACK = ("127.0.0.1", "::1")

Request = falcon.asgi.Request
Response = falcon.asgi.Response
App = Callable[[Any, Any, Any], Awaitable[None]]
Handler = Callable[["RestFront", Request, Response, re.Match[str]], Awaitable[None]]


class RestFront:
    """The handlers, over one router."""

    def __init__(self, settings: FrontSettings) -> None:
        self._options = settings.options
        self.router = Router(
            settings.control_path, "rest", settings.options.shared_memory_bytes, settings.max_inflight_bytes
        )
        self._counts = RequestMetrics(Recorder(settings.metrics_directory, "rest"), "rest")
        self._pages = MetricsPages(settings.metrics_directory)
        self._monitoring_path = settings.monitoring_path
        self.router.on_inflight = self._counts.inflight
        self.router.on_unproven = self._counts.unproven
        self.router.on_refused = self._counts.refused
        self._inference = Inference(
            self.router,
            settings.options.enable_signature_method_name_check,
            settings.options.max_request_bytes,
            self._counts.examples,
        )

    async def start(self) -> None:
        """Gets the first routes; from then on requests can be taken."""
        await self.router.start(on_lost=lambda: os.kill(os.getpid(), signal.SIGKILL))
        self.router.say_serving()

    async def dispatch(self, req: Request, resp: Response | None, **_: Any) -> None:
        """Every request comes here, and is counted."""
        assert resp is not None  # falcon has none for WebSockets only
        started = time.monotonic()
        asked_model.set("")
        method = "other"
        code = Code.INTERNAL  # of what nobody foresaw, and `make_app` answers
        path: str = req.scope["raw_path"].decode("latin-1")  # in which an escaped slash is no slash
        if self._options.rest_api_enable_cors_support:
            resp.set_headers(_CORS)  # first, so that every answer has them, that to an unforeseen error too
        try:
            handler, match = self._route(req, path)
            method = handler.__name__
            await handler(self, req, resp, match)
            code = Code.OK
        except ServingError as error:
            code = error.code
            resp.status = str(error.http_status)
            resp.data = _json({"error": str(error)})
            if error.retry_after_seconds is not None:
                resp.set_header("retry-after", str(error.retry_after_seconds))
        except UnwantedBodyError as error:
            code = Code.DEADLINE_EXCEEDED if error.status == 408 else Code.RESOURCE_EXHAUSTED
            resp.status = str(error.status)
            resp.data = _json({"error": str(error)})
            resp.set_header("connection", "close")
        except MemoryError:
            code = Code.RESOURCE_EXHAUSTED
            resp.status = "429"
            resp.data = _json({"error": "The server has no memory for this request; try again, or send a smaller one"})
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        finally:
            model = asked_model.get()  # one that is not known is none, so that clients cannot make up labels
            known = model if model in self.router.snapshot.models else ""
            self._counts.record(known, method, code, time.monotonic() - started)
        min_bytes = self._options.rest_compression_min_bytes
        if resp.data and min_bytes:
            # falcon's own look-up takes 2 µs, for which most answers are too small to care.
            accepted = b",".join([value for name, value in req.scope["headers"] if name == b"accept-encoding"])
            if len(resp.data) >= min_bytes or b"0" in accepted:
                await _compress(resp, accepted.decode("latin-1"), min_bytes)
        if self._options.access_log:
            self._log_access(req, resp, path, started)

    def _route(self, req: Request, path: str) -> tuple[Handler, re.Match[str]]:
        """The handler that answers, and what its pattern found in the path. Raises ServingError where none does."""
        asked = "GET" if req.method == "HEAD" else req.method
        if asked == "GET" and path == self._monitoring_path:
            return RestFront.monitoring, anything(path)
        found = _matched(asked, path) if len(path) <= _REMEMBERED_PATH else _matched.__wrapped__(asked, path)
        if found is not None:
            return found
        if path.lower().startswith("/v1/"):
            if req.method == "OPTIONS" and self._options.rest_api_enable_cors_support:
                return RestFront.preflight, anything(path)
            raise ServingError(Code.INVALID_ARGUMENT, f"Malformed request: {req.method} {path[:1000]}")
        raise ServingError(
            Code.NOT_FOUND, f"Not found: {req.method} {path[:1000]}", "the models are listed at GET /v1/models"
        )

    def _log_access(self, req: Request, resp: Response, path: str, started: float) -> None:
        status, size = int(str(resp.status)[:3]), len(resp.data or b"")
        client = req.remote_addr
        if client in _LOOPBACK:  # a proxy on this machine says whom it stands for
            client = (req.get_header("x-forwarded-for") or client).rpartition(",")[2].strip()[:100]
        milliseconds = (time.monotonic() - started) * 1000
        fields = {
            "protocol": "rest",
            "client": client,
            "method": req.method,
            "path": path,
            "status": status,
            "request_bytes": req.content_length,
            "response_bytes": size,
            "milliseconds": round(milliseconds, 3),
        }
        text = f"{client} {req.method} {path[:200]} {status} {size} B {milliseconds:.1f} ms"
        access_logger.info(text, extra={"fields": fields})

    # -- handlers --------------------------------------------------------------------------------------------

    async def predict(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        deadline_ns = self._deadline_ns()
        spec = model_spec(match)
        with Reservation(self.router) as reserved:
            body = await read_body(req, self._options, reserved)
            parsed = parse_predict(body)
            _, version = self.router.snapshot.resolve(spec)
            name = parsed.signature_name or DEFAULT_SIGNATURE
            signature = _signature(version, name)
            inputs = parsed.inputs(signature)
            row_format = parsed.row_format
            del parsed, body
            outputs = await self.router.predict(spec, name, inputs, list(signature.outputs), deadline_ns)
            resp.data = encode_predict(outputs, row_format)

    async def classify(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        await self._classify_or_regress(req, resp, match, Method.CLASSIFY)

    async def regress(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        await self._classify_or_regress(req, resp, match, Method.REGRESS)

    async def _classify_or_regress(self, req: Request, resp: Response, match: re.Match[str], method: Method) -> None:
        deadline_ns = self._deadline_ns()
        spec = model_spec(match)
        with Reservation(self.router) as reserved:
            body = await read_body(req, self._options, reserved)
            parsed = parse_examples(body)
            del body
            plan = self._inference.plan(method, parsed.signature_name)
            done = await self._inference.run(spec, plan, parsed.examples, reserved, deadline_ns)
            resp.data = encode_result(done.results[0])

    def _deadline_ns(self) -> int:
        return time.monotonic_ns() + int(self._options.rest_api_timeout_in_ms * 1e6)

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
                                "accelerated": version.accelerated,
                                "remarks": list(version.remarks),
                                "unsupported": dict(version.unsupported),
                                "refused": [str(refused) for refused in version.refused],
                            }
                            for version in model.versions
                        ],
                    }
                    for model in sorted(snapshot.models.values(), key=lambda m: m.name)
                ]
            }
        )

    async def status(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        versions = self.router.snapshot.status(model_spec(match))
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
        model, version = self.router.snapshot.resolve(model_spec(match))
        resp.data = _json(metadata_json(model.name, version.version, version.signatures))

    async def nameless(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        raise ServingError(
            Code.INVALID_ARGUMENT, "Missing model name in request.", "write /v1/models/NAME; GET /v1/models lists them"
        )

    async def metrics(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        resp.data = await self._own_metrics()
        resp.content_type = CONTENT_TYPE

    async def _own_metrics(self) -> bytes:
        return await self._pages.own(self.router.snapshot, await scraped_gpu_status(self.router))

    async def monitoring(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        """TensorFlow Serving's metrics; and ours too, where its path is ours."""
        data = await self._pages.tensorflow_serving()
        if self._monitoring_path == "/metrics":
            data += await self._own_metrics()
        resp.data = data
        resp.content_type = TENSORFLOW_SERVING_CONTENT_TYPE

    async def acceleration(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        spec = model_spec(match)
        (version,) = self.router.snapshot.status(spec)
        params = {"model": spec.model, "version": version.version}
        known = await self.router.call("acceleration", params, self._options.rest_api_timeout_in_ms / 1000)
        about = {**params, "version": str(version.version), "serving": version.accelerated or "its own model"}
        nothing = {"state": "none", "progress": "", "demoted": ""}
        resp.data = _json({**about, **(known or nothing)})

    async def gpu(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        wanted = req.get_param("format", default="json")
        resp.data, resp.content_type = gpu_page(await gpu_status(self.router), wanted)

    async def preflight(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        """What a browser asks before it sends a web page's request: the headers answer."""
        if not re.search("https?://", req.get_header("origin") or ""):
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Origin header is missing in CORS preflight",
                "OPTIONS only answers web browsers; use GET or POST",
            )

    async def healthz(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        resp.data = _json({"status": "alive"})

    async def readyz(self, req: Request, resp: Response, match: re.Match[str]) -> None:
        ready = self.router.snapshot.ready
        resp.status = "200" if ready else "503"
        resp.data = _json({"status": "ready" if ready else "not ready; see GET /v1/models"})


class _Startup:
    """Starts the front in the event loop that serves it."""

    def __init__(self, front: RestFront) -> None:
        self._front = front

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        await self._front.start()


async def _compress(resp: Response, accept_encoding: str, min_bytes: int) -> None:
    """Compresses the answer where it is worth it and the client accepts it."""
    assert resp.data is not None
    size = len(resp.data)
    wanted = is_gzip_wanted(accept_encoding, size, min_bytes)
    if wanted:
        resp.data = await gzipped(resp.data)
        resp.set_header("content-encoding", "gzip")
    if wanted or size >= min_bytes:
        resp.set_header("vary", "Accept-Encoding")  # caches keep both


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"


def _signature(version: VersionRoute, name: str) -> Signature:
    signature = version.signatures.get(name)
    if signature is None:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f'Serving signature name: "{name[:200]}" not found in signature def',
            version.why_not(name) or f"the model has {', '.join(sorted(version.signatures)) or 'none'}",
        )
    return signature


_ROUTES: tuple[tuple[str, re.Pattern[str], Handler], ...] = (
    ("POST", model_path(":predict"), RestFront.predict),
    ("POST", model_path(":classify"), RestFront.classify),
    ("POST", model_path(":regress"), RestFront.regress),
    ("GET", model_path("/metadata"), RestFront.metadata),
    ("GET", model_path(""), RestFront.status),
    (
        "GET",
        re.compile(r"/v1/models/(?P<model>[^/:]+)/versions/(?P<version>[0-9]+)(?P<label>)/acceleration", re.IGNORECASE),
        RestFront.acceleration,
    ),
    ("GET", re.compile("/v1/models/?", re.IGNORECASE), RestFront.models),
    ("GET", re.compile(rf"/v1/models{VERSION}(?:/metadata)?", re.IGNORECASE), RestFront.nameless),
    ("GET", re.compile("/v1/gpu", re.IGNORECASE), RestFront.gpu),
    ("GET", re.compile("/metrics"), RestFront.metrics),
    ("GET", re.compile("/healthz"), RestFront.healthz),
    ("GET", re.compile("/readyz"), RestFront.readyz),
)


_REMEMBERED_PATH = 256  # clients choose paths: only short ones are remembered, and few


@functools.lru_cache(1024)
def _matched(method: str, path: str) -> tuple[Handler, re.Match[str]] | None:
    for allowed, pattern, handler in _ROUTES:
        if allowed == method and (match := pattern.fullmatch(path)):
            return handler, match
    return None


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

    async def nothing_yet() -> Any:
        return {"type": "http.request", "body": b"", "more_body": True}

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, nothing_yet if scope["type"] == "http" else receive, send)  # `read_body` asks uvicorn
        finally:
            scope.pop(CYCLE, None)  # it has the scope too: else only the garbage collector would free both

    return serve

"""TensorFlow Serving's REST API: the routes, and their handlers. A route is a handler and a line in `_ROUTES`."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import falcon.asgi

from appliance.config.front_settings import FrontSettings
from appliance.core.errors import Code, ServingError
from appliance.core.routes import VersionRoute
from appliance.core.servable import ModelSpec
from appliance.host.memory import proportional_bytes
from appliance.inference.accounting import Access, Accounting, Exchange
from appliance.inference.examples import Inference
from appliance.inference.pipeline import Pipeline
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.inference.runs import Run
from appliance.metrics.recording import Recorder, RequestMetrics
from appliance.metrics.text import CONTENT_TYPE, TENSORFLOW_SERVING_CONTENT_TYPE
from appliance.protocols.classify_regress import Method
from appliance.protocols.json_examples import parse_examples
from appliance.protocols.json_output import encode_result
from appliance.protocols.json_tensors import parse_predict
from appliance.protocols.metadata import metadata_json
from appliance.rest import open_inference
from appliance.rest.answers import CORS, REFUSALS, access_entry, refusal
from appliance.rest.bodies import BodyBounds, read_body
from appliance.rest.bounds import ANSWER_BYTES, COUNTED_ANSWER_BYTES
from appliance.rest.compression import MIN_BYTES, coding_of, gzipped
from appliance.rest.documents import json_document, models_document, status_document
from appliance.rest.fast_lane import FAST, FastLane, FastRequest
from appliance.rest.gpu_pages import gpu_page, gpu_status, scraped_gpu_status
from appliance.rest.metrics_pages import MetricsPages
from appliance.rest.parsing import LARGE_BYTES, Parsing
from appliance.rest.paths import VERSION, anything, model_name, model_path, model_spec
from appliance.rest.predict import PREDICT_PATH, SmallPredict, encoded, run_of

Request = falcon.asgi.Request
Response = falcon.asgi.Response
Handler = Callable[["RestFront", Exchange, Request, Response, re.Match[str]], Awaitable[None]]


class RestFront:
    """The handlers of one REST process, over one router."""

    def __init__(self, settings: FrontSettings) -> None:
        self._options = settings.options
        self._body_bounds = BodyBounds.of(settings.options)
        self._parsing = Parsing(settings.max_inflight_bytes)
        self.router = Router(settings.control_path, "rest", settings.max_inflight_bytes, {"memory": proportional_bytes})
        counts = RequestMetrics(Recorder(settings.metrics_directory, "rest"), "rest")
        self._accounting = Accounting(counts, self.router, "rest", settings.options.access_log)
        self._pages = MetricsPages(settings.metrics_directory)
        self._monitoring_path = settings.monitoring_path
        self.router.on_inflight = counts.inflight
        self._pipeline = Pipeline(self.router, counts)
        self._inference = Inference(
            self._pipeline,
            settings.options.enable_signature_method_name_check,
            settings.options.max_request_bytes,
            counts.examples,
        )
        self.fast_lane = FastLane(self._pipeline, self.router, self._accounting, settings.options)
        self.open_inference = open_inference.OpenInference(self.router, self._pipeline, self._parsing, self._options)

    async def start(self) -> None:
        """Get the first routes; the front can take requests afterwards."""
        await self.router.start(on_lost=lambda: os.kill(os.getpid(), signal.SIGKILL))
        self.router.say_serving()

    async def dispatch(self, req: Request, resp: Response | None, **_: Any) -> None:
        """Answer any request, and account for it."""
        assert resp is not None  # falcon passes None only for WebSockets
        begun: FastRequest | None = req.scope.get(FAST)
        exchange = Exchange("other") if begun is None else begun.exchange
        path: str = req.scope["raw_path"].decode("latin-1")  # raw: an escaped slash in it does not separate segments
        if self._options.rest_api_enable_cors_support:
            resp.set_headers(CORS)  # first, so that every answer has them, even one to an unexpected error
        try:
            await self._answer(exchange, req, resp, path)
            if resp.data:
                # Read from the scope, because falcon's look-up takes 2 µs, and most answers are too small to compress.
                accepted = b",".join([value for name, value in req.scope["headers"] if name == b"accept-encoding"])
                if len(resp.data) >= MIN_BYTES or b"0" in accepted:
                    await _compress(resp, accepted.decode("latin-1"))
        except asyncio.CancelledError:
            exchange.code = Code.CANCELLED
            raise
        except Exception:
            resp.status = "500"  # as the error handler of `app` answers
            raise
        finally:
            exchange.response_bytes = len(resp.data or b"")
            self._accounting.account(exchange, lambda: _access(exchange, req, resp, path))

    async def _answer(self, exchange: Exchange, req: Request, resp: Response, path: str) -> None:
        """Answer the request by its route's handler, or with the error."""
        try:
            handler, match = self._route(req, path)
            exchange.method = handler.__name__
            await handler(self, exchange, req, resp, match)
            if resp.data and len(resp.data) > COUNTED_ANSWER_BYTES:
                self.router.reserve(len(resp.data))
                req.scope[ANSWER_BYTES] = len(resp.data)
            exchange.code = Code.OK
        except REFUSALS as error:
            exchange.code, refused = refusal(error)
            resp.status = str(refused.status)
            resp.data = refused.data
            resp.set_headers(refused.headers)

    def _route(self, req: Request, path: str) -> tuple[Handler, re.Match[str]]:
        """Return the handler for the request, and its pattern's match of the path.

        Raise ServingError if there is none.
        """
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

    # -- handlers --------------------------------------------------------------------------------------------

    async def predict(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer POST …:predict, in the row or the column format of the request."""
        deadline_ns = self._deadline_ns()
        spec = _asked(exchange, match)
        ran: FastRequest | None = req.scope.get(FAST)
        if ran is not None and ran.outputs is not None:  # the fast lane leaves large answers
            with ran.reserved as reserved:
                resp.data = await encoded(ran.outputs, ran.row_format, reserved)
            return
        with Reservation(self.router) as reserved:
            body = await read_body(req, self._body_bounds, reserved)
            if len(body) < LARGE_BYTES:
                small = SmallPredict(body)
                row_format, check = small.row_format, small.check
            else:
                # The values of a large body are read in a thread, for the version that is served now.
                def read(room: int) -> tuple[bool, VersionRoute, Run]:
                    request = parse_predict(body, room)
                    _, version = self.router.snapshot.resolve(spec)
                    return request.row_format, version, run_of(request, version)

                row_format, asked, run = await self._parsing.run(read, deadline_ns)
                reserved.add(run.packed.payload_bytes)

                def check(version: VersionRoute) -> Sequence[Run]:
                    if version.signatures == asked.signatures:
                        return (run,)
                    return (run_of(parse_predict(body, self._parsing.room), version),)

            answered = await self._pipeline.run(spec, check, deadline_ns)
            resp.data = await encoded(answered.outputs[0], row_format, reserved)

    async def classify(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer POST …:classify."""
        await self._classify_or_regress(exchange, req, resp, match, Method.CLASSIFY)

    async def regress(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer POST …:regress."""
        await self._classify_or_regress(exchange, req, resp, match, Method.REGRESS)

    async def _classify_or_regress(
        self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str], method: Method
    ) -> None:
        deadline_ns = self._deadline_ns()
        spec = _asked(exchange, match)
        with Reservation(self.router) as reserved:
            body = await read_body(req, self._body_bounds, reserved)
            if len(body) < LARGE_BYTES:
                parsed = parse_examples(body)
            else:
                parsed = await self._parsing.run(functools.partial(parse_examples, body), deadline_ns)
            del body
            plan = self._inference.plan(method, parsed.signature_name)
            done = await self._inference.run(spec, plan, parsed.examples, reserved, deadline_ns)
            resp.data = encode_result(done.results[0])

    def _deadline_ns(self) -> int:
        return time.monotonic_ns() + int(self._options.rest_api_timeout_in_ms * 1e6)

    async def models(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /v1/models: all models, with the state of each version and its reason."""
        resp.data = models_document(self.router.snapshot)

    async def status(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET …/NAME with the state of the versions that the path asks for."""
        resp.data = status_document(self.router.snapshot.status(_asked(exchange, match)))

    async def metadata(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET …/metadata with the signatures of the version that would serve."""
        model, version = self.router.snapshot.resolve(_asked(exchange, match))
        resp.data = json_document(metadata_json(model.name, version.version, version.signatures))

    async def nameless(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Refuse a path without a model's name."""
        raise ServingError(
            Code.INVALID_ARGUMENT, "Missing model name in request.", "write /v1/models/NAME; GET /v1/models lists them"
        )

    async def metrics(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /metrics with our own metrics."""
        resp.data = await self._own_metrics()
        resp.content_type = CONTENT_TYPE

    async def _own_metrics(self) -> bytes:
        return await self._pages.own(self.router, await scraped_gpu_status(self.router))

    async def monitoring(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer with TensorFlow Serving's metrics, and with our own too if both have the same path."""
        data = await self._pages.tensorflow_serving()
        if self._monitoring_path == "/metrics":
            data += await self._own_metrics()
        resp.data = data
        resp.content_type = TENSORFLOW_SERVING_CONTENT_TYPE

    async def acceleration(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET …/acceleration with the report of a version's conversion."""
        spec = _asked(exchange, match)
        (version,) = self.router.snapshot.status(spec)
        params = {"model": spec.model, "version": version.version}
        known = await self.router.call("acceleration", params, self._options.rest_api_timeout_in_ms / 1000)
        about = {**params, "version": str(version.version), "serving": version.form_backend or "its own model"}
        nothing = {"state": "none", "progress": "", "demoted": ""}
        resp.data = json_document({**about, **(known or nothing)})

    async def gpu(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /v1/gpu as JSON, or as a table for ?format=text."""
        wanted = req.get_param("format", default="json")
        resp.data, resp.content_type = gpu_page(await gpu_status(self.router), wanted)

    async def preflight(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer the preflight request that a browser sends before a web page's request, by the CORS headers."""
        if not re.search("https?://", req.get_header("origin") or ""):
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Origin header is missing in CORS preflight",
                "OPTIONS only answers web browsers; use GET or POST",
            )

    async def healthz(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /healthz: 200 whenever this process answers."""
        resp.data = json_document({"status": "alive"})

    async def readyz(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /readyz: 200 if the server is ready, else 503."""
        ready = self.router.snapshot.ready
        resp.status = "200" if ready else "503"
        resp.data = json_document({"status": "ready" if ready else "not ready; see GET /v1/models"})


def _asked(exchange: Exchange, match: re.Match[str]) -> ModelSpec:
    """Return the model and version that the path asks for. Raise ServingError."""
    try:
        spec = _remembered_spec(match) if len(match.string) <= _REMEMBERED_PATH else model_spec(match)
    except ServingError:
        exchange.model = model_name(match)
        raise
    exchange.model = spec.model
    return spec


def _access(exchange: Exchange, req: Request, resp: Response, path: str) -> Access:
    """Return the request's access log entry."""
    status = str(resp.status)[:3]
    return access_entry(
        exchange,
        req.remote_addr,
        req.get_header("x-forwarded-for") or "",
        req.method,
        path,
        int(status) if status.isdigit() else 0,
        req.content_length,
    )


async def _compress(resp: Response, accept_encoding: str) -> None:
    """Compress the answer if it is large enough and the client accepts it."""
    assert resp.data is not None
    coding = coding_of(accept_encoding, len(resp.data))
    if coding.is_gzip:
        resp.data = await gzipped(resp.data)
    resp.set_headers(coding.headers)


def _of_open_inference(handler: open_inference.Handler) -> Handler:
    """Return a handler that calls the other protocol's."""

    @functools.wraps(handler)
    async def handle(front: RestFront, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        await handler(front.open_inference, exchange, req, resp, match)

    return handle


_ROUTES: tuple[tuple[str, re.Pattern[str], Handler], ...] = (
    ("POST", PREDICT_PATH, RestFront.predict),
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
    *((method, pattern, _of_open_inference(handler)) for method, pattern, handler in open_inference.ROUTES),
)


_REMEMBERED_PATH = 256  # clients choose the paths, so only short ones are cached


_remembered_spec = functools.lru_cache(1024)(model_spec)  # by the match, which `_matched` remembers


@functools.lru_cache(1024)
def _matched(method: str, path: str) -> tuple[Handler, re.Match[str]] | None:
    for allowed, pattern, handler in _ROUTES:
        if allowed == method and (match := pattern.fullmatch(path)):
            return handler, match
    return None

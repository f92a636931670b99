"""The Open Inference Protocol's REST API: its routes, and their handlers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import falcon.asgi
import numpy as np

from appliance.config.options import Options
from appliance.core.errors import Code, ServingError
from appliance.core.routes import VersionRoute
from appliance.core.servable import ModelSpec
from appliance.inference.accounting import Exchange
from appliance.inference.infer import deadline_of, infer_run
from appliance.inference.pipeline import Pipeline
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.inference.runs import Run
from appliance.protocols.json_output import fewest_bytes, json_bytes
from appliance.protocols.json_text import load_object
from appliance.protocols.v2.documents import (
    NO_LOADING,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
)
from appliance.protocols.v2.inference import InferRequest
from appliance.protocols.v2.json_inference import answer_pieces, binary_contents, parse_request
from appliance.protocols.v2.versions import model_spec
from appliance.rest.bodies import BodyBounds, read_body
from appliance.rest.documents import json_document
from appliance.rest.parsing import LARGE_BYTES, Parsing
from appliance.rest.paths import unquoted

__all__ = ["ROUTES", "OpenInference"]

_HEADER = "Inference-Header-Content-Length"
_BINARY_TYPE = "application/octet-stream"
_PAUSE_BYTES = 1 << 16  # of JSON, after which others have a turn
_MAX_QUESTION_BYTES = 1 << 20

Request = falcon.asgi.Request
Response = falcon.asgi.Response
Handler = Callable[["OpenInference", Exchange, Request, Response, re.Match[str]], Awaitable[None]]


class OpenInference:
    """The handlers of one REST process."""

    def __init__(self, router: Router, pipeline: Pipeline, parsing: Parsing, options: Options) -> None:
        self._router = router
        self._pipeline = pipeline
        self._parsing = parsing
        self._options = options
        self._json_bounds = BodyBounds.of(options)
        self._binary_bounds = BodyBounds(options.max_request_bytes, "max_request_bytes", options.body_grace_seconds)

    async def infer(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer POST …/infer."""
        deadline_ns = time.monotonic_ns() + int(self._options.rest_api_timeout_in_ms * 1e6)
        spec = _asked(exchange, match)
        header_bytes = _header_bytes(req)
        with Reservation(self._router) as reserved:
            bounds = self._json_bounds if header_bytes is None else self._binary_bounds
            body = await read_body(req, bounds, reserved)
            if header_bytes is not None and header_bytes > self._json_bounds.nbytes:
                raise ServingError(Code.INVALID_ARGUMENT, f"{_HEADER} is {header_bytes:,}; {self._json_bounds}")
            request, check = await self._checked(spec, body, header_bytes, reserved, deadline_ns)
            answered = await self._pipeline.run(spec, check, deadline_of(request, deadline_ns))
            await _answer(request, answered.model, answered.version, answered.outputs[0], reserved, resp)

    async def _checked(
        self, spec: ModelSpec, body: bytes, header_bytes: int | None, reserved: Reservation, deadline_ns: int
    ) -> tuple[InferRequest, Callable[[VersionRoute], Sequence[Run]]]:
        """Return the request, and what checks it against a version. Raise ServingError."""
        is_small = len(body) < LARGE_BYTES
        if header_bytes is not None and header_bytes < LARGE_BYTES:
            # Binary numbers are used where they lie; only strings are taken apart, whose name JSON may escape.
            head = body[:header_bytes]
            is_small = is_small or (b'"BYTES"' not in head and b"\\" not in head)
        if is_small:
            small = parse_request(body, header_bytes)
            return small, lambda version: infer_run(small, version, reserved.add)

        # The values of a large body are read in a thread, for the version that is served now.
        def read(room: int) -> tuple[InferRequest, VersionRoute, Sequence[Run]]:
            request = parse_request(body, header_bytes, room)
            _, version = self._router.snapshot.resolve(spec)
            return request, version, infer_run(request, version, lambda _: None)

        request, asked, runs = await self._parsing.run(read, deadline_ns)
        reserved.add(sum(run.packed.payload_bytes for run in runs))

        def check(version: VersionRoute) -> Sequence[Run]:
            return runs if version.signatures == asked.signatures else infer_run(request, version, reserved.add)

        return request, check

    async def server(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /v2 with the server's name, version and extensions."""
        resp.data = json_document(server_metadata())

    async def live(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /v2/health/live: 200, since the server answers."""
        resp.data = json_document({"live": True})

    async def ready(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /v2/health/ready: 200 if the server is ready, else 503."""
        ready = self._router.snapshot.ready
        resp.status = "200" if ready else "503"
        resp.data = json_document({"ready": ready})

    async def models(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET /v2/models with the names of the models."""
        resp.data = json_document({"models": sorted(self._router.snapshot.models)})

    async def metadata(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET …/NAME with the inputs and outputs of a signature: `signature_name`, or the default."""
        model, version = self._router.snapshot.resolve(_asked(exchange, match))
        resp.data = json_document(model_metadata(model, version, req.get_param("signature_name", default="")))

    async def config(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET …/config with the model's configuration."""
        model, version = self._router.snapshot.resolve(_asked(exchange, match))
        resp.data = json_document(model_config(model, version, req.get_param("signature_name", default="")))

    async def model_ready(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer GET …/ready: 200 if a version takes requests, else 503, or 404 if there is no such model."""
        spec = _asked(exchange, match)
        try:
            self._router.snapshot.resolve(spec)
        except ServingError as error:
            if spec.model not in self._router.snapshot.models:
                raise
            resp.status = "503"
            resp.data = json_document({"name": spec.model, "ready": False, "error": str(error)})
        else:
            resp.data = json_document({"name": spec.model, "ready": True})

    async def index(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Answer POST /v2/repository/index: a row for each version of each model."""
        bounds = BodyBounds(_MAX_QUESTION_BYTES, "the most of this question", self._options.body_grace_seconds)
        with Reservation(self._router) as reserved:
            body = await read_body(req, bounds, reserved)
            wanted = load_object(body) if body.strip() else {}
        ready = wanted.get("ready", False)
        if type(ready) is not bool:
            raise ServingError(Code.INVALID_ARGUMENT, "ready is neither true nor false")
        resp.data = json_document(repository_index(self._router.snapshot, ready))

    async def loading(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Refuse to load or unload: what lies in the models' folders decides."""
        raise ServingError(Code.FAILED_PRECONDITION, *NO_LOADING)

    async def missing(self, exchange: Exchange, req: Request, resp: Response, match: re.Match[str]) -> None:
        """Refuse an extension that this server does not have."""
        name = match["extension"].replace("sharedmemory", " shared memory").replace("stat", "statistics")
        raise ServingError(
            Code.UNIMPLEMENTED, f"This server has no {name} extension", "GET /v2 lists the extensions that it has"
        )


async def _answer(
    request: InferRequest,
    model: str,
    version: int,
    outputs: Mapping[str, np.ndarray],
    reserved: Reservation,
    resp: Response,
) -> None:
    """Write the answer, while others are answered too if it is large JSON. Raise ServingError if it is too large."""
    binary = binary_contents(request, outputs)
    sizes = {name: len(contents) for name, contents in binary.items()}
    as_json = {name: array for name, array in outputs.items() if name not in binary}
    reserved.check_answer(fewest_bytes(as_json) + sum(sizes.values()))
    is_small = json_bytes(as_json) <= _PAUSE_BYTES
    pieces: list[bytes | memoryview] = []
    json_size = waiting = 0
    for piece in answer_pieces(request, model, version, outputs, sizes):
        reserved.add_answer(len(piece))
        json_size += len(piece)
        pieces.append(piece)
        waiting += len(piece)
        if waiting >= _PAUSE_BYTES and not is_small:
            await asyncio.sleep(0)
            waiting = 0
    if binary:
        reserved.add_answer(sum(sizes.values()))
        resp.set_header(_HEADER, str(json_size))
        resp.content_type = _BINARY_TYPE
    resp.data = b"".join([*pieces, *binary.values()])


def _header_bytes(req: Request) -> int | None:
    """Return the size of the JSON before binary tensors; None if the whole body is JSON."""
    text = req.get_header(_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(2**63))):
        raise ServingError(
            Code.INVALID_ARGUMENT, f"{_HEADER} is {text[:100]!r}", "it is the size of the JSON, in bytes"
        )
    return int(text)


def _asked(exchange: Exchange, match: re.Match[str]) -> ModelSpec:
    """Return the model and version that the path asks for. Raise ServingError."""
    exchange.model = unquoted(match["model"])
    return model_spec(exchange.model, unquoted(match["version"] or ""))


def _path(rest: str) -> re.Pattern[str]:
    return re.compile(rf"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?{rest}")


ROUTES: tuple[tuple[str, re.Pattern[str], Handler], ...] = (
    ("POST", _path("/infer"), OpenInference.infer),
    ("GET", re.compile("/v2/?"), OpenInference.server),
    ("GET", re.compile("/v2/health/live"), OpenInference.live),
    ("GET", re.compile("/v2/health/ready"), OpenInference.ready),
    ("GET", re.compile("/v2/models/?"), OpenInference.models),
    ("GET", _path("/?"), OpenInference.metadata),
    ("GET", _path("/ready"), OpenInference.model_ready),
    ("GET", _path("/config"), OpenInference.config),
    ("POST", re.compile("/v2/repository/index"), OpenInference.index),
    ("POST", re.compile("/v2/repository/models/[^/]+/(?:load|unload)"), OpenInference.loading),
    *(
        (method, re.compile(rf"/v2/(?:models/[^/]+(?:/versions/[^/]+)?/)?{rest}"), OpenInference.missing)
        for method in ("GET", "POST")
        for rest in (
            "(?P<extension>trace)/setting",
            "(?P<extension>logging)",
            "(?P<extension>(?:system|cuda)sharedmemory).*",
            "(?P<extension>generate)(?:_stream)?",
            "(?P<extension>stat)s",
        )
    ),
)
"""Method, path and handler. The path is the raw one: escaped slashes do not separate segments."""

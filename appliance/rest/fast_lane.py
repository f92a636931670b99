"""The fast lane: small predict requests, run and answered by callbacks, without ASGI, falcon and tasks.

It knows no sockets: `lanes` decides which requests come here, and sends what this returns. Both lanes share the parts
that decide what an answer is (`predict`, `answers`, `compression`), so that an answer does not tell its lane.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from appliance.config.options import Options
from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec
from appliance.inference.accounting import Access, Accounting, Exchange
from appliance.inference.pipeline import Pipeline, Submitted
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.inference.runs import Answered
from appliance.protocols.json_output import encode_predict, json_bytes
from appliance.rest.answers import CORS, REFUSALS, Answer, access_entry, internal_error, refusal
from appliance.rest.bodies import BodyBounds
from appliance.rest.bounds import COUNTED_ANSWER_BYTES
from appliance.rest.compression import MIN_BYTES, coding_of, gzipped_at_once
from appliance.rest.paths import model_spec
from appliance.rest.predict import PREDICT_PATH, SmallPredict

__all__ = ["FAST", "FastLane", "FastRequest", "Headers"]

logger = logging.getLogger(__name__)

FAST = "dropserve.fast"  # in the ASGI scope: the FastRequest that the slow lane goes on with

_MAX_BODY_BYTES = 65536  # what a connection may hold of a body that does not count as in flight yet
_REMEMBERED_URL = 256  # clients choose the paths, so only short ones are cached

Headers = Sequence[tuple[bytes, bytes]]


class Sender(Protocol):
    """The connection of a request."""

    client: tuple[str, int] | None

    def send(self, request: FastRequest, head: bytes, body: bytes) -> None:
        """Send the answer, and go on with the next request."""

    def hand_over(self, request: FastRequest) -> None:
        """Let the slow lane go on with the request."""

    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer begins with; the same list as long as they are the same."""


class _NoWaiter:
    """Stands for the event that tells a task of a body: nobody waits for it in this lane."""

    def set(self) -> None:
        """Do nothing."""


class FastRequest:
    """One request in the fast lane, from its head to its answer.

    To uvicorn's connection it acts as a RequestResponseCycle: uvicorn looks at and sets the attributes from `body` to
    `response_complete`.
    """

    __slots__ = (
        "body", "disconnected", "exchange", "headers", "keep_alive", "lane", "more_body", "outputs", "reserved",
        "response_complete", "row_format", "sender", "spec", "submitted", "url", "version",
    )  # fmt: skip

    message_event = _NoWaiter()

    def __init__(
        self,
        lane: FastLane,
        sender: Sender,
        spec: ModelSpec,
        url: bytes,
        headers: Headers,
        version: str,
        keep_alive: bool,
    ) -> None:
        self.lane = lane
        self.sender = sender
        self.spec = spec
        self.url = url
        self.headers = headers
        self.version = version  # of HTTP
        self.exchange = Exchange("predict")
        self.exchange.model = spec.model
        self.reserved = Reservation(lane.router)
        self.submitted: Submitted | None = None
        self.outputs: Mapping[str, np.ndarray] | None = None  # for the slow lane, if the answer is large
        self.row_format = False
        self.body = bytearray()
        self.disconnected = False
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_complete = False

    def on_answer(self, answer: Answered | Exception) -> None:
        """Take the answer, or the error."""
        self.lane.finish(self, answer)

    def header(self, wanted: bytes) -> str:
        """Return the values of a header, joined by commas; "" if there is none."""
        return b",".join([value for name, value in self.headers if name == wanted]).decode("latin-1")


class FastLane:
    """Runs the small predict requests of one front."""

    def __init__(self, pipeline: Pipeline, router: Router, accounting: Accounting, options: Options) -> None:
        self.router = router
        self.max_body_bytes = min(_MAX_BODY_BYTES, BodyBounds.of(options).nbytes)
        self._pipeline = pipeline
        self._accounting = accounting
        self._timeout_ns = int(options.rest_api_timeout_in_ms * 1e6)
        self._cors = CORS if options.rest_api_enable_cors_support else ()
        self._head_of: list[tuple[bytes, bytes]] = []  # the default headers that `_head` was made of
        self._head = b""

    def spec_of(self, url: bytes) -> ModelSpec | None:
        """Return the model that a POST to `url` asks to predict; None if it is no plain request to predict."""
        return _spec_of(url) if len(url) <= _REMEMBERED_URL else _spec_of.__wrapped__(url)

    def run(self, request: FastRequest) -> None:
        """Run a request whose body is there."""
        try:
            body = bytes(request.body)
            request.body.clear()  # the connection keeps the request until the next one
            request.reserved.add(len(body))
            predict = SmallPredict(body)
            request.row_format = predict.row_format
            deadline_ns = int(request.exchange.started * 1e9) + self._timeout_ns
            request.submitted = self._pipeline.submit(request.spec, predict.check, deadline_ns, request.on_answer)
        except Exception as error:  # noqa: BLE001 - the outermost of a request, called by a parser that expects none
            self._refuse(request, error)

    def finish(self, request: FastRequest, answer: Answered | Exception) -> None:
        """Answer a request, or leave it to the slow lane if its answer is large."""
        request.submitted = None  # it holds the inputs
        if isinstance(answer, Exception):
            self._refuse(request, answer)
            return
        try:
            outputs = answer.outputs[0]
            nbytes = json_bytes(outputs)
            if nbytes > COUNTED_ANSWER_BYTES:
                request.outputs = outputs
                request.sender.hand_over(request)
                return
            request.reserved.add(nbytes)
            data = encode_predict(outputs, request.row_format)
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._refuse(request, error)
            return
        self._answer(request, Code.OK, Answer(200, data))

    def leave(self, request: FastRequest) -> None:
        """End a request whose client is gone."""
        if request.submitted is not None:
            request.submitted.cancel()
            request.submitted = None
        request.exchange.code = Code.CANCELLED
        self._account(request, 0)

    def _refuse(self, request: FastRequest, error: Exception) -> None:
        if isinstance(error, REFUSALS):
            self._answer(request, *refusal(error))
            return
        logger.error("a request failed: POST %s", request.url[:200].decode("latin-1"), exc_info=error)
        self._answer(request, Code.INTERNAL, internal_error(error))

    def _answer(self, request: FastRequest, code: Code, answer: Answer) -> None:
        status, data, headers = answer
        accepted = request.header(b"accept-encoding")
        if len(data) >= MIN_BYTES or "0" in accepted:
            coding = coding_of(accepted, len(data))
            if coding.is_gzip:
                data = gzipped_at_once(data)
            headers += coding.headers
        request.exchange.code = code
        request.exchange.response_bytes = len(data)
        self._account(request, status)
        request.sender.send(request, self._head_bytes(request, status, headers, len(data)), data)

    def _account(self, request: FastRequest, status: int) -> None:
        request.reserved.__exit__()
        self._accounting.account(request.exchange, lambda: _access(request, status))

    def _head_bytes(self, request: FastRequest, status: int, headers: Sequence[tuple[str, str]], nbytes: int) -> bytes:
        """Return the head of an answer as falcon and uvicorn write it."""
        default = request.sender.default_headers()
        if default is not self._head_of:
            cors = [(name.encode(), value.encode()) for name, value in self._cors]
            self._head_of, self._head = default, _lines([*default, *cors])
        more = _lines([(name.encode(), value.encode()) for name, value in headers]) if headers else b""
        end = b"\r\n" if request.keep_alive else b"connection: close\r\n\r\n"
        return b"%scontent-length: %d\r\ncontent-type: application/json\r\n%s" % (
            STATUS_LINE[status] + self._head + more, nbytes, end
        )  # fmt: skip


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def _access(request: FastRequest, status: int) -> Access:
    client = request.sender.client[0] if request.sender.client else "127.0.0.1"
    path = request.url.partition(b"?")[0].decode("latin-1")
    length = int(request.header(b"content-length"))
    return access_entry(request.exchange, client, request.header(b"x-forwarded-for"), "POST", path, status, length)


@functools.lru_cache(1024)
def _spec_of(url: bytes) -> ModelSpec | None:
    path, _, _ = url.partition(b"?")
    match = PREDICT_PATH.fullmatch(path.decode("latin-1")) if url.isascii() and b"#" not in url else None
    try:
        return None if match is None else model_spec(match)
    except ServingError:
        return None  # the slow lane says why

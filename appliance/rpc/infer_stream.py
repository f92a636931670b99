"""ModelStreamInfer: the requests of one call are answered one after the other, in their order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from appliance.core.errors import Code, ServingError, as_utf8, truncated
from appliance.core.limits import MIN_BYTES_PER_SECOND
from appliance.inference.accounting import Accounting, Exchange
from appliance.inference.reservation import Reservation
from appliance.inference.router import Router
from appliance.protocols import protos
from appliance.protocols.wire_format import field
from appliance.rpc.access import access_of
from appliance.rpc.open_inference import SERVICE, OpenInferenceFront
from appliance.rpc.options import Slots
from appliance.rpc.unsent import Unsent, end_connections

__all__ = ["STREAM", "stream_handler"]

logger = logging.getLogger(__name__)

STREAM = "ModelStreamInfer"
_NAME = f"{SERVICE}/{STREAM}"
_RUN_SECONDS = 3600.0  # of a request whose call has no deadline
_COPIES = 2  # of an answer until it is sent: Python's, and gRPC's own
_INFER_RESPONSE = 2  # the field of a ModelStreamInferResponse


def stream_handler(
    front: OpenInferenceFront,
    slots: Slots,
    accounting: Accounting,
    router: Router,
    unsent: Unsent,
    grace_seconds: float,
) -> Any:
    """Return the gRPC handler.

    A request that fails is answered with its error, and the call goes on. An answer counts as in flight until it is
    sent; a client that does not read it for `grace_seconds`, and then at 16 KiB a second, loses its connection.
    """

    async def answer(exchange: Exchange, data: bytes, context: Any, reserved: Reservation) -> bytes:
        """Return the serialized response to one request, counted in `reserved`."""
        left = context.time_remaining()
        try:
            await slots.take(len(data))
            try:
                answered = await front.model_infer(exchange, data, _RUN_SECONDS if left is None else left)
            finally:
                slots.give()
            reserved.add(_COPIES * len(answered))
            exchange.code, exchange.response_bytes = Code.OK, len(answered)
            return field(_INFER_RESPONSE, answered)
        except ServingError as error:
            exchange.code = error.code
            text = str(error)
        except MemoryError:
            exchange.code = Code.RESOURCE_EXHAUSTED
            text = "The server has no memory for this request"
        except asyncio.CancelledError:
            exchange.code = Code.CANCELLED
            raise
        except Exception as error:
            logger.exception("a request failed: %s", _NAME)
            text = f"Internal error: {type(error).__name__}; the server's log has more"
        return bytes(protos.ModelStreamInferResponse(error_message=truncated(as_utf8(text))).SerializeToString())

    async def handle(requests: AsyncIterator[bytes], context: Any) -> None:
        peer = context.peer()  # nobody knows it once the call is over
        nbytes = 0  # of the last answer, which gRPC may hold still when it has taken it
        async for data in requests:
            exchange = Exchange("infer")
            with Reservation(router) as reserved:
                try:
                    response = await answer(exchange, data, context, reserved)
                finally:
                    accounting.account(exchange, lambda: access_of(exchange, _NAME, data, context))  # noqa: B023 - at once
                try:
                    async with asyncio.timeout(grace_seconds + len(response) / MIN_BYTES_PER_SECOND):
                        await context.write(response)
                except TimeoutError:
                    # The call cannot be ended: its status would wait behind the answer.
                    logger.info("ended the connection of %s, which does not read its answers", peer)
                    end_connections({peer})
                    return
            nbytes = len(response)
        try:
            unsent.hold(context, nbytes, time.monotonic())
        except ServingError:  # too much is in flight
            end_connections({peer})

    return grpc.stream_stream_rpc_method_handler(handle)

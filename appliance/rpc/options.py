"""Settings of gRPC's server: its arguments, credentials, Unix socket, and the number of concurrent requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator

import grpc
from grpc._cython import cygrpc

from appliance.config.options import Options
from appliance.config.parsing import parse_channel_arguments
from appliance.config.tls import SslConfig
from appliance.core.errors import Code, ServingError
from appliance.core.limits import MAX_HEADER_BYTES

__all__ = ["Slots", "channel_arguments", "credentials", "quiet_lost_clients", "socket_mode"]

logger = logging.getLogger(__name__)

# Waiting requests are in memory already, and most are small: without this bound, clients would choose their number.
_MAX_WAITING = 10_000

_MAX_STREAMS = 1000
_IDLE_MS = 600_000
_HANDSHAKE_MS = 30_000  # a busy process is late too

_SOCKET_UMASK = 0o117  # leaves 0660


def channel_arguments(options: Options, max_connections: int) -> list[tuple[str, int | str]]:
    """Return the arguments of gRPC's server: our own, overridden by the operator's.

    `grpc.so_reuseport` stays on, because several processes and the supervisor hold the one port. What each does stands
    in grpc's `channel_arg_names.h`; a client whose connection is closed while it has no call connects again by itself.
    """
    ours: dict[str, int | str] = {
        "grpc.max_receive_message_length": options.max_grpc_message_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.max_metadata_size": MAX_HEADER_BYTES,
        "grpc.max_concurrent_streams": _MAX_STREAMS,  # of one connection; a client's further calls wait for their turn
        "grpc.max_allowed_incoming_connections": max_connections,
        "grpc.server_handshake_timeout_ms": _HANDSHAKE_MS,
        "grpc.max_connection_idle_ms": _IDLE_MS,
        # The server's own pings find clients whose machine is gone. Theirs may come every 10 s, also without a call.
        "grpc.keepalive_time_ms": 60_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_ping_interval_without_data_ms": 10_000,
        "grpc.http2.max_ping_strikes": 2,
    }
    return list((ours | parse_channel_arguments(options.grpc_channel_arguments) | {"grpc.so_reuseport": 1}).items())


def credentials(config: SslConfig) -> grpc.ServerCredentials:
    """Return credentials for TLS, or for mutual TLS if the configuration asks for clients' certificates."""
    return grpc.ssl_server_credentials(
        [(config.key, config.certificate)],
        root_certificates=config.client_ca or None,
        require_client_auth=config.client_verify,
    )


@contextlib.contextmanager
def socket_mode() -> Iterator[None]:
    """Give mode 0660 to the Unix sockets that are bound inside this context.

    The umask belongs to the whole process, so no other files may be created meanwhile.
    """
    before = os.umask(_SOCKET_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def quiet_lost_clients() -> None:
    """Keep clients that leave before their answer out of the log.

    gRPC logs an error with a traceback for each, so clients could fill the disk.
    """

    def is_other(record: logging.LogRecord) -> bool:
        lost = record.exc_info is not None and isinstance(record.exc_info[1], cygrpc.ExecuteBatchError)
        if lost:
            logger.debug("a client left before it had its answer: %s", record.getMessage())
        return not lost

    logging.getLogger(cygrpc.__name__).addFilter(is_other)


class Slots:
    """Limits the requests in progress to `count` (0: no limit); the others wait in order of arrival.

    A waiting request counts its bytes as in flight, by `reserve` (which may refuse) and `release`.
    """

    __slots__ = ("_free", "_max_waiting", "_release", "_reserve", "_unbounded", "_waiting")

    def __init__(
        self,
        count: int,
        reserve: Callable[[int], None],
        release: Callable[[int], None],
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        self._free = count
        self._max_waiting = max_waiting
        self._unbounded = count == 0
        self._reserve = reserve
        self._release = release
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, nbytes: int) -> None:
        """Take a slot for a request of `nbytes` bytes, or wait for one. A cancelled wait takes none.

        Raise RESOURCE_EXHAUSTED if too many requests, or too many bytes, are waiting already.
        """
        if self._unbounded:
            return
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._max_waiting:,} requests wait already (grpc_max_threads)",
                "try again, or raise grpc_max_threads",
                retry_after_seconds=1,
            )
        self._reserve(nbytes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `give` has removed it already
                    self._waiting.remove(turn)
            else:  # the slot was granted just before the cancellation
                self.give()
            raise
        finally:
            self._release(nbytes)

    def give(self) -> None:
        """Give back a slot, to the request that has waited longest if there is one."""
        if self._unbounded:
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

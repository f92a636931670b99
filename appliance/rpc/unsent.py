"""The answers that gRPC has not sent yet, because their clients do not read them.

HTTP/2 lets a client ask for an answer and give no leave to send it. gRPC keeps the answer for as long as the connection
lives, and offers no way to end a call from the server's side once it is answered. So each answer counts as in flight
until its call has ended, and one that is not read at a pace ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import unquote

from appliance.core.limits import MIN_BYTES_PER_SECOND

__all__ = ["Unsent", "end_connections"]

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 1.0
_COPIES = 2  # gRPC makes its own, and keeps Python's
_UNCOUNTED_BYTES = 1024  # smaller answers take no more than their calls, whose number is bounded


class Unsent:
    """Counts answers by `reserve` (which may refuse) until their call ends, and ends connections that do not take them.

    An answer may take `grace_seconds`, and then as long as it takes at 16 KiB a second.
    """

    def __init__(self, reserve: Callable[[int], None], release: Callable[[int], None], grace_seconds: float) -> None:
        self._reserve = reserve
        self._release = release
        self._grace_seconds = grace_seconds
        self._held: dict[Any, tuple[int, float]] = {}  # a call's context → the bytes of its answer, its deadline

    def hold(self, context: Any, nbytes: int, now: float) -> None:
        """Hold the answer of a call, which gRPC sends from `now` (monotonic). Raise ServingError if it is refused."""
        counted = _COPIES * nbytes if nbytes > _UNCOUNTED_BYTES else 0
        if counted:
            self._reserve(counted)
        self._held[context] = counted, now + self._grace_seconds + nbytes / MIN_BYTES_PER_SECOND
        context.add_done_callback(self._sent)

    def _sent(self, context: Any) -> None:
        counted, _ = self._held.pop(context)
        if counted:
            self._release(counted)

    async def sweep(self) -> None:
        """End the connections of clients that are too slow, once a second, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = time.monotonic()
            late = {context.peer() for context, (_, deadline) in self._held.items() if deadline < now}
            if late:
                logger.info("ended connections, whose clients do not read their answers: %s", ", ".join(sorted(late)))
                end_connections(late)


def end_connections(peers: Collection[str]) -> int:
    """Shut down the TCP connections of this process to `peers`, as gRPC writes them; return how many.

    gRPC sees the end of the connection, and drops its calls. One by the Unix socket has no name, and is not found.
    """
    wanted = {address for peer in peers if (address := _address_of(peer)) is not None}
    ended = 0
    for name in os.listdir("/proc/self/fd") if wanted else ():
        # `fromfd` copies the descriptor: nobody can close it, and open another by its number, in the meantime. With
        # IPv6's family, there is room for an address of either.
        with contextlib.suppress(OSError), socket.fromfd(int(name), socket.AF_INET6, socket.SOCK_STREAM) as sock:
            found = sock.getpeername()  # fails for what is no socket, and is no tuple for a Unix socket
            if isinstance(found, tuple) and _address(*found[:2]) in wanted:
                sock.shutdown(socket.SHUT_RDWR)
                ended += 1
    return ended


def _address_of(peer: str) -> tuple[str, int] | None:
    """Return address and port of a peer such as "ipv4:127.0.0.1:51234" or "ipv6:%5B::1%5D:51234"; None for others."""
    family, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if family not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return _address(host.strip("[]"), int(port))


def _address(host: str, port: int) -> tuple[str, int]:
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address), port

"""Answers that gRPC has not sent yet: how they are counted, and how their connections are found and ended."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any

import pytest

from appliance.core.errors import Code, ServingError
from appliance.rpc.unsent import Unsent, end_connections


class Context:
    """What a servicer context does at the end of its call."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self.callbacks.append(functools.partial(callback, self))

    def end(self) -> None:
        for callback in self.callbacks:
            callback()


def test_an_answer_counts_twice_until_its_call_ends_and_a_small_one_not() -> None:
    held: list[int] = []
    unsent = Unsent(held.append, held.remove, 10)
    large, small = Context(), Context()
    unsent.hold(large, 5000, 0.0)
    unsent.hold(small, 100, 0.0)
    assert held == [10_000]
    small.end()
    large.end()
    assert held == []


def test_an_answer_that_is_refused_is_not_held() -> None:
    def refuse(nbytes: int) -> None:
        raise ServingError(Code.RESOURCE_EXHAUSTED, "full")

    context = Context()
    with pytest.raises(ServingError):
        Unsent(refuse, lambda _: None, 10).hold(context, 5000, 0.0)
    assert not context.callbacks


@pytest.mark.parametrize(
    ("family", "host", "shown"),
    [
        (socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1:{}"),
        (socket.AF_INET6, "::1", "ipv6:%5B::1%5D:{}"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "ipv4:127.0.0.1:{}"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "ipv6:%5B::ffff:127.0.0.1%5D:{}"),
    ],
)
def test_the_connection_of_a_peer_is_ended_and_no_other(family: int, host: str, shown: str) -> None:
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener, socket.socket(family) as client, socket.socket(family) as other:
        accepted = []
        for sock in (client, other):
            sock.settimeout(10)
            sock.connect(listener.getsockname())
            accepted.append(listener.accept()[0])
        assert end_connections(["unix:", "unknown", shown.format(client.getsockname()[1])]) == 1
        assert client.recv(1) == b""
        accepted[1].sendall(b"x")
        assert other.recv(1) == b"x"
        for sock in accepted:
            sock.close()

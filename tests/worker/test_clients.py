"""What a worker sends to a front."""

from __future__ import annotations

import socket

from appliance.transport.channel import Channel
from appliance.transport.wire import Kind
from appliance.worker.clients import Client, Request
from backends.contract import BackendError, Code


def test_an_error_that_names_a_file_which_is_no_utf8_is_answered() -> None:
    ours, theirs = socket.socketpair()
    client, front = Client(ours), Channel(theirs)
    assert Request(client, 7, b"", b"").fail(BackendError(Code.NOT_FOUND, "/models/\udcff is gone"))
    (frame,) = front.receive()
    assert (frame.kind, frame.request_id) == (Kind.ERROR, 7)
    assert (frame.meta[0], frame.meta[1:]) == (Code.NOT_FOUND, b"/models/? is gone")
    client.channel.close()
    front.close()

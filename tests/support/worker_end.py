"""Plays a worker to a front, by a channel of the product's own."""

from __future__ import annotations

import asyncio
import socket

import numpy as np

from appliance.core.errors import Code
from appliance.transport.channel import Channel
from appliance.transport.wire import Frame, Kind, header, pack_arrays


class Worker:
    """A worker's end of its connection to a front, which listens at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(path)
        self.listening.listen()
        self.listening.settimeout(30)

    def accept(self) -> None:
        self.channel = Channel(self.listening.accept()[0], trusts_peer=True)

    async def request(self, kind: Kind = Kind.PREDICT) -> Frame:
        async with asyncio.timeout(30):
            while not (frames := self.channel.receive()):
                await asyncio.sleep(0)
        (frame,) = frames
        assert frame.kind == kind
        return frame

    def answer(self, frame: Frame, *values: float) -> None:
        packed = pack_arrays([("y", np.array(values, np.float32))])
        self.channel.send_arrays(Kind.RESULT, frame.request_id, packed.table, packed)

    def refuse(self, frame: Frame, code: Code, flags: int = 0) -> None:
        meta = bytes([code]) + b"no"
        self.channel.send([header(Kind.ERROR, len(meta), 0, frame.request_id, flags=flags) + meta])

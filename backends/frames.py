"""Exchange JSON with arrays between a job and its child processes, over a socket, or keep them in a file.

A frame is `<IQ` (bytes of the JSON, bytes of the payload), the JSON `{"message": ..., "arrays": [[name, dtype, shape,
bytes]]}`, and the payload: the arrays' elements, one after the other. An array of strings is the lengths of its
elements (uint32), then the elements.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np

from backends.dtypes import BY_NAME, STRING, of_array

__all__ = ["FileStream", "Frame", "FrameError", "Stream", "receive", "send"]

_HEAD = struct.Struct("<IQ")
_MAX_JSON_BYTES = 64 << 20
_MAX_PAYLOAD_BYTES = 2 << 30
_STEP_BYTES = 1 << 20

Frame = tuple[dict[str, Any], dict[str, np.ndarray]]


class FrameError(Exception):
    """The peer sent bytes that are not a frame, or ended within one."""


class Stream(Protocol):
    """The part of a socket that frames need."""

    def recv_into(self, buffer: memoryview, /) -> int: ...

    def sendall(self, data: Any, /) -> None: ...


class FileStream:
    """A buffered file of frames, which is read or written from its beginning on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def recv_into(self, buffer: memoryview, /) -> int:
        """See `Stream`."""
        # Every buffered file has it, and typing.BinaryIO lacks it.
        return int(self._file.readinto(buffer))  # type: ignore[attr-defined]

    def sendall(self, data: Any, /) -> None:
        """See `Stream`."""
        self._file.write(data)


def send(stream: Stream, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Send one frame. Raise OSError if the peer is gone or does not read in time, FrameError if the frame is too
    large."""
    listed, parts = [], []
    for name, array in (arrays or {}).items():
        data = _pack(array)
        listed.append([name, of_array(array).name, array.shape, len(data)])
        parts.append(data)
    head = json.dumps({"message": message, "arrays": listed}).encode()
    payload = sum(map(len, parts))
    if len(head) > _MAX_JSON_BYTES or payload > _MAX_PAYLOAD_BYTES:
        raise FrameError(f"{len(head):,} bytes of JSON and {payload:,} of arrays are too many for a frame")
    for part in (_HEAD.pack(len(head), payload) + head, *parts):
        stream.sendall(part)


def receive(stream: Stream) -> Frame | None:
    """Return the next frame; None if the peer has ended. Raise OSError, FrameError."""
    head = _exactly(stream, _HEAD.size, may_end=True)
    if not head:
        return None
    json_bytes, payload_bytes = _HEAD.unpack(head)
    if json_bytes > _MAX_JSON_BYTES or payload_bytes > _MAX_PAYLOAD_BYTES:
        raise FrameError(f"a frame of {json_bytes:,} and {payload_bytes:,} bytes is too large")
    try:
        document = json.loads(_exactly(stream, json_bytes))
        payload = memoryview(_exactly(stream, payload_bytes))
        arrays, at = {}, 0
        for name, dtype, shape, nbytes in document["arrays"]:
            arrays[name] = _unpack(payload[at : at + nbytes], dtype, tuple(shape))
            at += nbytes
        return document["message"], arrays
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise FrameError(f"no frame: {type(error).__name__}: {error}") from error


def _pack(array: np.ndarray) -> memoryview | bytes:
    if array.dtype == STRING.numpy:
        elements = [bytes(element) for element in array.reshape(-1)]
        return np.array([len(element) for element in elements], "<u4").tobytes() + b"".join(elements)
    # Converted to bytes, because types of ml_dtypes offer no buffer.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _unpack(data: memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    element = BY_NAME[dtype]
    if element is not STRING:
        return np.frombuffer(data, np.uint8).view(element.numpy).reshape(shape)
    count = math.prod(shape)
    array = np.empty(count, object)
    at = 4 * count
    for index, length in enumerate(np.frombuffer(data[:at], "<u4").tolist()):
        array[index] = bytes(data[at : at + length])
        at += length
    return array.reshape(shape)


def _exactly(stream: Stream, size: int, may_end: bool = False) -> bytearray:
    data = bytearray(min(size, _STEP_BYTES))
    at = 0
    while at < size:
        if at == len(data):  # a peer makes us take memory only by as much as it has sent
            data.extend(bytes(min(size - at, at)))
        with memoryview(data) as view, view[at:] as room:
            count = stream.recv_into(room)
        if not count:
            if may_end and not at:
                return bytearray()
            raise FrameError(f"the peer ended {size - at:,} bytes before the end of a frame")
        at += count
    return data

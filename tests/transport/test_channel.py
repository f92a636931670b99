"""Both ends of a connection, with real sockets and shared memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from appliance.transport.channel import Channel
from appliance.transport.shared import THRESHOLD_BYTES
from appliance.transport.wire import (
    FLAG_DESCRIPTOR,
    FLAG_SHARED,
    SEGMENT_ID,
    Frame,
    Kind,
    WireError,
    header,
    pack_arrays,
    unpack_arrays,
)

Ends = tuple[Channel, Channel]
LARGE = THRESHOLD_BYTES


@pytest.fixture(params=[False, True], ids=["copies", "maps"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """A sender, and a receiver that copies or maps its segments."""
    ours, theirs = socket.socketpair()
    sender, receiver = Channel(ours, shared_bytes=4 * LARGE), Channel(theirs, trusts_peer=request.param)
    yield sender, receiver
    sender.close()
    receiver.close()


def received(channel: Channel) -> list[Frame]:
    channel.sock.setblocking(True)
    return channel.receive()


def arrays_of(channel: Channel, frame: Frame) -> dict[str, np.ndarray]:
    meta, payload = frame.meta, frame.payload
    if payload is None:
        meta, payload = channel.shared_payload(frame)
    return unpack_arrays(meta, payload)


def sent(ends: Ends, *values: int, size: int = LARGE) -> tuple[list[int | None], list[Frame]]:
    """The segments and the frames of arrays that are filled with these values."""
    sender, receiver = ends
    segments = []
    frames: list[Frame] = []
    for value in values:
        packed = pack_arrays([("x", np.full(size, value, np.uint8))])
        done, segment = sender.send_arrays(Kind.RESULT, value, packed.table, packed, 7)
        assert done
        segments.append(segment)
        frames += received(receiver)
    return segments, frames


def test_small_arrays_go_through_the_socket(ends: Ends) -> None:
    segments, (frame,) = sent(ends, 5, size=1000)
    assert segments == [None]
    assert (frame.kind, frame.request_id, frame.deadline_ns, frame.flags) == (Kind.RESULT, 5, 7, 0)
    assert arrays_of(ends[1], frame)["x"].tolist() == [5] * 1000


def test_large_arrays_go_through_a_segment_that_is_announced_once(ends: Ends) -> None:
    segments, frames = sent(ends, 5)
    assert frames[0].flags == FLAG_SHARED | FLAG_DESCRIPTOR
    assert (frames[0].request_id, frames[0].deadline_ns, frames[0].payload) == (5, 7, None)
    assert (arrays_of(ends[1], frames[0])["x"] == 5).all()
    assert segments[0] is not None
    ends[0].release(segments[0])
    again, frames = sent(ends, 6)
    assert again == segments
    assert frames[0].flags == FLAG_SHARED
    assert (arrays_of(ends[1], frames[0])["x"] == 6).all()


def test_a_segment_that_was_not_released_is_not_written_again(ends: Ends) -> None:
    segments, frames = sent(ends, 5, 6)
    assert segments[0] != segments[1]
    found = [arrays_of(ends[1], frame)["x"] for frame in frames]
    assert [(array == value).all() for array, value in zip(found, (5, 6), strict=True)] == [True, True]


def test_a_segment_that_gave_way_to_a_larger_one_is_forgotten_and_what_was_read_of_it_stays(
    ends: Ends,
) -> None:
    sender, receiver = ends
    (number,), (frame,) = sent(ends, 5)
    array = arrays_of(receiver, frame)["x"]
    assert number is not None
    sender.release(number)
    _, (forget, frame) = sent(ends, 6, size=4 * LARGE)
    assert forget.kind == Kind.FORGET
    receiver.forget(forget)
    assert (array == 5).all()
    assert (arrays_of(receiver, frame)["x"] == 6).all()
    late = Frame(Kind.RESULT, FLAG_SHARED, 1, 0, forget.meta, None, 1)
    with pytest.raises(KeyError):
        receiver.shared_payload(late)


def test_segments_that_were_closed_in_vain_are_forgotten_too(ends: Ends) -> None:
    sender, receiver = ends
    (number, _), frames = sent(ends, 5, 6)
    for frame in frames:
        arrays_of(receiver, frame)
    assert number is not None
    sender.release(number)
    packed = pack_arrays([("x", np.zeros(4 * LARGE, np.uint8))])  # more than the other segment leaves
    _, segment = sender.send_arrays(Kind.RESULT, 7, packed.table, packed)
    assert segment is None
    (forget, *_) = received(receiver)
    assert (forget.kind, forget.meta) == (Kind.FORGET, SEGMENT_ID.pack(number))


def test_a_frame_without_the_descriptor_that_it_announces_is_refused(ends: Ends) -> None:
    sender, receiver = ends
    sender.send([header(Kind.RESULT, 4, LARGE, 1, 0, FLAG_SHARED | FLAG_DESCRIPTOR) + bytes(4)])
    (frame,) = received(receiver)
    with pytest.raises(WireError, match="has not come"):
        receiver.shared_payload(frame)


def test_closing_both_ends_closes_every_descriptor(ends: Ends) -> None:
    before = set(os.listdir("/proc/self/fd"))
    _, frames = sent(ends, 5, 6)
    arrays_of(ends[1], frames[0])  # the descriptor of the other is not claimed
    assert set(os.listdir("/proc/self/fd")) > before
    ends[0].close()
    ends[1].close()
    assert not set(os.listdir("/proc/self/fd")) - before


def test_a_segment_that_its_writer_has_shrunk_is_refused_by_a_reader_that_copies() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours)
        descriptor = os.memfd_create("shrunk")
        meta = bytes(4)
        head = header(Kind.RESULT, len(meta), LARGE, 1, 0, FLAG_SHARED | FLAG_DESCRIPTOR)
        socket.send_fds(theirs, [head + meta], [descriptor])
        os.close(descriptor)
        (frame,) = received(channel)
        with pytest.raises(WireError, match="ends after 0 of 1,048,576 bytes"):
            channel.shared_payload(frame)
        channel.close()

"""Both ends of a connection, with real sockets and shared memory."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
        meta = bytes(4)
        head = header(Kind.RESULT, len(meta), LARGE, 1, 0, FLAG_SHARED | FLAG_DESCRIPTOR)
        with tempfile.TemporaryFile(dir="/dev/shm") as shrunk:
            socket.send_fds(theirs, [head + meta], [shrunk.fileno()])
        (frame,) = received(channel)
        with pytest.raises(WireError, match="ends after 0 of 1,048,576 bytes"):
            channel.shared_payload(frame)
        channel.close()


@pytest.fixture
def worker() -> Iterator[tuple[socket.socket, Channel]]:
    """The end of a worker that its model has taken over, and the front's."""
    ours, theirs = socket.socketpair()
    front = Channel(theirs)
    yield ours, front
    ours.close()
    front.close()


def announced(number: int, size: int) -> bytes:
    head = header(Kind.RESULT, SEGMENT_ID.size + 2, size, 1, flags=FLAG_SHARED | FLAG_DESCRIPTOR)
    return head + SEGMENT_ID.pack(number) + b"\0\0"


def test_descriptors_that_no_frame_announces_end_the_connection(worker: tuple[socket.socket, Channel]) -> None:
    """Else a front would have none left for its clients."""
    ours, front = worker
    begun = header(Kind.RESULT, 16, 0)
    with open("/dev/null", "rb") as file:
        for start in (0, 1):
            socket.send_fds(ours, [begun[start : start + 1]], [file.fileno()] * 9)
    assert front.receive() == []
    with pytest.raises(WireError, match="18 descriptors that no frame announces"):
        front.receive()


def test_a_worker_shares_only_so_many_files(worker: tuple[socket.socket, Channel]) -> None:
    ours, front = worker
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(64))
        file.flush()
        for number in range(257):
            socket.send_fds(ours, [announced(number, 64)], [file.fileno()])
            (frame,) = front.receive()
            if number < 256:
                front.shared_payload(frame)
    with pytest.raises(WireError, match="more than 256 shared segments"):
        front.shared_payload(frame)


def test_a_worker_shares_only_files_of_shared_memory(worker: tuple[socket.socket, Channel], tmp_path: Path) -> None:
    ours, front = worker
    (tmp_path / "other").write_bytes(bytes(64))
    for number, path in enumerate(("/dev/zero", tmp_path / "other")):
        with open(path, "rb") as file:
            socket.send_fds(ours, [announced(number, 64)], [file.fileno()])
        (frame,) = front.receive()
        with pytest.raises(WireError, match="no file of /dev/shm"):
            front.shared_payload(frame)


def test_a_shared_payload_is_no_larger_than_all_shared_memory(worker: tuple[socket.socket, Channel]) -> None:
    ours, front = worker
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.truncate(file.fileno(), 1 << 30)  # takes no memory
        socket.send_fds(ours, [announced(1, 1 << 30)], [file.fileno()])
    (frame,) = front.receive()
    with pytest.raises(WireError, match="1,073,741,824 bytes, more than 268,435,456"):
        front.shared_payload(frame)

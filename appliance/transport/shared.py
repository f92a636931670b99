"""Shared-memory segments: unlinked files in /dev/shm whose descriptors travel over the Unix socket.

The writer keeps its segments in a `SegmentPool`, the reader those of its peer in `PeerSegments`.

They have no names, so a killed process leaves nothing behind. Segments are reused, because the kernel must clear each
fresh page (a round trip of 8 MiB took 0.54 ms through the socket, and 0.15 ms through existing pages). Space is
allocated before use: writing to a full tmpfs would kill the writer with SIGBUS. A process that may not make files later
makes empty ones beforehand (`make_files`), and uses them again. Segments are written by pwrite, and
read by pread if the peer is not trusted: a peer that shrinks a file kills any process that has it mapped, and Linux
3.10 has no seals.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.core.limits import SHARED_MEMORY_BYTES
from appliance.transport.wire import Buffer, WireError

THRESHOLD_BYTES = 1024 * 1024  # smaller payloads go through the socket: the copy costs little beside running a model
_DIRECTORY = "/dev/shm"  # noqa: S108 - the kernel's shared memory, no temporary file
_MAX_SEGMENTS = SHARED_MEMORY_BYTES // THRESHOLD_BYTES  # of one peer: none is smaller than that
_spare: list[int] | None = None  # empty files for segments to come; None: they are made when they are needed


def make_files(count: int) -> None:
    """Make the files of `count` segments now: from now on this process makes no others, whose payloads then go through
    the socket. Raise OSError."""
    global _spare  # noqa: PLW0603 - as descriptors are, they are the process's
    made: list[int] = []
    try:
        made.extend(_new_file() for _ in range(count))
    except OSError:
        for descriptor in made:
            os.close(descriptor)
        raise
    _spare = made


@dataclass(slots=True, eq=False)
class Segment:
    """A shared file of `size` bytes. `announced` is set once the peer has its descriptor."""

    number: int
    descriptor: int
    size: int
    announced: bool = False

    def write(self, chunks: Iterable[tuple[int, Buffer]]) -> None:
        """Write `chunks` (offset in bytes, data) into the segment."""
        for offset, data in chunks:
            view = memoryview(data)
            while view:
                written = os.pwrite(self.descriptor, view, offset)
                offset += written  # noqa: PLW2901 - continue after a short write
                view = view[written:]


def read(descriptor: int, size: int) -> bytearray:
    """Return the first `size` bytes of a segment that the peer may shrink. Raise OSError (EINVAL) if it is shorter."""
    data = bytearray(size)
    view = memoryview(data)
    position = 0
    while position < size:
        count = os.preadv(descriptor, [view[position:]], position)
        if count == 0:
            raise OSError(22, f"a shared segment ends after {position:,} of {size:,} bytes")
        position += count
    return data


class SegmentPool:
    """The segments that one side of one connection writes, at most `limit_bytes` in total."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._total_bytes = 0
        self._next = 1
        self._free: list[Segment] = []
        self._used: dict[int, Segment] = {}
        self.forgotten: list[int] = []  # numbers of closed segments that the peer knows, and should unmap

    def acquire(self, size: int) -> Segment | None:
        """Return a segment of at least `size` bytes; None if there is no room, and the payload must use the socket."""
        fitting = [segment for segment in self._free if segment.size >= size]
        if fitting:
            segment = min(fitting, key=lambda candidate: candidate.size)
            self._free.remove(segment)
        else:
            rounded = max(THRESHOLD_BYTES, 1 << (size - 1).bit_length())
            while self._free and self._total_bytes + rounded > self._limit_bytes:
                self._close(self._free.pop(0))
            if self._total_bytes + rounded > self._limit_bytes:
                return None
            try:
                descriptor = _create(rounded)
            except OSError:
                return None
            segment = Segment(self._next, descriptor, rounded)
            self._next += 1
            self._total_bytes += rounded
        self._used[segment.number] = segment
        return segment

    def release(self, number: int) -> None:
        """Free a segment that the peer has read. Unknown numbers are ignored, because the peer may be faulty."""
        segment = self._used.pop(number, None)
        if segment is not None:
            self._free.append(segment)

    def close(self) -> None:
        """Close all segments."""
        for segment in self._free:
            self._close(segment)
        for segment in self._used.values():  # the peer may read it yet, so its file is not used again
            self._forget(segment)
            os.close(segment.descriptor)
        self._free.clear()
        self._used.clear()

    def _close(self, segment: Segment) -> None:
        self._forget(segment)
        _give_back(segment.descriptor)

    def _forget(self, segment: Segment) -> None:
        self._total_bytes -= segment.size
        if segment.announced:
            self.forgotten.append(segment.number)


class PeerSegments:
    """The segments that the peer writes and this side reads, by number.

    A payload from a peer that `is_trusted` is a view of the segment, which the peer does not write again before it has
    the answer. Another's is a copy, so the segment is free at once.
    """

    def __init__(self, is_trusted: bool) -> None:
        self._is_trusted = is_trusted
        self._segments: dict[int, mmap.mmap | int] = {}  # mappings of a trusted peer's, descriptors of another's

    def add(self, number: int, descriptor: int) -> None:
        """Take over the descriptor of a new segment.

        Raise OSError or ValueError if it cannot be mapped, WireError if it is no segment, or one too many.
        """
        self.forget(number)
        if not self._is_trusted:
            if why := self._why_refused(descriptor):
                os.close(descriptor)
                raise WireError(why)
            self._segments[number] = descriptor
            return
        try:
            self._segments[number] = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)

    def _why_refused(self, descriptor: int) -> str:
        """Return why a peer that is not trusted may not share this file; "" if it may.

        It can send whatever it can open, and reading that could take for ever.
        """
        if len(self._segments) >= _MAX_SEGMENTS:
            return f"more than {_MAX_SEGMENTS} shared segments"
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_dev != os.stat(_DIRECTORY).st_dev:
            return f"a shared segment that is no file of {_DIRECTORY}"
        return ""

    def payload(self, number: int, size: int) -> Buffer:
        """Return the first `size` bytes of a segment.

        Raise KeyError if its number is unknown, and WireError if it cannot be read.
        """
        segment = self._segments[number]
        if not isinstance(segment, int):
            return memoryview(segment)[:size]
        if size > SHARED_MEMORY_BYTES:
            raise WireError(f"a shared segment of {size:,} bytes, more than {SHARED_MEMORY_BYTES:,}")
        try:
            return read(segment, size)
        except (OSError, MemoryError) as error:
            raise WireError(f"a shared segment that cannot be read: {error}") from error

    def forget(self, number: int) -> None:
        """Drop a segment that the peer has closed; ignore an unknown number. Payloads keep their mapping alive."""
        segment = self._segments.pop(number, None)
        if isinstance(segment, int):
            os.close(segment)

    def close(self) -> None:
        """Drop all segments."""
        for number in list(self._segments):
            self.forget(number)


def _create(size: int) -> int:
    """Return the descriptor of a file of `size` bytes. Raise OSError if there is no room, or no file is left."""
    if _spare is None:
        descriptor = _new_file()
    elif _spare:
        descriptor = _spare.pop()
    else:
        raise OSError(errno.EMFILE, "no file is left for a shared segment")
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        with contextlib.suppress(OSError):
            _give_back(descriptor)
        raise
    return descriptor


def _give_back(descriptor: int) -> None:
    """Close a file that is not needed any more; keep it, empty, if no others can be made. The peer has been told to
    forget it."""
    if _spare is None:
        os.close(descriptor)
        return
    os.ftruncate(descriptor, 0)
    _spare.append(descriptor)


def _new_file() -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        descriptor = os.open(_DIRECTORY, flags | os.O_TMPFILE, 0o600)
    except OSError:  # tmpfs supports O_TMPFILE since Linux 3.11
        path = f"{_DIRECTORY}/dropserve-{secrets.token_hex(16)}"
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
    return descriptor

"""Files of metrics: one for each process, their sum, and the file `base` for processes that have ended.

Each process writes its own file through shared mappings, so a killed process loses nothing, and a scrape reads all
files without asking any process. A file is a sequence of chunks of 16 KiB, in the machine's byte order:

    chunk    8 bytes `DSMETRIC`, uint64 bytes used (with this head), records
    record   uint16 bytes of the key, uint16 number of values, uint32 kind (`Kind`), key, zeros up to a multiple of 8,
             values: float64 each

`used` is written after the record, in one aligned store, and each value is a single aligned store too: a reader, or the
kernel that takes over from a killed process, sees a record whole or not at all. A chunk is allocated before it is
mapped, because a store into a hole of a full disk would end the process by SIGBUS. It is never unmapped, so views into
it stay valid while the file grows.

The process holds a lock (flock) on its file while it lives: if the lock is free, the process has ended. `fold` adds the
files of ended processes into the file `base`, which replaces the previous one by a rename:

    base     8 bytes `DSMFOLD1`, uint64 generation, uint32 bytes of the names, names (JSON list), zeros up to a
             multiple of 8, records

The names are those of the files that this generation includes: they are not counted again, even if the fold was
interrupted before it deleted them. A reader that finds another generation at its end than at its start starts again.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import orjson

from appliance.metrics.ownership import WORKER, is_of_worker, is_own_process, is_own_series

__all__ = [
    "CHUNK_BYTES",
    "MAX_FILE_BYTES",
    "Collected",
    "Kind",
    "MetricsFile",
    "MetricsFileError",
    "Process",
    "collect",
    "fold",
]

CHUNK_BYTES = 16 * 1024  # a multiple of the page size
MAX_FILE_BYTES = 4 * 1024 * 1024
_MAX_SERIES = 100_000  # of all processes together
_MAX_SERIES_BYTES = 48 * 1024 * 1024  # likewise, so that the file `base` can be read whole, with its names
_MAX_BASE_BYTES = 64 * 1024 * 1024
_MAX_WORKER_SERIES = 4_000  # of one process that runs a model, and may write what that likes; some 25 are usual
_MAX_PASSING_SERIES = 1_000
_MAX_ATTEMPTS = 10
_STALE_SECONDS = 60.0

# Nobody opens it for writing again: whoever shortened a file that is mapped would end its process by SIGBUS.
_MODE = 0o400

_CHUNK_MAGIC = b"DSMETRIC"
_BASE_MAGIC = b"DSMFOLD1"
_CHUNK_HEAD = struct.Struct("=8sQ")
_RECORD_HEAD = struct.Struct("=HHI")
_BASE_HEAD = struct.Struct("=8sQI")
_SUFFIX = ".metrics"
_BASE = "base"
_BEGUN = ".new-"  # prefix of a file that is being made


class Kind(IntEnum):
    """What the values of a record are."""

    TOTAL = 0  # they only grow, and outlive their process: counters and histograms
    GAUGE = 1  # current values, dropped when their process ends
    PROCESS = 2  # key: [role, model, version]; values: process number, start in seconds since 1970


class MetricsFileError(Exception):
    """A file that is not a file of metrics, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Process:
    """A living process that keeps metrics. `model` and `version` are "" unless it is a worker."""

    role: str
    model: str
    version: str
    pid: int
    started: float


@dataclass(slots=True)
class Collected:
    """The sum of all files: the values by key. Gauges are those of living processes only."""

    series: dict[bytes, tuple[float, ...]] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    nbytes: int = 0

    def add(self, key: bytes, values: tuple[float, ...]) -> None:
        """Add one record. A record of a damaged file is ignored if its number of values does not fit, and a new one if
        there are too many."""
        found = self.series.get(key)
        if found is None:
            nbytes = _RECORD_HEAD.size + _padded(len(key)) + 8 * len(values)
            if len(self.series) < _MAX_SERIES and self.nbytes + nbytes <= _MAX_SERIES_BYTES:
                self.series[key] = values
                self.nbytes += nbytes
        elif len(found) == len(values):
            self.series[key] = tuple([one + other for one, other in zip(found, values, strict=True)])


class MetricsFile:
    """One process's own file. Call its methods from one thread at a time."""

    def __init__(self, directory: str, name: str) -> None:
        """Create the file. Raise OSError if that fails (ENOSPC: the disk is full)."""
        unique = f"{name}-{os.getpid()}-{time.monotonic_ns()}{_SUFFIX}"
        begun = os.path.join(directory, _BEGUN + unique)
        self._maps: list[mmap.mmap] = []
        self._file = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)  # no other process knows the file yet, so this does not wait
            self._add_chunk()
            self.path = os.path.join(directory, unique)
            os.rename(begun, self.path)
        except BaseException:
            os.close(self._file)
            with contextlib.suppress(OSError):
                os.unlink(begun)
            raise

    def allocate(self, kind: Kind, key: bytes, count: int) -> tuple[memoryview[float], int]:
        """Return a new record of `count` zeros: its chunk as float64, and the index of its first value in that.

        Raise OSError if the disk is full, ValueError if the file has its largest size or no chunk can hold the record.
        """
        start = _RECORD_HEAD.size + _padded(len(key))
        size = start + 8 * count
        if size > CHUNK_BYTES - _CHUNK_HEAD.size:
            raise ValueError(f"a record of {size:,} bytes is larger than a chunk")
        if self._used + size > CHUNK_BYTES:
            self._add_chunk()
        at = self._used
        chunk = self._maps[-1]
        chunk[at : at + _RECORD_HEAD.size] = _RECORD_HEAD.pack(len(key), count, kind)
        chunk[at + _RECORD_HEAD.size : at + _RECORD_HEAD.size + len(key)] = key
        self._used += size
        self._head[1] = self._used
        return self._values, (at + start) // 8

    def _add_chunk(self) -> None:
        offset = len(self._maps) * CHUNK_BYTES
        if offset >= MAX_FILE_BYTES:
            raise ValueError(f"the file has {MAX_FILE_BYTES:,} bytes, which is the most")
        os.posix_fallocate(self._file, offset, CHUNK_BYTES)
        chunk = mmap.mmap(self._file, CHUNK_BYTES, offset=offset)
        chunk[: _CHUNK_HEAD.size] = _CHUNK_HEAD.pack(_CHUNK_MAGIC, _CHUNK_HEAD.size)
        self._maps.append(chunk)
        self._head = memoryview(chunk).cast("Q")
        self._values = memoryview(chunk).cast("d")
        self._used = _CHUNK_HEAD.size


def _padded(size: int) -> int:
    return (size + 7) & ~7


def _records(data: bytes, position: int, end: int) -> Iterator[tuple[int, bytes, tuple[float, ...]]]:
    """Yield kind, key and values of each record in `data[position:end]`. Raise MetricsFileError."""
    try:
        while position < end:
            size, count, kind = _RECORD_HEAD.unpack_from(data, position)
            position += _RECORD_HEAD.size
            first = position + _padded(size)
            after = first + 8 * count
            if after > end:
                raise MetricsFileError(f"a record goes on behind byte {end}")
            yield kind, data[position : position + size], struct.unpack_from(f"={count}d", data, first)
            position = after
    except struct.error as error:
        raise MetricsFileError(f"a record is cut off: {error}") from None


def _read_bounded(descriptor: int, limit: int) -> bytes:
    """Return the file's bytes, by pread: a mapping would end this process if another one shrinks the file."""
    size = min(os.fstat(descriptor).st_size, limit)
    return os.pread(descriptor, size, 0)


def _chunk_records(data: bytes) -> Iterator[tuple[int, bytes, tuple[float, ...]]]:
    for start in range(0, len(data) - CHUNK_BYTES + 1, CHUNK_BYTES):
        magic, used = _CHUNK_HEAD.unpack_from(data, start)
        if not any(magic):
            return  # allocated, but not yet used by its process, or never
        if magic != _CHUNK_MAGIC or not _CHUNK_HEAD.size <= used <= CHUNK_BYTES:
            raise MetricsFileError(f"the chunk at byte {start} begins with {magic!r} and says it uses {used} bytes")
        yield from _records(data, start + _CHUNK_HEAD.size, start + used)


@dataclass(slots=True)
class _Base:
    generation: int = 0
    folded: frozenset[str] = frozenset()
    data: bytes = b""
    start: int = 0

    def records(self) -> Iterator[tuple[int, bytes, tuple[float, ...]]]:
        return _records(self.data, self.start, len(self.data))


def _read_base(directory: str) -> _Base:
    try:
        descriptor = os.open(os.path.join(directory, _BASE), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _Base()
    try:
        data = _read_bounded(descriptor, _MAX_BASE_BYTES)
    finally:
        os.close(descriptor)
    try:
        magic, generation, size = _BASE_HEAD.unpack_from(data)
        names = frozenset(orjson.loads(data[_BASE_HEAD.size : _BASE_HEAD.size + size]))
    except (struct.error, ValueError, TypeError) as error:
        raise MetricsFileError(f"{_BASE} is damaged: {error}") from None
    if magic != _BASE_MAGIC:
        raise MetricsFileError(f"{_BASE} begins with {magic!r}")
    return _Base(generation, names, data, _padded(_BASE_HEAD.size + size))


def _generation(directory: str) -> int:
    try:
        with open(os.path.join(directory, _BASE), "rb") as file:
            return int(_BASE_HEAD.unpack(file.read(_BASE_HEAD.size))[1])
    except FileNotFoundError:
        return 0


def _names(directory: str) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIX) and not name.startswith("."))


def _is_ended(descriptor: int) -> bool:
    """Return whether the process of this file has ended. The lock that this takes ends with `descriptor`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _add_file(into: Collected, path: str, only_ended: bool) -> bool:
    """Add one process's file, with `only_ended` only if that process has ended. Return whether it was added.

    Of a damaged file, the records before the damage are added. Raise FileNotFoundError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ended = _is_ended(descriptor)
        if only_ended and not ended:
            return False
        data = _read_bounded(descriptor, MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
    records = _chunk_records(data)
    name = os.path.basename(path)
    of_worker = is_of_worker(name)
    if of_worker:
        records = itertools.islice(records, _MAX_WORKER_SERIES)
    with contextlib.suppress(MetricsFileError):
        for kind, key, values in records:
            if kind == Kind.TOTAL or (kind == Kind.GAUGE and not ended):
                if not of_worker or is_own_series(name, key):
                    into.add(key, values)
            elif kind == Kind.PROCESS and not ended:
                with contextlib.suppress(ValueError, TypeError, OverflowError):  # a worker writes what its model likes
                    process = _process(key, values)
                    if not of_worker or _is_own(name, process):
                        into.processes.append(process)
    return True


def _process(key: bytes, values: tuple[float, ...]) -> Process:
    role, model, version = orjson.loads(key)
    pid, started = values
    return Process(str(role), str(model), str(version), int(pid), started)


def _is_own(name: str, process: Process) -> bool:
    return process.role == WORKER and is_own_process(name, process.model, process.version, process.pid)


def collect(directory: str) -> Collected:
    """Return the sum of all files of the folder at one moment, without a fold in between.

    Raise MetricsFileError if the file `base` is damaged or folds keep coming, and OSError.
    """
    for _ in range(_MAX_ATTEMPTS):
        base = _read_base(directory)
        collected = Collected()
        for _, key, values in base.records():
            collected.add(key, values)
        try:
            for name in _names(directory):
                if name not in base.folded:
                    _add_file(collected, os.path.join(directory, name), only_ended=False)
        except FileNotFoundError:
            continue  # a fold has just deleted it
        if _generation(directory) == base.generation:
            return collected
    raise MetricsFileError(f"the metrics in {directory} were folded {_MAX_ATTEMPTS} times while they were read")


def fold(directory: str, is_passing: Callable[[bytes], bool]) -> int:
    """Move the counts of ended processes into the file `base`, and delete their files; return how many.

    Only one caller for a folder at a time. Of the ended processes' keys that `is_passing` names (folders of versions,
    for example), only the newest 1,000 are kept. Raise MetricsFileError or OSError; nothing is lost then.
    """
    base = _read_base(directory)
    collected = Collected()
    for _, key, values in base.records():
        collected.add(key, values)
    taken = [
        name
        for name in _names(directory)
        if name not in base.folded and _add_file(collected, os.path.join(directory, name), only_ended=True)
    ]
    if taken:
        passing = [key for key in collected.series if is_passing(key)]
        for key in passing[: max(len(passing) - _MAX_PASSING_SERIES, 0)]:
            del collected.series[key]
        # Files that the last fold should have deleted stay named until they are gone.
        left = [name for name in _names(directory) if name in base.folded]
        _write_base(directory, base.generation + 1, [*taken, *left], collected.series)
    for name in {*taken, *base.folded}:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
    _delete_stale(directory)
    return len(taken)


def _write_base(directory: str, generation: int, names: list[str], series: dict[bytes, tuple[float, ...]]) -> None:
    listed = orjson.dumps(names)
    head = _BASE_HEAD.pack(_BASE_MAGIC, generation, len(listed)) + listed
    parts = [head.ljust(_padded(len(head)), b"\0")]
    for key, values in series.items():
        parts.append(_RECORD_HEAD.pack(len(key), len(values), Kind.TOTAL))
        parts.append(key.ljust(_padded(len(key)), b"\0"))
        parts.append(struct.pack(f"={len(values)}d", *values))
    path = os.path.join(directory, f"{_BEGUN}{_BASE}")
    try:
        with open(path, "wb") as file:
            file.write(b"".join(parts))
        os.replace(path, os.path.join(directory, _BASE))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _delete_stale(directory: str) -> None:
    """Delete unfinished files of processes that were killed while they made them."""
    for name in os.listdir(directory):
        if name.startswith(_BEGUN):
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if time.time() - os.stat(path).st_mtime > _STALE_SECONDS:
                    os.unlink(path)

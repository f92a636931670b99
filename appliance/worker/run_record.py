"""What a worker runs and has answered, by kinds of requests, in a file that outlives it.

    file  = header, a row for each thread, a slot for each kind; little-endian
    header = magic "dsrr", rows u32, slots u32, forgot u32
    row    = numbers of the kinds that run (u32 each, 0: none), digest of the inputs (16 bytes, 0: not taken)
    slot   = answered u32, length u32, the kind as JSON, compressed. Numbers begin at 1

The worker writes through a mapping, which costs a fraction of a microsecond a run; whoever reads after its death finds
what it held, whatever it died of. Nothing of a request but its kind, and after a death a digest, is kept.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Collection, Mapping

import numpy as np

from appliance.core.poison import NO_RUNS, Held, Kind, Runs, digest_of, kind_of
from backends.contract import Signature

__all__ = ["RunRecord", "read_record"]

_MAGIC = int.from_bytes(b"dsrr", "little")
_HEADER = struct.Struct("<IIII")
_HEADER_WORDS = 4
_KINDS_OF_ROW = 4  # of a merged run; if it has more, the others are not noted
_DIGEST_WORDS = 4
_ROW_WORDS = _KINDS_OF_ROW + _DIGEST_WORDS
_SLOTS = 256
_SLOT_WORDS = 256
_MAX_TEXT_BYTES = 4 * _SLOT_WORDS - 8
_MAX_KEYS = 4096
_MAX_FILE_BYTES = 4 << 20
_MAX_JSON_BYTES = 256 * 1024

# After a death: so long requests run one at a time, and so long a digest is taken of each.
_ALONE_SECONDS = 60.0
_DIGEST_SECONDS = 3600.0
_WAIT_SECONDS = 5.0  # for a run that may hang: others go on beside it then


class RunRecord:
    """The record of one worker with so many threads, each of which has a row. `is_watched` if a process of its version
    has died of a request."""

    def __init__(self, path: str, rows: int, signatures: Mapping[str, Signature], is_watched: bool = False) -> None:
        self._signatures = signatures
        self._slots_at = _HEADER_WORDS + rows * _ROW_WORDS
        self._words = _mapped(path, self._slots_at + (_SLOTS + 1) * _SLOT_WORDS)
        self._words[:_HEADER_WORDS] = memoryview(_HEADER.pack(_MAGIC, rows, _SLOTS, 0)).cast("I")
        self._numbers: dict[tuple[object, ...], int] = {}  # by what is cheap to make of a request
        self._kinds: dict[Kind, int] = {}  # the oldest first
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._alone_until = time.monotonic() + _ALONE_SECONDS
        self._digest_until = time.monotonic() + _DIGEST_SECONDS
        self.is_watching = is_watched

    def number_of(self, signature: str, inputs: Mapping[str, np.ndarray]) -> int:
        """Return the number of a request's kind, 0 if it cannot be kept."""
        key = (signature, *inputs, *[array.shape for array in inputs.values()])
        number = self._numbers.get(key)
        return self._number(key, signature, inputs) if number is None else number

    @staticmethod
    def row(thread: int) -> int:
        """Return where the row of the thread with this index is."""
        return _HEADER_WORDS + thread * _ROW_WORDS

    def begin(self, row: int, number: int) -> None:
        """Notes that a request of this kind runs in the thread of `row`."""
        self._words[row] = number

    def end(self, row: int) -> None:
        """Notes that it runs no more."""
        self._words[row] = 0

    def begin_together(self, row: int, numbers: Collection[int]) -> None:
        """Notes that requests of these kinds run together; with none that they run no more."""
        noted = [*itertools.islice(filter(None, numbers), _KINDS_OF_ROW)]
        for offset in range(_KINDS_OF_ROW):
            self._words[row + offset] = noted[offset] if offset < len(noted) else 0

    def answered(self, number: int) -> None:
        """Notes that a request of this kind was answered."""
        self._words[self._slots_at + number * _SLOT_WORDS] = 1

    def watch(self, row: int, inputs: Mapping[str, np.ndarray] | None) -> bool:
        """Notes the digest of what is about to run (None: of several requests), and waits until nothing else does,
        while that is wanted. Return whether `unwatch` must be called after the run."""
        now = time.monotonic()
        if now >= self._digest_until:
            self.is_watching = False
            for at in range(_HEADER_WORDS, self._slots_at, _ROW_WORDS):
                self._note_digest(at, bytes(4 * _DIGEST_WORDS))
            return False
        digest = bytes(4 * _DIGEST_WORDS) if inputs is None else bytes.fromhex(digest_of(inputs))
        is_alone = now < self._alone_until and self._alone.acquire(timeout=_WAIT_SECONDS)
        self._note_digest(row, digest)
        return is_alone

    def _note_digest(self, at: int, digest: bytes) -> None:
        self._words[at + _KINDS_OF_ROW : at + _ROW_WORDS] = memoryview(digest).cast("I")

    def unwatch(self) -> None:
        self._alone.release()

    @property
    def merges(self) -> bool:
        """Whether requests may run together."""
        return not self.is_watching or time.monotonic() >= self._alone_until

    def _number(self, key: tuple[object, ...], signature: str, inputs: Mapping[str, np.ndarray]) -> int:
        """The number of a kind whose key is not known."""
        if signature not in self._signatures:
            return 0
        kind = kind_of(signature, self._signatures[signature], inputs)
        with self._lock:
            number = self._kinds.get(kind)
            if number is None:
                number = self._keep(kind)
            if len(self._numbers) >= _MAX_KEYS:
                self._numbers.clear()
            self._numbers[key] = number
        return number

    def _keep(self, kind: Kind) -> int:
        """Writes a new kind down: in a free slot, or in place of the oldest that was never answered."""
        text = zlib.compress(json.dumps(kind.to_json()).encode())
        if len(text) > _MAX_TEXT_BYTES:
            return 0
        number = len(self._kinds) + 1 if len(self._kinds) < _SLOTS else self._freed()
        at = self._slots_at + number * _SLOT_WORDS
        padded = text + bytes(-len(text) % 4)
        self._words[at] = 0
        self._words[at + 2 : at + 2 + len(padded) // 4] = memoryview(padded).cast("I")
        self._words[at + 1] = len(text)
        self._kinds[kind] = number
        return number

    def _freed(self) -> int:
        running = {number for row in self._rows() for number in row}
        idle = [kind for kind, number in self._kinds.items() if number not in running]
        unanswered = (kind for kind in idle if not self._words[self._slots_at + self._kinds[kind] * _SLOT_WORDS])
        oldest = next(unanswered, None)
        if oldest is None:
            oldest = idle[0]
            self._words[3] = 1  # an answered kind is forgotten
        self._numbers.clear()
        return self._kinds.pop(oldest)

    def _rows(self) -> list[list[int]]:
        return [
            self._words[at : at + _KINDS_OF_ROW].tolist() for at in range(_HEADER_WORDS, self._slots_at, _ROW_WORDS)
        ]


def _mapped(path: str, words: int) -> memoryview[int]:
    """So many zeros in a new file at `path`; where it cannot be made, in memory that nobody else sees."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, 4 * words)  # a write to a full tmpfs would be a SIGBUS
            return memoryview(mmap.mmap(descriptor, 4 * words)).cast("I")
        finally:
            os.close(descriptor)
    except OSError as error:
        print(f"no record is kept of what runs: {error}; is there room in runtime_dir?", file=sys.stderr)
        return memoryview(bytearray(4 * words)).cast("I")


def read_record(path: str) -> Runs:
    """Return what the worker with the record at `path` runs, or ran at its end. What cannot be read is left out: the
    file was written by a process that ran a model."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES)
        magic, rows, slots, forgot = _HEADER.unpack_from(data)
        words = memoryview(data[: len(data) // 4 * 4]).cast("I")
    except (OSError, struct.error):
        return NO_RUNS
    slots_at = _HEADER_WORDS + rows * _ROW_WORDS
    if magic != _MAGIC or len(words) < slots_at + (slots + 1) * _SLOT_WORDS:
        return NO_RUNS
    kinds: dict[int, Kind] = {}
    answered = set()
    for number in range(1, slots + 1):
        at = slots_at + number * _SLOT_WORDS
        kind = _kind(words[at + 2 : at + _SLOT_WORDS].tobytes()[: words[at + 1]])
        if kind is not None:
            kinds[number] = kind
            if words[at]:
                answered.add(kind)
    held = []
    for row in range(rows):
        at = _HEADER_WORDS + row * _ROW_WORDS
        digest = words[at + _KINDS_OF_ROW : at + _ROW_WORDS].tobytes()
        numbers = words[at : at + _KINDS_OF_ROW]
        held += [Held(kinds[number], digest.hex() if any(digest) else "") for number in numbers if number in kinds]
    return Runs(tuple(held), frozenset(answered), bool(forgot))


def _kind(text: bytes) -> Kind | None:
    if not text:
        return None
    try:
        return Kind.from_json(json.loads(zlib.decompressobj().decompress(text, _MAX_JSON_BYTES)))
    except (zlib.error, ValueError, TypeError):
        return None

"""Records which kinds of requests a worker runs and has answered, in a file that outlives it.

    file   = header, a row for each thread, a ring of digests, a slot for each kind; little-endian
    header = magic "dsrr", rows u32, slots u32, forgot u32, 1 while digests are taken u32
    row    = numbers of the kinds that run (u32 each, 0: none), digest of the inputs (16 bytes, 0: not taken). A number
             with the bit WAITING does not run yet; UNNAMED stands for a kind that has no number
    ring   = digests of the inputs that were run last (16 bytes each, 0: none)
    slot   = u32 with the bits ANSWERED and LATELY, length u32, the kind as JSON, compressed if long. Numbers begin at 1

"forgot" is 1 once an answered kind has lost its slot. The worker writes through a mapping, which costs a fraction of a
microsecond a run, and whose content is there after its death, however it died. Of a request only its kind is kept, and
after a death also a digest.
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
from collections.abc import Callable, Collection, Mapping

import msgspec
import numpy as np

from appliance.core.poison import NO_RUNS, Held, Kind, Runs, digest_of, kind_of
from backends.contract import Signature

__all__ = ["RunRecord", "read_record"]

_MAGIC = int.from_bytes(b"dsrr", "little")
_HEADER = struct.Struct("<IIIII")
_HEADER_WORDS = 5
_FORGOT, _HAS_DIGESTS = 3, 4  # their words in the header
_KINDS_OF_ROW = 4  # the most that are noted of a merged run
_DIGEST_WORDS = 4
_ROW_WORDS = _KINDS_OF_ROW + _DIGEST_WORDS
_RING = 256
_RING_WORDS = _RING * _DIGEST_WORDS
_SLOTS = 256
_SLOT_WORDS = 256
_MAX_TEXT_BYTES = 4 * _SLOT_WORDS - 8
_MAX_KEYS = 4096
_MAX_FILE_BYTES = 4 << 20
_MAX_JSON_BYTES = 256 * 1024

_ANSWERED, _LATELY = 1, 2
_WAITING = 1 << 31
_UNNAMED = _WAITING - 1
_NOTHING = memoryview(bytes(4 * _KINDS_OF_ROW)).cast("I")

# The most slots that are freed and long texts that are compressed in a second, so that clients which keep sending new
# kinds cost little time.
_MAX_EFFORTS = 64
_EFFORTS_SECONDS = 1.0

# After a death, for how long requests run one at a time, and for how long a digest is taken of each.
_ALONE_SECONDS = 60.0
_DIGEST_SECONDS = 3600.0
_WAIT_SECONDS = 5.0  # for a run to end, which may hang: then others run beside it


class RunRecord:
    """The record of one worker, whose threads have a row each. It is made before the model is loaded, when the process
    may still make files, and is used from `begins` on.

    `is_watched` tells that a request has killed a process of this version. `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        path: str,
        rows: int,
        signatures: Mapping[str, Signature] | None = None,
        is_watched: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signatures = signatures or {}
        self._ring_at = _HEADER_WORDS + rows * _ROW_WORDS
        self._slots_at = self._ring_at + _RING_WORDS
        self._words = _mapped(path, self._slots_at + (_SLOTS + 1) * _SLOT_WORDS)
        self._words[:_HEADER_WORDS] = memoryview(_HEADER.pack(_MAGIC, rows, _SLOTS, 0, int(is_watched))).cast("I")
        self._numbers: dict[tuple[object, ...], int] = {}  # by a key that is cheap to make, the oldest first
        self._keys: dict[int, dict[tuple[object, ...], None]] = {0: {}}  # the keys of each number
        self._kinds: dict[Kind, int] = {}  # in the order in which a slot to free is looked for
        self._lock = threading.Lock()  # guards these three
        self._efforts_since, self._efforts = 0.0, 0
        self._survived = itertools.count()
        self._alone = threading.Lock()
        self._clock = clock
        self.is_watching = is_watched
        self.begins(self._signatures)

    def begins(self, signatures: Mapping[str, Signature]) -> None:
        """Take requests for these signatures from now on."""
        self._signatures = signatures
        self._alone_until = self._clock() + _ALONE_SECONDS
        self._digest_until = self._clock() + _DIGEST_SECONDS

    def number_of(self, signature: str, inputs: Mapping[str, np.ndarray]) -> int:
        """Return the number of a request's kind; 0 if there is no room, or its text is too long (hundreds of inputs).

        The caller then calls `begin` or `watch` at once: until then the slot may be freed.
        """
        key = (signature, *inputs, *[array.shape for array in inputs.values()])
        number = self._numbers.get(key)
        return self._number(key, signature, inputs) if number is None else number

    @staticmethod
    def row(thread: int) -> int:
        """Return the place of a thread's row, by the thread's index."""
        return _HEADER_WORDS + thread * _ROW_WORDS

    def begin(self, row: int, number: int) -> None:
        """Note that a request of this kind runs in the thread of this row."""
        self._words[row] = number or _UNNAMED

    def end(self, row: int) -> None:
        """Note that the request has ended."""
        if self.is_watching:
            self._note_survived(row)
        self._words[row] = 0

    def begin_together(self, row: int, numbers: Collection[int]) -> None:
        """Note that requests of these kinds run together."""
        self._note(row, numbers)

    def end_together(self, row: int) -> None:
        """Note that the requests have ended."""
        if self.is_watching:
            self._note_survived(row)
        self._words[row : row + _KINDS_OF_ROW] = _NOTHING

    def answered(self, number: int) -> None:
        """Note that a request of this kind was answered; call it before `end`, which lets its slot be freed."""
        self._words[self._slots_at + number * _SLOT_WORDS] = _ANSWERED | _LATELY

    def watch(self, row: int, numbers: Collection[int], inputs: Mapping[str, np.ndarray] | None) -> bool:
        """Note the digest of `inputs` that are about to run, and soon after a death wait until nothing else runs.

        `inputs` is None for several requests, of which no digest is noted. The slots of these kinds are not freed
        meanwhile. Return whether `unwatch` must be called after the run.
        """
        now = self._clock()
        if now >= self._digest_until:
            self._words[_HAS_DIGESTS] = 0  # digests in the rows do not count from now on
            self.is_watching = False
            return False
        self._note(row, numbers, _WAITING)
        digest = bytes(4 * _DIGEST_WORDS) if inputs is None else bytes.fromhex(digest_of(inputs))
        self._words[row + _KINDS_OF_ROW : row + _ROW_WORDS] = memoryview(digest).cast("I")
        return now < self._alone_until and self._alone.acquire(timeout=_WAIT_SECONDS)

    def unwatch(self) -> None:
        """Let the next request run."""
        self._alone.release()

    @property
    def merges(self) -> bool:
        """Whether requests may run together."""
        return not self.is_watching or self._clock() >= self._alone_until

    def _note(self, row: int, numbers: Collection[int], flag: int = 0) -> None:
        noted = [number or _UNNAMED for number in numbers]
        if len(noted) > _KINDS_OF_ROW:
            noted[_KINDS_OF_ROW - 1] = _UNNAMED
        for offset in range(_KINDS_OF_ROW):
            self._words[row + offset] = noted[offset] | flag if offset < len(noted) else 0

    def _note_survived(self, row: int) -> None:
        digest = self._words[row + _KINDS_OF_ROW : row + _ROW_WORDS]
        at = self._ring_at + next(self._survived) % _RING * _DIGEST_WORDS
        self._words[at : at + _DIGEST_WORDS] = digest

    def _number(self, key: tuple[object, ...], signature: str, inputs: Mapping[str, np.ndarray]) -> int:
        """Return the number of the kind of a request whose key is new, 0 if it has none."""
        if signature not in self._signatures:
            return 0
        kind = kind_of(signature, self._signatures[signature], inputs)
        with self._lock:
            number = self._kinds.get(kind)
            if number is None:
                number = self._keep(kind)
            if number is None:
                return 0
            if len(self._numbers) >= _MAX_KEYS:
                oldest = next(iter(self._numbers))
                del self._keys[self._numbers.pop(oldest)][oldest]
            self._numbers[key] = number
            self._keys[number][key] = None
        return number

    def _keep(self, kind: Kind) -> int | None:
        """Write a new kind into a free slot, or into that of another kind; return its number.

        Return 0 if its text is too long, None if there is no room now.
        """
        is_full = len(self._kinds) == _SLOTS
        if is_full and not self._may_make_an_effort():
            return None
        text = json.dumps(msgspec.to_builtins(kind), separators=(",", ":")).encode()
        if len(text) > _MAX_TEXT_BYTES:
            if not is_full and not self._may_make_an_effort():
                return None
            text = zlib.compress(text)
            if len(text) > _MAX_TEXT_BYTES:
                return 0
        number = self._freed() if is_full else len(self._kinds) + 1
        if number is not None:
            at = self._slots_at + number * _SLOT_WORDS
            padded = text + bytes(-len(text) % 4)
            self._words[at] = self._words[at + 1] = 0
            self._words[at + 2 : at + 2 + len(padded) // 4] = memoryview(padded).cast("I")
            self._words[at + 1] = len(text)
            self._kinds[kind] = number
            self._keys[number] = {}
        return number

    def _may_make_an_effort(self) -> bool:
        now = self._clock()
        if now >= self._efforts_since + _EFFORTS_SECONDS:
            self._efforts_since, self._efforts = now, 0
        self._efforts += 1
        return self._efforts <= _MAX_EFFORTS

    def _freed(self) -> int | None:
        """Free the slot of a kind that does not run, and return its number; None if all run.

        Prefer a kind that was never answered, then one that was not answered lately.
        """
        words = self._words[
            _HEADER_WORDS : self._ring_at
        ].tolist()  # digests too, which at worst keep a slot from being freed
        running = {word & ~_WAITING for word in words}
        idle = [(kind, number) for kind, number in self._kinds.items() if number not in running]
        if not idle:
            return None
        states = [self._words[self._slots_at + number * _SLOT_WORDS] for _, number in idle]
        chosen = next((index for index, state in enumerate(states) if not state), None)
        if chosen is None:
            chosen = next((index for index, state in enumerate(states) if not state & _LATELY), 0)
            for kind, number in idle[:chosen]:  # they come last in the next search
                self._words[self._slots_at + number * _SLOT_WORDS] = _ANSWERED
                self._kinds[kind] = self._kinds.pop(kind)
            self._words[_FORGOT] = 1
        kind, number = idle[chosen]
        del self._kinds[kind]
        for key in self._keys.pop(number):
            del self._numbers[key]
        return number


def _mapped(path: str, words: int) -> memoryview[int]:
    """Return zeros in a new file at `path`, mapped; in memory of our own if the file cannot be made."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)  # no other writes it
        try:
            os.posix_fallocate(descriptor, 0, 4 * words)  # a write to a full tmpfs would be a SIGBUS
            return memoryview(mmap.mmap(descriptor, 4 * words)).cast("I")
        finally:
            os.close(descriptor)
    except OSError as error:
        print(f"no record is kept of what runs: {error}; is there room in runtime_dir?", file=sys.stderr)
        return memoryview(bytearray(4 * words)).cast("I")


def read_record(path: str) -> Runs:
    """Return what the worker with the record at `path` runs, or ran when it died.

    Leave out what cannot be read, because the process that wrote the file ran an untrusted model. Raise nothing.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES)
        magic, rows, slots, forgot, has_digests = _HEADER.unpack_from(data)
        words = memoryview(data[: len(data) // 4 * 4]).cast("I")
    except (OSError, struct.error):
        return NO_RUNS
    ring_at = _HEADER_WORDS + rows * _ROW_WORDS
    slots_at = ring_at + _RING_WORDS
    if magic != _MAGIC or len(words) < slots_at + (slots + 1) * _SLOT_WORDS:
        return NO_RUNS

    def digest_at(at: int) -> str:
        digest = words[at : at + _DIGEST_WORDS].tobytes()
        return digest.hex() if has_digests and any(digest) else ""

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
    is_unnamed = False
    for row in range(_HEADER_WORDS, ring_at, _ROW_WORDS):
        for number in words[row : row + _KINDS_OF_ROW]:
            if number in kinds:
                held.append(Held(kinds[number], digest_at(row + _KINDS_OF_ROW)))
            elif number and not number & _WAITING:
                is_unnamed = True
    survived = frozenset(filter(None, map(digest_at, range(ring_at, slots_at, _DIGEST_WORDS))))
    return Runs(tuple(held), frozenset(answered), bool(forgot), is_unnamed, survived)


def _kind(text: bytes) -> Kind | None:
    """Return the kind in a slot; None if there is none, or nothing that can be read."""
    if not text:
        return None
    try:
        plain = text if text.startswith(b"[") else zlib.decompressobj().decompress(text, _MAX_JSON_BYTES)
        return msgspec.convert(json.loads(plain), Kind)
    except (zlib.error, ValueError, TypeError, OverflowError, RecursionError):
        return None

"""Keep the rows that a search goes on from: those that came close to a difference, or whose answer was of a new
kind."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from converters.cases import Case, Inputs
from converters.proof import Outputs

__all__ = ["MAX_KEPT", "MAX_SHAPES", "Pool", "Shapes", "behaviour_of", "pools_of", "shapes_of"]

MAX_KEPT = 48  # rows of one shape that came close, and as many that were new
MAX_SHAPES = 12
_MAX_SEED_BYTES = 64 << 20
_MAX_SEEDS = 192

Shapes = tuple[tuple[int, ...], ...]


class Pool:
    """Rows of one shape: the seeds, the closest, and the new."""

    def __init__(self, seeds: Sequence[Inputs]) -> None:
        self.seeds = list(seeds)
        self._close: list[tuple[float, int, Inputs]] = []
        self._new: collections.deque[Inputs] = collections.deque(maxlen=MAX_KEPT)
        self._count = 0

    def add(self, row: Inputs, share: float, *, is_new: bool) -> None:
        if is_new:
            self._new.append(row)
        if self.is_close(share):
            self._count += 1
            self._close.append((share, self._count, row))
            self._close.sort(key=lambda found: (-found[0], found[1]))
            del self._close[MAX_KEPT:]

    def is_close(self, share: float) -> bool:
        """Return whether a row with this share is one of the closest."""
        return len(self._close) < MAX_KEPT or share > self._close[-1][0]

    def draw(self, random: np.random.Generator) -> Inputs:
        """Return one of the closest, of the new, or of the first rows."""
        which = random.random()
        if which < 0.35 and self._close:
            # The closest are drawn most often.
            return self._close[int(len(self._close) * random.random() ** 2)][2]
        if which < 0.65 and self._new:
            return self._new[int(random.integers(len(self._new)))]
        return self.seeds[int(random.integers(len(self.seeds)))]


def pools_of(cases: Sequence[Case], has_rows: bool) -> dict[Shapes, Pool]:
    """Return the rows of the cases, by their shapes, the most frequent shape first."""
    found: dict[Shapes, list[Inputs]] = {}
    nbytes = count = 0
    for case in cases:
        counts = {len(array) for array in case.inputs.values()} if has_rows else {1}
        if len(counts) != 1 or not counts - {0}:
            continue
        number = counts.pop()
        for index in dict.fromkeys((0, number - 1, number // 2)):
            row = {a: array[index : index + 1] for a, array in case.inputs.items()} if has_rows else case.inputs
            nbytes += sum(array.nbytes for array in row.values())
            count += 1
            if nbytes > _MAX_SEED_BYTES or count > _MAX_SEEDS:
                break
            found.setdefault(shapes_of(row), []).append(row)
    kept = sorted(found.items(), key=lambda item: -len(item[1]))[:MAX_SHAPES]
    return {shapes: Pool(rows) for shapes, rows in kept}


def shapes_of(row: Inputs) -> Shapes:
    return tuple(array.shape for array in row.values())


def behaviour_of(truth: Outputs, index: int, count: int) -> bytes:
    """Return what kind of answer a row got: its signs, the place of the largest, its whole numbers."""
    found = []
    for array in truth.values():
        part = array[index] if count and array.ndim and len(array) == count else array
        flat = np.asarray(part).reshape(-1)[:64]
        if flat.dtype.kind in "fV" and flat.size:
            with np.errstate(invalid="ignore"):
                found.append(np.sign(flat.astype(np.float32)).astype(np.int8).tobytes())
            found.append(bytes([int(np.argmax(flat.astype(np.float32)))]))
        elif flat.dtype.kind in "iub":
            found.append(flat[:8].tobytes())
    return b"|".join(found)

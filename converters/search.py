"""Searches for inputs on which a form and TensorFlow disagree, for as long as it is given.

Inputs are made of those of the cases, and those go on to be changed whose answers came closest to a disagreement or
were of a kind that was not seen before. Ids are tried one after the other, and places where TensorFlow's answer jumps
are closed in on, since it is there that thresholds lie. All from one stream of random numbers: a search repeats itself,
as far as its time goes.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import BackendError, Signature
from backends.domain import Domain
from converters.cases import Case, DiedError, Inputs, fits, has_batch
from converters.child import ChildError
from converters.judging import Judge
from converters.mutations import Mutations, Values, within
from converters.proof import Outputs
from converters.sections import Section

__all__ = ["Search", "Suspect"]

_ROWS = (32, 32, 32, 32, 32, 32, 1, 2, 3, 8, 16, 33, 64, 65, 100, 128, 129, 257)
_MAX_CALL_BYTES = 8 << 20
_MAX_SEED_BYTES = 64 << 20
_MAX_SEEDS = 64
_MAX_KEPT = 48  # rows of one shape that came close, and as many that were new
_MAX_SHAPES = 12
_MAX_BEHAVIOURS = 20_000
_MAX_DEATHS = 2
_CALL_SHARE = 0.05  # of the time that is left, for one call
_SWEEP_SHARE = 0.3  # of the time, for ids in a row
_SWEEP_ELEMENTS = 4096
_SWEPT = 1 << 20  # larger numbers are no ids
_RESIZED = 0.1  # of the calls have another size of an open dimension
_ALIKE = 0.7  # of the calls have rows that are all made of one

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Suspect:
    """Inputs on which the form is wrong; `failure` says how, where it did not answer."""

    inputs: Inputs
    failure: str = ""


class _Pool:
    """Rows of one shape."""

    def __init__(self, seeds: Sequence[Inputs]) -> None:
        self.seeds = list(seeds)
        self._close: list[tuple[float, int, Inputs]] = []
        self._new: collections.deque[Inputs] = collections.deque(maxlen=_MAX_KEPT)
        self._count = 0

    def add(self, row: Inputs, share: float, *, is_new: bool) -> None:
        if is_new:
            self._new.append(row)
        if len(self._close) < _MAX_KEPT or share > self._close[-1][0]:
            self._count += 1
            self._close.append((share, self._count, row))
            self._close.sort(key=lambda found: (-found[0], found[1]))
            del self._close[_MAX_KEPT:]

    def draw(self, random: np.random.Generator) -> Inputs:
        which = random.random()
        if which < 0.35 and self._close:
            # Of those that came close, the closest most often.
            return self._close[int(len(self._close) * random.random() ** 2)][2]
        if which < 0.65 and self._new:
            return self._new[int(random.integers(len(self._new)))]
        return self.seeds[int(random.integers(len(self.seeds)))]


class Search:
    """The search of one signature of a form, from `cases`, which lie in `domain`."""

    def __init__(
        self,
        judge: Judge,
        cases: Sequence[Case],
        numbers: Sequence[float],
        domain: Domain,
        seed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tried = 0
        """How many inputs were compared, each row of a batch for itself."""
        self.explained = 0
        """How often roundings were what answers differed by."""
        self.worst = 0.0
        """The largest share of what is allowed."""
        self.worst_row: Inputs = {}
        self._judge = judge
        self._signature = judge.signature
        self._cases = cases
        self._numbers = numbers
        self._domain = domain
        self._clock = clock
        self._random = np.random.default_rng(seed)
        self._has_rows = has_batch(self._signature)
        self._pools = _pools(self._signature, cases, self._has_rows)
        self._behaviours: set[bytes] = set()
        self._truth: Outputs | None = None
        self._row_seconds = 0.0
        self._ends = 0.0
        self._deaths = 0
        self._plan = self._proposals()
        self.narrow(domain)

    def narrow(self, domain: Domain) -> None:
        """Goes on in `domain` only."""
        self._domain = domain
        self._values = {
            alias: Values(
                spec.element.numpy,
                self._numbers,
                domain,
                [case.inputs[alias] for case in self._cases if within(domain, self._signature, case.inputs)],
                spec.dtype,
            )
            for alias, spec in self._signature.inputs.items()
        }
        self._mutations = Mutations(self._values, self._random)

    def run(self, ends: float) -> Suspect | None:
        """The first inputs on which the form is wrong; None where none were found by `ends`, on the clock."""
        self._ends = ends
        if not self._signature.inputs or not self._pools:
            return None
        for rows in self._plan:
            if self._clock() >= ends or self._deaths >= _MAX_DEATHS:
                return None
            kept = [row for row in rows if within(self._domain, self._signature, row)]
            if kept and (found := self._tried(kept)) is not None:
                return found
        return None

    # -- a call

    def _tried(self, rows: Sequence[Inputs]) -> Suspect | None:
        """What is wrong with the form on a batch of rows, or one of them."""
        self._truth = None
        inputs = self._batch(rows)
        begun = self._clock()
        try:
            truth = self._judge.truth(inputs)
        except BackendError:
            return None
        except DiedError:
            self._deaths += 1
            return None
        if not fits(truth, self._signature.outputs):
            return None
        try:
            answer = self._judge.answer(inputs)
        except (BackendError, ChildError) as error:
            how = "it refuses what TensorFlow answers" if isinstance(error, BackendError) else "it fails"
            return Suspect(inputs, f"{how}: {error}")
        self._row_seconds = (self._clock() - begun) / len(rows)
        self._truth = truth
        self.tried += len(rows)
        shares = self._by_rows(self._judge.shares(truth, answer), len(rows))
        worst = int(np.argmax(shares))
        is_explained = False
        if shares[worst] > 1:
            for suspects in ([rows[worst]], rows) if len(rows) > 1 else ([rows[0]],):
                found = self._batch(suspects)
                try:
                    if self._judge.is_wrong(found):
                        return Suspect(found)
                except ChildError as error:
                    return Suspect(found, f"it fails: {error}")
            is_explained = True
            self.explained += 1
        self._keep(rows, shares, truth, is_explained)
        return None

    def _batch(self, rows: Sequence[Inputs]) -> Inputs:
        if not self._has_rows:
            return rows[0]
        return {alias: np.concatenate([row[alias] for row in rows]) for alias in rows[0]}

    def _by_rows(self, shares: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """The largest share of each row: of all, where an output has not one for each."""
        found = np.zeros(count)
        for array in shares.values():
            if array.size:
                has_rows = self._has_rows and array.ndim and len(array) == count
                found = np.maximum(found, array.reshape(count, -1).max(axis=1) if has_rows else array.max())
        return found

    def _keep(self, rows: Sequence[Inputs], shares: np.ndarray, truth: Outputs, is_explained: bool) -> None:
        """Keeps what is worth changing further."""
        pool = self._pool(rows[0])
        for index, row in enumerate(rows):
            if shares[index] > 1:  # as far off as roundings go: to go on from there would find more of them
                continue
            if shares[index] > self.worst:
                self.worst, self.worst_row = float(shares[index]), row
            behaviour = _behaviour(truth, index, len(rows) if self._has_rows else 0)
            is_new = behaviour not in self._behaviours and len(self._behaviours) < _MAX_BEHAVIOURS
            if is_new:
                self._behaviours.add(behaviour)
            pool.add(row, float(shares[index]), is_new=is_new)

    def _pool(self, row: Inputs) -> _Pool:
        shapes = _shapes(row)
        if shapes not in self._pools:
            if len(self._pools) >= _MAX_SHAPES:
                del self._pools[next(reversed(self._pools))]
            self._pools[shapes] = _Pool([row])
        return self._pools[shapes]

    # -- what is tried

    def _proposals(self) -> Iterator[Sequence[Inputs]]:
        for alias, values in list(self._values.items()):
            if values.dtype.kind in "iu":
                yield from self._sweep(alias)
        while True:
            for _ in range(6):
                yield self._mutants()
            if self._has_rows:
                yield from self._section()

    def _most_rows(self, row: Inputs) -> int:
        """How many rows a call may have, by their bytes and by its time."""
        nbytes = max(1, sum(array.nbytes for array in row.values()))
        most = max(1, _MAX_CALL_BYTES // nbytes)
        if self._row_seconds:
            seconds = _CALL_SHARE * max(0.0, self._ends - self._clock())
            most = min(most, max(1, int(seconds / self._row_seconds)))
        else:
            most = min(most, 8)
        return most

    def _any_pool(self) -> _Pool:
        pools = list(self._pools.values())
        # The shape of most cases comes first.
        return pools[0] if self._random.random() < 0.5 else pools[int(self._random.integers(len(pools)))]

    def _mutants(self) -> Sequence[Inputs]:
        pool = self._any_pool()
        parent = pool.draw(self._random)
        if self._random.random() < _RESIZED:
            parent = self._resized(parent)
            pool = self._pools.get(_shapes(parent), _Pool([parent]))
        if not self._has_rows:
            return [self._mutations.row(parent, pool.draw(self._random))]
        wanted = _ROWS[int(self._random.integers(len(_ROWS)))]
        is_alike = self._random.random() < _ALIKE
        return [
            self._mutations.row(parent if is_alike else pool.draw(self._random), pool.draw(self._random))
            for _ in range(min(wanted, self._most_rows(parent)))
        ]

    def _resized(self, row: Inputs) -> Inputs:
        """The row with another size of an open dimension: between the least and the largest of the cases."""
        free = [
            (alias, position)
            for alias, array in row.items()
            for position in range(1, array.ndim)
            if self._is_open(alias, position, array) and array.size
        ]
        if not free:
            return row
        alias, position = free[int(self._random.integers(len(free)))]
        sizes = [
            case.inputs[alias].shape[position]
            for case in self._cases
            if case.inputs[alias].ndim == row[alias].ndim and within(self._domain, self._signature, case.inputs)
        ]
        sizes = [size for size in sizes if size]
        if not sizes:
            return row
        size = int(self._random.integers(min(sizes), min(max(sizes), 4 * row[alias].shape[position]) + 1))
        return {
            name: np.take(array, np.arange(size) % array.shape[position], axis=position)
            if self._is_open(name, position, array) and array.size
            else array
            for name, array in row.items()
        }

    def _is_open(self, alias: str, position: int, array: np.ndarray) -> bool:
        shape = self._signature.inputs[alias].shape
        return shape is not None and 0 < position < array.ndim and len(shape) == array.ndim and shape[position] < 0

    def _sweep(self, alias: str) -> Iterator[Sequence[Inputs]]:
        """All whole numbers of an input, from 0 on and then below, as many in a call as fit; again and again beside
        other values of the other inputs, if there are any."""
        seeds = next(iter(self._pools.values())).seeds
        size, values = seeds[0][alias].size, self._values[alias]
        lowest, highest = max(values.least, -_SWEPT), min(values.largest, _SWEPT)
        begun = self._clock()
        ends = begun + _SWEEP_SHARE * (self._ends - begun) / len(self._values)
        while size and self._clock() < ends:
            value = max(0, lowest)
            while lowest <= value <= highest and self._clock() < ends:
                step = 1 if value >= 0 else -1
                left = (highest if step > 0 else lowest) - value
                most = self._most_rows(seeds[0]) if self._has_rows else 1
                count = min(max(1, _SWEEP_ELEMENTS // size), abs(left) // size + 1, most)
                swept = np.clip(value + step * np.arange(count * size), lowest, highest)
                parts = swept.astype(seeds[0][alias].dtype).reshape(count, *seeds[0][alias].shape)
                rows = [seeds[int(index)] for index in self._random.integers(len(seeds), size=count)]
                yield [{**row, alias: part} for row, part in zip(rows, parts, strict=True)]
                value += step * count * size
                if value > highest:
                    value = -1
            if len(self._values) == 1:
                break

    def _section(self) -> Iterator[Sequence[Inputs]]:
        """Closes in on a place where TensorFlow's answer jumps as one element grows, and tries what lies beside it."""
        row = self._any_pool().draw(self._random)
        able = [alias for alias, array in row.items() if array.size and array.dtype.kind in "iuf"]
        most = self._most_rows(row)
        if not able or most < 8:
            return
        alias = able[int(self._random.integers(len(able)))]
        place = int(self._random.integers(row[alias].size))
        values = self._values[alias]
        section = Section([values.draw(self._random) for _ in range(min(most, 32))], min(most, 32))
        while section.points:
            yield [_with(row, alias, place, point) for point in section.points]
            if self._truth is None or not section.closed_in(self._truth):
                break
        if section.beside:
            values.learn(section.beside[:4])
            yield [_with(row, alias, place, point) for point in section.beside[:most]]


def _pools(signature: Signature, cases: Sequence[Case], has_rows: bool) -> dict[Shapes, _Pool]:
    """The rows of the cases, by their shapes; those that there are most of come first."""
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
            if nbytes > _MAX_SEED_BYTES or count > _MAX_SEEDS * 3:
                break
            found.setdefault(_shapes(row), []).append(row)
    kept = sorted(found.items(), key=lambda item: -len(item[1]))[:_MAX_SHAPES]
    return {shapes: _Pool(rows) for shapes, rows in kept}


def _shapes(row: Inputs) -> Shapes:
    return tuple(array.shape for array in row.values())


def _with(row: Inputs, alias: str, place: int, value: float) -> Inputs:
    changed = row[alias].copy()
    changed.reshape(-1)[place] = value
    return {**row, alias: changed}


def _behaviour(truth: Outputs, index: int, count: int) -> bytes:
    """What kind of answer a row got: which signs, what is largest, which whole numbers."""
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

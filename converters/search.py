"""Search for inputs on which a form and TensorFlow disagree, for as long as there is time.

Inputs are made from those of the cases. Those whose answers came closest to a difference, or were of a new kind, are
changed further. Ids are tried one after the other. Places where TensorFlow's answer jumps are closed in on, since
thresholds lie there. All choices come from one stream of random numbers, so that a search repeats itself on a clock
that does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import BackendError
from backends.domain import Domain
from converters.cases import Case, DiedError, Inputs, fits, has_batch
from converters.child import ChildError
from converters.judging import Judge
from converters.mutations import Mutations, Values, within
from converters.pools import MAX_KEPT, MAX_SHAPES, Pool, behaviour_of, pools_of, shapes_of
from converters.proof import Outputs
from converters.sections import Section

__all__ = ["Search", "Suspect"]

_ROWS = (32, 32, 32, 32, 32, 32, 1, 2, 3, 8, 16, 33, 64, 65, 100, 128, 129, 257)
_MAX_CALL_BYTES = 8 << 20
_MAX_BEHAVIOURS = 20_000
_MAX_DEATHS = 2
_CALL_SHARE = 0.02  # of the time that is left, for one call
_JUDGED = 25  # times as long as a call: telling roundings from errors takes that
_JUDGED_SECONDS = 2.0  # which may be so much over the time
_SWEEP_SHARE = 0.3  # of the time, for ids in a row
_SWEEP_ELEMENTS = 4096
_SWEPT = 1 << 20  # larger numbers are no ids
_SIZES_SHARE = 0.2  # of the time, for sizes in a row
_MAX_SIZE = 64
_MUTANTS = 6  # calls for each place that is closed in on
_SECTION_ROWS = 32
_RESIZED = 0.1  # of the calls have another size of an open dimension
_ALIKE = 0.7  # of the calls have rows that are all made of one


@dataclass(frozen=True, slots=True)
class Suspect:
    """Inputs on which the form is wrong. `failure` says how it died, "" if it did not."""

    inputs: Inputs
    failure: str = ""


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
        self._pools = pools_of(cases, self._has_rows)
        self._behaviours: set[bytes] = set()
        self._truth: Outputs | None = None
        self._row_seconds = 0.0
        self._ends = 0.0
        self._deaths = 0
        self._plan = self._proposals()
        self.narrow(domain)

    def narrow(self, domain: Domain) -> None:
        """Go on in `domain` only."""
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
        """Return the first inputs on which the form is wrong; None if none are found by `ends`, on the clock."""
        self._ends = ends
        if not self._signature.inputs or not self._pools:
            return None
        for inputs, count in self._plan:
            if self._clock() >= ends or self._deaths >= _MAX_DEATHS:
                return None
            self._truth = None
            is_within = within(self._domain, self._signature, inputs)
            if is_within and (found := self._tried(inputs, count)) is not None:
                return found
        return None

    def again(self, inputs: Inputs) -> Suspect | None:
        """Return these inputs if the form is wrong on them, else None; they count as tried. A form that dies of them is
        asked twice."""
        self.tried += 1
        for _ in range(_MAX_DEATHS):
            try:
                return Suspect(inputs) if self._judge.is_wrong(inputs) else None
            except ChildError as error:
                failure = str(error)
        return Suspect(inputs, failure)

    # -- a call

    def _tried(self, inputs: Inputs, count: int) -> Suspect | None:
        """Return what is wrong with the form on a batch of so many rows, or on one of them; None if nothing is."""
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
            answer = self._answer(inputs)
        except BackendError:
            return Suspect(inputs)
        except ChildError as error:
            return Suspect(inputs, str(error))
        seconds = self._clock() - begun
        self._row_seconds = seconds / count
        self._truth = truth
        self.tried += count
        shares = self._by_rows(self._judge.shares(truth, answer), count)
        worst = int(np.argmax(shares))
        if shares[worst] > 1:
            has_time = count > 1 and _JUDGED * seconds < max(_JUDGED_SECONDS, self._ends - self._clock())
            for suspect in [self._row(inputs, worst), *([inputs] if has_time else [])]:
                try:
                    if self._judge.is_wrong(suspect):
                        return Suspect(suspect)
                except ChildError as error:
                    return Suspect(suspect, str(error))
            self.explained += 1
        self._keep(inputs, shares, truth)
        return None

    def _answer(self, inputs: Inputs) -> Outputs:
        """Return the form's answer. One death may have come from outside, such as for want of memory; a second one is
        taken to be its own."""
        try:
            return self._judge.answer(inputs)
        except ChildError:
            return self._judge.answer(inputs)

    def _row(self, inputs: Inputs, index: int) -> Inputs:
        return {alias: array[index : index + 1] for alias, array in inputs.items()} if self._has_rows else inputs

    def _by_rows(self, shares: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """Return the largest share of each row; that of all if an output does not have one for each."""
        found = np.zeros(count)
        for array in shares.values():
            if array.size:
                has_rows = self._has_rows and array.ndim and len(array) == count
                found = np.maximum(found, array.reshape(count, -1).max(axis=1) if has_rows else array.max())
        return found

    def _keep(self, inputs: Inputs, shares: np.ndarray, truth: Outputs) -> None:
        """Keep the rows to change further: the closest, and some new ones."""
        # Rows that roundings explain are left out: a search from there would find more of them.
        able = np.flatnonzero(shares <= 1)
        if not able.size:
            return
        kept = able[np.argsort(-shares[able], kind="stable")[:MAX_KEPT]]
        best = int(kept[0])
        if shares[best] > self.worst:
            self.worst, self.worst_row = float(shares[best]), self._row(inputs, best)
        pool = self._pool(self._row(inputs, best))
        for index in kept.tolist():
            behaviour = behaviour_of(truth, index, len(shares) if self._has_rows else 0)
            is_new = behaviour not in self._behaviours and len(self._behaviours) < _MAX_BEHAVIOURS
            if is_new:
                self._behaviours.add(behaviour)
            if is_new or pool.is_close(float(shares[index])):
                row = {alias: array.copy() for alias, array in self._row(inputs, index).items()}
                pool.add(row, float(shares[index]), is_new=is_new)

    def _pool(self, row: Inputs) -> Pool:
        shapes = shapes_of(row)
        if shapes not in self._pools:
            if len(self._pools) >= MAX_SHAPES:
                del self._pools[next(reversed(self._pools))]
            self._pools[shapes] = Pool([row])
        return self._pools[shapes]

    # -- what is tried

    def _proposals(self) -> Iterator[tuple[Inputs, int]]:
        """Yield inputs, and how many rows they have."""
        yield from self._sizes()
        for alias, values in list(self._values.items()):
            if values.dtype.kind in "iu":
                yield from self._sweep(alias)
        while True:
            for _ in range(_MUTANTS):
                yield self._mutants(self._any_pool().draw(self._random))
            if self._has_rows:
                yield from self._section()

    def _most_rows(self, row: Inputs) -> int:
        """Return how many rows a call may have, by their bytes and by its time."""
        nbytes = max(1, sum(array.nbytes for array in row.values()))
        most = max(1, _MAX_CALL_BYTES // nbytes)
        if self._row_seconds:
            seconds = _CALL_SHARE * max(0.0, self._ends - self._clock())
            most = min(most, max(1, int(seconds / self._row_seconds)))
        else:
            most = min(most, 8)
        return most

    def _any_pool(self) -> Pool:
        pools = list(self._pools.values())
        # The shape of most cases comes first.
        return pools[0] if self._random.random() < 0.5 else pools[int(self._random.integers(len(pools)))]

    def _batch(self, rows: Sequence[Inputs]) -> tuple[Inputs, int]:
        if not self._has_rows:
            return rows[0], 1
        return {alias: np.concatenate([row[alias] for row in rows]) for alias in rows[0]}, len(rows)

    def _mutants(self, parent: Inputs) -> tuple[Inputs, int]:
        """Return rows that are made from `parent`, some of them perhaps from other rows."""
        if self._random.random() < _RESIZED and (sizes := self._open_sizes()):
            position, among = sizes[int(self._random.integers(len(sizes)))]
            parent = self._resized(parent, position, int(self._random.integers(min(among), max(among) + 1)))
        pool = self._pools.get(shapes_of(parent), Pool([parent]))
        if not self._has_rows:
            return self._batch([self._mutations.row(parent, pool.draw(self._random))])
        wanted = _ROWS[int(self._random.integers(len(_ROWS)))]
        is_alike = self._random.random() < _ALIKE
        rows = [
            self._mutations.row(parent if is_alike else pool.draw(self._random), pool.draw(self._random))
            for _ in range(min(wanted, self._most_rows(parent)))
        ]
        return self._batch([row for row in rows if within(self._domain, self._signature, row)] or [parent])

    def _open_sizes(self) -> list[tuple[int, set[int]]]:
        """Return the open dimensions besides the first, with the sizes that they have in cases of the domain."""
        found: dict[int, set[int]] = {}
        for case in self._cases:
            if within(self._domain, self._signature, case.inputs):
                for alias, array in case.inputs.items():
                    for position in range(1, array.ndim):
                        if array.size and self._is_open(alias, position, array):
                            found.setdefault(position, set()).add(array.shape[position])
        return sorted(found.items())

    def _sizes(self) -> Iterator[tuple[Inputs, int]]:
        """Yield each size of an open dimension between those of the cases, small sizes first."""
        seeds = next(iter(self._pools.values())).seeds
        begun = self._clock()
        ends = begun + _SIZES_SHARE * (self._ends - begun)
        for position, among in self._open_sizes():
            for size in range(min(among), min(max(among), _MAX_SIZE) + 1):
                if self._clock() > ends:
                    return
                row = self._resized(seeds[int(self._random.integers(len(seeds)))], position, size)
                yield self._batch([row] * min(2, self._most_rows(row)))

    def _resized(self, row: Inputs, position: int, size: int) -> Inputs:
        """Return the row with another size of an open dimension, in all inputs that have it."""
        return {
            alias: np.take(array, np.arange(size) % array.shape[position], axis=position)
            if self._is_open(alias, position, array) and array.size
            else array
            for alias, array in row.items()
        }

    def _is_open(self, alias: str, position: int, array: np.ndarray) -> bool:
        shape = self._signature.inputs[alias].shape
        return shape is not None and 0 < position < array.ndim and len(shape) == array.ndim and shape[position] < 0

    def _sweep(self, alias: str) -> Iterator[tuple[Inputs, int]]:
        """Yield all whole numbers of an input, from 0 on and then below, as many in a call as fit; and begin again
        beside other values of the other inputs, if there are any."""
        seeds = next(iter(self._pools.values())).seeds
        size, values = seeds[0][alias].size, self._values[alias]
        lowest, highest = max(values.least, -_SWEPT), min(values.largest, _SWEPT)
        begun = self._clock()
        ends = begun + _SWEEP_SHARE * (self._ends - begun) / len(self._values)
        while size and lowest <= highest and self._clock() < ends:
            value = max(0, lowest)
            while lowest <= value <= highest and self._clock() < ends:
                step = 1 if value >= 0 else -1
                left = (highest if step > 0 else lowest) - value
                most = self._most_rows(seeds[0]) if self._has_rows else 1
                count = min(max(1, _SWEEP_ELEMENTS // size), abs(left) // size + 1, most)
                swept = np.clip(value + step * np.arange(count * size), lowest, highest)
                row = seeds[int(self._random.integers(len(seeds)))]
                inputs, _ = self._batch([row] * count)
                yield {**inputs, alias: swept.astype(row[alias].dtype).reshape(inputs[alias].shape)}, count
                value += step * count * size
                if value > highest:
                    value = -1
            if len(self._values) == 1:
                break

    def _section(self) -> Iterator[tuple[Inputs, int]]:
        """Close in on a place where TensorFlow's answer jumps while one element grows, and try the values beside it."""
        row = self._any_pool().draw(self._random)
        able = [alias for alias, array in row.items() if array.size and array.dtype.kind in "iuf"]
        most = min(self._most_rows(row), _SECTION_ROWS)
        if not able or most < _SECTION_ROWS // 4:
            return
        alias = able[int(self._random.integers(len(able)))]
        place = int(self._random.integers(row[alias].size))
        values = self._values[alias]
        section = Section(*values.ends(self._random), most)
        while section.points:
            yield self._batch([_with(row, alias, place, point) for point in section.points])
            if self._truth is None or not section.closed_in(self._truth, self._random):
                break
        if section.beside:
            values.learn(section.beside[:4])
            yield self._batch([_with(row, alias, place, point) for point in section.beside[:most]])


def _with(row: Inputs, alias: str, place: int, value: float) -> Inputs:
    changed = row[alias].copy()
    changed.reshape(-1)[place] = value
    return {**row, alias: changed}

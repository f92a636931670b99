"""Make cases that look for trouble: values at which converted forms have been seen to differ, and unusual sizes.

Some of them may make TensorFlow loop for ever, or ask for more memory than there is. So the values of each kind go from
small to large, and end at the first that TensorFlow does not survive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import BackendError, TensorSpec
from backends.default_values import default_arrays
from backends.domain import ANY, FINITE, Domain
from converters.cases import Case, CaseMaker, DiedError, Inputs, Run, filled, fits, has_batch
from converters.edges import Edges, float_edges, whole_edges

__all__ = ["HardCases", "Refused"]

_MAX_INPUTS = 8
_MAX_ALONE = 4  # inputs of floats that get NaN and infinity each alone
_MAX_ROWS = 33
_BATCHES = (33, 2, 9)
_SIZES = (1, 2, 5, 129)
_MAX_TRIES = 24  # of one kind of values in one input, where TensorFlow does not take all of them at once
_MAX_REFUSED = 2  # of these that are kept
_MAX_DEATHS = 3
_MAX_CASE_BYTES = 64 << 20
_SHARE = 3  # one of so many elements gets the odd value
_MAX_SPREAD_ELEMENTS = 1 << 16  # of an input that gets more rows, so that each column gets each value


@dataclass(frozen=True, slots=True)
class Refused:
    """Inputs that TensorFlow refuses. A form that answers them is proven for the inputs in `without` only; None: for
    whole numbers no larger than those of the cases on which it must be right."""

    label: str
    inputs: Inputs
    without: Domain | None


class HardCases:
    """The hard cases of the signature of `maker`. `risk` runs TensorFlow on inputs that may kill it. `numbers` are the
    graph's own."""

    def __init__(self, maker: CaseMaker, risk: Run, numbers: Sequence[float]) -> None:
        self.refused: list[Refused] = []
        self.deaths: list[str] = []
        self._maker = maker
        self._signature = maker.signature
        self._has_batch = has_batch(maker.signature)
        self._risk = risk
        self._numbers = numbers
        self._domain = FINITE
        self._with_ones = False

    @property
    def domain(self) -> Domain:
        """The inputs that were tried so far; TensorFlow answers others. NaN, infinity and empty inputs are outside
        until they were tried; large numbers are taken to be like smaller ones."""
        return self._domain

    def cases(self) -> Iterator[Case]:
        """Yield the cases, the most telling first: a caller without time may stop after any."""
        if not self._signature.inputs:
            self._domain = ANY
            return
        if not self._find_base():
            return
        wholes = [alias for alias, spec in self._signature.inputs.items() if spec.element.numpy.kind in "iu"]
        floats = [alias for alias, spec in self._signature.inputs.items() if spec.element.numpy.kind in "fcV"]
        edges = {alias: list(float_edges(self._dtype(alias), self._numbers)) for alias in floats}
        if not floats:
            self._domain = dataclasses.replace(self._domain, largest=None)
        if not self._maker.has_made:
            yield from self._filled()
        yield from self._left_out()
        yield from self._negative(wholes)
        yield from self._floats(edges, lambda found: found.without is None)
        yield from self._empty()
        yield from self._not_finite(edges)
        yield from self._whole(wholes[:_MAX_INPUTS])
        yield from self._floats(edges, lambda found: found.without is not None and not _is_not_finite(found))
        yield from self._sizes()
        if self._has_batch:
            for batch in _BATCHES if not self._maker.has_made else _BATCHES[:1]:
                yield from self._survived(f"batch {batch}", self._base(batch))

    # -- inputs

    def _dtype(self, alias: str) -> np.dtype:
        return self._signature.inputs[alias].element.numpy

    def _find_base(self) -> bool:
        """Find inputs to begin with, and return whether there are any. If TensorFlow refuses made ones (a divisor may
        be 0), inputs of 1 may do."""
        for self._with_ones in (False, True):
            base = self._base(2)
            if base is None:
                return False
            try:
                self._risk(base)
            except BackendError:
                continue
            except DiedError:
                return False
            return True
        return False

    def _base(self, batch: int) -> Inputs | None:
        plain = self._maker.plain(batch)
        if plain is None or sum(array.nbytes for array in plain.values()) > _MAX_CASE_BYTES:
            return None
        return filled(self._signature, plain, 1) if self._with_ones else plain

    def _rows(self, alias: str, elements: int) -> int:
        """Return the number of rows in which the input has so many elements; in each column, if that is not much."""
        base = self._base(1)
        if base is None:
            return 1
        size = max(1, base[alias].size)
        columns = base[alias].shape[-1] if base[alias].ndim > 1 else 1
        least, spread = math.ceil(elements / size), math.ceil(elements * columns / size)
        return min(_MAX_ROWS, max(1, least, min(spread, _MAX_SPREAD_ELEMENTS // size)))

    # -- what TensorFlow makes of them

    def _tried(self, label: str, inputs: Inputs | None, without: Domain | None = None) -> Iterator[Case]:
        """Yield the case, unless TensorFlow refuses it. Raise DiedError."""
        if inputs is None or len(self.deaths) >= _MAX_DEATHS:
            return
        try:
            yield Case(label, inputs, self._risk(inputs), hard=True, without=without)
        except BackendError:
            self.refused.append(Refused(label, inputs, without))
        except DiedError as error:
            self.deaths.append(f"on {label}, {error}")
            self._domain &= without or ANY
            raise

    def _split(self, alias: str, edges: Edges) -> Iterator[Case]:
        """Yield the cases of the values of one input: together, or, if TensorFlow refuses that, those that it takes."""
        label = f"{alias!r} with {edges.label}"
        waiting: list[np.ndarray] = []
        base = self._base(self._rows(alias, len(edges.values)))
        if base is None or not base[alias].size:
            return
        step = base[alias].size
        waiting = [edges.values[start : start + step] for start in range(0, len(edges.values), step)]
        kept = len(self.refused)
        for _ in range(_MAX_TRIES):
            if not waiting:
                break
            values = waiting.pop(0)
            inputs = {**base, alias: _filled_with(base[alias], values)}
            before = len(self.refused)
            found = list(self._tried(f"{label}: {_said(values)}", inputs, edges.without))
            yield from found
            if not found and len(values) > 1:
                del self.refused[before:]
                middle = len(values) // 2
                waiting += [values[:middle], values[middle:]]
        del self.refused[kept + _MAX_REFUSED :]

    # -- kinds

    def _filled(self) -> Iterator[Case]:
        base = self._base(2)
        for value in (0, 1, -1):
            if base is not None:
                yield from self._survived(f"all {value}", filled(self._signature, base, value))

    def _left_out(self) -> Iterator[Case]:
        """Yield the case of a request that leaves out what has a default."""
        base, defaults = self._base(1), default_arrays(self._signature)
        if base is not None and defaults:
            yield from self._survived(f"the defaults of {', '.join(map(repr, defaults))}", {**base, **defaults})

    def _survived(self, label: str, inputs: Inputs | None, without: Domain | None = None) -> Iterator[Case]:
        """Do as `_tried`, but only note a death of TensorFlow."""
        with contextlib.suppress(DiedError):
            yield from self._tried(label, inputs, without)

    def _negative(self, aliases: Sequence[str]) -> Iterator[Case]:
        base = self._base(2)
        signed = [alias for alias in aliases if self._dtype(alias).kind == "i"]
        if signed and base is not None:
            inputs = {**base, **{alias: np.full_like(base[alias], -1) for alias in signed}}
            yield from self._survived("all whole numbers -1", inputs, Domain(least_whole=0))

    def _whole(self, aliases: Sequence[str]) -> Iterator[Case]:
        edges = {alias: list(whole_edges(self._dtype(alias), self._numbers)) for alias in aliases}
        over: set[bool] = set()  # below 0, or from 0 on: what TensorFlow has not survived
        for level in range(max(map(len, edges.values()), default=0)):
            for alias, found in edges.items():
                if level < len(found) and (low := bool(found[level].values[0] < 0)) not in over:
                    try:
                        yield from self._split(alias, found[level])
                    except DiedError:
                        over.add(low)

    def _floats(self, edges: dict[str, list[Edges]], wanted: Callable[[Edges], bool]) -> Iterator[Case]:
        """Yield cases of odd floats in all inputs of floats at once."""
        if not edges:
            return
        for level in range(max(len(found) for found in edges.values())):
            odd = {alias: found[level] for alias, found in edges.items() if level < len(found) and wanted(found[level])}
            if not odd:
                continue
            base = self._base(max(self._rows(alias, _SHARE * len(found.values)) for alias, found in odd.items()))
            if base is None:
                return
            inputs = {**base, **{alias: _some(base[alias], found.values) for alias, found in odd.items()}}
            without: Domain | None = None
            for found in odd.values():
                if found.without is not None:
                    without = (without or ANY) & found.without
            label = next(iter(odd.values())).label
            try:
                yield from self._tried(label, inputs, without)
                # What has become infinite is NaN times 0, in one order of the factors. 0 may be what is refused.
                kept = len(self.refused)
                # Where rows are few, columns get here the values that they did not get above.
                turned = {alias: np.roll(found.values, len(found.values) // 2) for alias, found in odd.items()}
                zeros = {alias: _some(np.zeros_like(base[alias]), turned[alias]) for alias in odd}
                yield from self._tried(f"{label}, beside 0", {**base, **zeros}, without)
                del self.refused[kept:]
            except DiedError:
                return

    def _not_finite(self, edges: dict[str, list[Edges]]) -> Iterator[Case]:
        base = self._base(_SHARE + 1) or self._base(2)  # a row that has none, mostly, and one for each place
        if base is None:
            return
        try:
            aliases = list(edges)
            for together in (*([alias] for alias in aliases[:_MAX_ALONE]), aliases[_MAX_ALONE:]):
                for odd in zip(*(filter(_is_not_finite, edges[alias]) for alias in together), strict=True):
                    inputs = dict(base)
                    for alias, found in zip(together, odd, strict=True):
                        inputs[alias] = _mostly_in_last_rows(base[alias], found.values)
                    label = f"{', '.join(map(repr, together))} with {odd[0].label}"
                    yield from self._tried(label, inputs, odd[0].without)
        except DiedError:
            return
        if self._domain.largest == FINITE.largest:
            self._domain = dataclasses.replace(self._domain, largest=None)

    def _empty(self) -> Iterator[Case]:
        without = Domain(empty=False)
        try:
            base = self._base(1)
            has_rows = [alias for alias, spec in self._signature.inputs.items() if _has_rows(spec)]
            if has_rows and base is not None:
                no_rows = {alias: array[:0] if alias in has_rows else array for alias, array in base.items()}
                yield from self._steady("batch 0", no_rows, without)
            for position in self._free():
                yield from self._steady(f"dimension {position} of size 0", self._sized(position, 0), without)
        except DiedError:
            return
        self._domain = dataclasses.replace(self._domain, empty=True)

    def _sizes(self) -> Iterator[Case]:
        for position in self._free():
            usual = min(
                array.shape[position]
                for alias, array in (self._base(1) or {}).items()
                if self._is_free(alias, position, array)
            )
            for size in _SIZES:
                without = Domain(smallest=usual) if size < usual else None
                try:
                    yield from self._steady(
                        f"dimension {position} of size {size}", self._sized(position, size), without
                    )
                except DiedError:
                    break

    def _free(self) -> list[int]:
        """Return the dimensions besides the first that some input leaves open."""
        base = self._base(1) or {}
        return sorted(
            {
                position
                for alias, array in base.items()
                for position in range(1, array.ndim)
                if self._is_free(alias, position, array)
            }
        )

    def _is_free(self, alias: str, position: int, array: np.ndarray) -> bool:
        shape = self._signature.inputs[alias].shape
        return shape is not None and 0 < position < array.ndim and len(shape) == array.ndim and shape[position] < 0

    def _sized(self, position: int, size: int) -> Inputs | None:
        base = self._base(1) or {}
        found = {}
        for alias, array in base.items():
            if self._is_free(alias, position, array) and array.size:
                array = np.take(array, np.arange(size) % array.shape[position], axis=position)  # noqa: PLW2901
            found[alias] = array
        return found if sum(array.nbytes for array in found.values()) <= _MAX_CASE_BYTES else None

    def _steady(self, label: str, inputs: Inputs | None, without: Domain | None) -> Iterator[Case]:
        """Do as `_tried`, without answers that TensorFlow reads from uninitialised memory: it does so if nothing is
        left to compute, and then in other shapes than it declares."""
        for case in self._tried(label, inputs, without):
            base = self._base(1)
            if not fits(case.outputs, self._signature.outputs) or base is None:
                continue
            try:
                self._risk(base)
                again = self._risk(case.inputs)
            except (BackendError, DiedError):
                continue
            if all(_same(case.outputs[alias], again[alias]) for alias in case.outputs):
                yield case


def _has_rows(spec: TensorSpec) -> bool:
    """Return whether each input may have any number of rows."""
    return spec.shape is None or (bool(spec.shape) and spec.shape[0] < 0)


def _is_not_finite(edges: Edges) -> bool:
    return not np.all(np.isfinite(edges.values))


def _some(array: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `array` with `values` in one of three elements, or in all elements if it has few.

    The places move on from row to row: the same in all would leave out some columns, such as two of the three colours
    of an image.
    """
    found = array.copy()
    if not found.size:
        return found
    rows = found.reshape(-1, array.shape[-1]) if array.ndim else found.reshape(1, 1)
    places = np.add.outer(np.arange(rows.shape[0]), np.arange(rows.shape[1]))
    is_odd = places % _SHARE == 0 if array.size >= _SHARE else places >= 0
    rows[is_odd] = values[_in_turn(is_odd, len(values))[is_odd]]
    return found


def _filled_with(array: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `values` in the shape of `array`."""
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    found: np.ndarray = values[_in_turn(np.ones(rows.shape, bool), len(values))].reshape(array.shape)
    return found


def _in_turn(chosen: np.ndarray, count: int) -> np.ndarray:
    """Return which of `count` values each place gets that is `chosen` (bool, rows and columns): down each column one
    after the other. If a column is too short for all of them, the next one goes on where it ends."""
    down = np.cumsum(chosen, axis=0, dtype=np.int32)
    if len(down) and down[-1].min(initial=count) >= count:
        # No two columns begin with the same, or each row would have equal values.
        return (down - 1 + np.arange(chosen.shape[1])) % count
    before = np.cumsum(down[-1:], axis=1, dtype=np.int32) - down[-1:]
    return (before + down - 1) % count


def _mostly_in_last_rows(array: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `array` with `values` in its first element, and in one of three elements of its last three rows."""
    found = array.copy()
    if not found.size:
        return found
    if found.ndim:
        found[-_SHARE:] = _some(found[-_SHARE:], values)
    found.reshape(-1)[0] = values[0]
    return found


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _said(values: np.ndarray) -> str:
    text = ", ".join(f"{value:,}" for value in values[:4].tolist())
    return text + (" …" if len(values) > 4 else "")

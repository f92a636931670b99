"""Classes of values, and the inputs that a variant gets of each class.

The classes of numbers are those that a proof tries at a model's inputs (`converters.edges`), besides ordinary ones,
halves and equal ones; what is an index, a divisor or a number of bits has classes of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.operators.variants import Input, Role, Variant
from converters.edges import float_edges, whole_edges

__all__ = ["ORDINARY", "Case", "cases"]

ORDINARY = "ordinary values"
HALVES = "halves"
EQUAL = "equal values"
HUNDREDS = "floats of hundreds"
LEAST_BY_MINUS_ONE = "the least number by -1"

_FLOATS = (0.37, -1.62, 2.75, -0.81, 5.13, 1.0, -3.3, 0.05)
_WHOLES = (3, 1, 7, 2, 12, 5, 100, 40)
_HALVES = (0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.5, 6.5, -7.5)
_HUNDREDS = (89.0, -89.0, 127.25, -127.25, 255.0, -300.5, 720.0, -1000.0)
_ROWS = 5
_MANY_ROWS = 33
_WIDTH = 4  # of a row of what works element by element


@dataclass(frozen=True, slots=True)
class Case:
    """`values` is the class."""

    values: str
    inputs: Mapping[str, np.ndarray]


def cases(variant: Variant) -> Iterator[Case]:
    """The cases of a variant, ordinary ones first."""
    yield from _crossed(variant) if variant.by_element else _in_places(variant)
    if any(taken.shape[:1] == (None,) for taken in variant.inputs.values()):
        for label, rows in (("one row", 1), ("many rows", _MANY_ROWS), ("no rows", 0)):
            yield Case(label, {name: _plain(taken, rows, name) for name, taken in variant.inputs.items()})


def _classes(taken: Input) -> dict[str, np.ndarray]:
    """The values of each class, ordinary ones first; none for what is always the same."""
    dtype = np.dtype(taken.dtype)
    own = _own_classes(taken, dtype)
    if own is None:
        return _numbers(dtype)
    limits = np.iinfo(dtype)
    within = {label: [v for v in values if limits.min <= v <= limits.max] for label, values in own.items()}
    return {label: np.array(values, dtype) for label, values in within.items() if values}


def _own_classes(taken: Input, dtype: np.dtype) -> dict[str, list[int]] | None:
    """Those of an input that is no plain number."""
    if taken.role is Role.GIVEN:
        return {}
    if dtype.kind not in "iu":
        return None
    bits = dtype.itemsize * 8
    if taken.role is Role.DIVISOR:
        numbers = {label: [v for v in values.tolist() if v] for label, values in _numbers(dtype).items()}
        return {**numbers, "divisors 0": [0]}
    if taken.role is Role.EXPONENT:
        return {ORDINARY: [2, 0, 1, 3], "exponents up to 64": [4, 7, 31, 64], "exponents below 0": [-1, -2]}
    if taken.role is Role.SHIFT:
        return {ORDINARY: [1, 0, 3, bits - 1], "shifts by too many bits": [bits, bits + 1], "shifts below 0": [-1]}
    if taken.role in (Role.INDEX, Role.SORTED):
        limit = taken.limit
        return {
            ORDINARY: list(range(limit)),
            "indices below 0": [-1, -limit],
            "indices out of range": [limit, limit + 3],
            "indices far out of range": [2**31 - 1, -(2**31), 2**32 + 1, 2**40],
        }
    return None


def _numbers(dtype: np.dtype) -> dict[str, np.ndarray]:
    if dtype.kind == "b":
        return {ORDINARY: np.array([True, False])}
    if dtype.kind in "iu":
        found = {ORDINARY: np.array(_WHOLES, dtype), EQUAL: np.array([101, 0], dtype)}
        return found | {edges.label: edges.values for edges in whole_edges(dtype, ())}
    found = {
        ORDINARY: np.array(_FLOATS, dtype),
        HALVES: np.array(_HALVES, dtype),
        EQUAL: np.array([9.5, -9.5], dtype),
        HUNDREDS: np.array(_HUNDREDS, dtype),
    }
    top = float(np.finfo(dtype).max)
    for edges in float_edges(dtype, ()):
        label = edges.label.removeprefix("some ").replace(f"{top:.0e}", "the largest")
        found[label] = edges.values
    return found


def _labels(variant: Variant) -> dict[str, None]:
    return dict.fromkeys(label for taken in variant.inputs.values() for label in _classes(taken))


def _crossed(variant: Variant) -> Iterator[Case]:
    """Each value of a class beside each ordinary one of the other inputs, and beside each of its own class."""
    pools = {name: _classes(taken) for name, taken in variant.inputs.items()}
    names = list(pools)
    least = _least_by_minus_one(variant)
    for label in _labels(variant):
        rows: list[tuple] = []
        for chosen in product((False, True), repeat=len(names)):
            if any(is_odd and label not in pools[name] for name, is_odd in zip(names, chosen, strict=True)):
                continue
            if any(chosen):
                sources = [pools[n][label if odd else ORDINARY] for n, odd in zip(names, chosen, strict=True)]
                rows += product(*(source.tolist() for source in sources))
        kept = [row for row in rows if row != least]
        if kept:
            yield Case(label, _columns(variant, kept))
    if least:
        yield Case(LEAST_BY_MINUS_ONE, _columns(variant, [least]))


def _least_by_minus_one(variant: Variant) -> tuple | None:
    """What kills a processor's division: it has no answer."""
    if [taken.role for taken in variant.inputs.values()] != [Role.VALUES, Role.DIVISOR]:
        return None
    dtype = np.dtype(next(iter(variant.inputs.values())).dtype)
    return (np.iinfo(dtype).min, -1) if dtype.kind == "i" else None


def _columns(variant: Variant, rows: list[tuple]) -> dict[str, np.ndarray]:
    """The inputs, whose elements at the same place are a row of `rows`; the last is repeated."""
    rows = rows + [rows[-1]] * (-len(rows) % _WIDTH)
    return {
        name: np.array([row[at] for row in rows], taken.dtype).reshape(-1, _WIDTH)
        for at, (name, taken) in enumerate(variant.inputs.items())
    }


def _in_places(variant: Variant) -> Iterator[Case]:
    """Values of a class in one input after the other: in some places of its first rows, and in all of its last."""
    base = {name: _plain(taken, _ROWS, name) for name, taken in variant.inputs.items()}
    yield Case(ORDINARY, base)
    for label in _labels(variant):
        for name, taken in variant.inputs.items():
            values = _classes(taken).get(label)
            if label != ORDINARY and values is not None:
                yield Case(label, {**base, name: _placed(taken, base[name], values)})


def _placed(taken: Input, base: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = base.copy()
    if not found.ndim:
        return np.array(values[0], found.dtype)
    flat = found.reshape(-1)
    flat[::3] = np.resize(values, flat[::3].shape)
    if found.ndim > 1:
        found[-2:] = np.resize(values, found[-2:].shape)
    if taken.role is Role.SORTED:
        found.sort()
    return found


def _plain(taken: Input, rows: int, name: str) -> np.ndarray:
    shape = tuple(rows if size is None else size for size in taken.shape)
    if taken.role is Role.GIVEN:
        return np.array(taken.given, taken.dtype).reshape(shape)
    values = _classes(taken)[ORDINARY]
    random = np.random.default_rng([*name.encode(), *shape])
    chosen = values[random.integers(0, len(values), shape)]
    if np.dtype(taken.dtype).kind == "f":  # no two are equal
        chosen = chosen + random.random(shape) / 16
    found = np.array(chosen, taken.dtype)
    if taken.role is Role.SORTED:
        found.sort()
    return found

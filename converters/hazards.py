"""Know what converted forms get wrong of single operators, and which of it a graph can meet.

The table is hazards.json, beside this module. `make operators` writes it: TensorFlow and its forms run each operator,
of each element type, on classes of values. An operator that is not in the table may still be wrong.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from backends.dtypes import BY_NUMBER
from backends.form import Format

__all__ = [
    "FILE",
    "Effect",
    "Hazard",
    "Met",
    "Values",
    "from_text",
    "hazards",
    "hazards_of",
    "met",
    "order",
    "to_text",
    "told",
]

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hazards.json")


class Values(StrEnum):
    """The values on which an operator goes wrong. If it does so on ordinary ones, no others are listed."""

    ORDINARY = "ordinary values"
    EQUAL = "equal values"
    HALVES = "halves"
    HUNDREDS = "floats of hundreds"
    TINY = "floats ±0 or tiny"
    SUBNORMAL = "subnormal floats"
    LARGE = "floats of 1e4 to 1e9"
    HUGE = "floats of 1e15 and more"
    NAN = "NaN"
    INFINITE = "infinity"
    NEGATIVE = "negative whole numbers"
    LARGE_WHOLE = "large whole numbers"
    ZERO_DIVISOR = "divisors 0"
    LEAST_BY_MINUS_ONE = "the least number by -1"
    EXPONENT = "exponents"
    SHIFT = "shifts"
    INDEX = "indices out of range"
    NO_ROWS = "no rows"


class Effect(StrEnum):
    """What the form does on these values."""

    DIFFERS = "differs"
    DIES = "dies"
    ANSWERS = "answers"  # what TensorFlow refuses
    REFUSES = "refuses"  # what TensorFlow answers


@dataclass(frozen=True, slots=True)
class Hazard:
    """What a form gets wrong of an operator. `dtypes` are the element types for which it was found, the values of the
    attribute `attribute` ("": it has none). `variants` are uses of the operator, for people (none: all that were
    tried). `source` is "campaign", or the address of a page that tells of it."""

    op: str
    form: Format
    values: Values
    effect: Effect
    attribute: str
    dtypes: tuple[str, ...]
    variants: tuple[str, ...]
    example: str
    source: str


@dataclass(frozen=True, slots=True)
class Met:
    """A node that has a hazard: in the function `function` ("": in the graph itself), with its inputs."""

    hazard: Hazard
    function: str
    node: str
    inputs: tuple[str, ...]


def met(graph: Any, form: Format) -> Iterator[Met]:
    """Yield the nodes of a `tensorflow.GraphDef` that have a hazard, those of its functions included. A node that does
    not say its element type may have any."""
    by_operator = _by_operator()[form]
    scopes = {"": graph.node} | {function.signature.name: function.node_def for function in graph.library.function}
    for function, nodes in scopes.items():
        for node in nodes:
            for hazard in by_operator.get(node.op, ()):
                dtype = BY_NUMBER.get(node.attr[hazard.attribute].type) if hazard.attribute in node.attr else None
                if dtype is None or dtype.name in hazard.dtypes:
                    yield Met(hazard, function, node.name, tuple(node.input))


def hazards_of(graphs: Iterable[Any], form: Format) -> tuple[Hazard, ...]:
    """Return the hazards of the operators in some graphs, sorted."""
    return tuple(sorted({found.hazard for graph in graphs for found in met(graph, form)}, key=order))


# Values that come about inside a graph from finite, usual inputs. Others matter at the inputs only, and a proof tries
# them there.
_INSIDE = frozenset(Values) - {
    *(Values.ORDINARY, Values.SUBNORMAL, Values.HUGE, Values.NAN, Values.INFINITE, Values.NO_ROWS),
}


def told(found: Iterable[Hazard]) -> tuple[str, ...]:
    """Return, as lines for people, the hazards that a proof may not see: those of values that come about inside a
    graph, not at its inputs."""
    return tuple(
        f"{hazard.op} ({', '.join(hazard.dtypes)}) {hazard.effect} on {hazard.values}"
        for hazard in found
        if hazard.values in _INSIDE and hazard.effect in (Effect.DIFFERS, Effect.DIES)
    )


@functools.cache
def hazards() -> tuple[Hazard, ...]:
    """Return the table. Raise OSError if it cannot be read: it is part of the package."""
    with open(FILE, encoding="utf-8") as file:
        return from_text(file.read())


@functools.cache
def _by_operator() -> Mapping[str, Mapping[str, tuple[Hazard, ...]]]:
    found: dict[str, dict[str, tuple[Hazard, ...]]] = {"onnx": {}, "tflite": {}}
    for hazard in hazards():
        of = found[hazard.form]
        of[hazard.op] = (*of.get(hazard.op, ()), hazard)
    return found


# -- the file


def order(hazard: Hazard) -> tuple[str, str, int, str, tuple[str, ...]]:
    """Return the key by which the table is sorted."""
    return hazard.op, hazard.form, list(Values).index(hazard.values), hazard.effect, hazard.dtypes


def to_text(found: Iterable[Hazard]) -> str:
    """Return the table as JSON: sorted, a line for each hazard, without empty `variants`."""
    rows = (msgspec.to_builtins(hazard) for hazard in sorted(found, key=order))
    lines = (
        json.dumps(
            {name: value for name, value in row.items() if name != "variants" or value},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for row in rows
    )
    return "[\n" + ",\n".join(lines) + "\n]\n"


def from_text(text: str) -> tuple[Hazard, ...]:
    """Return the hazards of a table. Raise ValueError if `text` is none."""
    return msgspec.convert([{"variants": (), **row} for row in json.loads(text)], tuple[Hazard, ...])

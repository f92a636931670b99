"""All operators that are tried, in the order in which they are."""

from collections.abc import Sequence

from benchmarks.operators import elementwise, indexing, layers, reductions, shaping
from benchmarks.operators.variants import OPERATORS, Variant, dtypes_of

__all__ = ["FAMILIES", "items", "variants_of"]

FAMILIES = (elementwise, reductions, indexing, shaping, layers)
"""Each registers its operators when it is imported."""


def items(only: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The operators, each with each of its element types; of `only` ("FloorDiv", or "FloorDiv:int64") those. TensorFlow
    has to be imported. Raises KeyError for an operator that is not there, ValueError for another element type."""
    found = []
    for wanted in only or OPERATORS:
        op, _, dtype = wanted.partition(":")
        dtypes = dtypes_of(op)
        if dtype and dtype not in dtypes:
            raise ValueError(f"{op} is not tried of {dtype}; it is of {', '.join(dtypes)}")
        found += [(op, its) for its in dtypes if not dtype or its == dtype]
    return found


def variants_of(op: str, dtype: str) -> list[Variant]:
    return list(OPERATORS[op][1](op, dtype))

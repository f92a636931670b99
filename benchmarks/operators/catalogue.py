"""All operators that are tried, in the order in which they are."""

from benchmarks.operators import elementwise, indexing, layers, reductions, shaping
from benchmarks.operators.variants import OPERATORS, Variant, dtypes_of

__all__ = ["FAMILIES", "items", "variants_of"]

FAMILIES = (elementwise, reductions, indexing, shaping, layers)
"""Each registers its operators when it is imported."""


def items(only: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The operators, each with each of its element types. TensorFlow has to be imported. Raises KeyError for one of
    `only` that is not there."""
    return [(op, dtype) for op in only or OPERATORS for dtype in dtypes_of(op)]


def variants_of(op: str, dtype: str) -> list[Variant]:
    return list(OPERATORS[op][1](op, dtype))

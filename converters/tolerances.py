"""How far answers may lie apart: by the precision of the arithmetic, and by the element type of the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["UNITS", "Tolerance", "Tolerances"]

UNITS = {"float32": 0.0, "tf32": 2.0**-10, "float16": 2.0**-10, "int8": 2.0**-7}
"""What one rounding of each precision is, relatively, where it is coarser than the element type."""

# What rounding to the element type alone may make of an answer: a few units in the last place.
_OF_DTYPE = {"float16": 4e-3, "bfloat16": 3e-2}
_NOISES = 8.0
_MAX_WIDENING = 30.0

# What no arithmetic of float32 has touched must be as close as doubles are; what has is not a double's equal, and
# stays with TensorFlow.
_OF_DOUBLES = 1e-9


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`absolute`, plus `relative` times the value, or the root mean square of the output where that is larger: a sum
    near 0 has the rounding errors of what cancelled in it."""

    relative: float
    absolute: float

    def beside_noise(self, noise: float) -> Tolerance:
        """For an output that moves by `noise` (relative) when each input moves by one rounding.

        No arithmetic but TensorFlow's own, in its own order, could come closer than about that: ResNet50 with random
        weights moves by 3e-4 on a black image, where LiteRT is 1.5e-3 off; on images like those of its batch
        normalisation, by 9e-5 (2026-11). Every layer rounds, not only the input: hence the factor. The bound keeps a
        model that amplifies everything from passing with anything.
        """
        return Tolerance(min(max(self.relative, _NOISES * noise), _MAX_WIDENING * self.relative), self.absolute)


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Relative tolerances by precision, and one absolute tolerance."""

    by_precision: Mapping[str, float] = field(
        default_factory=lambda: {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "int8": 1e-1}
    )
    absolute: float = 1e-7

    def of(self, precision: str, dtype: str) -> Tolerance | None:
        """The tolerance for outputs of `dtype`; None where they must be equal."""
        if not dtype.startswith(("float", "bfloat", "complex")):
            return None
        relative = self.by_precision[precision]
        if precision == "float32" and dtype in ("float64", "complex128"):
            return Tolerance(min(relative, _OF_DOUBLES), min(self.absolute, _OF_DOUBLES))
        return Tolerance(max(relative, _OF_DTYPE.get(dtype, 0.0)), self.absolute)

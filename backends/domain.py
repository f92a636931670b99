"""The inputs for which a converted form was proven, and whether a request's values are among them.

TensorFlow answers all other inputs. So a form that differs only on NaN, or only on negative numbers, can be served, and
never answers an input for which it was not proven.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.contract import Backend, BackendError, Code, Signature, TensorSpec
from backends.default_values import default_arrays

__all__ = ["ANY", "FINITE", "Bounded", "Domain", "UnprovenError", "smallest_normal"]

# Below this many elements, one pass that makes a copy is faster than two that make none: 1.4 against 4 microseconds for
# 64 floats, 86 against 52 for an image of 224 x 224 x 3 (2 busy cores, 2026-11).
_SMALL = 4096


@dataclass(frozen=True, slots=True)
class Domain:
    """Inputs for which a form was proven; the default is all inputs.

    - Floats up to the magnitude `largest`; None: also NaN and infinity. `subnormal`: also subnormal floats.
    - Integers from `least_whole` to `largest_whole`, None for no bound; all of uint8.
    - `empty`: inputs without elements. `smallest`: the least size of each unknown dimension but the first.
    """

    largest: float | None = None
    subnormal: bool = True
    least_whole: int | None = None
    largest_whole: int | None = None
    smallest: int = 0
    empty: bool = True

    def __and__(self, other: Domain) -> Domain:
        """Return the inputs that are in both domains."""
        return Domain(
            min((x for x in (self.largest, other.largest) if x is not None), default=None),
            self.subnormal and other.subnormal,
            max((x for x in (self.least_whole, other.least_whole) if x is not None), default=None),
            min((x for x in (self.largest_whole, other.largest_whole) if x is not None), default=None),
            max(self.smallest, other.smallest),
            self.empty and other.empty,
        )

    def unlooked(self) -> Domain:
        """Return the domain without its limits on floats, if the operator promises finite floats of usual size.

        Floats are not checked then.
        """
        return dataclasses.replace(self, largest=None, subnormal=True)

    def beyond(self, name: str, array: np.ndarray, spec: TensorSpec) -> str:
        """Return why the input `name`, described by `spec`, is outside of the domain; "" if it is inside."""
        if not array.size:
            return "" if self.empty else f"input {name!r} has no elements"
        if self.smallest and spec.shape is not None and _has_smaller(spec.shape, array.shape, self.smallest):
            return f"input {name!r} has the shape {list(array.shape)}, with a dimension below {self.smallest}"
        kind = array.dtype.kind
        if kind in "fcV":
            return self._beyond_floats(name, array)
        if kind in "iu" and spec.dtype != "uint8":
            if self.least_whole is not None and (least := int(array.min())) < self.least_whole:
                return f"input {name!r} has {least:,}"
            if self.largest_whole is not None and (largest := int(array.max())) > self.largest_whole:
                return f"input {name!r} has {largest:,}"
        return ""

    def _beyond_floats(self, name: str, array: np.ndarray) -> str:
        if self.largest is not None:
            # If there is a NaN, it is both max and min, and compares false.
            if array.dtype.itemsize == 2:
                with np.errstate(invalid="ignore"):  # numpy warns about a NaN in these types
                    within = float(np.abs(array).max()) <= self.largest
            elif array.size <= _SMALL or array.dtype.kind == "c":
                within = float(np.abs(array).max()) <= self.largest
            else:
                within = float(array.max()) <= self.largest and float(array.min()) >= -self.largest
            if not within:
                return f"input {name!r} has NaN, infinity or a value beyond {self.largest:.3g}"
        if not self.subnormal:
            parts = np.stack([array.real, array.imag]) if array.dtype.kind == "c" else array
            if _has_subnormal(parts):
                return f"input {name!r} has a subnormal value"
        return ""

    def left_out(self) -> str:
        """Return which inputs are outside of the domain, for people; "" if none are."""
        found = []
        if self.largest is not None:
            usual = self.largest >= _FLOAT32_MAX
            found.append("NaN and infinity" if usual else f"NaN and floats beyond {self.largest:.3g}")
        if not self.subnormal:
            found.append("subnormal floats")
        if self.least_whole is not None:
            found.append(f"whole numbers below {self.least_whole:,}" if self.least_whole else "negative whole numbers")
        if self.largest_whole is not None:
            found.append(f"whole numbers beyond {self.largest_whole:,}")
        if self.smallest:
            found.append(f"dimensions below {self.smallest}")
        if not self.empty:
            found.append("inputs without rows")
        return ", ".join(found)


_FLOAT32_MAX = float(np.finfo(np.float32).max)

ANY = Domain()
FINITE = Domain(largest=float(np.finfo(np.float64).max), empty=False)
"""The domain of a form that was tried only on ordinary inputs."""


def smallest_normal(dtype: np.dtype) -> float:
    """Return the smallest positive normal number of `dtype`; bfloat16 has the exponents of float32."""
    return float(np.finfo(np.float32 if dtype.kind == "V" else dtype).smallest_normal)


def _has_subnormal(array: np.ndarray) -> bool:
    """Return whether there is a subnormal float. By its bits: a thread of ONNX Runtime may take it for 0."""
    width = 8 * array.dtype.itemsize
    mantissa = 7 if array.dtype.kind == "V" else np.finfo(array.dtype).nmant
    unsigned = np.dtype(f"u{array.dtype.itemsize}").type
    magnitudes = array.view(unsigned) & unsigned((1 << (width - 1)) - 1)
    return bool(np.any(magnitudes - unsigned(1) < unsigned((1 << mantissa) - 1)))  # 0 becomes the largest


def _has_smaller(declared: Sequence[int], shape: Sequence[int], smallest: int) -> bool:
    return any(size < 0 and got < smallest for size, got in zip(declared[1:], shape[1:], strict=False))


class UnprovenError(BackendError):
    """A form was not proven for these inputs: the model itself must answer."""

    def __init__(self, why: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"the form is not proven for this input: {why}")


class Bounded:
    """Runs `form` on inputs that it was proven for, and raises UnprovenError for others.

    Signatures that are not in `domains` run on any inputs.
    """

    def __init__(self, form: Backend, domains: Mapping[str, Domain]) -> None:
        self.signatures: Mapping[str, Signature] = form.signatures
        self._form = form
        self._domains = {name: domain for name, domain in domains.items() if domain != ANY}
        self._beyond_by_default = {
            name: _beyond_by_default(self.signatures[name], domain)
            for name, domain in self._domains.items()
            if name in self.signatures
        }

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """See `Backend.run`."""
        domain = self._domains.get(signature)
        if domain is not None:
            specs = self.signatures[signature].inputs
            for name, array in inputs.items():
                if name in specs and (why := domain.beyond(name, array, specs[name])):
                    raise UnprovenError(why)
            for name, why in self._beyond_by_default[signature].items():
                if name not in inputs:
                    raise UnprovenError(why)
        return self._form.run(signature, inputs, outputs)


def _beyond_by_default(signature: Signature, domain: Domain) -> dict[str, str]:
    """Return the inputs whose default is outside of the domain, with why: a request may leave them out."""
    return {
        name: f"{why}, its default"
        for name, array in default_arrays(signature).items()
        if (why := domain.beyond(name, array, signature.inputs[name]))
    }

"""The comparison of a server's answers with a framework's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Relative, for element types that carry less or more than float32 does.
_TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2, "float64": 1e-9, "complex128": 1e-9}

Arrays = Mapping[str, np.ndarray]


def difference(expected: np.ndarray, found: np.ndarray, relative: float) -> str:
    """Why `found` is not `expected`; "" if it is, within `relative` of the value (near 0, of the array's scale)."""
    if found.shape != expected.shape:
        return f"has the shape {list(found.shape)}, expected was {list(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"is {found.dtype}, expected was {expected.dtype}"
    name = expected.dtype.name
    if expected.dtype.kind not in "fc" and name != "bfloat16":
        wrong = np.argwhere(expected != found)
        return (
            f"is {found[tuple(wrong[0])]!r} at {wrong[0].tolist()}, not {expected[tuple(wrong[0])]!r}"
            if len(wrong)
            else ""
        )
    wide = "complex128" if expected.dtype.kind == "c" else "float64"
    truth, answer = expected.astype(wide), found.astype(wide)
    rtol = _TOLERANCES.get(name, relative)
    finite = np.abs(truth[np.isfinite(truth)])
    scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    close = np.isclose(answer, truth, rtol, rtol * min(scale, 1e30) * 0.1 + 1e-7, equal_nan=True)
    if close.all():
        return ""
    worst = np.abs(np.where(close, 0.0, answer - truth))
    at = (
        np.unravel_index(int(np.nanargmax(worst)), worst.shape)
        if np.isfinite(worst).any()
        else tuple(np.argwhere(~close)[0])
    )
    return f"is {answer[at]} at {[int(i) for i in at]}, not {truth[at]}"


def differences(expected: Arrays, found: Arrays, relative: float) -> str:
    if expected.keys() != found.keys():
        return f"outputs {sorted(found)}, expected were {sorted(expected)}"
    told = {name: difference(value, found[name], relative) for name, value in expected.items()}
    return "; ".join(f"{name!r} {text}" for name, text in told.items() if text)

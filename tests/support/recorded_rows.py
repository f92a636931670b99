"""The work of a job whose model of images has recorded requests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.contract import Signature
from converters.working import main


def recorded_cases(path: str, signatures: Mapping[str, Signature]) -> dict[str, list[Mapping[str, np.ndarray]]]:
    """A request of nine rows, and one of a single row."""
    (name,) = signatures["serving_default"].inputs
    rows = np.random.default_rng(0).standard_normal((9, 16, 16, 3)).astype(np.float32)
    return {"serving_default": [{name: rows}, {name: rows[:1] * 2}]}


if __name__ == "__main__":
    main(recorded_cases)

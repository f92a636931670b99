"""Measure how far TensorFlow's own answers move when its inputs, or its weights, move by roundings, and which other
answers that explains.

No other arithmetic, in another order, can be closer than that. This runs TensorFlow, and never a form.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from backends.contract import BackendError
from backends.domain import smallest_normal
from converters.cases import Case, DiedError, Inputs, Run
from converters.proof import Outputs, relative_moves

__all__ = [
    "DRAWS",
    "STEPS",
    "TIE_STEPS",
    "UNITS",
    "RunMoved",
    "WeightsMove",
    "moved_answers",
    "moved_by_weights",
    "moved_weights",
    "moves",
    "moves_by_weights",
    "noise_of",
    "typical_noise",
    "with_medians",
]

UNITS = {"float32": 0.0, "tf32": 2.0**-10, "float16": 2.0**-10, "int8": 2.0**-7}
"""One rounding of each precision, relative to the value, if it is coarser than the element type's; else 0."""

DRAWS = 2
"""The number of random directions in which a case is moved to measure its noise."""

STEPS = (1.0, 8.0)
"""How far an input moves, in roundings, for answers that explain another: by one, and as far as the noise is
allowed."""

TIE_STEPS = (64.0, 512.0)
"""How far an input moves, in roundings, so that equal values change places: up to 6e-5 of the input, less than answers
of float32 may differ by. Layers round values that are larger than an input, such as its distance from a mean. Weights
move as far to tell whether an answer is unsettled (see `proof.with_unsettled`)."""


class WeightsMove(msgspec.Struct, frozen=True):
    """How weights move: each up or down at random, by so many roundings. One rounding is `unit` times the weight, or
    that of its element type if it is more. With `spare_plain`, whole numbers and simple fractions of a usual size stay
    as they are."""

    seed: int
    steps: float = 1.0
    unit: float = 0.0
    spare_plain: bool = False


RunMoved = Callable[[Inputs, WeightsMove], Outputs | None]
"""Runs TensorFlow with moved weights; None if the model has none. Raises BackendError, DiedError, as `Run` does."""

# Numbers of so few bits are mostly exact, and most arithmetic does not round them.
_PLAIN = 1000.0
_BFLOAT16_EPS = 2.0**-7
_PLAIN_PARTS = 64.0


def noise_of(cases: Sequence[Case], run: Run, ends: float) -> list[dict[str, float]]:
    """Return, for each case, how far each output moves at most when each input of floats moves by one rounding, up or
    down. No case begins after `ends` (monotonic clock).

    A few draws may miss how sensitive a case is, so it counts as at least as sensitive as half of the cases.
    """
    found: list[dict[str, float]] = []
    for index, case in enumerate(cases):
        found.append(moves(case, run, index, DRAWS if time.monotonic() < ends else 0))
    return found


def moves(case: Case, run: Run, seed: int, draws: int) -> dict[str, float]:
    """Return how far each output moves at most, in so many draws."""
    own: dict[str, float] = {}
    has_floats = any(array.dtype.kind == "f" for array in case.inputs.values())
    for draw in range(draws if has_floats else 0):
        random = np.random.default_rng([seed, draw])
        try:
            outputs = run({alias: _rounded(array, random) for alias, array in case.inputs.items()})
        except (BackendError, DiedError):
            continue
        for alias, move in relative_moves(case.outputs, outputs).items():
            own[alias] = max(own.get(alias, 0.0), move)
    return own


def moves_by_weights(case: Case, run: RunMoved, seed: int, draws: int) -> dict[str, float]:
    """Return how far each output moves at most, in so many draws, when each weight moves by one rounding.

    This is how roundings within the model move its answer, which roundings of an input do not tell where it is small
    beside what the layers add to it: on a black image, say.
    """
    own: dict[str, float] = {}
    for outputs in _by_weights(case.inputs, run, [WeightsMove(seed * draws + draw) for draw in range(draws)]):
        for alias, move in relative_moves(case.outputs, outputs).items():
            own[alias] = max(own.get(alias, 0.0), move)
    return own


def moved_by_weights(
    inputs: Inputs, run: RunMoved, unit: float, *, spare_plain: bool, distances: Sequence[float] = STEPS
) -> Iterator[Outputs]:
    """Yield TensorFlow's answers with weights that lie so many roundings beside their own: see `WeightsMove`."""
    moves = [WeightsMove(draw, steps, unit, spare_plain) for steps in distances for draw in range(DRAWS)]
    yield from _by_weights(inputs, run, moves)


def _by_weights(inputs: Inputs, run: RunMoved, moves: Sequence[WeightsMove]) -> Iterator[Outputs]:
    for move in moves:
        try:
            outputs = run(inputs, move)
        except BackendError:
            continue
        except DiedError:
            return
        if outputs is None:
            return
        yield outputs


def moved_weights(weights: Sequence[np.ndarray], move: WeightsMove) -> list[np.ndarray]:
    """Return the weights moved as `move` says. A weight of 0 stays."""
    random = np.random.default_rng(move.seed)
    found = []
    for array in weights:
        size = max(float(np.finfo(array.dtype).eps if array.dtype.kind == "f" else _BFLOAT16_EPS), move.unit)
        up, down = (np.asarray(1.0 + sign * size * move.steps).astype(array.dtype) for sign in (1.0, -1.0))
        with np.errstate(over="ignore"):
            moved = array * np.where(random.random(array.shape, dtype=np.float32) < 0.5, up, down)
        found.append(_spared(array, moved.astype(array.dtype), move.spare_plain))
    return found


def with_medians(found: Sequence[Mapping[str, float]], count: int) -> tuple[Mapping[str, float], ...]:
    """Return the moves of `count` cases, the first of which are `found`, each no less than the median."""
    medians = {
        alias: float(np.median([own[alias] for own in found if alias in own]))
        for alias in {alias for own in found for alias in own}
    }
    padded = [*found, *({} for _ in range(count - len(found)))]
    return tuple({alias: max(own.get(alias, 0.0), median) for alias, median in medians.items()} for own in padded)


def typical_noise(noise: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the moves that `with_medians` gives a case that was not measured."""
    return {alias: min(of[alias] for of in noise if alias in of) for alias in {a for of in noise for a in of}}


def moved_answers(
    inputs: Inputs, run: Run, unit: float, *, spare_plain: bool, distances: Sequence[float] = STEPS
) -> Iterator[Outputs]:
    """Yield TensorFlow's answers on inputs that lie so many roundings beside `inputs`: all up, all down, and at random.
    One rounding is `unit` times the number, or that of its element type if it is more.

    With `spare_plain`, whole numbers and simple fractions of a usual size stay as they are, and nothing is run if no
    other number is left.
    """
    for steps in distances:
        for draw, direction in enumerate((1.0, -1.0, None, None, None)):
            random = np.random.default_rng([int(steps), draw])
            moved = {
                alias: _spared(array, _rounded(array, random, unit, steps, direction), spare_plain)
                for alias, array in inputs.items()
            }
            if all(
                moved[alias] is array or moved[alias].tobytes() == array.tobytes() for alias, array in inputs.items()
            ):
                return
            try:
                yield run(moved)
            except (BackendError, DiedError):
                continue


def _rounded(
    array: np.ndarray,
    random: np.random.Generator,
    unit: float = 0.0,
    steps: float = 1.0,
    direction: float | None = None,
) -> np.ndarray:
    """Return the floats moved by `steps` units in the last place, each in a random direction if none is given. The unit
    is that of the value, or of the root mean square of its row if that is larger (1 if all are about 0): the unit of a
    zero is next to nothing, but the layers that follow round all the same."""
    if array.dtype.kind != "f":
        return array
    wide = array.astype(np.float64)
    finite = np.where(np.isfinite(wide), wide, 0.0)
    with np.errstate(over="ignore", under="ignore"):
        squares = np.square(finite)
        typical = np.sqrt(
            squares.mean(axis=tuple(range(1, array.ndim)), keepdims=True) if array.ndim > 1 else squares.mean()
        )
    typical = np.where(typical >= smallest_normal(array.dtype), typical, 1.0)
    sizes = np.maximum(np.abs(wide), typical) * max(float(np.finfo(array.dtype).eps), unit) * steps
    signs = np.where(random.random(array.shape) < 0.5, -1.0, 1.0) if direction is None else direction
    with np.errstate(over="ignore", invalid="ignore"):  # beside the largest float lies infinity
        moved: np.ndarray = np.asarray(wide + signs * sizes).astype(array.dtype)
    return moved


def _spared(array: np.ndarray, moved: np.ndarray, spare_plain: bool) -> np.ndarray:
    if not spare_plain or moved is array:
        return moved
    with np.errstate(invalid="ignore"):
        is_plain = (np.abs(array) <= _PLAIN) & (array * _PLAIN_PARTS == np.floor(array * _PLAIN_PARTS))
    kept: np.ndarray = np.where(is_plain, array, moved)
    return kept

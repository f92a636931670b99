"""Runs several requests of one signature as one, and gives each its own rows of the outputs. No queue, no socket.

Padding follows TensorFlow Serving's `batching/batching_session.cc` (`MergeInputTensors`, `SplitOutputTensors`) and
`batching_util.cc`. Unlike there, a bad request does not fail the requests that are merged with it.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from appliance.config.batching_parameters import BatchingParameters
from appliance.transport.wire import parse_predict_meta, table_shapes
from appliance.worker.batching import Extent
from backends.contract import Backend, BackendError, Code, Signature

OnRun = Callable[[str, int, int, float], None]
"""Called after every run that succeeds: signature, number of rows (with padding), number of requests, seconds."""

Inputs = Mapping[str, np.ndarray]
OnResult = Callable[[str, Sequence[str], Inputs, Sequence[np.ndarray], int], None]
"""Called with each run that succeeds: signature, names of the outputs, inputs, outputs, number of requests."""
Outcome = list[np.ndarray] | Exception
"""What came of one request: the wanted outputs in their order, or the error."""

_ALIGNMENT = 64  # TensorFlow copies an input unless it begins at a multiple of this
_SMALL_BYTES = 16384  # copying inputs of this size costs less than aligning them
_MAX_REMEMBERED_BYTES = 512  # of a request's meta
_MAX_BYTES = 4 * 1024**3  # of one input after padding, which can multiply what clients have sent


class Call(NamedTuple):
    """The arrays of one request or of a part of one: each has `rows` rows."""

    inputs: Inputs
    rows: int


class Place(NamedTuple):
    """The key of the queue in which a request waits (signature and outputs), and what it may be merged with."""

    queue: tuple[str, tuple[str, ...]]
    extent: Extent


class _RowsError(Exception):
    """An output does not have the inputs' number of rows. The message is TensorFlow Serving's."""


def mergeable_extent(meta: bytes, mergeable: Mapping[str, Signature]) -> Extent | None:
    """Return what a request may be merged with, by the meta of its PREDICT frame; None if it must run alone.

    Only signatures in `mergeable` are merged. Merged requests have equal dtypes and, apart from the rows, equal shapes,
    and the shapes are as the signature declares: others may run too, but merging is not proven for them. A request
    with zero rows is never merged. Raise WireError.
    """
    signature, outputs, table = parse_predict_meta(meta)
    arrays = sorted(table_shapes(table))
    declared = mergeable.get(signature)
    if declared is None or not all(_is_declared(declared, name, shape) for name, _, shape in arrays):
        return None
    rows = {shape[0] for _, _, shape in arrays}
    if len(rows) != 1 or 0 in rows:
        return None
    group = (signature, tuple(outputs), tuple((name, dtype, shape[1:]) for name, dtype, shape in arrays))
    return Extent(group, rows.pop())


def _is_declared(signature: Signature, name: str, shape: tuple[int, ...]) -> bool:
    spec = signature.inputs.get(name)
    return (
        bool(shape)
        and spec is not None
        and spec.shape is not None
        and len(shape) == len(spec.shape)
        and all(declared in (-1, size) for declared, size in zip(spec.shape, shape, strict=True))
    )


def place(meta: bytes, pad_variable_length_inputs: bool) -> Place:
    """Return where a request waits with `enable_batching`, by the meta of its PREDICT frame.

    Raise WireError, and BackendError with TensorFlow Serving's message if its inputs have no common dimension 0.
    """
    signature, outputs, table = parse_predict_meta(meta)
    arrays = sorted(table_shapes(table))
    if not arrays:
        raise BackendError(Code.INVALID_ARGUMENT, "Batching Run() must have at least one input tensor")
    if not all(shape for _, _, shape in arrays):
        raise BackendError(Code.INVALID_ARGUMENT, "Batching Run() input tensors must have at least one dimension")
    rows = arrays[0][2][0]
    if any(shape[0] != rows for _, _, shape in arrays):
        raise BackendError(Code.INVALID_ARGUMENT, "Batching Run() input tensors must have equal 0th-dimension size")
    # An input without elements has none to pad it with.
    padded = pad_variable_length_inputs and not any(0 in shape for _, _, shape in arrays)
    group = tuple((name, dtype, len(shape) if padded else shape[1:]) for name, dtype, shape in arrays)
    return Place((signature, tuple(outputs)), Extent((padded, group), rows))


class Merging:
    """Runs requests that a queue has put together.

    With `batching`, each run is padded to the next of the allowed sizes, and its outputs must have the inputs' number
    of rows, even if a request runs alone. Without it, requests are merged as they are, and a signature whose outputs do
    not have the inputs' number of rows is not merged again. In both cases, if a run of several requests fails, each of
    them runs alone.
    """

    def __init__(self, backend: Backend, mergeable: frozenset[str], batching: BatchingParameters | None) -> None:
        self._backend = backend
        self._batching = batching
        self.mergeable = {name: backend.signatures[name] for name in mergeable}
        self.on_run: OnRun = lambda *_: None
        self.on_result: OnResult | None = None
        # Most requests have the same meta as one before. Clients choose it, so only a few short ones are remembered.
        self._extent = functools.lru_cache(1024)(lambda meta: mergeable_extent(meta, self.mergeable))
        self._place = functools.lru_cache(1024)(
            lambda meta: place(meta, batching is not None and batching.pad_variable_length_inputs)
        )

    def extent(self, meta: bytes) -> Extent | None:
        """Return `mergeable_extent` for this model."""
        return self._extent(meta) if len(meta) <= _MAX_REMEMBERED_BYTES else mergeable_extent(meta, self.mergeable)

    def place(self, meta: bytes) -> Place:
        """Return `place` for this model."""
        return self._place(meta) if len(meta) <= _MAX_REMEMBERED_BYTES else self._place.__wrapped__(meta)

    def run(self, signature: str, outputs: Sequence[str], calls: Sequence[Call]) -> list[Outcome]:
        """Run `calls` together, and return what came of each.

        Their inputs have equal names and dtypes, and equal shapes but for the rows; with `pad_variable_length_inputs`,
        equal ranks.
        """
        if len(calls) == 1:
            return [self._run_alone(signature, outputs, calls[0])]
        try:
            return list(self._run_together(signature, outputs, calls))
        except _RowsError as error:
            if self._batching is None:
                self.mergeable.pop(signature, None)
                self._extent.cache_clear()
                print(f"signature {signature!r} is not merged any more: {error}", file=sys.stderr)
        except Exception:  # noqa: BLE001, S110 - a request whose fault it is meets it again alone
            pass
        return [self._run_alone(signature, outputs, call) for call in calls]

    def _run_alone(self, signature: str, outputs: Sequence[str], call: Call) -> Outcome:
        try:
            if self._batching is None or not call.rows:
                return self.execute(signature, outputs, call.inputs)
            return self._run_together(signature, outputs, [call])[0]
        except _RowsError as error:
            return BackendError(Code.FAILED_PRECONDITION, f"{error}; serve this model without enable_batching")
        except Exception as error:  # noqa: BLE001 - it is the answer: one request must not end the others
            return error

    def _run_together(self, signature: str, outputs: Sequence[str], calls: Sequence[Call]) -> list[list[np.ndarray]]:
        counts = [call.rows for call in calls]
        rows = sum(counts)
        size = rows
        pad_inputs = False
        if self._batching is not None:
            size = next((allowed for allowed in self._batching.allowed_batch_sizes if allowed >= rows), rows)
            pad_inputs = self._batching.pad_variable_length_inputs
        merged = {
            name: _concatenated([call.inputs[name] for call in calls], size - rows, pad_inputs)
            for name in calls[0].inputs
        }
        arrays = self.execute(signature, outputs, merged, len(calls))
        return _split(arrays, counts, size)

    def execute(self, signature: str, outputs: Sequence[str], inputs: Inputs, requests: int = 1) -> list[np.ndarray]:
        """Call `Backend.run`, and report the run to `on_run` and `on_result`. Raise what it raises."""
        started = time.perf_counter()
        arrays = self._backend.run(signature, inputs, outputs)
        seconds = time.perf_counter() - started
        rows = 1
        for array in inputs.values():
            if array.ndim:
                rows = len(array)
                break
        self.on_run(signature, rows, requests, seconds)
        if self.on_result is not None:
            self.on_result(signature, outputs, inputs, arrays, requests)
        return arrays


def _concatenated(arrays: Sequence[np.ndarray], padding_rows: int, pad_inputs: bool) -> np.ndarray:
    """Return `arrays` joined along dimension 0, and then `padding_rows` copies of the first row of the last array.

    With `pad_inputs`, each array is padded to the largest size in every other dimension.
    """
    if len(arrays) == 1 and not padding_rows:
        return arrays[0]
    if not padding_rows and not pad_inputs and sum(array.nbytes for array in arrays) <= _SMALL_BYTES:
        return np.concatenate(arrays)
    rows = sum(len(array) for array in arrays) + padding_rows
    inner = arrays[0].shape[1:]
    if pad_inputs:
        inner = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    merged = _aligned((rows, *inner), arrays[0].dtype)
    row = 0
    for array in arrays:
        target = merged[row : row + len(array)]
        if array.shape[1:] != inner:
            target.fill(array.flat[0])  # as TensorFlow Serving does: a value that the model accepts
            target = target[(slice(None), *map(slice, array.shape[1:]))]
        target[...] = array
        row += len(array)
    if padding_rows:
        first = row - len(arrays[-1])
        merged[row:] = merged[first : first + 1]
    return merged


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array that TensorFlow takes without a copy. Raise BackendError if it is too large."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > _MAX_BYTES:
        raise BackendError(
            Code.RESOURCE_EXHAUSTED,
            f"an input of the batch would have the shape {list(shape)} and {nbytes:,} bytes, more than {_MAX_BYTES:,}; "
            "send smaller rows, or lower the sizes in the batching parameters",
        )
    if dtype.hasobject:
        return np.empty(shape, dtype)
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def _split(arrays: Sequence[np.ndarray], counts: Sequence[int], size: int) -> list[list[np.ndarray]]:
    """Return the outputs of each call as views: `counts` rows each, of `size` with padding. Raise _RowsError."""
    for array in arrays:
        if not array.ndim:
            raise _RowsError("Batched output tensor has 0 dimensions")
        if len(array) != size:
            raise _RowsError(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors"
            )
    if len(counts) == 1 and counts[0] == size:
        return [list(arrays)]
    found: list[list[np.ndarray]] = []
    row = 0
    for count in counts:
        found.append([array[row : row + count] for array in arrays])
        row += count
    return found


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what came of a request by the outcomes of its parts, in their order: the first error, if there is one."""
    parts: list[list[np.ndarray]] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            return outcome
        parts.append(outcome)
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

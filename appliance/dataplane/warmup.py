"""Warm-up: the requests that a version runs before it is available, so that no client pays for the first.

Where the version folder has recorded requests, these are run, and the version fails where one fails, as in TensorFlow
Serving. Elsewhere inputs are made from the signatures: no more than an attempt, bounded in time, which fails nothing.
In either case it is tried for which signatures requests may run together (`appliance.dataplane.merge_proof`).
"""

from __future__ import annotations

import functools
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from appliance.dataplane.learned_examples import LearnedExamples
from appliance.dataplane.merge_proof import Draw, Run, Verdict, has_rows, prove, trial_rows
from appliance.dataplane.warmup_records import Call, calls_of, recorded_requests, records_path
from appliance.errors import ServingError
from backends.contract import Backend, BackendError, Code, Signature, TensorSpec
from backends.made_inputs import TooLargeError, made_inputs

__all__ = ["WarmupOptions", "WarmupReport", "source_of", "warm_up"]

RECORDED, MADE, NONE = "recorded", "made", "none"

# More signatures than this are not tried: a client would not call them all, and a backend keeps no more callables.
_MAX_SIGNATURES = 64
# A model that needs longer for its trials gains least from merging on a CPU, and a load must not take much longer.
_PROOF_SECONDS = 3.0
_MAX_LESSONS = 200  # refusals to learn from, for one signature
_MAX_KEPT_ROWS = 64  # of recorded requests, for trials
_MAX_KEPT_BYTES = 16 << 20
_UNKNOWN_SIZES = (1, 8, 32, 224)
_ID_RANGES = (10, 2)
_STRINGS = (
    (b"", b"0", b"1", b"-1.5", b"a", b"alpha", b"Zz", b"\xc3\xa9", b"the quick brown fox"),
    (b"0", b"1", b"7", b"25"),
)


class WarmupOptions(Protocol):
    """The options of a model that say how it is warmed up (`appliance.options.ModelOptions`)."""

    @property
    def enable_model_warmup(self) -> bool: ...
    @property
    def num_request_iterations_for_warmup(self) -> int: ...
    @property
    def warmup_timeout_seconds(self) -> float: ...
    @property
    def merge_waiting_requests(self) -> bool: ...
    @property
    def max_merged_batch_size(self) -> int: ...
    @property
    def enable_batching(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """What warm-up did. `source` is where its requests came from, and `message` says what was left out, and why;
    requests of the signatures in `mergeable` give the same answers when they run together."""

    requests: int = 0
    seconds: float = 0.0
    source: str = NONE
    message: str = ""
    mergeable: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "source": self.source,
            "message": self.message,
            "mergeable": sorted(self.mergeable),
        }


def source_of(path: str, options: WarmupOptions) -> str:
    """Where the requests for the version folder `path` will come from: "recorded", "made" or "none"."""
    if not options.enable_model_warmup:
        return NONE
    if records_path(path) is not None:
        return RECORDED
    return MADE if options.warmup_timeout_seconds > 0 else NONE


def warm_up(backend: Backend, path: str, options: WarmupOptions, seconds_left: float = math.inf) -> WarmupReport:
    """Warms up `backend`, loaded from the version folder `path`.

    Recorded requests take the time that they take; all else ends within `warmup_timeout_seconds`, and within
    `seconds_left`, though a run that hangs goes on in its thread. Raises BackendError where a recorded request is
    malformed or fails: the message names the file and the record.
    """
    source = source_of(path, options)
    if source == NONE:
        return WarmupReport()
    started = time.monotonic()
    requests, remarks = 0, ""
    if source == RECORDED:
        requests, draws = _run_recorded(backend, path, max(options.num_request_iterations_for_warmup, 1))
    elapsed = time.monotonic() - started
    runner = _Runner(backend, time.monotonic() + min(options.warmup_timeout_seconds, seconds_left - elapsed))
    if source == MADE:
        draws, remarks = _run_made(runner, backend.signatures)
    mergeable: frozenset[str] = frozenset()
    if options.merge_waiting_requests and not options.enable_batching:
        runner.deadline = min(runner.deadline, time.monotonic() + _PROOF_SECONDS)
        mergeable = _proven(runner, backend.signatures, draws, options.max_merged_batch_size)
    runner.close()
    return WarmupReport(requests + runner.requests, time.monotonic() - started, source, remarks, mergeable)


class _LateError(Exception):
    """The deadline has come; `during` a run that goes on in its thread, or between runs."""

    def __init__(self, during: bool) -> None:
        super().__init__()
        self.during = during


class _Runner:
    """Runs requests in a thread of its own, one at a time, and waits for each until `deadline` at most.

    After a _LateError it runs nothing more: its thread may be busy for ever.
    """

    def __init__(self, backend: Backend, deadline: float) -> None:
        self.deadline = deadline
        self.requests = 0
        self._backend = backend
        self._late = False
        self._jobs: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[list[np.ndarray] | BackendError] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="warm-up", daemon=True).start()

    def run(self, call: Call) -> list[np.ndarray]:
        """Raises BackendError whatever the model raises, and _LateError."""
        if self._late or time.monotonic() >= self.deadline:
            raise _LateError(during=False)
        self._jobs.put(call)
        try:
            answer = self._answers.get(timeout=max(self.deadline - time.monotonic(), 0.0))
        except queue.Empty:
            self._late = True
            raise _LateError(during=True) from None
        if isinstance(answer, BackendError):
            raise answer
        self.requests += 1
        return answer

    def close(self) -> None:
        """Ends the thread, after the run that it may be at."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (call := self._jobs.get()) is not None:
            try:
                self._answers.put(self._backend.run(call.signature, call.inputs, call.outputs))
            except BackendError as error:
                self._answers.put(error)
            except Exception as error:  # noqa: BLE001 - the loop of this thread: whatever a model raises is its refusal
                self._answers.put(BackendError(Code.INTERNAL, f"{type(error).__name__}: {error}"))


Draws = dict[str, list[Draw]]
"""By signature, where the inputs of its trials come from."""


# -- recorded requests


def _run_recorded(backend: Backend, path: str, iterations: int) -> tuple[int, Draws]:
    file = records_path(path)
    assert file is not None
    requests = 0
    kept: dict[str, list[Mapping[str, np.ndarray]]] = {}
    for number, log in enumerate(recorded_requests(file), 1):
        try:
            calls = calls_of(log, backend.signatures)
            for call in itertools.chain.from_iterable(itertools.repeat(calls, iterations)):
                backend.run(call.signature, call.inputs, call.outputs)
                requests += 1
        except (BackendError, ServingError) as error:
            raise BackendError(error.code, f"warm-up request {number} of {file} failed: {error.message}") from error
        for call in calls:
            if has_rows(backend.signatures[call.signature]):
                _keep_rows(kept.setdefault(call.signature, []), call.inputs)
    draws: Draws = {}
    for name, parts in kept.items():
        if parts:
            rows = {alias: np.concatenate([part[alias] for part in parts]) for alias in parts[0]}
            shaped = _with_shapes(backend.signatures[name], rows)
            draws[name] = [_Recorded(rows), _Made(shaped, _Attempt())]
    return requests, draws


def _keep_rows(kept: list[Mapping[str, np.ndarray]], inputs: Mapping[str, np.ndarray]) -> None:
    """Keeps rows of a request for trials, where all its inputs have as many, and of the shapes that are kept."""
    counts = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    count = min(counts.pop(), _MAX_KEPT_ROWS - sum(len(next(iter(part.values()))) for part in kept))
    if (
        counts
        or count <= 0
        or any(kept[0][name].shape[1:] != array.shape[1:] for name, array in inputs.items() if kept)
    ):
        return
    rows = {name: array[:count].copy() for name, array in inputs.items()}
    if sum(_nbytes(array) for part in (*kept, rows) for array in part.values()) <= _MAX_KEPT_BYTES:
        kept.append(rows)


def _nbytes(array: np.ndarray) -> int:
    return array.nbytes + (sum(map(len, array.reshape(-1))) if array.dtype == object else 0)


def _with_shapes(signature: Signature, rows: Mapping[str, np.ndarray]) -> Signature:
    specs = {
        name: TensorSpec(spec.dtype, (-1, *rows[name].shape[1:]), spec.tensor_name)
        for name, spec in signature.inputs.items()
    }
    return Signature(specs, signature.outputs, signature.method_name)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Draws rows of recorded requests, with repetition."""

    rows: Mapping[str, np.ndarray]

    def __call__(self, count: int, seed: int) -> Mapping[str, np.ndarray]:
        available = len(next(iter(self.rows.values())))
        chosen = np.random.Generator(np.random.PCG64(seed)).integers(available, size=count)
        return {name: array[chosen] for name, array in self.rows.items()}


# -- made-up inputs


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What is left open by a signature: sizes of unknown dimensions, ranges of values, strings (the plainest first)."""

    unknown: int = 1
    id_range: int = _ID_RANGES[0]
    float_range: float = 1.0
    strings: tuple[bytes, ...] = _STRINGS[0]


@dataclass(frozen=True, slots=True)
class _Made:
    """Draws inputs made from a signature; those with a default are left out, as most clients do."""

    signature: Signature
    attempt: _Attempt
    examples: LearnedExamples = field(default_factory=LearnedExamples)

    def __call__(self, count: int, seed: int) -> Mapping[str, np.ndarray]:
        strings: Sequence[bytes] = self.attempt.strings if seed else self.attempt.strings[:1]
        if self.examples:
            strings = [self.examples.example(number) for number in range(8)]
        attempt = self.attempt
        inputs = {name: spec for name, spec in self.signature.inputs.items() if name not in self.signature.defaults}
        return made_inputs(
            Signature(inputs, {}),
            count,
            seed,
            attempt.unknown,
            id_range=attempt.id_range,
            float_range=attempt.float_range,
            strings=strings,
        )


def _run_made(runner: _Runner, signatures: Mapping[str, Signature]) -> tuple[Draws, str]:
    """Runs each signature once: what draws its inputs, and which signatures were not warmed, and why."""
    draws: Draws = {}
    remarks = []
    names = sorted(signatures, key=lambda name: (name != "serving_default", name))
    if len(names) > _MAX_SIGNATURES:
        remarks.append(f"{len(names) - _MAX_SIGNATURES} of {len(names)} signatures were left out")
    for position, name in enumerate(names[:_MAX_SIGNATURES]):
        try:
            draw, refusal = _first_that_runs(runner, name, signatures[name])
        except _LateError as late:
            what = "still runs in the background" if late.during else "was not begun"
            others = len(names) - position - 1
            remarks.append(f"{name} {what} when the time was up" + (f", {others} more were left out" if others else ""))
            break
        if draw is None:
            remarks.append(f"{name} refused made-up inputs: {refusal}")
        else:
            draws[name] = [draw]
    return draws, "; ".join(remarks)


def _first_that_runs(runner: _Runner, name: str, signature: Signature) -> tuple[Draw | None, str]:
    """The first of several attempts that the model takes, or None and what it said last. Raises _LateError."""
    refusal = ""
    for attempt in _attempts(signature):
        draw = _Made(signature, attempt)
        for _ in range(_MAX_LESSONS):
            try:
                runner.run(Call(name, draw(1, 0), tuple(signature.outputs)))
                return draw, ""
            except TooLargeError as error:
                refusal = str(error)
                break
            except BackendError as error:
                refusal = error.message.splitlines()[0][:300] if error.message else error.code.name
                if not draw.examples.learn(error.message):
                    break
    return None, refusal


def _attempts(signature: Signature) -> Iterator[_Attempt]:
    """The plainest first; only what the signature leaves open varies."""
    specs = signature.inputs.values()
    open_sizes = any(spec.shape is not None and -1 in spec.shape[1:] for spec in specs)
    ids = any(spec.element.numpy.kind in "iu" and spec.dtype != "uint8" for spec in specs)
    texts = any(spec.dtype == "string" for spec in specs)
    for strings, unknown, id_range in itertools.product(
        _STRINGS if texts else _STRINGS[:1],
        _UNKNOWN_SIZES if open_sizes else _UNKNOWN_SIZES[:1],
        _ID_RANGES if ids else _ID_RANGES[:1],
    ):
        yield _Attempt(unknown, id_range, strings=strings)


# -- merging


class _NotWorthItError(Exception):
    """The trials of a signature would not be done in time."""


def _proven(runner: _Runner, signatures: Mapping[str, Signature], draws: Draws, max_rows: int) -> frozenset[str]:
    """The signatures of which the trials have shown that their requests may run together, while there was time."""
    found = set()
    for name, sources in draws.items():
        signature = signatures[name]
        if not has_rows(signature):
            continue
        try:
            if _is_proven(sources, functools.partial(_timed, runner, name, signature, max_rows), max_rows):
                found.add(name)
        except (_NotWorthItError, TooLargeError):
            continue
        except _LateError:
            break
    return frozenset(found)


def _is_proven(sources: Sequence[Draw], new_run: Callable[[], Run], max_rows: int) -> bool:
    """Whether the inputs of some source prove it, and those of none refute it."""
    proven = False
    for draw in sources:
        verdict = prove(new_run(), draw, max_rows)
        if verdict is Verdict.REFUTED:
            return False
        proven = proven or verdict is Verdict.PROVEN
        if not proven and isinstance(draw, _Made):
            # Floats that the model takes for ids, as Keras's embeddings do, are all 0 below 1.
            wide = replace(draw, attempt=replace(draw.attempt, float_range=float(draw.attempt.id_range)))
            proven = prove(new_run(), wide, max_rows) is Verdict.PROVEN
    return proven


def _timed(runner: _Runner, name: str, signature: Signature, max_rows: int) -> Run:
    """A function that runs a request, and gives up after the first where so many more would come too late."""
    first = True

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        nonlocal first
        began = time.monotonic()
        answers = runner.run(Call(name, inputs, tuple(signature.outputs)))
        if first:
            first = False
            now = time.monotonic()
            if (now - began) * 3 * len(trial_rows(max_rows)) > runner.deadline - now:
                raise _NotWorthItError
        return answers

    return run

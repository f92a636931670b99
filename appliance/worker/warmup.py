"""Warm-up: runs requests before a version is available, so that no client has to wait for a slow first run.

If the version folder has recorded requests, these are run, and the version fails if one of them fails, as in TensorFlow
Serving. Otherwise inputs are made from the signatures for a limited time, and their errors do not fail the version. In
both cases, trials then show for which signatures requests may be merged (`appliance.worker.merge_proof`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.core.outcomes import Outcome, Trial, Trials
from appliance.protocols.warmup_records import Call, calls_of, recorded_requests, records_path
from appliance.worker.attempts import Attempt, Made
from appliance.worker.merge_proof import Draw, Run, Verdict, has_rows, prove, trial_rows
from appliance.worker.running import Running
from appliance.worker.trials import (
    MAX_SIGNATURES,
    NOTHING_FATAL,
    PROOF,
    Announce,
    Fatal,
    by_importance,
    changing,
    outside,
    tell_nobody,
    try_on_copy,
    try_out,
)
from backends.contract import Backend, BackendError, Signature, TensorSpec
from backends.domain import UnprovenError
from backends.made_inputs import TooLargeError

__all__ = ["WarmupOptions", "WarmupReport", "source_of", "try_others", "warm_up"]

_RECORDED, _MADE, _NONE = "recorded", "made", "none"

# For the proof of merging. It delays the load, and a model that needs longer gains little from merging on a CPU.
_PROOF_SECONDS = 3.0
_TRIAL_SECONDS = 10.0  # if made-up requests are for the trials only
_MAX_KEPT_ROWS = 64  # of recorded requests, for the proof of merging
_MAX_KEPT_BYTES = 16 << 20


class WarmupOptions(Protocol):
    """The options for the warm-up of a model (`appliance.config.model_options.ModelOptions`)."""

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
    """What the warm-up did.

    `source` is where its requests came from; `message` says what was left out, and why. Merged requests of the
    signatures in `mergeable` get the same answers. `trials` has the outcome of each signature that was run, and
    `answered` inputs like those that it has answered, one row of each.
    """

    requests: int = 0
    seconds: float = 0.0
    source: str = _NONE
    message: str = ""
    mergeable: frozenset[str] = frozenset()
    trials: Trials = field(default_factory=dict)
    answered: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what the supervisor logs of it, as JSON values."""
        return {
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "source": self.source,
            "message": self.message,
            "mergeable": sorted(self.mergeable),
        }


def source_of(path: str, options: WarmupOptions) -> str:
    """Return where the requests for the version folder `path` come from: "recorded", "made" or "none"."""
    if not options.enable_model_warmup:
        return _NONE
    if records_path(path) is not None:
        return _RECORDED
    return _MADE if options.warmup_timeout_seconds > 0 else _NONE


def warm_up(
    backend: Backend,
    path: str,
    options: WarmupOptions,
    seconds_left: float = math.inf,
    fatal: Fatal = NOTHING_FATAL,
    announce: Announce = tell_nobody,
) -> WarmupReport:
    """Warm up `backend`, which was loaded from the version folder `path`.

    Recorded requests have no time limit. All else ends within `warmup_timeout_seconds` and within `seconds_left`, but a
    run that hangs goes on in its thread. Attempts in `fatal` are left out; `announce` is called before each other one.
    Raise BackendError if a recorded request is malformed or fails: its message names the file and the record.
    """
    source = source_of(path, options)
    if source == _NONE:
        return WarmupReport()
    started = time.monotonic()
    requests, remarks = 0, ""
    draws: Draws = {}
    outcomes: dict[str, Trial] = {}
    is_busy = False
    unsafe = changing(backend)
    if source == _RECORDED:
        requests, run, draws = _run_recorded(backend, path, max(options.num_request_iterations_for_warmup, 1))
        outcomes = {name: Trial(Outcome.ANSWERED) for name in sorted(run)}
    elapsed = time.monotonic() - started
    deadline = time.monotonic() + min(options.warmup_timeout_seconds, seconds_left - elapsed)
    if source == _MADE:
        names = by_importance(backend.signatures.keys() - unsafe)
        trials = try_out(backend, names, deadline, fatal, announce)
        draws = {trial.name: [trial.draw] for trial in trials if trial.draw is not None}
        requests = len(draws)
        outcomes = {trial.name: trial.outcome() for trial in trials}
        remarks = _remarks(outcomes, [trial.name for trial in trials if trial.is_running], len(names), _unsafe(backend))
        is_busy = any(trial.is_running for trial in trials)
    runner = _Runner(backend, deadline)
    mergeable: frozenset[str] = frozenset()
    if options.merge_waiting_requests and not options.enable_batching and not is_busy:
        runner.deadline = min(runner.deadline, time.monotonic() + _PROOF_SECONDS)
        sound = {
            name: sources
            for name, sources in draws.items()
            if PROOF not in fatal.of(name) and not fatal.too_many and name not in unsafe
        }
        mergeable = _proven(runner, backend.signatures, sound, options.max_merged_batch_size, announce)
    seconds = time.monotonic() - started
    answered = {name: sources[0](1, 0) for name, sources in draws.items()}
    return WarmupReport(requests + runner.requests, seconds, source, remarks, mergeable, outcomes, answered)


def try_others(
    backend: Backend,
    known: Collection[str],
    options: WarmupOptions,
    seconds_left: float = math.inf,
    fatal: Fatal = NOTHING_FATAL,
    announce: Announce = tell_nobody,
    load: Callable[[], Backend] | None = None,
) -> Trials:
    """Try the signatures that the warm-up has not tried (`known`), even if the warm-up is off; return their outcomes.

    Signatures that change variables or tables are tried on a second load of the model, which `load` returns; without
    `load` they are not tried. Signatures that act outside of the process are never tried.
    """
    made_up = options.warmup_timeout_seconds if options.enable_model_warmup else 0.0
    deadline = time.monotonic() + min(made_up or _TRIAL_SECONDS, seconds_left)
    names = [name for name in by_importance(backend.signatures) if name not in known]
    names = names[: max(MAX_SIGNATURES - len(known), 0)]
    unsafe = changing(backend)
    safe = [name for name in names if name not in unsafe]
    trials = {trial.name: trial.outcome() for trial in try_out(backend, safe, deadline, fatal, announce)}
    never = outside(backend)
    for name in names:
        if name in never:
            why = f"it acts outside of the server (by {never[name]}), which made-up requests must not"
            trials[name] = Trial(Outcome.UNTRIED, Code.FAILED_PRECONDITION, why)
    rest = [name for name in names if name in unsafe and name not in never]
    if load is not None and rest:
        trials |= try_on_copy(load, rest, deadline, fatal, announce)
    return trials


class _LateError(Exception):
    """The deadline has come, between runs or during one, which goes on in its thread."""


class _Runner:
    """Runs requests one at a time until `deadline` (monotonic seconds).

    After a _LateError it runs nothing more, because the model may be busy for ever.
    """

    def __init__(self, backend: Backend, deadline: float) -> None:
        self.deadline = deadline
        self.requests = 0
        self._backend = backend
        self._late = False

    def run(self, call: Call) -> list[np.ndarray]:
        """Return the outputs. Raise BackendError for any error of the model, and _LateError."""
        if self._late or time.monotonic() >= self.deadline:
            raise _LateError
        running = Running(self._backend, call.signature, call.inputs, call.outputs)
        if not running.wait(self.deadline):
            self._late = True
            raise _LateError
        answer = running.answer()
        self.requests += 1
        return answer


Draws = dict[str, list[Draw]]
"""The sources of each signature's inputs for the proof of merging."""


# -- recorded requests


def _run_recorded(backend: Backend, path: str, iterations: int) -> tuple[int, set[str], Draws]:
    """Run the recorded requests `iterations` times each.

    Return how many requests were run, of which signatures, and what draws rows of them. Raise BackendError.
    """
    file = records_path(path)
    assert file is not None
    requests = 0
    run: set[str] = set()
    kept: dict[str, list[Mapping[str, np.ndarray]]] = {}
    for number, log in enumerate(recorded_requests(file), 1):
        try:
            calls = calls_of(log, backend.signatures)
            for call in itertools.chain.from_iterable(itertools.repeat(calls, iterations)):
                with contextlib.suppress(
                    UnprovenError
                ):  # a form was not proven for it: TensorFlow answers such requests
                    backend.run(call.signature, call.inputs, call.outputs)
                    requests += 1
        except (BackendError, ServingError) as error:
            raise BackendError(error.code, f"warm-up request {number} of {file} failed: {error.message}") from error
        for call in calls:
            run.add(call.signature)
            if has_rows(backend.signatures[call.signature]):
                _keep_rows(kept.setdefault(call.signature, []), call.inputs)
    draws: Draws = {}
    for name, parts in kept.items():
        if parts:
            rows = {alias: np.concatenate([part[alias] for part in parts]) for alias in parts[0]}
            shaped = _with_shapes(backend.signatures[name], rows)
            draws[name] = [_Recorded(rows), Made(shaped, Attempt())]
    return requests, run, draws


def _keep_rows(kept: list[Mapping[str, np.ndarray]], inputs: Mapping[str, np.ndarray]) -> None:
    """Add rows of a request to `kept`, if all its inputs have equally many, and the shapes of those in `kept`."""
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
    """Draws rows of recorded requests; a row may be drawn more than once."""

    rows: Mapping[str, np.ndarray]

    def __call__(self, count: int, seed: int) -> Mapping[str, np.ndarray]:
        available = len(next(iter(self.rows.values())))
        chosen = np.random.Generator(np.random.PCG64(seed)).integers(available, size=count)
        return {name: array[chosen] for name, array in self.rows.items()}


# -- made-up inputs


def _unsafe(backend: Backend) -> dict[str, str]:
    """Return the signatures that are not run with made-up requests: name → why, as the end of a sentence."""
    never = outside(backend)
    return {
        name: f"acts outside of the server by {never[name]}" if name in never else "changes what the model keeps"
        for name in sorted(changing(backend))
    }


def _remarks(trials: Trials, running: Sequence[str], signatures: int, unsafe: Mapping[str, str]) -> str:
    """Return which of `signatures` signatures were not warmed up, and why.

    Requests of those in `running` have not ended. The `unsafe` ones are not counted in `signatures`.
    """
    left_out = signatures - len(trials)
    remarks = [f"{left_out} of {signatures} signatures were left out"] if left_out else []
    waiting = [name for name, trial in trials.items() if trial.outcome is Outcome.LATE and name not in running]
    remarks += [
        f"{name} refused made-up inputs: {trial.message}"
        for name, trial in trials.items()
        if trial.outcome in (Outcome.REFUSED, Outcome.FAILED) and name not in running
    ]
    remarks += [f"{name} {what}" for name, what in unsafe.items()]
    if running:
        verb = "still runs" if len(running) == 1 else "still run"
        more = f", {len(waiting)} more were left out" if waiting else ""
        remarks.append(f"{', '.join(running)} {verb} in the background when the time was up{more}")
    elif waiting:
        more = f", {len(waiting) - 1} more were left out" if len(waiting) > 1 else ""
        remarks.append(f"{waiting[0]} was not begun when the time was up{more}")
    return "; ".join(remarks)


# -- merging


class _NotWorthItError(Exception):
    """The proof of a signature would not end in time."""


def _proven(
    runner: _Runner, signatures: Mapping[str, Signature], draws: Draws, max_rows: int, announce: Announce
) -> frozenset[str]:
    """Return the signatures whose requests are proven to be mergeable within the time of `runner`."""
    found = set()
    for name, sources in draws.items():
        signature = signatures[name]
        if not has_rows(signature):
            continue
        announce(name, PROOF)
        try:
            if _is_proven(sources, functools.partial(_timed, runner, name, signature, max_rows), max_rows):
                found.add(name)
        except (_NotWorthItError, TooLargeError):
            continue
        except _LateError:
            break
    return frozenset(found)


def _is_proven(sources: Sequence[Draw], new_run: Callable[[], Run], max_rows: int) -> bool:
    """Return whether the inputs of at least one source prove it, and those of none refute it."""
    proven = False
    for draw in sources:
        verdict = prove(new_run(), draw, max_rows)
        if verdict is Verdict.REFUTED:
            return False
        proven = proven or verdict is Verdict.PROVEN
        if not proven and isinstance(draw, Made) and draw.attempt.float_range:
            # A model that uses floats as ids, as Keras's embeddings do, takes all floats below 1 for id 0.
            wide = replace(draw, attempt=replace(draw.attempt, float_range=float(draw.attempt.id_range)))
            proven = prove(new_run(), wide, max_rows) is Verdict.PROVEN
    return proven


def _timed(runner: _Runner, name: str, signature: Signature, max_rows: int) -> Run:
    """Return a function that runs a request.

    It raises _NotWorthItError after the first one, if that took so long that the whole proof would be late.
    """
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

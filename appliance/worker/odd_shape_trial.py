"""A process that runs requests of odd shapes, and may die of them: shapes that the signature does not declare.

TensorFlow may answer such a request or refuse it. But a request that kills this process, as a failed CHECK in a kernel
does, would kill the version's worker too. The supervisor reads in the run record which request it was, and has such
requests refused.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import structs

from appliance.core.errors import ConfigError
from appliance.host.confinement import give_way_when_memory_is_short
from appliance.worker.run_record import RunRecord
from appliance.worker.running import Running
from appliance.worker.sandbox import enter_sandbox
from appliance.worker.task import WorkerTask, loader_of
from appliance.worker.trials import by_importance, changing, check_memory_for_copy
from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.made_inputs import TooLargeError, made_inputs

__all__ = ["odd_inputs", "try_odd_shapes"]

_MAX_SIGNATURES = 8
_MAX_INPUTS = 16  # of one signature
_SECONDS = 20.0  # for all of them, once the model is loaded
_RUN_SECONDS = 5.0
_OWN_BYTES = 200 << 20  # of a process with TensorFlow, besides the model
_OUT_OF_MEMORY_SCORE = 900


def try_odd_shapes(task: WorkerTask, control: socket.socket) -> int:
    """Load the model of `task` and run the odd inputs from number `task.odd_shapes_from` on; return the exit status.

    JSON lines on `control` tell the supervisor which input is run ("trying"), and how it ended: "tried", or "skipped"
    with the reason.
    """

    def report(event: str, **details: Any) -> None:
        control.sendall(json.dumps({"event": event, **details}).encode() + b"\n")

    _yield_to_others()
    record = RunRecord(task.record_path, 1)
    try:
        check_memory_for_copy(task.path, _OWN_BYTES)
        enter_sandbox(task)
        backend = loader_of(task)()
    except BackendError as error:
        report("skipped", code=int(error.code), message=error.message)
        return 0
    except ConfigError as error:
        report("skipped", code=int(Code.INVALID_ARGUMENT), message=str(error))
        return 0
    record.begins(backend.signatures)
    names = by_importance(backend.signatures.keys() - changing(backend))[:_MAX_SIGNATURES]
    inputs = itertools.chain.from_iterable(
        zip(itertools.repeat(name), odd_inputs(backend.signatures[name])) for name in names
    )
    deadline = time.monotonic() + _SECONDS
    for index, (name, arrays) in enumerate(inputs):
        if index < (task.odd_shapes_from or 0):
            continue
        if time.monotonic() >= deadline:
            report("skipped", code=int(Code.DEADLINE_EXCEEDED), message=f"no more than {_SECONDS:g} s are spent on it")
            return 0
        report("trying", index=index)
        number = record.number_of(name, arrays)
        record.begin(record.row(0), number)
        running = Running(backend, name, arrays, tuple(backend.signatures[name].outputs))
        if not running.wait(min(time.monotonic() + _RUN_SECONDS, deadline)):
            report("skipped", code=int(Code.DEADLINE_EXCEEDED), message=f"{_shapes(name, arrays)} took too long")
            return 0
        with contextlib.suppress(BackendError):
            running.answer()
            record.answered(number)
        record.end(record.row(0))
    report("tried")
    return 0


def odd_inputs(signature: Signature) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield inputs of which one has a rank or size that `signature` does not declare, the likeliest mistakes first."""
    specs = {name: spec for name, spec in signature.inputs.items() if name not in signature.defaults}
    shapes = [zip(itertools.repeat(name), _odd_shapes(spec)) for name, spec in specs.items()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*shapes))
    for name, shape in itertools.islice(filter(None, turns), _MAX_INPUTS):
        odd = Signature({**specs, name: structs.replace(specs[name], shape=shape)}, {})
        with contextlib.suppress(TooLargeError):
            yield made_inputs(odd, 1, 0)


def _odd_shapes(spec: TensorSpec) -> Iterator[tuple[int, ...]]:
    if spec.shape is None:  # every shape is declared
        return
    usual = tuple(1 if size < 0 else size for size in spec.shape)
    rank = len(usual)
    # A bare list of numbers, a row without its batch dimension, a batch of batches; then the other ranks.
    ranks = [other for other in (1, rank - 1, rank + 1, 0, *range(2, rank - 1)) if other != rank and other >= 0]
    for other in dict.fromkeys(ranks):
        yield (1,) * (other - rank) + usual[max(rank - other, 0) :]
    for axis, size in enumerate(usual):
        known = spec.shape[axis] >= 0
        for odd in (size - 1, size + 1, 0) if known else (0,):
            if odd >= 0 and not (odd == 0 and not axis and not known):
                yield (*usual[:axis], odd, *usual[axis + 1 :])


def _shapes(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    return f'signature "{name}" with {", ".join(f"{alias}: {list(a.shape)}" for alias, a in arrays.items())}'


def _yield_to_others() -> None:
    """Give this process the lowest priority for processor and memory, and let it leave no core file when it crashes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    give_way_when_memory_is_short(_OUT_OF_MEMORY_SCORE)

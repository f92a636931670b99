"""The verification of answers that a form gave in service: runs TensorFlow on samples of them, and ends.

Its process writes one JSON line to its standard output: `{"verified": …}`, a `LiveReport`, or `{"error": text}`. As in
a job, TensorFlow is imported here and runs in forked children.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from backends.contract import BackendError
from backends.domain import Domain
from backends.form import read_form
from backends.samples import Sample, new_file, pack_samples, read_samples
from converters import cores
from converters.child import ChildError
from converters.live import MAX_DIFFERING, Judged, LiveReport, judge
from converters.load import processor_seconds
from converters.processes import Reference, arithmetic_of, import_tensorflow
from converters.spec import JobSpec

__all__ = ["VerifyingSpec", "run", "verify", "wrong_samples"]

_CALL_SECONDS = 60.0
_MAX_USUAL = 16


@dataclass(frozen=True, slots=True)
class VerifyingSpec:
    """Verify the answers in the file `samples`, which the form in the folder `form` gave.

    `job` says how TensorFlow loads the SavedModel that the form was made of; its `work_dir` is an empty folder.
    `domains` has what the form's signatures are proven for. After `cpu_seconds` of processor time no other sample is
    begun, but what differs is judged to the end.
    """

    job: JobSpec
    form: str
    samples: str
    cpu_seconds: float
    domains: Mapping[str, Domain] = field(default_factory=dict)


def verify(spec: VerifyingSpec) -> LiveReport:
    """Return what came of the samples. Raise OSError, ValueError if they cannot be read, BackendError, ChildError if
    TensorFlow cannot load the model."""
    samples = list(read_samples(spec.samples))
    form = read_form(spec.form)
    precision = arithmetic_of(form.format, form.precision, spec.job.device)
    import_tensorflow()
    judged = _judged(spec, samples, precision, lambda used: used < spec.cpu_seconds)
    if judged.differing:
        judged = _confirmed(spec, judged, precision)
    if wrong := [sample for sample, _ in judged.differing[:MAX_DIFFERING]]:
        with open(new_file(wrong_samples(spec.job.work_dir)), "wb") as file:
            pack_samples(file, wrong)
    return msgspec.structs.replace(judged.report(), cpu_seconds=_used())


def wrong_samples(work_dir: str) -> str:
    """Return the file in which a verification leaves the samples of wrong answers; there is none without any."""
    return os.path.join(work_dir, "wrong")


def _confirmed(spec: VerifyingSpec, judged: Judged, precision: str) -> Judged:
    """Return the verdicts without those differences that another process of TensorFlow does not find again."""
    suspects = [sample for sample, _ in judged.differing]
    again = _judged(spec, [*suspects, *judged.equal[:_MAX_USUAL]], precision, lambda _: True)
    numbers = {sample.number for sample, _ in again.differing}
    unsure = "TensorFlow answers otherwise in another process"
    return Judged(
        judged.equal,
        [(sample, why) for sample, why in judged.differing if sample.number in numbers],
        [*judged.unjudged, *((sample, unsure) for sample in suspects if sample.number not in numbers)],
    )


def _judged(
    spec: VerifyingSpec, samples: Sequence[Sample], precision: str, has_time: Callable[[float], bool]
) -> Judged:
    with Reference(spec.job, os.path.join(spec.job.work_dir, "tensorflow.log")) as reference:
        return judge(
            samples,
            reference.signatures,
            lambda name, inputs: reference.risk(name, inputs, _CALL_SECONDS),
            precision,
            spec.domains,
            lambda: has_time(_used(reference.pid)),
            reference.risk_moved,
        )


def _used(child: int | None = None) -> float:
    """Return the processor seconds of this process, of those that it has waited for, and of its `child` that lives."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + (processor_seconds(child) if child else 0.0)


def run(spec: VerifyingSpec) -> NoReturn:
    """Verify, write the line to the standard output, and end the process."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # frameworks print
    status = 0
    try:
        cores.leave_one()
        line = {"verified": msgspec.to_builtins(verify(spec))}
    except (OSError, ValueError, BackendError, ChildError) as error:
        line, status = {"error": str(error), "cpu_seconds": _used()}, 1
    except Exception as error:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
        line, status = {"error": f"{type(error).__name__}: {error}", "cpu_seconds": _used()}, 1
    output.write(json.dumps(line) + "\n")
    output.flush()
    sys.stderr.flush()
    os._exit(status)

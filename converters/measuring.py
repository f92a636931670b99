"""Measure TensorFlow and the forms of a version beside each other on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence

import msgspec

from backends.contract import BackendError
from converters import cores
from converters.cases import CaseMaker, has_batch
from converters.child import ChildError
from converters.entry import form_folder
from converters.load import OthersLoad
from converters.measure import Call, Calls, measure
from converters.processes import ModelProcess, load_form
from converters.report import FormReport, Timing
from converters.spec import JobSpec

__all__ = ["measure_forms"]

_MAX_MEASURED_SIGNATURES = 8
_DEFAULT_BATCH = 8
_MAX_MEASUREMENTS = 2


def measure_forms(
    spec: JobSpec,
    tensorflow: ModelProcess,
    makers: Mapping[str, CaseMaker],
    forms: Sequence[FormReport],
    folder: str,
    say: Callable[[str], None],
) -> tuple[dict[str, FormReport], list[Timing], float]:
    """Return `forms` by name, with their timings or why they have none; TensorFlow's timings; and the share of the
    processors that other processes took meanwhile, from 0 to 1.

    `makers` has each signature's maker of inputs. The files of the forms are below `folder`. Raise BackendError,
    ChildError if TensorFlow refuses inputs that it took before, or dies.
    """
    if not forms:
        return {}, [], 0.0
    say(f"measuring TensorFlow, {', '.join(form.name for form in forms)}")
    failures: dict[str, str] = {}
    timings: dict[str, list[Timing]] = {}
    others = 0.0
    with contextlib.ExitStack() as stack:
        processes = {"tensorflow": tensorflow}
        for form in forms:
            log = os.path.join(spec.work_dir, f"{form.name}-time.log")
            try:
                process = load_form(spec, form.format, form_folder(folder, form.name), log)
                processes[form.name] = stack.enter_context(process)
            except (BackendError, ChildError) as error:
                failures[form.name] = f"it could not be measured: {error}"
        calls = _calls(processes, makers, spec.max_batch_size or _DEFAULT_BATCH, failures)
        if any(len(of_forms) > 1 for of_forms in calls.values()):
            try:
                timings, others = _undisturbed(spec, calls, [process.pid for process in processes.values()], say)
            except (BackendError, ChildError) as error:
                failures |= {form.name: f"measuring ended: {error}" for form in forms}
    measured = {
        form.name: msgspec.structs.replace(
            form,
            timings=tuple(timings.get(form.name, ())),
            speedup=0.0,
            slowest=0.0,
            reason=failures.get(form.name, ""),
        )
        for form in forms
    }
    return measured, timings.get("tensorflow", []), others


def _undisturbed(
    spec: JobSpec, calls: Calls, pids: Sequence[int], say: Callable[[str], None]
) -> tuple[dict[str, list[Timing]], float]:
    """Measure again while other processes than `pids` take too much of the processors, a few times at most. Return the
    timings that were disturbed least, and the share of the processors that the others took meanwhile."""
    found = []
    for _ in range(_MAX_MEASUREMENTS):
        for pid in pids:
            cores.widen(pid)
        load = OthersLoad([os.getpid(), *pids])
        timings = measure(calls, spec.measure_seconds)
        found.append((timings, load.share()))
        if found[-1][1] <= spec.max_others:
            break
        say(f"measured while other processes took {found[-1][1]:.0%} of the processors")
    return min(found, key=lambda one: one[1])


def _calls(
    processes: Mapping[str, ModelProcess], makers: Mapping[str, CaseMaker], max_batch: int, failures: dict[str, str]
) -> dict[tuple[str, int], dict[str, Call]]:
    """Return the calls to measure, by signature and batch size, and by the name of the form. `failures` gets the forms
    that refuse the inputs, and all forms if there are no inputs."""
    found: dict[tuple[str, int], dict[str, Call]] = {}
    refusals: list[str] = []
    for name, maker in list(makers.items())[:_MAX_MEASURED_SIGNATURES]:
        for batch in sorted({1, max_batch}) if has_batch(maker.signature) else [1]:
            inputs = maker.representative(batch)
            if inputs is None:
                refusals.append(
                    "it was not measured, since TensorFlow refused the inputs that were made for that "
                    f"({name!r} at batch {batch}): {maker.refusal}"
                )
                continue
            calls = {}
            for form_name, process in processes.items():
                if form_name in failures:
                    continue
                call = process.timed(name, inputs)
                try:
                    call(1)
                    calls[form_name] = call
                except (BackendError, ChildError) as error:
                    if form_name == "tensorflow":
                        raise
                    failures[form_name] = f"{name!r} at batch {batch}: {error}"
            found[name, batch] = calls
    if not found and refusals:
        failures |= {form_name: refusals[0] for form_name in processes if form_name != "tensorflow"}
    return {key: {n: c for n, c in calls.items() if n not in failures} for key, calls in found.items()}

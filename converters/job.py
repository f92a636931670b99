"""The job: converts, proves, measures and chooses, for one version.

`python -m converters.job` reads a `JobSpec` as JSON from its standard input, and writes JSON lines to its standard
output: `{"progress": text}` as often as it has something to say, at the end `{"report": …}`. It exits with 0 also where
TensorFlow is found to be best. Whatever goes wrong with a model or a converter is in the report; an exit status other
than 0, with `{"error": text}`, is the job's own failure.

Frameworks are imported in its children only, but TensorFlow, which it imports so that they can be forked with it. It
never runs an op itself: a fork after one may hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import msgspec
import numpy as np

from backends.contract import BackendError, Signature
from converters import cores
from converters.cache import Cache, Entry, content_hash, file_hash, key_of
from converters.cases import CaseMaker, has_batch
from converters.child import ChildError, become_child
from converters.choice import choose, unproven
from converters.constants import constants_of, graphs_of
from converters.converting import Converting, prove_folder
from converters.forms import Form, Reference, load_form, threads_of
from converters.hazards import hazards_of, told
from converters.identity import own_code
from converters.load import OthersLoad
from converters.measure import Call, Calls, measure
from converters.plugin import Converter
from converters.proving import Evidence, gather
from converters.registry import converter
from converters.report import Candidate, Report, SignatureProof, Timing, Verdict, to_plain
from converters.spec import JobSpec

__all__ = ["accelerate", "ingredients", "main", "run"]

Say = Callable[[str], None]
Recorded = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""The inputs of recorded requests, by signature."""
ReadRecorded = Callable[[str, Mapping[str, Signature]], Recorded]
"""Reads the requests that were recorded for the version folder, which has these signatures. Raises BackendError."""

_FORMAT = 2  # of what the cache holds: a change here makes everything anew, as a change of the code does
_CANDIDATES = "candidates.json"
_FORMS = "forms"
_MAX_MEASURED_SIGNATURES = 8
_DEFAULT_BATCH = 8
_MAX_MEASUREMENTS = 2


def _none_recorded(path: str, signatures: Mapping[str, Signature]) -> Recorded:
    return {}


def accelerate(spec: JobSpec, say: Say, read_recorded: ReadRecorded = _none_recorded) -> Report:
    """Does what `spec` asks; the report. Recorded requests are part of the proof. Raises ImportError for a module that
    is no converter."""
    begun = time.monotonic()
    modules = {name: converter(module) for name, module in spec.converters.items()}
    plans = _plans(spec, modules)
    machine = _machine()
    versions = _versions(modules.values())

    def finish(report: Report) -> Report:
        return dataclasses.replace(
            report,
            machine=machine,
            versions=versions,
            seconds=time.monotonic() - begun,
            measured_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )

    if not plans:
        wanted = f"acceleration {spec.policy} with the precisions {', '.join(spec.precisions)}"
        return finish(Report("tensorflow", f"no converter does {wanted}"))
    if not spec.cache_dir or not spec.cache_max_bytes:
        return finish(_Work(spec, plans, say, read_recorded).run(None, None)[0])
    try:
        content = content_hash(spec.path)
        libraries = [file_hash(path) for path in spec.op_libraries]
    except OSError as error:
        return finish(Report("tensorflow", f"{error.filename or spec.path} cannot be read: {error.strerror}"))
    cache = Cache(spec.cache_dir, spec.cache_max_bytes)
    code = own_code(tuple(sorted(file for module in modules.values() if (file := getattr(module, "__file__", None)))))
    key = key_of(ingredients(spec, content, libraries, versions, code))
    machine_key = key_of({"machine": machine, "threads": spec.threads})[:16]

    def waiting() -> None:
        say("another process converts this model: waiting for its result")

    with cache.claim(key, spec.timeout_seconds, waiting), contextlib.ExitStack() as stack:
        entry, known = cache.find(key), None
        if entry is not None:
            stack.callback(entry.close)
            known = entry.report(machine_key)
            if known is not None and not known.disturbed:
                say("found in the cache")
                return _without_demoted(dataclasses.replace(known, from_cache=True), entry, spec)
        work = _Work(spec, plans, say, read_recorded)
        report, is_repeatable = work.run(entry, known)
        report = finish(report)
        # What a crash or a limit ended is not kept: the next time may be another.
        if not is_repeatable:
            return report
        if entry is None:
            entry = cache.put(key, work.result)
            if entry is None:
                return report
            stack.callback(entry.close)
        entry.put_report(machine_key, dataclasses.replace(report, artifact=""))
        return _without_demoted(report, entry, spec)


def _without_demoted(report: Report, entry: Entry, spec: JobSpec) -> Report:
    """The report, which `entry` keeps without regard to what has failed in service since, with the choice among the
    other candidates."""
    demotions = tuple(found for c in report.candidates if (found := entry.demotion(c.name)) is not None)
    if demotions:
        given_up = {found.candidate: f"it failed in service, at {found.at}: {found.why}" for found in demotions}
        choice = choose(report.candidates, report.tensorflow, report.signatures, spec.min_speedup, given_up)
        report = dataclasses.replace(
            report,
            chosen=choice.chosen,
            reason=choice.reason,
            candidate=choice.candidate,
            candidates=choice.candidates,
            demotions=demotions,
        )
    return dataclasses.replace(report, artifact=_artifact(entry.path, report.candidate))


def _artifact(folder: str, candidate: str) -> str:
    return os.path.join(folder, _FORMS, candidate) if candidate else ""


class _Work:
    """The work of a job that finds no report in the cache."""

    def __init__(
        self, spec: JobSpec, plans: Mapping[str, tuple[Converter, str]], say: Say, read_recorded: ReadRecorded
    ) -> None:
        self.result = os.path.join(spec.work_dir, "result")
        self._spec = spec
        self._plans = plans
        self._say = say
        self._read_recorded = read_recorded
        os.makedirs(os.path.join(self.result, _FORMS))
        self._keep([])  # that it was in vain is worth keeping too

    def run(self, entry: Entry | None, known: Report | None) -> tuple[Report, bool]:
        """The report, and whether it would come out the same again. `entry` has what was converted before, if that is
        in the cache: on another kind of machine, or, where a report is `known`, on this one, when it was busy."""
        spec = self._spec
        self._say("loading TensorFlow")
        _import_tensorflow(spec)
        try:
            with Reference(spec, os.path.join(spec.work_dir, "tensorflow.log")) as reference:
                if entry is not None and known is not None:
                    return self._measured_again(reference, entry, known), True
                return self._with(reference, entry)
        except BackendError as error:
            return Report("tensorflow", f"TensorFlow refuses the model: {error.message}"), False
        except ChildError as error:
            return Report("tensorflow", str(error)), False

    def _with(self, reference: Reference, entry: Entry | None) -> tuple[Report, bool]:
        spec = self._spec
        served = tuple(reference.signatures)
        hopeless = _hopeless(reference.signatures, reference.changing)
        if hopeless:
            return Report("tensorflow", hopeless, signatures=served), True
        self._say("running TensorFlow on the cases of the proof")
        recorded = self._recorded(reference.signatures)
        numbers = constants_of(spec.path, spec.tags)
        evidence = gather(reference, recorded, spec.tolerances, spec.proof_seconds, numbers)
        for name, found in evidence.items():
            for alias, value in found.maker.slow.items():
                self._say(
                    f"{name}: whole numbers of {alias!r} are tried below {value:,}, with which TensorFlow is slow"
                )
        problems = [found.problem for found in evidence.values() if found.problem is not None]
        if problems:
            first = problems[0]
            reason = f"signature {first.signature!r} cannot be proven ({first.verdict}): {first.reason}"
            return Report("tensorflow", reason, signatures=served), True
        candidates, folder, is_repeatable = self._forms(entry, evidence, reference.unsupported)
        makers = {name: found.maker for name, found in evidence.items()}
        return self._chosen(reference, makers, candidates, folder), is_repeatable

    def _recorded(self, signatures: Mapping[str, Signature]) -> Recorded:
        try:
            return self._read_recorded(self._spec.path, signatures)
        except BackendError as error:
            self._say(f"the recorded requests cannot be read, and inputs are made up instead: {error}")
            return {}

    def _measured_again(self, reference: Reference, entry: Entry, known: Report) -> Report:
        """`known` with other timings, and the choice that follows of them; converted and proven is what was so."""
        self._say("measured on a busy machine before")
        recorded = self._recorded(reference.signatures)
        makers = {
            name: CaseMaker(signature, partial(reference.run, name), recorded.get(name, ()))
            for name, signature in reference.signatures.items()
        }
        return self._chosen(reference, makers, known.candidates, entry.path)

    def _chosen(
        self, reference: Reference, makers: Mapping[str, CaseMaker], candidates: Sequence[Candidate], folder: str
    ) -> Report:
        """Measures those of `candidates` that are proven, and chooses."""
        spec, served = self._spec, tuple(makers)
        able = [candidate for candidate in candidates if not unproven(candidate, served)]
        candidates, tensorflow, others = self._measured(reference, makers, candidates, able, folder)
        choice = choose(candidates, tensorflow, served, spec.min_speedup)
        return Report(
            choice.chosen,
            choice.reason,
            choice.candidate,
            _artifact(folder, choice.candidate),
            served,
            choice.candidates,
            tuple(tensorflow),
            threads_of(spec, "litert"),
            others=others,
            disturbed=others > spec.max_others,
        )

    def _keep(self, candidates: Sequence[Candidate]) -> None:
        with open(os.path.join(self.result, _CANDIDATES), "w", encoding="utf-8") as file:
            json.dump(to_plain(candidates), file)

    def _forms(
        self, entry: Entry | None, evidence: Mapping[str, Evidence], unsupported: Mapping[str, str]
    ) -> tuple[list[Candidate], str, bool]:
        """The candidates, proven on this machine, the folder of their forms, and whether nothing was ended."""
        if entry is not None:  # its files match their hashes, and another format of ours would have another key
            with open(os.path.join(entry.path, _CANDIDATES), encoding="utf-8") as file:
                known = msgspec.convert(json.load(file), tuple[Candidate, ...])
            return [self._proven_again(candidate, entry.path, evidence) for candidate in known], entry.path, True
        candidates, is_repeatable = [], True
        graphs = graphs_of(self._spec.path, self._spec.tags)
        for name, (module, precision) in self._plans.items():
            folder = os.path.join(self.result, _FORMS, name)
            converting = Converting(self._spec, folder, name, module, precision, evidence, self._say, unsupported)
            hazards = told(hazards_of(graphs, module.FORM))
            candidates.append(dataclasses.replace(converting.run(), hazards=hazards))
            is_repeatable &= converting.is_repeatable
        self._keep(candidates)
        return candidates, self.result, is_repeatable

    def _proven_again(self, candidate: Candidate, folder: str, evidence: Mapping[str, Evidence]) -> Candidate:
        names = [name for name in evidence if name in candidate.converted]
        if not names or len(names) < len(evidence):
            return candidate
        self._say(f"{candidate.name}: proving on this machine what was converted elsewhere")
        path = _artifact(folder, candidate.name)
        try:
            proofs = prove_folder(self._spec, candidate.form, candidate.precision, path, names, evidence)
        except (BackendError, ChildError) as error:
            reason = f"it does not load on this machine: {error}"
            failed = (SignatureProof(name, Verdict.FAILED, reason) for name in names)
            return dataclasses.replace(candidate, proofs=tuple(failed))
        return dataclasses.replace(candidate, proofs=tuple(proofs.values()))

    def _measured(
        self,
        reference: Reference,
        makers: Mapping[str, CaseMaker],
        candidates: Sequence[Candidate],
        able: Sequence[Candidate],
        folder: str,
    ) -> tuple[list[Candidate], list[Timing], float]:
        """The candidates with the timings of those that are able, TensorFlow's, and the share of the processors that
        others took meanwhile."""
        if not able:
            return list(candidates), [], 0.0
        spec = self._spec
        self._say(f"measuring TensorFlow, {', '.join(candidate.name for candidate in able)}")
        failures: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            forms: dict[str, Form] = {"tensorflow": reference.form}
            for candidate in able:
                log = os.path.join(spec.work_dir, f"{candidate.name}-time.log")
                try:
                    form = load_form(spec, candidate.form, _artifact(folder, candidate.name), log)
                    forms[candidate.name] = stack.enter_context(form)
                except (BackendError, ChildError) as error:
                    failures[candidate.name] = f"it could not be measured: {error}"
            timings: dict[str, list[Timing]] = {}
            others = 0.0
            calls = _calls(forms, makers, spec.max_batch_size or _DEFAULT_BATCH, failures)
            if any(len(of_forms) > 1 for of_forms in calls.values()):
                try:
                    timings, others = self._undisturbed(calls, [form.pid for form in forms.values()])
                except (BackendError, ChildError) as error:
                    failures |= {candidate.name: f"measuring ended: {error}" for candidate in able}
        return (
            [
                dataclasses.replace(
                    candidate,
                    timings=tuple(timings.get(candidate.name, ())),
                    speedup=0.0,
                    slowest=0.0,
                    reason=failures.get(candidate.name, ""),
                )
                for candidate in candidates
            ],
            timings.get("tensorflow", []),
            others,
        )

    def _undisturbed(self, calls: Calls, pids: Sequence[int]) -> tuple[dict[str, list[Timing]], float]:
        """The timings, and the share of the processors that others than `pids` took: of several attempts, while that is
        too much, the one where it was the least."""
        found = []
        for _ in range(_MAX_MEASUREMENTS):
            for pid in pids:
                cores.widen(pid)
            load = OthersLoad([os.getpid(), *pids])
            timings = measure(calls, self._spec.measure_seconds)
            found.append((timings, load.share()))
            if found[-1][1] <= self._spec.max_others:
                break
            self._say(f"measured while other processes took {found[-1][1]:.0%} of the processors")
        return min(found, key=lambda one: one[1])


def _calls(
    forms: Mapping[str, Form], makers: Mapping[str, CaseMaker], max_batch: int, failures: dict[str, str]
) -> dict[tuple[str, int], dict[str, Call]]:
    """The calls to measure, of the forms that take the inputs; `failures` gets the others, and why where there are none
    for any."""
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
            for form_name, form in forms.items():
                if form_name in failures:
                    continue
                call = form.timed(name, inputs)
                try:
                    call(1)
                    calls[form_name] = call
                except (BackendError, ChildError) as error:
                    if form_name == "tensorflow":
                        raise
                    failures[form_name] = f"{name!r} at batch {batch}: {error}"
            found[name, batch] = calls
    if not found and refusals:
        failures |= {form_name: refusals[0] for form_name in forms if form_name != "tensorflow"}
    return {key: {n: c for n, c in calls.items() if n not in failures} for key, calls in found.items()}


def _plans(spec: JobSpec, modules: Mapping[str, Converter]) -> dict[str, tuple[Converter, str]]:
    """What to try, by the name of the candidate: converter and precision."""
    return {
        name if precision == "float32" else f"{name}-{precision}": (module, precision)
        for name, module in modules.items()
        if spec.policy in ("auto", module.FORM)
        for precision in spec.precisions
        if precision in module.PRECISIONS
    }


def _hopeless(signatures: Mapping[str, Signature], changing: Collection[str]) -> str:
    """Why it would be in vain to try at all, or ""; requests of what is `changing` must not be made up."""
    if not signatures:
        return "the model has no signature that can be served"
    for name, signature in signatures.items():
        for alias, spec in (*signature.inputs.items(), *signature.outputs.items()):
            if spec.dtype == "string":
                side = "input" if alias in signature.inputs else "output"
                return (
                    f"signature {name!r} has the {side} {alias!r} of strings, which need TensorFlow's operators "
                    "(parsing, look-ups): nothing was tried, since a version uses one form for all its signatures"
                )
    for name in sorted(changing):
        return (
            f"signature {name!r} changes variables, tables or files, which a form would not: nothing was tried, since "
            "a version uses one form for all its signatures"
        )
    return ""


def _import_tensorflow(spec: JobSpec) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    importlib.import_module("tensorflow")
    importlib.import_module("backends.tensorflow_backend")
    gc.collect()
    gc.freeze()  # a collection in a child must not touch, and so copy, the shared pages


def _machine() -> str:
    """The processor, and how many of its cores are ours: what timings hold for."""
    model = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        named = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
        model = named.group(1).strip() if named else model
    return f"{model}, {len(cores.ALL)} cores"


def _versions(modules: Any) -> dict[str, str]:
    found = {}
    for name in sorted({name for module in modules for name in module.VERSIONS} | {"tensorflow", "numpy"}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def ingredients(
    spec: JobSpec, content: str, libraries: Sequence[str], versions: Mapping[str, str], code: str
) -> dict[str, Any]:
    """All on which the result depends, besides the machine: a form that was proven by other cases, or within other
    tolerances, is not proven. `libraries` are the hashes of the operators' libraries."""
    left_out = ("path", "work_dir", "cache_dir", "cache_max_bytes", "max_others", "yielding", "threads", "op_libraries")
    options = {name: value for name, value in msgspec.to_builtins(spec).items() if name not in left_out}
    return {
        "format": _FORMAT,
        "code": code,
        "content": content,
        "versions": dict(versions),
        "options": options,
        "op_libraries": list(libraries),
    }


def main(read_recorded: ReadRecorded = _none_recorded) -> int:
    """Runs the job of the standard input; the exit status."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # frameworks print

    def write(line: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            output.write(json.dumps(line) + "\n")
            output.flush()

    try:
        spec = msgspec.convert(json.loads(sys.stdin.buffer.read()), JobSpec)
        parent = os.environ.pop("DROPSERVE_PARENT", "")
        if parent:
            become_child(int(parent), spec.yielding)
        if spec.yielding:
            cores.leave_one()
        report = accelerate(spec, lambda text: write({"progress": text}), read_recorded)
    except Exception as error:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
        write({"error": f"{type(error).__name__}: {error}"})
        return 1
    write({"report": to_plain(report)})
    return 0


def run(read_recorded: ReadRecorded = _none_recorded) -> NoReturn:
    """Is the job's process: runs the job of the standard input, and ends."""
    status = main(read_recorded)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()

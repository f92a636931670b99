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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.contract import BackendError, Signature
from converters.cache import Cache, Entry, content_hash, key_of
from converters.cases import has_batch, read_cases
from converters.child import ChildError, become_child
from converters.choice import choose, unproven
from converters.codec import from_json, to_json
from converters.converting import Converting, prove_folder
from converters.forms import Form, Reference, load_form, threads_of
from converters.frames import FrameError
from converters.measure import Call, measure
from converters.plugin import Converter
from converters.proving import Evidence, gather
from converters.registry import converter
from converters.report import Candidate, Report, Timing
from converters.spec import JobSpec

__all__ = ["accelerate", "main"]

Say = Callable[[str], None]

_FORMAT = 1  # of what the cache holds, and of how it is made: a change here makes everything anew
_CANDIDATES = "candidates.json"
_FORMS = "forms"
_MAX_MEASURED_SIGNATURES = 8
_DEFAULT_BATCH = 8


def accelerate(spec: JobSpec, say: Say) -> Report:
    """Does what `spec` asks; the report. Raises ImportError for a converter that is none."""
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
        return finish(_Work(spec, plans, say).run(None)[0])
    try:
        content = content_hash(spec.path)
    except OSError as error:
        return finish(Report("tensorflow", f"{spec.path} cannot be read: {error.strerror}"))
    cache = Cache(spec.cache_dir, spec.cache_max_bytes)
    key = key_of(_ingredients(spec, content, versions))
    machine_key = key_of({"machine": machine, "threads": spec.threads})[:16]

    def waiting() -> None:
        say("another process converts this model: waiting for its result")

    with cache.claim(key, spec.timeout_seconds, waiting), contextlib.ExitStack() as stack:
        entry = cache.find(key)
        if entry is not None:
            stack.callback(entry.close)
            known = entry.report(machine_key)
            if known is not None:
                say("found in the cache")
                return dataclasses.replace(known, artifact=_artifact(entry.path, known.candidate), from_cache=True)
        work = _Work(spec, plans, say)
        report, is_repeatable = work.run(entry)
        report = finish(report)
        # What a crash or a limit ended is not kept: the next time may be another.
        if not is_repeatable:
            return report
        if entry is None:
            entry = cache.put(key, work.result)
            if entry is None:
                return report
            stack.callback(entry.close)
            report = dataclasses.replace(report, artifact=_artifact(entry.path, report.candidate))
        entry.put_report(machine_key, dataclasses.replace(report, artifact=""))
        return report


def _artifact(folder: str, candidate: str) -> str:
    return os.path.join(folder, _FORMS, candidate) if candidate else ""


class _Work:
    """The work of a job that finds no report in the cache."""

    def __init__(self, spec: JobSpec, plans: Mapping[str, tuple[Converter, str]], say: Say) -> None:
        self.result = os.path.join(spec.work_dir, "result")
        self._spec = spec
        self._plans = plans
        self._say = say
        os.makedirs(os.path.join(self.result, _FORMS))
        self._keep([])  # that it was in vain is worth keeping too

    def run(self, entry: Entry | None) -> tuple[Report, bool]:
        """The report, and whether it would come out the same again. `entry` has the forms that were converted on
        another kind of machine, if they are in the cache."""
        spec = self._spec
        self._say("loading TensorFlow")
        _import_tensorflow(spec)
        try:
            with Reference(spec, os.path.join(spec.work_dir, "tensorflow.log")) as reference:
                return self._with(reference, entry)
        except BackendError as error:
            return Report("tensorflow", f"TensorFlow refuses the model: {error.message}"), False
        except ChildError as error:
            return Report("tensorflow", str(error)), False

    def _with(self, reference: Reference, entry: Entry | None) -> tuple[Report, bool]:
        spec = self._spec
        served = tuple(reference.signatures)
        hopeless = _hopeless(reference.signatures)
        if hopeless:
            return Report("tensorflow", hopeless, signatures=served), True
        self._say("running TensorFlow on the cases of the proof")
        recorded = _recorded(spec, self._say)
        evidence = gather(reference, recorded, spec.tolerances, spec.proof_seconds)
        problems = [found.problem for found in evidence.values() if found.problem is not None]
        if problems:
            first = problems[0]
            reason = f"signature {first.signature!r} cannot be proven ({first.verdict}): {first.reason}"
            return Report("tensorflow", reason, signatures=served), True
        candidates, folder, is_repeatable = self._forms(entry, evidence)
        able = [candidate for candidate in candidates if not unproven(candidate, served)]
        candidates, tensorflow = self._measured(reference, evidence, candidates, able, folder)
        choice = choose(candidates, tensorflow, served, spec.min_speedup)
        report = Report(
            choice.chosen,
            choice.reason,
            choice.candidate,
            _artifact(folder, choice.candidate),
            served,
            choice.candidates,
            tuple(tensorflow),
            threads_of(spec, "litert"),
        )
        return report, is_repeatable

    def _keep(self, candidates: Sequence[Candidate]) -> None:
        with open(os.path.join(self.result, _CANDIDATES), "w", encoding="utf-8") as file:
            json.dump([to_json(candidate) for candidate in candidates], file)

    def _forms(self, entry: Entry | None, evidence: Mapping[str, Evidence]) -> tuple[list[Candidate], str, bool]:
        """The candidates, proven on this machine, the folder of their forms, and whether nothing was ended."""
        if entry is not None:  # its files match their hashes, and another format of ours would have another key
            with open(os.path.join(entry.path, _CANDIDATES), encoding="utf-8") as file:
                known = [from_json(Candidate, value) for value in json.load(file)]
            return [self._proven_again(candidate, entry.path, evidence) for candidate in known], entry.path, True
        candidates, is_repeatable = [], True
        for name, (module, precision) in self._plans.items():
            converting = Converting(
                self._spec, os.path.join(self.result, _FORMS, name), name, module, precision, evidence, self._say
            )
            candidates.append(converting.run())
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
            return dataclasses.replace(candidate, proofs=(), reason=f"it does not load on this machine: {error}")
        return dataclasses.replace(candidate, proofs=tuple(proofs.values()))

    def _measured(
        self,
        reference: Reference,
        evidence: Mapping[str, Evidence],
        candidates: Sequence[Candidate],
        able: Sequence[Candidate],
        folder: str,
    ) -> tuple[list[Candidate], list[Timing]]:
        """The candidates with the timings of those that are able, and TensorFlow's."""
        if not able:
            return list(candidates), []
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
            calls = _calls(forms, evidence, spec.max_batch_size or _DEFAULT_BATCH, failures)
            if any(len(of_forms) > 1 for of_forms in calls.values()):
                try:
                    timings = measure(calls, spec.measure_seconds)
                except (BackendError, ChildError) as error:
                    failures |= {candidate.name: f"measuring ended: {error}" for candidate in able}
        return [
            dataclasses.replace(
                candidate, timings=tuple(timings.get(candidate.name, ())), reason=failures.get(candidate.name, "")
            )
            for candidate in candidates
        ], timings.get("tensorflow", [])


def _calls(
    forms: Mapping[str, Form], evidence: Mapping[str, Evidence], max_batch: int, failures: dict[str, str]
) -> dict[tuple[str, int], dict[str, Call]]:
    """The calls to measure, of the forms that take the inputs; `failures` gets the others."""
    found: dict[tuple[str, int], dict[str, Call]] = {}
    for name, proof in list(evidence.items())[:_MAX_MEASURED_SIGNATURES]:
        for batch in sorted({1, max_batch}) if has_batch(proof.signature) else [1]:
            inputs = proof.maker.representative(batch)
            if inputs is None:
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


def _hopeless(signatures: Mapping[str, Signature]) -> str:
    """Why it would be in vain to try at all, or ""."""
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
    return ""


def _recorded(spec: JobSpec, say: Say) -> dict[str, list[Any]]:
    if not spec.cases:
        return {}
    try:
        return dict(read_cases(spec.cases))
    except (OSError, FrameError) as error:
        say(f"the recorded requests cannot be read, and inputs are made up instead: {error}")
        return {}


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
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def _versions(modules: Any) -> dict[str, str]:
    found = {}
    for name in sorted({name for module in modules for name in module.VERSIONS} | {"tensorflow", "numpy"}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _ingredients(spec: JobSpec, content: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """All on which the result depends, besides the machine."""
    left_out = ("path", "work_dir", "cases", "cache_dir", "cache_max_bytes", "yielding", "threads")
    options = {f.name: to_json(getattr(spec, f.name)) for f in dataclasses.fields(spec) if f.name not in left_out}
    options["has_cases"] = bool(spec.cases)
    return {"format": _FORMAT, "content": content, "versions": dict(versions), "options": options}


def main() -> int:
    """Runs the job of the standard input; the exit status."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # frameworks print

    def write(line: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            output.write(json.dumps(line) + "\n")
            output.flush()

    try:
        spec = from_json(JobSpec, json.loads(sys.stdin.buffer.read()))
        parent = os.environ.pop("DROPSERVE_PARENT", "")
        if parent:
            become_child(int(parent), spec.yielding)
        report = accelerate(spec, lambda text: write({"progress": text}))
    except Exception as error:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
        write({"error": f"{type(error).__name__}: {error}"})
        return 1
    write({"report": to_json(report)})
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

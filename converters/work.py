"""The work of a job that finds no report in the cache: converts, proves, measures and chooses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import msgspec
import numpy as np

from backends.contract import BackendError, Signature
from converters.cases import CaseMaker, Inputs
from converters.child import ChildError
from converters.choice import choose, unproven
from converters.constants import constants_of, graphs_of
from converters.converting import Converting, prove_folder
from converters.entry import FORMS, form_folder
from converters.evidence import Evidence, gather
from converters.files import file_hash
from converters.hazards import hazards_of, told
from converters.measuring import measure_forms
from converters.plugin import Converter
from converters.processes import Reference, import_tensorflow, threads_of
from converters.registry import converter
from converters.report import FormReport, Report, SignatureProof, Verdict, to_plain
from converters.spec import JobSpec

__all__ = ["ReadRecorded", "Recorded", "Say", "Work", "plans_of", "result_folder"]

Say = Callable[[str], None]
Recorded = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""The inputs of recorded requests, by signature."""
ReadRecorded = Callable[[str, Mapping[str, Signature]], Recorded]
"""Reads the requests that were recorded for the version folder, which has these signatures. Raises BackendError."""

_REPORTS = "candidates.json"


def plans_of(spec: JobSpec) -> dict[str, tuple[Converter, str]]:
    """Return the converter and the precision of each form to try, by the form's name. Raise ImportError for a module
    that cannot be imported, AttributeError for one that is not a converter."""
    modules = {name: converter(module) for name, module in spec.converters.items()}
    return {
        name if precision == "float32" else f"{name}-{precision}": (module, precision)
        for name, module in modules.items()
        if spec.policy in ("auto", module.FORMAT)
        for precision in spec.precisions
        if precision in module.PRECISIONS
    }


def result_folder(spec: JobSpec) -> str:
    """Return the folder where work leaves what belongs into the cache: the reports of the forms, and their files."""
    return os.path.join(spec.work_dir, "result")


class Work:
    """Work on one version. `plans` has the converter and the precision of each form to try, by the form's name.

    After `run`, `files` are those in the result folder that belong into the cache, with the SHA-256 that each had when
    it was proven.
    """

    def __init__(
        self,
        spec: JobSpec,
        plans: Mapping[str, tuple[Converter, str]],
        say: Say,
        read_recorded: ReadRecorded,
        counterexamples: Mapping[str, Sequence[Inputs]] | None = None,
    ) -> None:
        """`counterexamples` are inputs on which forms of this SavedModel were wrong in service, by signature."""
        self.files: dict[str, str] = {}
        self._result = result_folder(spec)
        self._spec = spec
        self._plans = plans
        self._say = say
        self._read_recorded = read_recorded
        self._counterexamples = counterexamples or {}
        os.makedirs(os.path.join(self._result, FORMS))
        self._keep([])  # the cache keeps negative results too

    def run(self, entry: str, known: Report | None) -> tuple[Report, bool]:
        """Return the report, and whether another run would give the same.

        The folder `entry` ("": none) has the forms, if the cache has them: they were converted on another kind of
        machine, or, if a report is `known`, on this one, when it was too busy to measure.
        """
        spec = self._spec
        self._say("loading TensorFlow")
        import_tensorflow()
        try:
            with Reference(spec, os.path.join(spec.work_dir, "tensorflow.log")) as reference:
                if entry and known is not None:
                    return self._measured_again(reference, entry, known), True
                return self._with(reference, entry)
        except BackendError as error:
            return Report("tensorflow", f"TensorFlow refuses the model: {error.message}"), False
        except ChildError as error:
            return Report("tensorflow", str(error)), False

    def _with(self, reference: Reference, entry: str) -> tuple[Report, bool]:
        spec = self._spec
        served = tuple(reference.signatures)
        hopeless = _hopeless(reference.signatures, reference.changing)
        if hopeless:
            return Report("tensorflow", hopeless, signatures=served), True
        self._say("running TensorFlow on the cases of the proof")
        recorded = self._recorded(reference.signatures)
        numbers = constants_of(spec.path, spec.tags)
        evidence = gather(reference, recorded, spec.proof_seconds, numbers)
        for name, found in evidence.items():
            found.counterexamples.extend(self._counterexamples.get(name, ()))
            for alias, value in found.maker.slow.items():
                self._say(
                    f"{name}: whole numbers of {alias!r} are tried below {value:,}, with which TensorFlow is slow"
                )
        problems = [found.problem for found in evidence.values() if found.problem is not None]
        if problems:
            first = problems[0]
            reason = f"signature {first.signature!r} cannot be proven ({first.verdict}): {first.reason}"
            return Report("tensorflow", reason, signatures=served), True
        forms, folder, is_repeatable = self._forms(entry, evidence, reference.unsupported)
        makers = {name: found.maker for name, found in evidence.items()}
        return self._chosen(reference, makers, forms, folder), is_repeatable

    def _recorded(self, signatures: Mapping[str, Signature]) -> Recorded:
        try:
            return self._read_recorded(self._spec.path, signatures)
        except BackendError as error:
            self._say(f"the recorded requests cannot be read, and inputs are made up instead: {error}")
            return {}

    def _measured_again(self, reference: Reference, entry: str, known: Report) -> Report:
        """Return `known` with new timings, and the choice that follows from them. Conversions and proofs stay."""
        self._say("measured on a busy machine before")
        recorded = self._recorded(reference.signatures)
        makers = {
            name: CaseMaker(signature, partial(reference.run, name), recorded.get(name, ()))
            for name, signature in reference.signatures.items()
        }
        return self._chosen(reference, makers, known.forms, entry)

    def _chosen(
        self, reference: Reference, makers: Mapping[str, CaseMaker], forms: Sequence[FormReport], folder: str
    ) -> Report:
        """Measure those of `forms` that are proven, and choose."""
        spec, served = self._spec, tuple(makers)
        able = [form for form in forms if not unproven(form, served)]
        measured, tensorflow, others = measure_forms(spec, reference.process, makers, able, folder, self._say)
        choice = choose([measured.get(form.name, form) for form in forms], tensorflow, served, spec.min_speedup)
        return Report(
            choice.chosen,
            choice.reason,
            choice.form,
            form_folder(folder, choice.form),
            served,
            choice.forms,
            tuple(tensorflow),
            threads_of(spec, "litert"),
            others=others,
            disturbed=others > spec.max_others,
        )

    def _keep(self, forms: Sequence[FormReport]) -> None:
        path = os.path.join(self._result, _REPORTS)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(to_plain(forms), file)
        self.files[_REPORTS] = file_hash(path)

    def _forms(
        self, entry: str, evidence: Mapping[str, Evidence], unsupported: Mapping[str, str]
    ) -> tuple[list[FormReport], str, bool]:
        """Return the forms, proven on this machine; the folder that has their files; and whether no conversion
        crashed or met a limit."""
        if entry:  # its files match their hashes, and another format of ours would have another key
            with open(os.path.join(entry, _REPORTS), encoding="utf-8") as file:
                known = msgspec.convert(json.load(file), list[FormReport])
            return [self._proven_again(form, entry, evidence) for form in known], entry, True
        forms, is_repeatable = [], True
        graphs = graphs_of(self._spec.path, self._spec.tags)
        for name, (module, precision) in self._plans.items():
            folder = form_folder(self._result, name)
            converting = Converting(self._spec, folder, name, module, precision, evidence, self._say, unsupported)
            hazards = told(hazards_of(graphs, module.FORMAT))
            forms.append(msgspec.structs.replace(converting.run(), hazards=hazards))
            is_repeatable &= converting.is_repeatable
            self.files |= {f"{FORMS}/{name}/{file}": digest for file, digest in converting.files.items()}
        self._keep(forms)
        return forms, self._result, is_repeatable

    def _proven_again(self, form: FormReport, folder: str, evidence: Mapping[str, Evidence]) -> FormReport:
        names = [name for name in evidence if name in form.converted]
        if not names or len(names) < len(evidence):
            return form
        self._say(f"{form.name}: proving on this machine what was converted elsewhere")
        path = form_folder(folder, form.name)
        try:
            proofs = prove_folder(self._spec, form.format, form.precision, path, names, evidence)
        except (BackendError, ChildError) as error:
            reason = f"it does not load on this machine: {error}"
            failed = (SignatureProof(name, Verdict.FAILED, reason) for name in names)
            return msgspec.structs.replace(form, proofs=tuple(failed))
        return msgspec.structs.replace(form, proofs=tuple(proofs.values()))


def _hopeless(signatures: Mapping[str, Signature], changing: Collection[str]) -> str:
    """Return why no form can serve the model, or "". `changing` are the signatures that change lasting state."""
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

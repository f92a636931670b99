"""One operator, by its element types: saved, converted, run by TensorFlow and by its forms, and compared."""

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np

from backends.agreement import shares, tolerance_of
from backends.contract import BackendError, Signature
from backends.dtypes import of_array
from backends.form import FormDescription, FormSignature, write_form
from backends.frames import send
from backends.registry import BACKEND_OF
from benchmarks.operators.catalogue import variants_of
from benchmarks.operators.values import Case, cases
from benchmarks.operators.variants import Variant
from converters import registry
from converters.cases import DiedError
from converters.child import ChildError, Limits, fork
from converters.converting import attempt
from converters.plugin import Converter, Task
from converters.processes import ModelProcess, Reference, load_in
from converters.proof import Comparison, relative_moves
from converters.runner import serve
from converters.spec import JobSpec

__all__ = ["Outcome", "try_operator"]

_LIMITS = Limits(300.0, 6 << 30, yielding=False)
_CALL_SECONDS = 10.0
_ENTRY_POINT = "frozen session"
_NOISE_DRAWS = 2
_MAX_SHOWN = 8  # elements of an example
_MAX_TEXT = 300


class Outcome(StrEnum):
    """What a form did, the worst last."""

    EQUAL = "equal"  # or refused, where TensorFlow refuses
    REFUSES = "refuses"
    ANSWERS = "answers"  # what TensorFlow refuses
    DIFFERS = "differs"
    DIES = "dies"


_WORST = {outcome: number for number, outcome in enumerate(Outcome)}
Found = tuple[Outcome, str]
"""An outcome, with an example."""


@dataclass(frozen=True, slots=True)
class _Truth:
    """A case, and TensorFlow's answer; None where it refuses, for `refusal`."""

    case: Case
    outputs: Mapping[str, np.ndarray] | None
    refusal: str = ""


def try_operator(op: str, dtypes: Sequence[str], folder: str) -> list[dict[str, Any]]:
    """What becomes of the operator, as JSON for each of `dtypes`; `folder` is for files, and is emptied.

    `not run` has why TensorFlow does not run a variant; `forms` has for each form its variants: `not converted` with
    why, or `classes`: the outcome for each class of values, with an example where it is not equal. This process must
    have imported TensorFlow (and should have the rest), and no threads.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    path = os.path.join(folder, "model")
    # All of them are signatures of one model: to start processes costs more than to try one.
    all_variants = [(dtype, variant) for dtype in dtypes for variant in variants_of(op, dtype)]
    named = {f"v{number}": found for number, found in enumerate(all_variants)}
    tried = {name: variant for name, (_, variant) in named.items()}
    not_run = _saved(tried, path, os.path.join(folder, "save.log"))
    spec = JobSpec(
        path, folder, timeout_seconds=_LIMITS.seconds, memory_bytes=_LIMITS.memory_bytes, yielding=False, threads=1
    )
    forms: dict[str, dict[str, dict[str, Any]]] = {form: {} for form in registry.CONVERTERS}
    if len(not_run) < len(tried):
        try:
            with Reference(spec, os.path.join(folder, "tensorflow.log")) as reference:
                truths = {name: _truths(reference, name, tried[name], not_run) for name in tried if name not in not_run}
                served = {name: truth for name, truth in truths.items() if name not in not_run}
                for form in forms if served else ():
                    forms[form] = _of_form(form, spec, reference, served)
        except (BackendError, ChildError) as error:
            not_run |= {name: _short(str(error)) for name in tried if name not in not_run}
    return [
        {
            "op": op,
            "dtype": dtype,
            "not run": {
                variant.name: not_run[name] for name, (of, variant) in named.items() if of == dtype and name in not_run
            },
            "forms": {
                form: {
                    variant.name: found[name] for name, (of, variant) in named.items() if of == dtype and name in found
                }
                for form, found in forms.items()
            },
        }
        for dtype in dtypes
    ]


# -- the model


def _saved(tried: Mapping[str, Variant], path: str, log: str) -> dict[str, str]:
    """Writes a SavedModel with a signature for each variant; those that TensorFlow does not make, with why."""
    with fork("making the model", partial(_save, tried, path), log, _LIMITS) as child:
        try:
            failed: dict[str, str] = child.answer()[0]["failed"]
            return failed
        except ChildError as error:
            return dict.fromkeys(tried, _short(str(error)))


def _save(tried: Mapping[str, Variant], path: str, sock: socket.socket) -> None:
    """In the child."""
    import tensorflow as tf  # noqa: PLC0415
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415

    tf1 = tf.compat.v1
    failed, definitions = {}, {}
    with tf.Graph().as_default():
        for name, variant in tried.items():
            try:
                inputs = {
                    alias: tf1.placeholder(taken.dtype, list(taken.shape), f"{name}_{alias}")
                    for alias, taken in variant.inputs.items()
                }
                made = variant.build(tf.raw_ops, **inputs)
                made = list(made) if isinstance(made, list | tuple) else [made]
                flat = [tensor for part in made for tensor in (part if isinstance(part, list | tuple) else [part])]
                outputs = {f"y{at}": tf.identity(tensor, f"{name}_y{at}") for at, tensor in enumerate(flat)}
            except Exception as error:  # noqa: BLE001 - what TensorFlow's Python raises is nowhere specified
                failed[name] = _short(f"{type(error).__name__}: {error}")
                continue
            sides = ({k: tf1.saved_model.build_tensor_info(v) for k, v in side.items()} for side in (inputs, outputs))
            definitions[name] = tf1.saved_model.build_signature_def(*sides, "tensorflow/serving/predict")
        model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
        model.meta_graphs.add().CopyFrom(tf1.train.export_meta_graph())
    model.meta_graphs[0].meta_info_def.tags.append("serve")
    for name, definition in definitions.items():
        model.meta_graphs[0].signature_def[name].CopyFrom(definition)
    os.makedirs(path)
    with open(os.path.join(path, "saved_model.pb"), "wb") as file:
        file.write(model.SerializeToString())
    send(sock, {"failed": failed})


# -- TensorFlow


def _truths(reference: Reference, name: str, variant: Variant, not_run: dict[str, str]) -> list[_Truth]:
    """The cases with TensorFlow's answers. A variant of which it takes no ordinary values goes into `not_run`."""
    found: list[_Truth] = []
    for case in cases(variant):
        try:
            found.append(_Truth(case, reference.risk(name, case.inputs)))
        except (BackendError, DiedError) as error:
            found.append(_Truth(case, None, str(error)))
            if len(found) == 1:  # no kernel, mostly
                not_run[name] = _short(str(error))
                break
    return found


def _noise(reference: Reference, name: str, truth: _Truth) -> dict[str, float]:
    """By how much TensorFlow's answers move where each float is moved by one rounding, up or down."""
    found: dict[str, float] = {}
    floats = [array for array in truth.case.inputs.values() if array.dtype.kind == "f"]
    if truth.outputs is None or not floats or not all(np.all(np.isfinite(array)) for array in floats):
        return found
    random = np.random.default_rng(1)
    for _ in range(_NOISE_DRAWS):
        moved = {
            alias: np.nextafter(array, np.where(random.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype))
            if array.dtype.kind == "f"
            else array
            for alias, array in truth.case.inputs.items()
        }
        try:
            moves = relative_moves(truth.outputs, reference.risk(name, moved))
        except (BackendError, DiedError):
            continue
        found |= {alias: max(move, found.get(alias, 0.0)) for alias, move in moves.items()}
    return found


# -- a form


class _Forms:
    """The converted signatures that load, by a process that is started again where it has died."""

    def __init__(self, form: str, spec: JobSpec, folder: str, entries: Mapping[str, FormSignature]) -> None:
        self.failures: dict[str, str] = {}
        self._form = form
        self._spec = spec
        self._folder = folder
        self._loaded: ModelProcess | None = None
        self._entries = dict(entries)
        try:
            self._load()
        except (BackendError, ChildError):  # which of them it is shows one by one
            for name in entries:
                self._entries = {name: entries[name]}
                try:
                    self._load()
                except (BackendError, ChildError) as error:
                    self.failures[name] = _short(f"it does not load: {error}")
                self.end()
            self._entries = {name: entry for name, entry in entries.items() if name not in self.failures}

    def _load(self) -> ModelProcess:
        write_form(self._folder, FormDescription(self._form, "float32", self._entries))
        backend = BACKEND_OF[registry.converter(registry.CONVERTERS[self._form]).FORMAT]
        log = os.path.join(self._folder, "run.log")
        self._loaded = load_in(fork(backend, serve, log, _LIMITS), self._spec, backend, self._folder)
        return self._loaded

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises BackendError, ChildError."""
        loaded = self._loaded or self._load()
        try:
            return loaded.run(name, inputs, _CALL_SECONDS)
        except ChildError:
            self._loaded = None
            raise

    def end(self) -> None:
        if self._loaded is not None:
            self._loaded.__exit__()
        self._loaded = None


def _of_form(
    form: str, spec: JobSpec, reference: Reference, truths: Mapping[str, list[_Truth]]
) -> dict[str, dict[str, Any]]:
    """What a form does, by signature."""
    converter: Converter = registry.converter(registry.CONVERTERS[form])
    folder = os.path.join(spec.work_dir, form)
    os.makedirs(folder)
    signatures = {name: reference.signatures[name] for name in truths}
    entries, failures = _converted(form, converter, spec, folder, signatures)
    found: dict[str, dict[str, Any]] = {name: {"not converted": why} for name, why in failures.items()}
    if not entries:
        return found
    forms = _Forms(form, spec, folder, entries)
    try:
        for name in entries:
            if name in forms.failures:
                found[name] = {"not converted": forms.failures[name]}
                continue
            classes: dict[str, Found] = {}
            for truth in truths[name]:
                outcome = _outcome(forms, reference, name, truth)
                known = classes.get(truth.case.values)
                if known is None or _WORST[outcome[0]] > _WORST[known[0]]:
                    classes[truth.case.values] = outcome
            found[name] = {"classes": {label: list(one) if one[1] else one[0] for label, one in classes.items()}}
    finally:
        forms.end()
    return found


def _converted(
    form: str, converter: Converter, spec: JobSpec, folder: str, signatures: Mapping[str, Signature]
) -> tuple[dict[str, FormSignature], dict[str, str]]:
    """The files of signatures, and why there are none of others. Where a converter dies, those that are left are tried
    one by one."""
    log = os.path.join(folder, "convert.log")
    task = Task(spec.path, spec.tags, signatures, "float32", folder, "0-")
    tried = attempt(form, converter, _ENTRY_POINT, task, log, _LIMITS)
    entries, failures = tried.entries, tried.failures
    if tried.was_ended:
        for number, name in enumerate(signatures):
            if name not in entries:
                alone = Task(spec.path, spec.tags, {name: signatures[name]}, "float32", folder, f"{number + 1}-")
                again = attempt(form, converter, _ENTRY_POINT, alone, log, _LIMITS)
                entries |= again.entries
                failures |= again.failures
                if name in again.entries:
                    del failures[name]
    return entries, {name: _short(why) for name, why in failures.items()}


def _outcome(forms: _Forms, reference: Reference, name: str, truth: _Truth) -> Found:
    try:
        answer = forms.run(name, truth.case.inputs)
    except BackendError as error:
        if truth.outputs is None:
            return Outcome.EQUAL, ""
        return Outcome.REFUSES, _short(f"{_shown(truth.case.inputs)}: {error.message}")
    except ChildError as error:
        return Outcome.DIES, _short(f"{_shown(truth.case.inputs)}: {error}")
    if truth.outputs is None:
        return Outcome.ANSWERS, _short(f"{_shown(truth.case.inputs)}: TensorFlow: {truth.refusal}")
    signature = reference.signatures[name]
    if not _difference(name, signature, truth, answer, {}):
        return Outcome.EQUAL, ""
    if not _difference(name, signature, truth, answer, _noise(reference, name, truth)):
        return Outcome.EQUAL, ""
    return Outcome.DIFFERS, _short(_example(truth, answer))


def _difference(
    name: str, signature: Signature, truth: _Truth, answer: Mapping[str, np.ndarray], noise: Mapping[str, float]
) -> str:
    comparison = Comparison(name, signature, "float32")
    assert truth.outputs is not None
    comparison.add(truth.case.values, truth.outputs, answer, noise=noise)
    return comparison.difference


def _example(truth: _Truth, answer: Mapping[str, np.ndarray]) -> str:
    """The place where an answer is worst, and what led to it."""
    assert truth.outputs is not None
    for alias, expected in truth.outputs.items():
        found = answer[alias]
        if found.dtype != expected.dtype or found.shape != expected.shape:
            said = f"{found.dtype} {list(found.shape)} instead of {expected.dtype} {list(expected.shape)}"
            return f"{_shown(truth.case.inputs)}: {said}"
        at = _worst_place(expected, found)
        if at is not None:
            inputs = truth.case.inputs
            if all(array.shape == expected.shape for array in inputs.values()):
                inputs = {name: array[at] for name, array in inputs.items()}
            elif at and all(array.shape[:1] in (expected.shape[:1], ()) for array in inputs.values()):
                inputs = {name: array[at[0]] if array.ndim else array for name, array in inputs.items()}
            return f"{_shown(inputs)}: {found[at]} instead of {expected[at]}"
    return _shown(truth.case.inputs)


def _worst_place(expected: np.ndarray, found: np.ndarray) -> tuple[int, ...] | None:
    off = shares(expected, found, tolerance_of("float32", of_array(expected).name))
    if not off.size or not off.any():
        return None
    return tuple(int(place) for place in np.unravel_index(int(np.argmax(off)), off.shape))


def _shown(inputs: Mapping[str, Any]) -> str:
    parts = []
    for name, array in inputs.items():
        values = np.asarray(array)
        text = str(values.reshape(-1)[:_MAX_SHOWN].tolist()) if values.ndim else str(values)
        shape = f" of shape {list(values.shape)}" if values.ndim > 1 or not values.size else ""
        parts.append(f"{name} {text}{shape}")
    return ", ".join(parts)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else line[:_MAX_TEXT] + " …"

"""Run an ONNX model by ONNX Runtime, on the CPU or by CUDA: requests run side by side on one session.

Only worker processes import this module, because it imports ONNX Runtime. It never imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends import onnx_model
from backends.contract import DEFAULT_SIGNATURE, BackendError, Code, IncompleteError, Signature, TensorSpec
from backends.default_values import default_arrays
from backends.form import FormDescription, FormSignature, is_form, read_form
from backends.onnx_session import OnnxSession, Port, SessionSettings
from backends.request_checks import check_outputs, complete, not_found, wrong_shape


def load(path: str, settings: SessionSettings) -> OnnxBackend:
    """Load `model.onnx` in the folder `path`, or the converted model that is there.

    Raise BackendError if ONNX Runtime refuses it.
    """
    try:
        if is_form(path, onnx_model.FILE):
            return _load_form(path, read_form(path), settings)
        return _load_model(path, settings)
    except IncompleteError as error:  # it was complete a moment ago
        raise BackendError(Code.FAILED_PRECONDITION, f"cannot load {path}: {error}") from error
    except BackendError as error:
        raise BackendError(error.code, f"cannot load {path}: {error.message}") from error


class OnnxBackend:
    """An ONNX model; see `load`. Implements `backends.contract.Backend`, `Placed` and `Partial`."""

    def __init__(
        self, plans: Mapping[str, _Plan], remarks: Sequence[str], unsupported: Mapping[str, str] | None = None
    ) -> None:
        self.signatures: dict[str, Signature] = {name: plan.signature for name, plan in plans.items()}
        self.device = "cuda" if any(plan.session.on_cuda for plan in plans.values()) else "cpu"
        self.remarks = tuple(dict.fromkeys(remarks))
        self.unsupported = dict(unsupported or {})
        self._plans = dict(plans)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Run `signature`; see `Backend.run`. Only what `outputs` need is computed."""
        plan = self._plans.get(signature)
        if plan is None:
            raise not_found(signature, self.unsupported)
        inputs = complete(signature, plan.signature, inputs, plan.defaults)
        check_outputs(plan.signature, outputs)
        feeds = {}
        for alias, name in plan.inputs.items():
            _check_shape(alias, inputs[alias].shape, plan.session.inputs[name].shape)
            feeds[name] = inputs[alias]
        wanted = list(dict.fromkeys(plan.outputs[alias] for alias in outputs))
        results = plan.session.run(feeds, wanted)
        return [results[plan.outputs[alias]] for alias in outputs]


def _check_shape(alias: str, shape: tuple[int, ...], declared: tuple[int, ...] | None) -> None:
    if declared is None:
        return
    if len(shape) != len(declared) or any(size not in (-1, got) for size, got in zip(declared, shape, strict=True)):
        raise wrong_shape(alias, shape, declared)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A signature, and its names in its session. `defaults` are those of inputs that a request may leave out."""

    session: OnnxSession
    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    defaults: Mapping[str, np.ndarray]


def _load_model(path: str, settings: SessionSettings) -> OnnxBackend:
    """Load a ready `model.onnx`: its one signature has the names of its inputs and outputs."""
    session = OnnxSession(onnx_model.read(path), settings)
    remarks = list(session.remarks)
    for name, port in session.inputs.items():
        if port.element is None:
            raise BackendError(Code.UNIMPLEMENTED, f"its input {name!r} is a {port.type}, which cannot be served")
    served = {name: port for name, port in session.outputs.items() if port.element is not None}
    left_out = {name: port.type for name, port in session.outputs.items() if port.element is None}
    if not served:
        raise BackendError(Code.UNIMPLEMENTED, f"no output of it can be served: {_list_text(left_out)}")
    if left_out:
        remarks.append(f"outputs are left out, because they cannot be served: {_list_text(left_out)}")
    signature = Signature(
        {name: _spec(name, port) for name, port in sorted(session.inputs.items())},
        {name: _spec(name, port) for name, port in sorted(served.items())},
    )
    plan = _Plan(session, signature, {name: name for name in session.inputs}, {name: name for name in served}, {})
    return OnnxBackend({DEFAULT_SIGNATURE: plan}, remarks)


def _list_text(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r} is a {kind}" for name, kind in types.items())


def _spec(name: str, port: Port) -> TensorSpec:
    assert port.element is not None
    return TensorSpec(port.element.name, port.shape, name)


def _load_form(path: str, form: FormDescription, settings: SessionSettings) -> OnnxBackend:
    """Load a converted model: the signatures of the SavedModel share the sessions of their files."""
    if form.format != "onnx":
        raise BackendError(Code.INVALID_ARGUMENT, f"it is converted to {form.format}, not to onnx")
    settings = dataclasses.replace(settings, flushes_subnormals=True)  # TensorFlow is what it has to equal
    sessions: dict[str, OnnxSession] = {}
    plans: dict[str, _Plan] = {}
    remarks: list[str] = []
    for name, entry in sorted(form.signatures.items()):
        if entry.file not in sessions:
            sessions[entry.file] = OnnxSession(onnx_model.read(path, entry.file), settings)
            remarks += sessions[entry.file].remarks
        plans[name] = _plan(name, entry, sessions[entry.file])
    return OnnxBackend(plans, remarks, form.unsupported)


def _plan(name: str, entry: FormSignature, session: OnnxSession) -> _Plan:
    """Return the plan of a converted signature. Raise BackendError if signature and session do not match."""
    signature = entry.signature
    for specs, names, ports, what in (
        (signature.inputs, entry.inputs, session.inputs, "input"),
        (signature.outputs, entry.outputs, session.outputs, "output"),
    ):
        for alias, onnx_name in names.items():
            port = ports.get(onnx_name)
            if port is None:
                raise _mismatch(name, entry, f"its {what} {alias!r} is {onnx_name!r} there, which it has not")
            if port.element is not specs[alias].element:
                raise _mismatch(name, entry, f"its {what} {alias!r} is {specs[alias].dtype}, there a {port.type}")
    if missing := sorted(session.inputs.keys() - set(entry.inputs.values())):
        raise _mismatch(name, entry, f"nothing is given to the inputs {missing} there")
    return _Plan(session, signature, entry.inputs, entry.outputs, default_arrays(signature))


def _mismatch(name: str, entry: FormSignature, why: str) -> BackendError:
    return BackendError(Code.INVALID_ARGUMENT, f"its signature {name!r} does not fit {entry.file}: {why}")

"""A model in a child process, in TensorFlow's form or in a converted one: to be run and timed by its job."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np

from backends.artifact import Format
from backends.contract import BackendError, Code, Signature
from converters import cores
from converters.cases import DiedError
from converters.child import Child, ChildError, Limits, fork, start
from converters.measure import Call
from converters.runner import serve
from converters.spec import JobSpec

__all__ = ["BACKEND_OF", "Form", "Reference", "load_form", "load_in", "load_reference", "threads_of"]

Arrays = Mapping[str, np.ndarray]

_CALL_SECONDS = 120.0
_LIFE_SECONDS = 24 * 3600.0
_MAX_DEATHS = 3
# What TensorFlow gets for an input that may have it loop for ever, or ask for all the memory that there is.
_RISK_SECONDS = 5.0
_RISK_BYTES = 2 << 30
_MAX_LITERT_THREADS = 8  # more cost more than they bring on the models measured

BACKEND_OF: Mapping[Format, str] = {"onnx": "onnx", "tflite": "litert"}


def threads_of(spec: JobSpec, backend: str) -> int:
    """The threads of one call. LiteRT would take one where it is not told."""
    if spec.threads or backend != "litert":
        return spec.threads
    return min(len(cores.MEASURED), _MAX_LITERT_THREADS)


class Form:
    """A loaded model. Ends with its `with` block."""

    def __init__(
        self,
        child: Child,
        signatures: Mapping[str, Signature],
        unsupported: Mapping[str, str],
        changing: Collection[str] = (),
    ) -> None:
        self._child = child
        self.signatures = signatures
        self.unsupported = unsupported
        self.changing = changing  # as of `backends.contract.Changing`

    def __enter__(self) -> Form:
        return self

    @property
    def pid(self) -> int:
        return self._child.pid

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def run(
        self, signature: str, inputs: Arrays, seconds: float = _CALL_SECONDS, more_bytes: int | None = None
    ) -> dict[str, np.ndarray]:
        """All outputs. Raises BackendError where the framework refuses, ChildError where the process dies, hangs, or
        takes `more_bytes` besides what it had."""
        message, arrays = self._child.ask({"op": "run", "signature": signature}, inputs, seconds, more_bytes)
        _raise_refusal(message)
        return arrays

    def timed(self, signature: str, inputs: Arrays) -> Call:
        """For `converters.measure`. Raises BackendError, ChildError."""

        def call(calls: int) -> list[int]:
            message, _ = self._child.ask({"op": "time", "signature": signature, "calls": calls}, inputs, _CALL_SECONDS)
            _raise_refusal(message)
            found: list[int] = message["nanoseconds"]
            return found

        return call


class Reference:
    """TensorFlow: started again when an input has killed it."""

    def __init__(self, spec: JobSpec, log: str) -> None:
        self._spec = spec
        self._log = log
        self._deaths = 0
        self._form: Form | None = load_reference(spec, log)
        self.signatures = self._form.signatures
        self.unsupported = self._form.unsupported
        self.changing = self._form.changing

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        if self._form is not None:
            self._form.__exit__()

    @property
    def form(self) -> Form:
        """Raises ChildError where it dies again and again."""
        if self._form is None:
            if self._deaths >= _MAX_DEATHS:
                raise ChildError(f"TensorFlow died {self._deaths} times on the inputs of the proof")
            self._form = load_reference(self._spec, self._log)
        return self._form

    def run(self, signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """As `Form.run`; an input that kills or hangs TensorFlow counts as refused."""
        form = self.form
        try:
            return form.run(signature, inputs)
        except ChildError as error:
            self._deaths += 1
            self._form = None
            raise BackendError(Code.INTERNAL, str(error)) from error

    def risk(self, signature: str, inputs: Arrays, seconds: float = 0.0) -> dict[str, np.ndarray]:
        """As `Form.run`, for inputs that may well kill TensorFlow or never end: it gets a few seconds (`seconds`, if
        that is more), and a death is no sign that something is wrong with it. Raises BackendError, DiedError."""
        form = self.form
        try:
            return form.run(signature, inputs, max(_RISK_SECONDS, seconds), _RISK_BYTES)
        except ChildError as error:
            self._form = None
            raise DiedError(str(error)) from error


def load_reference(spec: JobSpec, log: str) -> Form:
    """TensorFlow with the SavedModel, forked from this process, which has imported it. Raises BackendError,
    ChildError."""
    child = fork("TensorFlow", serve, log, Limits(_LIFE_SECONDS, spec.memory_bytes, spec.yielding))
    return load_in(child, spec, "tensorflow", spec.path)


def load_form(spec: JobSpec, form: Format, path: str, log: str) -> Form:
    """The converted model in the folder `path`, in a process without TensorFlow. Raises BackendError, ChildError."""
    backend = BACKEND_OF[form]
    limits = Limits(_LIFE_SECONDS, spec.memory_bytes, spec.yielding)
    return load_in(start(backend, "converters.runner", log, limits), spec, backend, path)


def load_in(child: Child, spec: JobSpec, backend: str, path: str) -> Form:
    """What lies at `path`, loaded by `backend` in `child`, which runs `converters.runner.serve`. Raises BackendError,
    ChildError."""
    request: dict[str, Any] = {
        "op": "load",
        "backend": backend,
        "path": path,
        "tags": list(spec.tags),
        "threads": threads_of(spec, backend),
        "inter_op_threads": spec.inter_op_threads,
        "session_config_file": spec.session_config_file,
        "op_libraries": list(spec.op_libraries),
        "device": spec.device,
        "gpu_memory_limit_bytes": spec.gpu_memory_limit_bytes,
    }
    try:
        cores.widen(child.pid)
        message, _ = child.ask(request, seconds=spec.timeout_seconds)
        cores.work_on(child.pid)
        _raise_refusal(message)
        signatures = msgspec.convert(message["signatures"], dict[str, Signature])
    except BaseException:
        child.kill()
        raise
    return Form(child, signatures, message["unsupported"], message["changing"])


def _raise_refusal(message: Mapping[str, Any]) -> None:
    if "refused" in message:
        raise BackendError(Code[message["code"]], message["refused"])

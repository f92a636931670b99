"""Models in child processes, TensorFlow's own or a converted form: a job runs and times them there."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np

from backends.contract import BackendError, Code, Signature
from backends.form import Format
from backends.registry import BACKEND_OF, uses_gpu
from converters import cores
from converters.cases import DiedError
from converters.child import Access, Child, ChildError, Limits, fork, start
from converters.gpu import runs_on_gpu
from converters.measure import Call
from converters.roundings import WeightsMove
from converters.runner import serve
from converters.spec import JobSpec

__all__ = [
    "ModelProcess",
    "Reference",
    "arithmetic_of",
    "import_tensorflow",
    "load_form",
    "load_in",
    "load_reference",
    "reads_of",
    "threads_of",
]

Arrays = Mapping[str, np.ndarray]
_T = TypeVar("_T")

_CALL_SECONDS = 120.0
_LIFE_SECONDS = 24 * 3600.0
_MAX_DEATHS = 3
# What TensorFlow gets for an input that may have it loop for ever, or ask for all the memory that there is.
_RISK_SECONDS = 5.0
_RISK_BYTES = 2 << 30
_MOVED_SECONDS = 60.0  # to read all weights, move them, run, and set them again
_MAX_LITERT_THREADS = 8  # more cost more than they bring on the models measured


def threads_of(spec: JobSpec, backend: str) -> int:
    """Return the number of threads of one call; 0 leaves it to the framework. LiteRT would take one if not told."""
    if spec.threads or backend != "litert":
        return spec.threads
    return min(len(cores.MEASURED), _MAX_LITERT_THREADS)


def arithmetic_of(of_format: Format, precision: str, device: str) -> str:
    """Return the arithmetic of a form on `device` (see `backends.agreement`): on a GPU, ONNX Runtime multiplies float32
    as TF32."""
    return "tf32" if of_format == "onnx" and precision == "float32" and runs_on_gpu(device) else precision


class ModelProcess:
    """A process that has loaded a model. Its `with` block ends it.

    `signatures` are those that it serves; `unsupported` has the others → the reason; `changing` are those that change
    variables, tables or files (see `backends.contract.Changing`).
    """

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
        self.changing = changing

    def __enter__(self) -> ModelProcess:
        return self

    @property
    def pid(self) -> int:
        return self._child.pid

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def run(
        self, signature: str, inputs: Arrays, seconds: float = _CALL_SECONDS, more_bytes: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return all outputs of the signature by name, in at most `seconds`.

        Raise BackendError if the framework refuses the inputs, ChildError if the process dies, hangs, or takes
        `more_bytes` besides what it had.
        """
        message, arrays = self._child.ask({"op": "run", "signature": signature}, inputs, seconds, more_bytes)
        _raise_refusal(message)
        return arrays

    def run_moved(
        self,
        signature: str,
        inputs: Arrays,
        move: WeightsMove,
        seconds: float = _CALL_SECONDS,
        more_bytes: int | None = None,
    ) -> dict[str, np.ndarray] | None:
        """Run like `run`, with moved weights; return None if the model has none that can be moved."""
        request = {"op": "run moved", "signature": signature, "move": msgspec.to_builtins(move)}
        message, arrays = self._child.ask(request, inputs, seconds, more_bytes)
        _raise_refusal(message)
        return arrays if message["moved"] else None

    def timed(self, signature: str, inputs: Arrays) -> Call:
        """Return what `converters.measure` calls: it takes a number of calls, and returns the nanoseconds of each.
        It raises BackendError, ChildError."""

        def call(calls: int) -> list[int]:
            message, _ = self._child.ask({"op": "time", "signature": signature, "calls": calls}, inputs, _CALL_SECONDS)
            _raise_refusal(message)
            found: list[int] = message["nanoseconds"]
            return found

        return call


class Reference:
    """TensorFlow with the SavedModel of the job. It is started again after an input has killed it."""

    def __init__(self, spec: JobSpec, log: str) -> None:
        self._spec = spec
        self._log = log
        self._deaths = 0
        self._process: ModelProcess | None = load_reference(spec, log)
        self.signatures = self._process.signatures
        self.unsupported = self._process.unsupported
        self.changing = self._process.changing

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.__exit__()

    @property
    def pid(self) -> int | None:
        """Return the number of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def process(self) -> ModelProcess:
        """Return the process, started again if it has died. Raise ChildError if it died too often."""
        if self._process is None:
            if self._deaths >= _MAX_DEATHS:
                raise ChildError(f"TensorFlow died {self._deaths} times on the inputs of the proof")
            self._process = load_reference(self._spec, self._log)
        return self._process

    def run(self, signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run like `ModelProcess.run`, but count an input that kills or hangs TensorFlow as refused."""
        process = self.process
        try:
            return process.run(signature, inputs)
        except ChildError as error:
            self._deaths += 1
            self._process = None
            raise BackendError(Code.INTERNAL, str(error)) from error

    def risk(self, signature: str, inputs: Arrays, seconds: float = 0.0) -> dict[str, np.ndarray]:
        """Run inputs that may kill TensorFlow or never end, like `ModelProcess.run`.

        TensorFlow gets a few seconds, or `seconds` if that is more. Its death does not count against the model. Raise
        BackendError if it refuses, DiedError if it dies or hangs.
        """
        limit = max(_RISK_SECONDS, seconds)
        return self._risked(lambda process: process.run(signature, inputs, limit, _RISK_BYTES))

    def risk_moved(self, signature: str, inputs: Arrays, move: WeightsMove) -> dict[str, np.ndarray] | None:
        """Run like `risk`, with moved weights; return None if the model has none that can be moved."""
        return self._risked(lambda process: process.run_moved(signature, inputs, move, _MOVED_SECONDS, _RISK_BYTES))

    def _risked(self, call: Callable[[ModelProcess], _T]) -> _T:
        process = self.process
        try:
            return call(process)
        except ChildError as error:
            self._process = None
            raise DiedError(str(error)) from error


def import_tensorflow() -> None:
    """Import TensorFlow, and what children need of it, before any is forked."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    importlib.import_module("tensorflow")
    importlib.import_module("backends.tensorflow_backend")
    gc.collect()
    gc.freeze()  # a collection in a child would touch the shared pages, and so copy them


def load_reference(spec: JobSpec, log: str) -> ModelProcess:
    """Load the SavedModel by TensorFlow, in a fork of this process, which has imported it. Raise BackendError,
    ChildError."""
    access = Access(reads=reads_of(spec, spec.path))
    child = fork("TensorFlow", serve, log, Limits(_LIFE_SECONDS, spec.memory_bytes, spec.yielding, access))
    return load_in(child, spec, "tensorflow", spec.path)


def load_form(spec: JobSpec, of_format: Format, path: str, log: str) -> ModelProcess:
    """Load the form in the folder `path`, in a process without TensorFlow. Raise BackendError, ChildError."""
    backend = BACKEND_OF[of_format]
    access = Access(reads=reads_of(spec, path), gpu=uses_gpu(backend, spec.device))
    limits = Limits(_LIFE_SECONDS, spec.memory_bytes, spec.yielding, access)
    return load_in(start(backend, log, limits), spec, backend, path)


def reads_of(spec: JobSpec, path: str) -> tuple[str, ...]:
    """Return what a child reads that loads the folder `path`; of libraries their folders, which may have others."""
    libraries = (os.path.dirname(os.path.realpath(library)) for library in spec.op_libraries)
    return (path, *filter(None, [spec.session_config_file]), *libraries)


def load_in(child: Child, spec: JobSpec, backend: str, path: str) -> ModelProcess:
    """Have `child`, which runs `converters.runner.serve`, load the folder `path` by `backend`. It is killed if it
    cannot. Raise BackendError, ChildError."""
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
    return ModelProcess(child, signatures, message["unsupported"], message["changing"])


def _raise_refusal(message: Mapping[str, Any]) -> None:
    if "refused" in message:
        raise BackendError(Code[message["code"]], message["refused"])

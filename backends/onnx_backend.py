"""Runs an ONNX model by ONNX Runtime, on the CPU or by CUDA: one session, on which requests run side by side.

Only worker processes import this module: it imports ONNX Runtime, and never TensorFlow.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from backends import onnx_model, text_locale
from backends.artifact import Artifact, ArtifactSignature, is_artifact, read_artifact
from backends.contract import BackendError, Code, IncompleteError, Signature, TensorSpec
from backends.default_values import default_arrays
from backends.dtypes import BY_NAME, STRING, DType

_DEFAULT_SIGNATURE = "serving_default"
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"

_SILENT = 4  # severity: fatal errors. Every other one is raised too, and most are a client's.

# By what NodeArg.type calls them; others are tensors that TensorFlow Serving does not carry, sequences and maps.
_ELEMENTS = {
    f"tensor({name})": BY_NAME[element]
    for name, element in {
        **{same: same for same in ("string", "bool", "float16", "bfloat16")},
        **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
        "float": "float32",
        "double": "float64",
    }.items()
}
_BFLOAT16 = BY_NAME["bfloat16"]
_BFLOAT16_NUMBER = 16  # TensorProto.DataType

_REFUSALS = tuple(
    getattr(state, name)
    for name in (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoadCanceled",
        "ModelRequiresCompilation",
        "NoModel",
        "NoSuchFile",
        "NotFound",
        "NotImplemented",
        "RuntimeException",
    )
    if hasattr(state, name)
)

# What ONNX Runtime puts around the message of a kernel: its status, and where in its sources a condition was broken.
_STATUS = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : |Error in execution: )")
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: ")
_CONDITION = re.compile(r"\S*onnxruntime_src/\S+:\d+ .* was (?:false|true)\. (?=\S)")
_SOURCE = re.compile(r"\S*onnxruntime_src/\S+:\d+ ")
# What ONNX Runtime says while it loads a model that needs what it has not.
_NOT_THERE = re.compile(
    r"No Op registered|is not a registered function/op|Could not find an implementation|Unsupported model IR version"
    r"|only \*guarantees\* support for models stamped with official released onnx opset versions"
)
_NO_MEMORY = re.compile(r"failed to allocate memory|out of memory|bad_alloc", re.IGNORECASE)
_GPU_FAILED = re.compile(r"\b(CUDA|CUDNN|CUBLAS|CUFFT|CUDNN_FE)\b.*fail", re.IGNORECASE)

_MAX_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How sessions are made. `intra_op_threads` 0: one for each core; `gpu_memory_limit_bytes` 0: none; `device`: cpu,
    cuda, or auto, which is CUDA where there is a driver for it."""

    intra_op_threads: int = 0
    spinning: bool = False
    device: str = "auto"
    gpu_memory_limit_bytes: int = 0


def load(path: str, settings: SessionSettings) -> OnnxBackend:
    """Loads `model.onnx` of the folder `path`, or the converted model that is there.

    Raises BackendError where ONNX Runtime refuses it.
    """
    try:
        if is_artifact(path, onnx_model.FILE):
            return _load_artifact(path, read_artifact(path), settings)
        return _load_model(path, settings)
    except IncompleteError as error:  # it was complete a moment ago
        raise BackendError(Code.FAILED_PRECONDITION, f"cannot load {path}: {error}") from error
    except BackendError as error:
        raise BackendError(error.code, f"cannot load {path}: {error.message}") from error


class OnnxBackend:
    """An ONNX model; see `load`. Implements `backends.contract.Backend` and `Placed`."""

    def __init__(
        self, plans: Mapping[str, _Plan], remarks: Sequence[str], unsupported: Mapping[str, str] | None = None
    ) -> None:
        self.signatures: dict[str, Signature] = {name: plan.signature for name, plan in plans.items()}
        self.device = "cuda" if any(plan.session.on_cuda for plan in plans.values()) else "cpu"
        self.remarks = tuple(dict.fromkeys(remarks))
        self.unsupported = dict(unsupported or {})
        self._plans = dict(plans)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs `signature`; see `Backend.run`. Only what `outputs` need is computed."""
        plan = self._plans.get(signature)
        if plan is None:
            reason = f" It cannot be served: {self.unsupported[signature]}" if signature in self.unsupported else ""
            raise BackendError(Code.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.{reason}')
        if inputs.keys() != plan.signature.inputs.keys():
            inputs = {**{name: array.copy() for name, array in plan.defaults.items()}, **inputs}
            if inputs.keys() != plan.signature.inputs.keys():
                raise BackendError(
                    Code.INVALID_ARGUMENT,
                    f"signature {signature!r} takes the inputs {sorted(plan.signature.inputs)}, but got "
                    f"{sorted(inputs)}",
                )
        for output in outputs:
            if output not in plan.signature.outputs:
                raise BackendError(
                    Code.INVALID_ARGUMENT,
                    f"output tensor alias not found in signature: {output} Outputs expected to be in the set "
                    f"{{{','.join(sorted(plan.signature.outputs))}}}.",
                )
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
        raise BackendError(
            Code.INVALID_ARGUMENT,
            f"input {alias!r} has the shape {_shape_text(shape)}; the model takes {_shape_text(declared)}",
        )


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


@dataclass(frozen=True, slots=True)
class _Plan:
    """A signature, and what its names are in its session. `defaults` are of inputs that a request may leave out."""

    session: _Session
    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    defaults: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Port:
    """An input or output of a session: `element` is None where it cannot be served, being a `type`."""

    type: str
    element: DType | None
    shape: tuple[int, ...] | None


class _Session:
    """ONNX Runtime's session of one file. Raises BackendError where it cannot be made."""

    def __init__(self, model: onnx_model.OnnxModel, settings: SessionSettings) -> None:
        self.remarks: list[str] = []
        self._session = self._made(model, settings)
        self.on_cuda = _CUDA in self._session.get_providers()
        self.inputs = {arg.name: _port(arg, model.without_shape) for arg in self._session.get_inputs()}
        self.outputs = {arg.name: _port(arg, model.without_shape) for arg in self._session.get_outputs()}
        # NumPy has no bfloat16: only values of ONNX Runtime's own carry it. They cannot be made of strings.
        elements = [port.element for port in (*self.inputs.values(), *self.outputs.values())]
        self._bound = (self.on_cuda or _BFLOAT16 in elements) and STRING not in elements

    def _made(self, model: onnx_model.OnnxModel, settings: SessionSettings) -> Any:
        """The session, on the GPU where that is wanted and works."""
        reason = why_no_cuda(settings.device)
        if reason is None:
            try:
                session = _new_session(model, settings, [(_CUDA, _cuda_options(settings)), _CPU])
            except _REFUSALS as error:
                # What is wrong with the model itself is said again by the CPU.
                reason = _message(error)
            else:
                if _CUDA in session.get_providers():
                    return session
                self._remark_fallback("ONNX Runtime could not start it (a library of CUDA 12 or cuDNN 9 is missing?)")
                return session
        if reason:
            self._remark_fallback(reason)
        try:
            with _refusing(_code_of_load):
                return _new_session(model, settings, [_CPU])
        except BackendError as error:
            if not model.doubt:
                raise
            raise BackendError(error.code, f"{error.message} ({model.doubt})") from error

    def _remark_fallback(self, reason: str) -> None:
        self.remarks.append(f"it runs on the CPU, because CUDA cannot be used: {reason}")

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """The outputs by name; `feeds` has every input."""
        if not outputs:  # ONNX Runtime would compute all
            return {}
        if self._bound:
            return self._run_bound(feeds, outputs)
        passed = {
            name: _to_text(name, array) if self.inputs[name].element is STRING else array
            for name, array in feeds.items()
        }
        with _refusing():
            results = self._session.run(outputs, passed)
        return {
            name: _to_bytes(result) if self.outputs[name].element is STRING else result
            for name, result in zip(outputs, results, strict=True)
        }

    def _run_bound(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        with _refusing():
            binding = self._session.io_binding()
            values = {name: _value_of(array, self.inputs[name]) for name, array in feeds.items()}  # alive while it runs
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in outputs:
                binding.bind_output(name)
            self._session.run_with_iobinding(binding)
            results = binding.get_outputs()
            return {name: _array_of(result, self.outputs[name]) for name, result in zip(outputs, results, strict=True)}


def _new_session(model: onnx_model.OnnxModel, settings: SessionSettings, providers: list[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = settings.intra_op_threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spinning else "0")
    options.log_severity_level = _SILENT
    if model.weights:
        # So that it opens no file itself, by a name that the model chose.
        options.add_external_initializers_from_files_in_memory(
            list(model.weights), list(model.weights.values()), [len(mapped) for mapped in model.weights.values()]
        )
    session = _made_session(model.path or model.content, options, providers)
    session.disable_fallback()  # it would make another session while requests run on this one
    session._model_bytes = None  # it keeps them for that only, beside the weights
    return session


def _made_session(source: str | bytes, options: Any, providers: list[Any]) -> Any:
    """The session; once more where it lacked a locale that this process can be given."""
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except _REFUSALS as error:
        name = text_locale.named_in(str(error))
        if not name or not text_locale.provide(name):
            raise
    return onnxruntime.InferenceSession(source, options, providers=providers)


def _cuda_options(settings: SessionSettings) -> dict[str, str]:
    """For the first GPU that CUDA shows: which one that is, the environment decides.

    The arena grows by what is asked for, not by powers of two, because several models share the GPU. An exhaustive
    search for the fastest convolution would run anew for every shape, so for every size of batch.
    """
    options = {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if settings.gpu_memory_limit_bytes:
        options["gpu_mem_limit"] = str(settings.gpu_memory_limit_bytes)
    return options


def why_no_cuda(device: str) -> str | None:
    """None where CUDA is to be tried, else why not: empty where nobody expects it."""
    if device == "cpu":
        return ""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return "" if device == "auto" else f"there is no NVIDIA driver: {error}"
    if _CUDA not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime is without it"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it cannot load
        onnxruntime.preload_dlls()
    if missing := " ".join(said.getvalue().split()):
        return missing[:_MAX_MESSAGE]
    return None


def _port(arg: Any, without_shape: frozenset[str]) -> _Port:
    """What ONNX Runtime says of an input or output. Its empty shape is a scalar's, or an unknown one."""
    shape: tuple[int, ...] | None = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in arg.shape)
    if not shape and arg.name in without_shape:
        shape = None
    return _Port(arg.type, _ELEMENTS.get(arg.type), shape)


def _value_of(array: np.ndarray, port: _Port) -> Any:
    """A value of ONNX Runtime that uses the array's memory."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if port.element is _BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16_NUMBER)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _array_of(value: Any, port: _Port) -> np.ndarray:
    if port.element is _BFLOAT16:
        size = value.tensor_size_in_bytes()
        data = ctypes.string_at(value.data_ptr(), size) if size else b""
        return np.frombuffer(data, _BFLOAT16.numpy).reshape(value.shape())
    array: np.ndarray = value.numpy()
    return array


def _to_text(name: str, array: np.ndarray) -> np.ndarray:
    """The same strings as `str`: of `bytes`, ONNX Runtime would take how they print."""
    text = np.empty(array.size, object)
    try:
        text[:] = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise BackendError(
            Code.INVALID_ARGUMENT, f"input {name!r} has the string {error.object[:100]!r}; ONNX's are UTF-8: {error}"
        ) from error
    return text.reshape(array.shape)


def _to_bytes(array: np.ndarray) -> np.ndarray:
    encoded = np.empty(array.size, object)
    encoded[:] = [element.encode() for element in array.reshape(-1)]
    return encoded.reshape(array.shape)


@contextmanager
def _refusing(code: Callable[[Exception], Code] | None = None) -> Iterator[None]:
    """What ONNX Runtime raises becomes a BackendError, whose code is by default that of a run."""
    try:
        yield
    except (*_REFUSALS, RuntimeError, ValueError) as error:  # the last two as the bindings raise them
        raise BackendError((code or _code)(error), _message(error)) from error
    except MemoryError as error:
        raise BackendError(Code.RESOURCE_EXHAUSTED, "there is not enough memory for these inputs") from error


def _code(error: Exception) -> Code:
    """A kernel does not tell a refusal from a failure of its own: on the CPU it is the input nearly always."""
    text = str(error)
    if _NO_MEMORY.search(text):
        return Code.RESOURCE_EXHAUSTED
    if _GPU_FAILED.search(text) or type(error).__name__ in {"EPFail", "EngineError"}:
        return Code.INTERNAL
    if type(error).__name__ == "NotImplemented":
        return Code.UNIMPLEMENTED
    if type(error).__name__ in {"InvalidArgument", "InvalidGraph", "InvalidProtobuf"} or _NODE.search(text):
        return Code.INVALID_ARGUMENT
    return Code.INTERNAL


def _code_of_load(error: Exception) -> Code:
    """Nobody's input is to blame for what does not load."""
    text = str(error)
    if _NO_MEMORY.search(text):
        return Code.RESOURCE_EXHAUSTED
    if type(error).__name__ == "NotImplemented" or _NOT_THERE.search(text):
        return Code.UNIMPLEMENTED
    return Code.FAILED_PRECONDITION if text_locale.named_in(text) else Code.INTERNAL


def _message(error: Exception) -> str:
    text = _STATUS.sub("", str(error))
    text = _NODE.sub(lambda found: f"{found[1]} node {found[2]!r}: " if found[2] else f"{found[1]} node: ", text)
    text = " ".join(_SOURCE.sub("", _CONDITION.sub("", text)).split())
    text = f"{text[:_MAX_MESSAGE]}..." if len(text) > _MAX_MESSAGE else text
    name = text_locale.named_in(text)
    return f"{text}; {text_locale.remedy(name)}, and load the model again" if name else text


def _load_model(path: str, settings: SessionSettings) -> OnnxBackend:
    """A ready `model.onnx`: its one signature has the names of its inputs and outputs."""
    session = _Session(onnx_model.read(path), settings)
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
    return OnnxBackend({_DEFAULT_SIGNATURE: plan}, remarks)


def _list_text(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r} is a {kind}" for name, kind in types.items())


def _spec(name: str, port: _Port) -> TensorSpec:
    assert port.element is not None
    return TensorSpec(port.element.name, port.shape, name)


def _load_artifact(path: str, artifact: Artifact, settings: SessionSettings) -> OnnxBackend:
    """A converted model: the signatures of the SavedModel, which share the sessions of their files."""
    if artifact.format != "onnx":
        raise BackendError(Code.INVALID_ARGUMENT, f"it is converted to {artifact.format}, not to onnx")
    sessions: dict[str, _Session] = {}
    plans: dict[str, _Plan] = {}
    remarks: list[str] = []
    for name, entry in sorted(artifact.signatures.items()):
        if entry.file not in sessions:
            sessions[entry.file] = _Session(onnx_model.read(path, entry.file), settings)
            remarks += sessions[entry.file].remarks
        plans[name] = _plan(name, entry, sessions[entry.file])
    return OnnxBackend(plans, remarks, artifact.unsupported)


def _plan(name: str, entry: ArtifactSignature, session: _Session) -> _Plan:
    """Raises BackendError where the session has not what the signature needs, or needs what the signature has not."""
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


def _mismatch(name: str, entry: ArtifactSignature, why: str) -> BackendError:
    return BackendError(Code.INVALID_ARGUMENT, f"its signature {name!r} does not fit {entry.file}: {why}")


onnxruntime.set_default_logger_severity(_SILENT)

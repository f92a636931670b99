"""ONNX Runtime's session of one file, on the CPU or by CUDA, and the conversion of its arrays.

Only worker processes import this module, because it imports ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from backends import onnx_model, text_locale
from backends.contract import BackendError, Code
from backends.dtypes import BY_NAME, STRING, DType
from backends.onnx_errors import REFUSALS, code_of_load, message_of, refusing

__all__ = ["OnnxSession", "Port", "SessionSettings", "why_no_cuda"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"

_SILENT = 4  # severity: fatal errors. All others are raised as well, and most are a client's
onnxruntime.set_default_logger_severity(_SILENT)

_MAX_MESSAGE = 2000

# By the names in NodeArg.type. Others are tensors that TensorFlow Serving does not carry, sequences and maps.
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


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How sessions are made.

    `intra_op_threads` 0: one for each core; `gpu_memory_limit_bytes` 0: no limit; `device`: "cpu", "cuda", or "auto",
    which means CUDA if there is a driver for it. `flushes_subnormals`: subnormal floats are 0, as they are to
    TensorFlow: in the thread that makes the session, in those that it starts later, and in ONNX Runtime's own. The
    first session of a process decides for its threads, so all sessions of a process must agree.
    """

    intra_op_threads: int = 0
    device: str = "auto"
    gpu_memory_limit_bytes: int = 0
    flushes_subnormals: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a session. `element` is None if it is of a `type` that cannot be served."""

    type: str
    element: DType | None
    shape: tuple[int, ...] | None


class OnnxSession:
    """ONNX Runtime's session of one file. Raises BackendError if it cannot be made."""

    def __init__(self, model: onnx_model.OnnxModel, settings: SessionSettings) -> None:
        self.remarks: list[str] = []
        self._session = self._made(model, settings)
        self.on_cuda = _CUDA in self._session.get_providers()
        self.inputs = {arg.name: _port(arg, model.without_shape) for arg in self._session.get_inputs()}
        self.outputs = {arg.name: _port(arg, model.without_shape) for arg in self._session.get_outputs()}
        # NumPy has no bfloat16: only ONNX Runtime's own values carry it, and they cannot be made of strings.
        elements = [port.element for port in (*self.inputs.values(), *self.outputs.values())]
        self._bound = (self.on_cuda or _BFLOAT16 in elements) and STRING not in elements

    def _made(self, model: onnx_model.OnnxModel, settings: SessionSettings) -> Any:
        """Return the session, on the GPU if that is wanted and works."""
        reason = why_no_cuda(settings.device)
        if reason is None:
            try:
                session = _new_session(model, settings, [(_CUDA, _cuda_options(settings)), _CPU])
            except REFUSALS as error:
                # The CPU reports an error in the model itself again.
                reason = message_of(error)
            else:
                if _CUDA in session.get_providers():
                    return session
                self._remark_fallback("ONNX Runtime could not start it (a library of CUDA 12 or cuDNN 9 is missing?)")
                return session
        if reason:
            self._remark_fallback(reason)
        try:
            with refusing(code_of_load):
                return _new_session(model, settings, [_CPU])
        except BackendError as error:
            if not model.doubt:
                raise
            raise BackendError(error.code, f"{error.message} ({model.doubt})") from error

    def _remark_fallback(self, reason: str) -> None:
        self.remarks.append(f"it runs on the CPU, because CUDA cannot be used: {reason}")

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs by name; `feeds` has every input."""
        if not outputs:  # ONNX Runtime would compute all outputs
            return {}
        if self._bound:
            return self._run_bound(feeds, outputs)
        passed = {
            name: _to_text(name, array) if self.inputs[name].element is STRING else array
            for name, array in feeds.items()
        }
        with refusing():
            results = self._session.run(outputs, passed)
        return {
            name: _to_bytes(result) if self.outputs[name].element is STRING else result
            for name, result in zip(outputs, results, strict=True)
        }

    def _run_bound(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        with refusing():
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
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # spinning threads doubled ResNet50's time on busy cores
    if settings.flushes_subnormals:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = _SILENT
    if model.weights:
        # So that ONNX Runtime opens no file by a name that the model chose.
        options.add_external_initializers_from_files_in_memory(
            list(model.weights), list(model.weights.values()), [len(mapped) for mapped in model.weights.values()]
        )
    session = _made_session(model.path or model.content, options, providers)
    session.disable_fallback()  # it would make another session while requests run on this one
    session._model_bytes = None  # it keeps them only for that fallback, beside the weights
    return session


def _made_session(source: str | bytes, options: Any, providers: list[Any]) -> Any:
    """Return the session; if a locale is missing that this process can be given, try once more."""
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except REFUSALS as error:
        name = text_locale.named_in(str(error))
        if not name or not text_locale.provide(name):
            raise
    return onnxruntime.InferenceSession(source, options, providers=providers)


def _cuda_options(settings: SessionSettings) -> dict[str, str]:
    """Return the options for the first GPU that CUDA shows; the environment decides which one that is.

    The arena grows by the requested size, not by powers of two, because several models share the GPU. An exhaustive
    search for the fastest convolution would run again for every shape, so for every batch size.
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
    """Return None if CUDA should be tried, else why not; "" if CUDA is not expected."""
    if device == "cpu":
        return ""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return "" if device == "auto" else f"there is no NVIDIA driver: {error}"
    if _CUDA not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime is without it"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints the libraries that it cannot load
        onnxruntime.preload_dlls()
    if missing := " ".join(said.getvalue().split()):
        return missing[:_MAX_MESSAGE]
    return None


def _port(arg: Any, without_shape: frozenset[str]) -> Port:
    """Return the port of an input or output. ONNX Runtime's empty shape means a scalar or an unknown shape."""
    shape: tuple[int, ...] | None = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in arg.shape)
    if not shape and arg.name in without_shape:
        shape = None
    return Port(arg.type, _ELEMENTS.get(arg.type), shape)


def _value_of(array: np.ndarray, port: Port) -> Any:
    """Return a value of ONNX Runtime that uses the array's memory."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if port.element is _BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16_NUMBER)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _array_of(value: Any, port: Port) -> np.ndarray:
    if port.element is _BFLOAT16:
        size = value.tensor_size_in_bytes()
        data = ctypes.string_at(value.data_ptr(), size) if size else b""
        return np.frombuffer(data, _BFLOAT16.numpy).reshape(value.shape())
    array: np.ndarray = value.numpy()
    return array


def _to_text(name: str, array: np.ndarray) -> np.ndarray:
    """Return the strings as `str`: of `bytes`, ONNX Runtime would take their printed form."""
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

"""The backends by name: a new one is a module and a line here. Frameworks are imported only on first use."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from backends import onnx_model, op_libraries, text_locale, tflite_model
from backends.contract import Backend, BackendError, Code
from backends.form import model_files
from backends.saved_model import check_complete as check_saved_model

__all__ = [
    "BACKENDS",
    "BACKEND_OF",
    "FORKED",
    "MODEL_FILES",
    "backend_for",
    "check_complete",
    "end_profile",
    "load",
    "prepare",
    "profile",
    "uses_gpu",
]

BACKENDS = ("tensorflow", "litert", "onnx")

BACKEND_OF: Mapping[str, str] = {"onnx": "onnx", "tflite": "litert"}
"""The backend that loads forms of a format (`backends.form.Format`)."""

FORKED = frozenset({"tensorflow"})
"""The backends that run in a process forked from one that has imported their framework; others start a new process."""

_SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")

MODEL_FILES = (*_SAVED_MODEL_FILES, tflite_model.FILE, onnx_model.FILE)
"""The file names that show that a folder holds a model."""


def backend_for(names: Collection[str], prefer_tflite: bool) -> str:
    """Return the backend for a version folder with the files `names`.

    TensorFlow Lite's file comes first if it is preferred; else the SavedModel, the ONNX file, TensorFlow Lite's file. A
    folder without a model belongs to TensorFlow, which says what is missing.
    """
    if tflite_model.FILE in names and prefer_tflite:
        return "litert"
    if any(name in names for name in _SAVED_MODEL_FILES):
        return "tensorflow"
    if onnx_model.FILE in names:
        return "onnx"
    return "litert" if tflite_model.FILE in names else "tensorflow"


def check_complete(backend: str, path: str) -> None:
    """Raise IncompleteError if the version folder at `path` is not complete, BackendError if it is broken.

    The folder of a converted model (`backends.form`) is complete if its files are.
    """
    if backend == "tensorflow":
        check_saved_model(path)
    elif backend == "litert":
        for name in model_files(path, tflite_model.FILE):
            tflite_model.check_complete(path, name)
    elif backend == "onnx":
        for name in model_files(path, onnx_model.FILE):
            onnx_model.check_complete(path, name)


def load(
    backend: str,
    path: str,
    *,
    tags: Sequence[str],
    intra_op_threads: int,
    inter_op_threads: int,
    session_config_file: str = "",
    libraries: Sequence[str] = (),
    interpreters: int = 0,
    device: str = "auto",
    gpu_memory_limit_bytes: int = 0,
) -> Backend:
    """Load the version folder at `path`. Raise BackendError with the reason.

    Thread counts of 0 leave the choice to the framework. `session_config_file` and `libraries` (of custom operators)
    are for TensorFlow; `interpreters` bounds LiteRT's, 0: one for each core; `device` and `gpu_memory_limit_bytes` are
    for ONNX Runtime.
    """
    if backend == "tensorflow":
        from backends import tensorflow_backend  # noqa: PLC0415 - costs 1.5 s and 500 MB

        op_libraries.load(libraries)
        return tensorflow_backend.load(path, tags, intra_op_threads, inter_op_threads, session_config_file)
    if backend == "litert":
        from backends import litert_backend  # noqa: PLC0415 - 0.1 s and 30 MB

        return litert_backend.load(path, intra_op_threads, interpreters)
    if backend == "onnx":
        from backends import onnx_backend, onnx_session  # noqa: PLC0415 - 0.15 s and 40 MB

        return onnx_backend.load(
            path,
            onnx_session.SessionSettings(intra_op_threads, device, gpu_memory_limit_bytes),
        )
    raise ValueError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")


def prepare(backend: str) -> None:
    """Make what the framework of `backend` needs to have made, before this process loses the right to make files."""
    if backend == "onnx" and not text_locale.exists(text_locale.ENGLISH):
        text_locale.provide(text_locale.ENGLISH)


def uses_gpu(backend: str, device: str) -> bool:
    """Return whether a model may come to run on a GPU; `device` is where the operator wants it."""
    return backend == "onnx" and device != "cpu" and os.path.exists("/dev/nvidiactl")


def has_profiler(backend: str) -> bool:
    """Return whether the framework of `backend` can trace itself."""
    return backend == "tensorflow"


def profile(backend: str, *, seconds: float, trace: str, levels: Mapping[str, int], file: int) -> dict[str, Any]:
    """Trace this process's framework for `seconds`, or until `end_profile(trace)`, into the open `file`.

    The file gets the XSpace (a serialized protocol buffer). `levels` are the framework's options by name. Return its
    "bytes", and whether it "has_events". Raise BackendError: UNIMPLEMENTED if `backend` has no profiler, ALREADY_EXISTS
    if a trace is running.
    """
    if backend == "tensorflow":
        from backends import tensorflow_profiler  # noqa: PLC0415 - costs 1.5 s and 500 MB

        return asdict(tensorflow_profiler.profile(seconds, trace, levels, file))
    raise BackendError(Code.UNIMPLEMENTED, f"workers on {backend} have no profiler")


def end_profile(backend: str, *, trace: str) -> dict[str, Any]:
    """End a trace of this process early."""
    if backend == "tensorflow":
        from backends import tensorflow_profiler  # noqa: PLC0415 - costs 1.5 s and 500 MB

        tensorflow_profiler.end_profile(trace)
    return {}

"""The task of a worker process: how many runs it has at once, and how it loads its model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from appliance.config.batching_parameters import BatchingParameters
from appliance.config.model_options import ModelOptions
from appliance.core.signature_limit import why_too_large
from backends.contract import Backend, BackendError, Code, Partial
from backends.domain import Domain
from backends.registry import load

__all__ = ["WorkerTask", "concurrency_of", "loader_of"]


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker needs to know. Its values are plain, because it travels as JSON."""

    model: str
    version: int
    path: str
    socket_path: str
    backend: str
    form_path: str  # the folder of the form that `backend` loads instead of `path`; "" for none
    check_files: bool  # whether an incomplete folder is reported before the framework is asked to load it
    metrics_directory: str
    max_concurrent_requests: int  # the option's value, or what its default means here
    options: ModelOptions
    fatal_attempts: tuple[tuple[str, int, str], ...] = ()  # [signature, number, how]: what earlier processes died of
    domains: Mapping[str, Domain] = field(default_factory=dict)  # of a form: what each signature was proven for
    is_tried: bool = True  # every signature is to be tried, because these files have not served yet
    is_watched: bool = False  # a request has ended a process of this version: see `appliance.worker.run_record`
    odd_shapes_from: int | None = None  # it only tries odd shapes, from this number on: see `odd_shape_trial`

    @property
    def record_path(self) -> str:
        """The path of the worker's `appliance.worker.run_record`."""
        return f"{self.socket_path}.runs"


def concurrency_of(task: WorkerTask, batching: BatchingParameters | None) -> int:
    """Return how many runs there are at once. A worker has one thread more, which leads while the others run."""
    if batching is None:
        return task.max_concurrent_requests
    threads = batching.num_batch_threads or len(os.sched_getaffinity(0))
    return min(threads, task.options.max_concurrent_requests or threads)


def loader_of(task: WorkerTask) -> Callable[[], Backend]:
    """Return a function that loads the form of `task`, or else its version folder. It raises BackendError, also for
    what has loaded and has too many signatures."""

    def load_model() -> Backend:
        backend = load(
            task.backend,
            task.form_path or task.path,
            tags=task.options.tags,
            intra_op_threads=task.options.tensorflow_intra_op_parallelism,
            inter_op_threads=task.options.tensorflow_inter_op_parallelism,
            interpreters=task.options.num_tflite_interpreters,
            session_config_file=task.options.tensorflow_session_config_file,
            libraries=task.options.op_libraries,
            device=task.options.device,
            gpu_memory_limit_bytes=task.options.gpu_memory_limit_bytes,
        )
        unsupported = backend.unsupported if isinstance(backend, Partial) else {}
        if why := why_too_large(msgspec.to_builtins(dict(backend.signatures)), unsupported):
            raise BackendError(Code.INVALID_ARGUMENT, why)
        return backend

    return load_model

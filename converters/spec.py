"""Describe what a job is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from converters.registry import CONVERTERS

__all__ = ["Job", "JobSpec"]


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Accelerate the SavedModel at `path`.

    `work_dir` is an empty folder for the job's files; the chosen form is left there unless the cache has taken it. A
    conversion ends after `timeout_seconds` or with `memory_bytes` of resident memory. The cases of a proof take about
    `proof_seconds`. A form is also searched for differences: each signature for at least `min_search_seconds`, all of
    them for at most `search_seconds`. Timings count as disturbed if other processes took more than `max_others` of the
    processors, from 0 to 1.

    Thread counts, the session's configuration and `op_libraries` are those with which the version is served; 0 threads:
    one for each core. `max_batch_size` 0: 8. `cache_dir` "": no cache. `yielding`: see `converters.child.Limits`.
    `converters` are modules by name. `work_module` is the module whose process does the work (`converters.working`);
    `sandbox` is for that module, and confines its children (see `converters.child.confine_children`).
    """

    path: str
    work_dir: str
    tags: tuple[str, ...] = ("serve",)
    policy: Literal["auto", "onnx", "tflite"] = "auto"
    precisions: tuple[str, ...] = ("float32",)
    min_speedup: float = 1.1
    max_batch_size: int = 0
    timeout_seconds: float = 600.0
    memory_bytes: int = 8 << 30
    proof_seconds: float = 60.0
    min_search_seconds: float = 1.0
    search_seconds: float = 20.0
    measure_seconds: float = 10.0
    max_others: float = 0.1
    cache_dir: str = ""
    cache_max_bytes: int = 10 << 30
    work_module: str = "converters.working"
    yielding: bool = True
    threads: int = 0
    inter_op_threads: int = 0
    session_config_file: str = ""
    op_libraries: tuple[str, ...] = ()
    device: str = "cpu"
    gpu_memory_limit_bytes: int = 0
    sandbox: str = "off"
    converters: Mapping[str, str] = field(default_factory=lambda: dict(CONVERTERS))


@dataclass(frozen=True, slots=True)
class Job:
    """What the process of a job is told: `spec`, and the key that seals what it keeps in the cache; without a key,
    nothing is found there and nothing is kept.

    Only that process has the key: it runs no model, and its children, which do, are told the spec alone.
    """

    spec: JobSpec
    key: bytes = field(default=b"", repr=False)

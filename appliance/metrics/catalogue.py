"""All metrics of the appliance: name, type, labels and bounds.

Metrics with TensorFlow Serving's names are on a page of their own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum

import orjson


class Type(Enum):
    """The types of metrics, by Prometheus's names."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Page(Enum):
    """The page on which a metric is shown."""

    OWN = "/metrics"
    TENSORFLOW_SERVING = "the path of the monitoring_config_file"


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of series.

    `bounds` are a histogram's upper bounds without the last one, which is infinite. `passing` means that label values
    come and go without end (folders of versions).
    """

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    page: Page = Page.OWN
    passing: bool = False

    @property
    def values(self) -> int:
        """The number of values of a series: a histogram has one count for each bucket, then the sum."""
        return len(self.bounds) + 2 if self.type is Type.HISTOGRAM else 1


_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LOAD_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SIZES = tuple(float(2**n) for n in range(11))

REQUESTS = Metric(
    "dropserve_requests_total",
    Type.COUNTER,
    "Requests that were answered.",
    ("protocol", "model", "method", "code"),
)
REQUEST_DURATION = Metric(
    "dropserve_request_duration_seconds",
    Type.HISTOGRAM,
    "From a request's head to its answer, whatever the answer.",
    ("protocol", "model", "method"),
    _SECONDS,
)
INFLIGHT_BYTES = Metric(
    "dropserve_inflight_request_bytes", Type.GAUGE, "Bytes of requests that are being served.", ("protocol",)
)
VERSIONS = Metric(
    "dropserve_versions", Type.GAUGE, "1 for each version that is known, with its state.", ("model", "version", "state")
)
CONFINED = Metric(
    "dropserve_version_confined",
    Type.GAUGE,
    'What confines the process of each available version; by is "seccomp" or "landlock". No sample: nothing does.',
    ("model", "version", "by"),
)
CHANGED_VERSIONS = Metric(
    "dropserve_changed_versions",
    Type.GAUGE,
    "1 for each available version whose files have been changed since it was loaded.",
    ("model", "version"),
)
READY = Metric("dropserve_ready", Type.GAUGE, "Whether /readyz answers 200.")
QUEUE_REQUESTS = Metric(
    "dropserve_queue_requests", Type.GAUGE, "Requests that wait for their turn.", ("model", "version")
)
QUEUE_BYTES = Metric("dropserve_queue_bytes", Type.GAUGE, "Bytes of the requests that wait.", ("model", "version"))
RUNNING = Metric("dropserve_runs_in_progress", Type.GAUGE, "Runs of the model at this moment.", ("model", "version"))
RUN_DURATION = Metric(
    "dropserve_run_duration_seconds", Type.HISTOGRAM, "Time that a run of the model took.", ("model",), _SECONDS
)
BATCH_REQUESTS = Metric(
    "dropserve_batch_requests", Type.HISTOGRAM, "Requests that were merged into one run.", ("model",), _SIZES
)
BATCH_ROWS = Metric(
    "dropserve_batch_rows",
    Type.HISTOGRAM,
    "Rows (dimension 0 of the inputs) of one run, padding included.",
    ("model",),
    _SIZES,
)
LOADS = Metric(
    "dropserve_loads_total",
    Type.COUNTER,
    'Attempts to load a version; result is "ok" or "failed".',
    ("model", "result"),
)
LOAD_DURATION = Metric(
    "dropserve_load_duration_seconds", Type.HISTOGRAM, "Time that a load took.", ("model",), _LOAD_SECONDS
)
WORKER_RESTARTS = Metric(
    "dropserve_worker_restarts_total", Type.COUNTER, "Workers that died while they served.", ("model",)
)
LOG_LINES_DROPPED = Metric(
    "dropserve_log_lines_dropped_total",
    Type.COUNTER,
    "Lines that workers printed beyond what is logged.",
    ("model",),
)
HANGS = Metric(
    "dropserve_hangs_total",
    Type.COUNTER,
    "Processes that gave no sign of life, or whose run did not end, and that were killed.",
    ("role",),
)
SIGNATURES = Metric(
    "dropserve_signatures_total",
    Type.COUNTER,
    'Version folders whose signature was verified before a load; outcome is "valid", "missing" or "invalid".',
    ("model", "outcome"),
)
DEMOTIONS = Metric(
    "dropserve_demotions_total",
    Type.COUNTER,
    "Accelerated forms that failed or did not load, so that TensorFlow serves.",
    ("model",),
)
UNPROVEN = Metric(
    "dropserve_unproven_requests_total",
    Type.COUNTER,
    "Requests for which the accelerated form was not proven: TensorFlow answers them.",
    ("model",),
)
VERIFIED = Metric(
    "dropserve_verified_requests_total",
    Type.COUNTER,
    'Requests answered by an accelerated form that TensorFlow was to run again; outcome is "equal", "different" or '
    '"unjudged".',
    ("model", "outcome"),
)
DOUBTFUL = Metric(
    "dropserve_doubtful_answers_total",
    Type.COUNTER,
    "Answers of an accelerated form since the last that was verified as equal, before one was wrong.",
    ("model",),
)
REFUSED = Metric(
    "dropserve_refused_requests_total",
    Type.COUNTER,
    "Requests that were refused because their kind has ended the version's process.",
    ("model",),
)
PROCESSES = Metric("dropserve_processes", Type.GAUGE, "Living processes.", ("role",))
RESIDENT_MEMORY = Metric(
    "dropserve_process_resident_memory_bytes",
    Type.GAUGE,
    "Resident memory (RSS). Pages that processes share count for each of them.",
    ("role", "model", "version"),
)
PROPORTIONAL_MEMORY = Metric(
    "dropserve_process_proportional_memory_bytes",
    Type.GAUGE,
    "Resident memory, shared pages divided by their users (PSS).",
    ("role", "model", "version"),
)
START_TIME = Metric(
    "dropserve_start_time_seconds", Type.GAUGE, "When the server started, in seconds since 1970: totals began then."
)
GPU_DRIVER_UP = Metric(
    "dropserve_gpu_driver_up", Type.GAUGE, "1 if NVIDIA's driver answers, 0 if it fails; no sample without a driver."
)
_GPU = ("gpu", "uuid", "name")
GPU_UP = Metric("dropserve_gpu_up", Type.GAUGE, "1 if the GPU reports its state, 0 if it is lost or hangs.", _GPU)
GPU_ERRORS = Metric("dropserve_gpu_errors", Type.GAUGE, "Values that the driver fails to tell at this moment.", _GPU)
GPU_TEMPERATURE = Metric("dropserve_gpu_temperature_celsius", Type.GAUGE, "Temperature of the GPU.", _GPU)
GPU_POWER = Metric("dropserve_gpu_power_watts", Type.GAUGE, "Power that the GPU draws.", _GPU)
GPU_POWER_LIMIT = Metric("dropserve_gpu_power_limit_watts", Type.GAUGE, "Power that the GPU may draw.", _GPU)
GPU_UTILIZATION = Metric(
    "dropserve_gpu_utilization_ratio", Type.GAUGE, "Part of the time, from 0 to 1, in which the GPU computed.", _GPU
)
GPU_MEMORY_USED = Metric(
    "dropserve_gpu_memory_used_bytes", Type.GAUGE, "Memory in use, without what the driver reserves.", _GPU
)
GPU_MEMORY_TOTAL = Metric("dropserve_gpu_memory_total_bytes", Type.GAUGE, "Memory of the GPU.", _GPU)
GPU_PROCESS_MEMORY = Metric(
    "dropserve_gpu_process_memory_bytes",
    Type.GAUGE,
    "Memory of the GPU that a version's worker uses.",
    ("gpu", "model", "version"),
)
BUILD_INFO = Metric("dropserve_build_info", Type.GAUGE, "1, with the version of dropserve.", ("version",))

# TensorFlow Serving's metrics, with the names, labels and bounds of its `servables/tensorflow/util.cc` and of
# TensorFlow's `cc/saved_model/loader.cc`; on its page a slash becomes a colon. Latencies are in microseconds.
_MICROSECONDS = tuple(itertools.accumulate([10.0] + [1.8] * 32, lambda bound, factor: bound * factor))
_EXAMPLES = tuple(float(2**n) for n in range(15))


def _tensorflow_metric(
    name: str, kind: Type, labels: tuple[str, ...], bounds: tuple[float, ...] = (), passing: bool = False
) -> Metric:
    return Metric(name, kind, "", labels, bounds, Page.TENSORFLOW_SERVING, passing)


# request_count, graph_runs and graph_run_time_usecs are not recorded: they are sums of other metrics
# (`text.render_tensorflow`).
TF_LOAD_ATTEMPTS = _tensorflow_metric(
    ":tensorflow:cc:saved_model:load_attempt_count", Type.COUNTER, ("model_path", "status"), passing=True
)
TF_LOAD_LATENCY = _tensorflow_metric(
    ":tensorflow:cc:saved_model:load_latency", Type.COUNTER, ("model_path",), passing=True
)
TF_GRAPH_RUN_TIME = _tensorflow_metric(":tensorflow:core:graph_run_time_usecs", Type.COUNTER, ())
TF_GRAPH_RUNS = _tensorflow_metric(":tensorflow:core:graph_runs", Type.COUNTER, ())
TF_WARMUP_LATENCY = _tensorflow_metric(
    ":tensorflow:serving:model_warmup_latency", Type.HISTOGRAM, ("model_path", "status"), _MICROSECONDS, passing=True
)
TF_REQUESTS = _tensorflow_metric(":tensorflow:serving:request_count", Type.COUNTER, ("model_name", "status"))
TF_EXAMPLE_TOTAL = _tensorflow_metric(":tensorflow:serving:request_example_count_total", Type.COUNTER, ("model",))
TF_EXAMPLES = _tensorflow_metric(":tensorflow:serving:request_example_counts", Type.HISTOGRAM, ("model",), _EXAMPLES)
TF_REQUEST_LATENCY = _tensorflow_metric(
    ":tensorflow:serving:request_latency", Type.HISTOGRAM, ("model_name", "API", "entrypoint"), _MICROSECONDS
)
TF_RUNTIME_LATENCY = _tensorflow_metric(
    ":tensorflow:serving:runtime_latency", Type.HISTOGRAM, ("model_name", "API", "runtime"), _MICROSECONDS
)

# The methods that TensorFlow Serving counts → its names for them.
API = {"predict": "Predict", "classify": "Classify", "regress": "Regress"}

METRICS: tuple[Metric, ...] = tuple(value for value in globals().values() if isinstance(value, Metric))
_PASSING = {metric.name for metric in METRICS if metric.passing}


def is_passing(key: bytes) -> bool:
    """Return whether the series with this key belongs to a `passing` metric, or is unreadable."""
    try:
        return orjson.loads(key)[0] in _PASSING
    except (ValueError, LookupError, TypeError):
        return True

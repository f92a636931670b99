"""Every metric that the appliance has, and how a process records them.

Recording costs a fraction of a microsecond and cannot fail: each process writes to memory that is a file of its own
(`appliance.metrics.file`); where that file cannot be made or grow, the process says so once, and counts for nobody.
What is recorded is bounded whatever clients send: the callers pass names of models that are known, or "".
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import orjson

from appliance.metrics.file import Kind, MetricsFile
from backends.contract import Code

__all__ = [
    "API",
    "METRICS",
    "Counter",
    "Gauge",
    "Histogram",
    "Metric",
    "Page",
    "Recorder",
    "RequestMetrics",
    "Type",
    "WorkerMetrics",
    "is_passing",
]

logger = logging.getLogger(__name__)


class Type(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Page(Enum):
    """Where a metric is shown."""

    OWN = "/metrics"
    TENSORFLOW_SERVING = "the path of the monitoring_config_file"


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of series. `bounds` are a histogram's upper bounds without the last, which is infinite. `passing` says
    that its labels name what comes and goes without end (folders of versions)."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    page: Page = Page.OWN
    passing: bool = False

    @property
    def values(self) -> int:
        """How many values a series has: a histogram has the count of each bucket, then the sum."""
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
DEMOTIONS = Metric(
    "dropserve_demotions_total",
    Type.COUNTER,
    "Accelerated forms that failed, so that TensorFlow serves again.",
    ("model",),
)
UNPROVEN = Metric(
    "dropserve_unproven_requests_total",
    Type.COUNTER,
    "Requests for which the accelerated form was not proven: TensorFlow answers them.",
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
    "dropserve_gpu_driver_up", Type.GAUGE, "1 where NVIDIA's driver answers, 0 where it fails; none without a driver."
)
_GPU = ("gpu", "uuid", "name")
GPU_UP = Metric("dropserve_gpu_up", Type.GAUGE, "1 where the GPU tells its state, 0 where it is lost or hangs.", _GPU)
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

# TensorFlow Serving's, with the names, labels and bounds of its `servables/tensorflow/util.cc` and of TensorFlow's
# `cc/saved_model/loader.cc`; on its page a slash becomes a colon. Latencies are in microseconds.
_MICROSECONDS = tuple(itertools.accumulate([10.0] + [1.8] * 32, lambda bound, factor: bound * factor))
_EXAMPLES = tuple(float(2**n) for n in range(15))


def _tensorflow_metric(
    name: str, kind: Type, labels: tuple[str, ...], bounds: tuple[float, ...] = (), passing: bool = False
) -> Metric:
    return Metric(name, kind, "", labels, bounds, Page.TENSORFLOW_SERVING, passing)


# Nobody records request_count, graph_runs and graph_run_time_usecs: they are sums of what is recorded
# (`metrics_text.render_tensorflow`).
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

# The methods that TensorFlow Serving counts, and how it calls them.
API = {"predict": "Predict", "classify": "Classify", "regress": "Regress"}

METRICS: tuple[Metric, ...] = tuple(value for value in globals().values() if isinstance(value, Metric))
_PASSING = {metric.name for metric in METRICS if metric.passing}


def is_passing(key: bytes) -> bool:
    """Whether the series of this key names what comes and goes without end."""
    try:
        return orjson.loads(key)[0] in _PASSING
    except (ValueError, LookupError, TypeError):
        return True


class _Series:
    """Values in a process's file. The lock is the recorder's: threads of one process share its series."""

    __slots__ = ("_at", "_bounds", "_lock", "_values")

    def __init__(self, values: memoryview[float], at: int, bounds: tuple[float, ...], lock: threading.Lock) -> None:
        self._values = values
        self._at = at
        self._bounds = bounds
        self._lock = lock


class Counter(_Series):
    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        with self._lock:
            self._values[self._at] += amount


class Gauge(_Series):
    __slots__ = ()

    def set(self, value: float) -> None:
        self._values[self._at] = value


class Histogram(_Series):
    __slots__ = ()

    def observe(self, value: float) -> None:
        with self._lock:
            _observe(self, value)


def _observe(histogram: Histogram, value: float) -> None:
    bounds, values, at = histogram._bounds, histogram._values, histogram._at
    values[at + bisect_left(bounds, value)] += 1.0
    values[at + len(bounds) + 1] += value


S = TypeVar("S", bound=_Series)


class Recorder:
    """A process's metrics. Made after the last fork: the file is of one process.

    `role` is what the process is ("rest", "grpc", "worker", "supervisor"); `model` and `version` are a worker's.
    """

    def __init__(self, directory: str, role: str, model: str = "", version: str = "") -> None:
        self.lock = threading.Lock()
        self._series: dict[tuple[str, ...], _Series] = {}
        self._off = False
        self._file: MetricsFile | None = None
        try:
            self._file = MetricsFile(directory, role)
        except OSError as error:
            self._switch_off(error)
        values, at = self._allocate(Kind.PROCESS, _key((role, model, version)), 2)
        values[at] = float(os.getpid())
        values[at + 1] = time.time()

    def counter(self, metric: Metric, *labels: str) -> Counter:
        return self._get(Counter, metric, labels)

    def gauge(self, metric: Metric, *labels: str) -> Gauge:
        return self._get(Gauge, metric, labels)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        return self._get(Histogram, metric, labels)

    def _get(self, series: type[S], metric: Metric, labels: tuple[str, ...]) -> S:
        """The series of these labels: made at the first call, which the caller remembers where it is asked often."""
        known = (metric.name, *labels)
        with self.lock:
            found = self._series.get(known)
            if not isinstance(found, series):
                kind = Kind.GAUGE if metric.type is Type.GAUGE else Kind.TOTAL
                values, at = self._allocate(kind, _key(known), metric.values)
                found = series(values, at, metric.bounds, self.lock)
                self._series[known] = found
            return found

    def _allocate(self, kind: Kind, key: bytes, count: int) -> tuple[memoryview[float], int]:
        if self._file is not None:
            try:
                return self._file.allocate(kind, key, count)
            except (OSError, ValueError) as error:
                self._switch_off(error)
        return memoryview(bytearray(8 * count)).cast("d"), 0  # counts for nobody

    def _switch_off(self, error: Exception) -> None:
        if not self._off:
            self._off = True
            logger.warning("not all metrics are recorded: %s; is there room in runtime_dir?", error)


def _key(parts: Sequence[str]) -> bytes:
    try:
        return orjson.dumps(parts)
    except TypeError:  # a lone surrogate: a file's name that is not UTF-8
        return orjson.dumps([part.encode(errors="replace").decode() for part in parts])


class RequestMetrics:
    """What a front records of each request."""

    def __init__(self, recorder: Recorder, protocol: str) -> None:
        self._recorder = recorder
        self._protocol = protocol  # "rest" or "grpc"
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram, Histogram | None]] = {}
        self.inflight = recorder.gauge(INFLIGHT_BYTES, protocol).set  # is told the bytes in flight when they change

    def record(self, model: str, method: str, code: Code, seconds: float) -> None:
        """Counts one answered request. `model` is a known model's name, or ""; `method` is of the API ("predict").

        Called by one thread, for every request: so it writes without locks, and calls little.
        """
        known = self._known.get((model, method, int(code)))  # an enum's own hash is slow
        if known is None:
            known = self._known[model, method, int(code)] = self._make(model, method, code)
        requests, duration, tf_latency = known
        requests._values[requests._at] += 1.0
        values, at, bounds = duration._values, duration._at, duration._bounds
        values[at + bisect_left(bounds, seconds)] += 1.0
        values[at + len(bounds) + 1] += seconds
        if tf_latency is not None:
            microseconds = float(int(seconds * 1e6))
            values, at, bounds = tf_latency._values, tf_latency._at, tf_latency._bounds
            values[at + bisect_left(bounds, microseconds)] += 1.0
            values[at + len(bounds) + 1] += microseconds

    def _make(self, model: str, method: str, code: Code) -> tuple[Counter, Histogram, Histogram | None]:
        recorder = self._recorder
        tf_latency = None
        api = API.get(method)
        if api is not None and code is Code.OK:
            # TensorFlow Serving writes the API as the path has it in REST, and as the method is called in gRPC.
            shown = api if self._protocol == "grpc" else method
            tf_latency = recorder.histogram(TF_REQUEST_LATENCY, model, shown, self._protocol.upper())
        return (
            recorder.counter(REQUESTS, self._protocol, model, method, code.name),
            recorder.histogram(REQUEST_DURATION, self._protocol, model, method),
            tf_latency,
        )

    def unproven(self, model: str) -> None:
        self._recorder.counter(UNPROVEN, model).add()

    def refused(self, model: str) -> None:
        self._recorder.counter(REFUSED, model).add()

    def examples(self, model: str, count: int) -> None:
        """Counts the examples of a classify, regress or multi-inference request to a known model."""
        self._recorder.histogram(TF_EXAMPLES, model).observe(count)
        self._recorder.counter(TF_EXAMPLE_TOTAL, model).add(count)


class WorkerMetrics:
    """What the worker of one version records."""

    def __init__(self, recorder: Recorder, model: str, version: int) -> None:
        self._recorder = recorder
        self._model = model
        labels = (model, str(version))
        self._queue_requests = recorder.gauge(QUEUE_REQUESTS, *labels)
        self._queue_bytes = recorder.gauge(QUEUE_BYTES, *labels)
        self._running = recorder.gauge(RUNNING, *labels)
        self._run_duration = recorder.histogram(RUN_DURATION, model)
        self._batch_requests = recorder.histogram(BATCH_REQUESTS, model)
        self._batch_rows = recorder.histogram(BATCH_ROWS, model)
        self._latency: dict[str, Histogram] = {}

    def loaded(self, path: str, seconds: float) -> None:
        self._recorder.counter(LOADS, self._model, "ok").add()
        self._recorder.histogram(LOAD_DURATION, self._model).observe(seconds)
        self._recorder.counter(TF_LOAD_ATTEMPTS, path, "success").add()
        self._recorder.counter(TF_LOAD_LATENCY, path).add(round(seconds * 1e6))

    def load_failed(self, path: str) -> None:
        self._recorder.counter(LOADS, self._model, "failed").add()
        self._recorder.counter(TF_LOAD_ATTEMPTS, path, "fail").add()

    def warmed_up(self, path: str, seconds: float, status: str = "OK") -> None:
        """Records a warm-up with the requests that a version brings; `status` is "OK" or a canonical code's name."""
        self._recorder.histogram(TF_WARMUP_LATENCY, path, status).observe(round(seconds * 1e6))

    def queue(self, requests: int, nbytes: int, running: int) -> None:
        """The state of the queue: how much waits, and how many runs there are."""
        # Told twice for each request: so it calls nothing.
        gauge = self._queue_requests
        gauge._values[gauge._at] = requests
        gauge = self._queue_bytes
        gauge._values[gauge._at] = nbytes
        gauge = self._running
        gauge._values[gauge._at] = running

    def ran(self, method_name: str, rows: int, requests: int, seconds: float) -> None:
        """Records one run of the model: `requests` that were merged, with `rows` in all. `method_name` is the
        signature's ("tensorflow/serving/classify"): of what API the requests were, a worker does not know."""
        latency = self._latency.get(method_name)
        if latency is None:
            api = API.get(method_name.rpartition("/")[2], "Predict")
            latency = self._latency[method_name] = self._recorder.histogram(TF_RUNTIME_LATENCY, self._model, api, "TF1")
        observed = (
            (latency, float(int(seconds * 1e6))),
            (self._run_duration, seconds),
            (self._batch_requests, requests),
            (self._batch_rows, rows),
        )
        with self._recorder.lock:
            for histogram, value in observed:
                bounds, values, at = histogram._bounds, histogram._values, histogram._at
                values[at + bisect_left(bounds, value)] += 1.0
                values[at + len(bounds) + 1] += value

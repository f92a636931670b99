"""Records a process's metrics.

Recording takes a fraction of a microsecond and cannot fail: each process writes to the memory of its own file
(`metrics.file`). If that file cannot be made or grow, the process logs this once, and its counts are lost. The number
of series is bounded whatever clients send: callers pass the names of known models, or "".
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import TypeVar

import orjson

from appliance.core.errors import as_utf8
from appliance.metrics.catalogue import (
    API,
    BATCH_REQUESTS,
    BATCH_ROWS,
    DOUBTFUL,
    INFLIGHT_BYTES,
    LOAD_DURATION,
    LOADS,
    QUEUE_BYTES,
    QUEUE_REQUESTS,
    REFUSED,
    REQUEST_DURATION,
    REQUESTS,
    RUN_DURATION,
    RUNNING,
    TF_EXAMPLE_TOTAL,
    TF_EXAMPLES,
    TF_LOAD_ATTEMPTS,
    TF_LOAD_LATENCY,
    TF_REQUEST_LATENCY,
    TF_RUNTIME_LATENCY,
    TF_WARMUP_LATENCY,
    UNPROVEN,
    Metric,
    Type,
)
from appliance.metrics.file import Kind, MetricsFile
from appliance.metrics.ownership import WORKER, worker_file
from backends.contract import Code

__all__ = ["Counter", "Gauge", "Histogram", "Recorder", "RequestMetrics", "WorkerMetrics"]

logger = logging.getLogger(__name__)


class _Series:
    """Values in a process's file. The lock is the recorder's, because threads of one process share its series."""

    __slots__ = ("_at", "_bounds", "_lock", "_values")

    def __init__(self, values: memoryview[float], at: int, bounds: tuple[float, ...], lock: threading.Lock) -> None:
        self._values = values
        self._at = at
        self._bounds = bounds
        self._lock = lock


class Counter(_Series):
    """A total that only grows."""

    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        """Add `amount`, which is not negative. Several threads may call this at once."""
        with self._lock:
            self._values[self._at] += amount


class Gauge(_Series):
    """A current value."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Replace the value."""
        self._values[self._at] = value


class Histogram(_Series):
    """Counts of values by bucket, and their sum."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        """Count one value."""
        with self._lock:
            _observe(self, value)


def _observe(histogram: Histogram, value: float) -> None:
    bounds, values, at = histogram._bounds, histogram._values, histogram._at
    values[at + bisect_left(bounds, value)] += 1.0
    values[at + len(bounds) + 1] += value


S = TypeVar("S", bound=_Series)


class Recorder:
    """A process's metrics. Create it after the last fork, because the file belongs to one process.

    `role` is the kind of process ("rest", "grpc", "worker", "supervisor"); `model`, `version` and the version folder
    `path` are a worker's, which can count for no other.
    """

    def __init__(self, directory: str, role: str, model: str = "", version: str = "", path: str = "") -> None:
        self.lock = threading.Lock()
        self._series: dict[tuple[str, ...], _Series] = {}
        self._off = False
        self._file: MetricsFile | None = None
        try:
            self._file = MetricsFile(directory, worker_file(model, version, path) if role == WORKER else role)
        except OSError as error:
            self._switch_off(error)
        values, at = self._allocate(Kind.PROCESS, _key((role, model, version)), 2)
        values[at] = float(os.getpid())
        values[at + 1] = time.time()

    def counter(self, metric: Metric, *labels: str) -> Counter:
        """Return the counter of `metric` with `labels`."""
        return self._get(Counter, metric, labels)

    def gauge(self, metric: Metric, *labels: str) -> Gauge:
        """Return the gauge of `metric` with `labels`."""
        return self._get(Gauge, metric, labels)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Return the histogram of `metric` with `labels`."""
        return self._get(Histogram, metric, labels)

    def _get(self, series: type[S], metric: Metric, labels: tuple[str, ...]) -> S:
        """Return the series with these labels, made at the first call. Frequent callers should keep it."""
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
        return memoryview(bytearray(8 * count)).cast("d"), 0  # not in a file, so it is not counted

    def _switch_off(self, error: Exception) -> None:
        if not self._off:
            self._off = True
            logger.warning("not all metrics are recorded: %s; is there room in runtime_dir?", error)


def _key(parts: Sequence[str]) -> bytes:
    try:
        return orjson.dumps(parts)
    except TypeError:  # a lone surrogate: a file name that is not UTF-8
        return orjson.dumps(list(map(as_utf8, parts)))


class RequestMetrics:
    """Records the requests of one front."""

    def __init__(self, recorder: Recorder, protocol: str) -> None:
        self._recorder = recorder
        self._protocol = protocol  # "rest" or "grpc"
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram, Histogram | None]] = {}
        self.inflight = recorder.gauge(INFLIGHT_BYTES, protocol).set  # called with the bytes in flight when they change

    def record(self, model: str, method: str, code: Code, seconds: float) -> None:
        """Count one answered request. `model` is the name of a known model, or ""; `method` is the API's ("predict").

        Called for every request, and by one thread only, so it takes no lock and makes few calls.
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
            # TensorFlow Serving's name of the API is the path's in REST, and the method's in gRPC.
            shown = api if self._protocol == "grpc" else method
            tf_latency = recorder.histogram(TF_REQUEST_LATENCY, model, shown, self._protocol.upper())
        return (
            recorder.counter(REQUESTS, self._protocol, model, method, code.name),
            recorder.histogram(REQUEST_DURATION, self._protocol, model, method),
            tf_latency,
        )

    def unproven(self, model: str) -> None:
        """Count a request that the model itself ran, because its form was not proven for the inputs."""
        self._recorder.counter(UNPROVEN, model).add()

    def refused(self, model: str) -> None:
        """Count a request that was refused because such requests have ended the model's process."""
        self._recorder.counter(REFUSED, model).add()

    def examples(self, model: str, count: int) -> None:
        """Count the examples of a Classify, Regress or MultiInference request to a known model."""
        self._recorder.histogram(TF_EXAMPLES, model).observe(count)
        self._recorder.counter(TF_EXAMPLE_TOTAL, model).add(count)


class WorkerMetrics:
    """Records what the worker of one version does."""

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

    def doubtful(self, answers: int) -> None:
        """Count answers that may be wrong."""
        self._recorder.counter(DOUBTFUL, self._model).add(answers)

    def loaded(self, path: str, seconds: float) -> None:
        """Record a successful load of the version folder `path` in `seconds`."""
        self._recorder.counter(LOADS, self._model, "ok").add()
        self._recorder.histogram(LOAD_DURATION, self._model).observe(seconds)
        self._recorder.counter(TF_LOAD_ATTEMPTS, path, "success").add()
        self._recorder.counter(TF_LOAD_LATENCY, path).add(round(seconds * 1e6))

    def load_failed(self, path: str) -> None:
        """Record a failed load of the version folder `path`."""
        self._recorder.counter(LOADS, self._model, "failed").add()
        self._recorder.counter(TF_LOAD_ATTEMPTS, path, "fail").add()

    def warmed_up(self, path: str, seconds: float, status: str = "OK") -> None:
        """Record a warm-up with the version's own requests; `status` is "OK" or a canonical code's name."""
        self._recorder.histogram(TF_WARMUP_LATENCY, path, status).observe(round(seconds * 1e6))

    def queue(self, requests: int, nbytes: int, running: int) -> None:
        """Record the state of the queue: waiting requests, their bytes, and current runs."""
        # Called twice for each request, so it makes no calls itself.
        gauge = self._queue_requests
        gauge._values[gauge._at] = requests
        gauge = self._queue_bytes
        gauge._values[gauge._at] = nbytes
        gauge = self._running
        gauge._values[gauge._at] = running

    def ran(self, method_name: str, rows: int, requests: int, seconds: float) -> None:
        """Record one run of the model with `requests` merged requests, which have `rows` in total.

        `method_name` is the signature's ("tensorflow/serving/classify"), because a worker does not know the requests'
        API.
        """
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

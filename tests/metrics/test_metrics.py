"""What processes count: kept when they are killed, added up, and shown in Prometheus's format."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from appliance.core.errors import Code
from appliance.host.memory import proportional_bytes, resident_bytes
from appliance.metrics import catalogue
from appliance.metrics.catalogue import METRICS, Page, Type, is_passing
from appliance.metrics.file import CHUNK_BYTES, MAX_FILE_BYTES, Kind, MetricsFile, collect, fold
from appliance.metrics.ownership import worker_file
from appliance.metrics.recording import Recorder, RequestMetrics, WorkerMetrics
from appliance.metrics.text import read_series, render, render_tensorflow
from tests.support.server import ROOT

LABELS = ("rest", "m", "predict", "OK")


def total(directory: Path, metric: catalogue.Metric = catalogue.REQUESTS, labels: tuple[str, ...] = LABELS) -> float:
    """The value, or a histogram's count, over all processes."""
    values = read_series(collect(str(directory)).series).get(metric.name, {}).get(labels)
    return 0.0 if values is None else sum(values[:-1]) if metric.type is Type.HISTOGRAM else values[0]


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a child process, which then waits to be killed; its number, once `work` is done."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(write, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.close(read)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def record_requests(directory: Path, count: int) -> None:
    recorded = RequestMetrics(Recorder(str(directory), "rest"), "rest")
    for _ in range(count):
        recorded.record("m", "predict", Code.OK, 0.003)
    recorded.inflight(7)


# -- files -----------------------------------------------------------------------------------------------------


def test_a_killed_process_has_lost_nothing(tmp_path: Path) -> None:
    pid = in_child(lambda: record_requests(tmp_path, 1000))
    assert total(tmp_path) == 1000
    kill(pid)
    assert total(tmp_path) == 1000
    assert total(tmp_path, catalogue.REQUEST_DURATION, ("rest", "m", "predict")) == 1000


def test_a_kill_in_the_middle_loses_at_most_what_is_being_written(tmp_path: Path) -> None:
    def work() -> None:
        recorder = Recorder(str(tmp_path), "rest")
        first = recorder.counter(catalogue.REQUESTS, *LABELS)
        second = recorder.counter(catalogue.WORKER_RESTARTS, "m")

        def count() -> None:
            while True:
                first.add()
                second.add()

        threading.Thread(target=count, daemon=True).start()
        while not total(tmp_path):
            pass

    kill(in_child(work))
    one, other = total(tmp_path), total(tmp_path, catalogue.WORKER_RESTARTS, ("m",))
    assert one > 0
    assert one - other in (0, 1)


def test_totals_add_up_over_processes_and_gauges_end_with_theirs(tmp_path: Path) -> None:
    pids = [in_child(lambda: record_requests(tmp_path, 10)) for _ in range(3)]
    inflight = (catalogue.INFLIGHT_BYTES, ("rest",))
    assert (total(tmp_path), total(tmp_path, *inflight)) == (30, 21)
    assert sorted(process.pid for process in collect(str(tmp_path)).processes) == sorted(pids)
    kill(pids[0])
    assert (total(tmp_path), total(tmp_path, *inflight)) == (30, 14)
    assert sorted(process.pid for process in collect(str(tmp_path)).processes) == sorted(pids[1:])
    for pid in pids[1:]:
        kill(pid)
    assert (total(tmp_path), total(tmp_path, *inflight)) == (30, 0)


def test_a_fold_keeps_totals_and_deletes_the_files_of_ended_processes_only(tmp_path: Path) -> None:
    for _ in range(2):  # the second fold adds to what the first left
        kill(in_child(lambda: record_requests(tmp_path, 5)))
        living = in_child(lambda: record_requests(tmp_path, 3))
        try:
            before = total(tmp_path)
            assert fold(str(tmp_path), is_passing) >= 1
            assert total(tmp_path) == before
            assert len(os.listdir(tmp_path)) == 2  # the base and the living one's
            assert fold(str(tmp_path), is_passing) == 0
        finally:
            kill(living)
    assert total(tmp_path) == 16


def test_a_fold_that_is_cut_short_before_it_deletes_counts_nothing_twice(tmp_path: Path) -> None:
    kill(in_child(lambda: record_requests(tmp_path, 5)))
    (name,) = os.listdir(tmp_path)
    shutil.copy(tmp_path / name, tmp_path / "kept")
    fold(str(tmp_path), is_passing)
    os.rename(tmp_path / "kept", tmp_path / name)  # as it lies there when the fold is killed after its rename
    assert total(tmp_path) == 5
    kill(in_child(lambda: record_requests(tmp_path, 1)))
    fold(str(tmp_path), is_passing)
    assert total(tmp_path) == 6
    assert os.listdir(tmp_path) == ["base"]


def test_a_fold_that_is_cut_short_before_its_rename_has_changed_nothing(tmp_path: Path) -> None:
    kill(in_child(lambda: record_requests(tmp_path, 5)))
    (tmp_path / ".new-base").write_bytes(b"half of it")
    assert total(tmp_path) == 5
    fold(str(tmp_path), is_passing)
    assert total(tmp_path) == 5
    assert os.listdir(tmp_path) == ["base"]


def test_what_a_killed_process_began_to_make_is_deleted_after_a_while(tmp_path: Path) -> None:
    old, new = tmp_path / ".new-a.metrics", tmp_path / ".new-b.metrics"
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, 0))
    fold(str(tmp_path), is_passing)
    assert os.listdir(tmp_path) == [new.name]


def test_totals_never_fall_while_processes_die_and_are_folded(tmp_path: Path) -> None:
    over = threading.Event()
    failures: list[str] = []

    def read() -> None:
        last = 0.0
        while not over.is_set():
            now = total(tmp_path)
            if now < last:
                failures.append(f"{last} fell to {now}")
            last = now

    def take_in() -> None:
        while not over.is_set():
            fold(str(tmp_path), is_passing)

    threads = [threading.Thread(target=read), threading.Thread(target=read), threading.Thread(target=take_in)]
    program = (
        "import os, sys; from pathlib import Path; from tests.metrics.test_metrics import record_requests\n"
        "for _ in range(30):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        record_requests(Path(sys.argv[1]), 20); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    for thread in threads:
        thread.start()
    try:
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=60, check=True)
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    fold(str(tmp_path), is_passing)
    assert failures == []
    assert total(tmp_path) == 600
    assert os.listdir(tmp_path) == ["base"]


def test_a_file_grows_and_what_was_handed_out_before_still_counts(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path), "rest")
    counters = [recorder.counter(catalogue.REQUESTS, "rest", f"model-{n}", "predict", "OK") for n in range(1000)]
    for n, counter in enumerate(counters):
        counter.add(n)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size > CHUNK_BYTES
    found = read_series(collect(str(tmp_path)).series)[catalogue.REQUESTS.name]
    assert {labels[1]: values[0] for labels, values in found.items()} == {f"model-{n}": n for n in range(1000)}


def test_threads_of_one_process_lose_no_count(tmp_path: Path) -> None:
    worker = WorkerMetrics(Recorder(str(tmp_path), "worker", "m", "1"), "m", 1)

    def run() -> None:
        for _ in range(5000):
            worker.ran("tensorflow/serving/predict", 1, 1, 0.001)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total(tmp_path, catalogue.RUN_DURATION, ("m",)) == 20_000
    assert total(tmp_path, catalogue.TF_RUNTIME_LATENCY, ("m", "Predict", "TF1")) == 20_000


@pytest.mark.parametrize("room", [0, CHUNK_BYTES])
def test_a_full_disk_stops_recording_with_one_warning_and_no_error(tmp_path: Path, room: int) -> None:
    program = (
        "import logging, resource, sys\n"
        "from appliance.metrics import catalogue, recording\n"
        "logging.basicConfig(format='%(message)s')\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "recorder = recording.Recorder(sys.argv[1], 'rest')\n"
        "for n in range(1000):\n"
        "    recorder.counter(catalogue.WORKER_RESTARTS, f'model-{n}').add()\n"
        "    recorder.counter(catalogue.WORKER_RESTARTS, 'model-0').add()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert len(ended.stderr.splitlines()) == 1
    assert "not all metrics are recorded" in ended.stderr
    assert total(tmp_path, catalogue.WORKER_RESTARTS, ("model-0",)) == (1001 if room else 0)


def test_a_file_has_a_largest_size(tmp_path: Path) -> None:
    file = MetricsFile(str(tmp_path), "rest")
    for n in range(2 * (MAX_FILE_BYTES // CHUNK_BYTES)):
        file.allocate(Kind.TOTAL, str(n).encode(), 1000)  # two fit into a chunk
    with pytest.raises(ValueError, match="which is the most"):
        file.allocate(Kind.TOTAL, b"one more", 1000)
    with pytest.raises(ValueError, match="larger than a chunk"):
        file.allocate(Kind.TOTAL, b"x" * CHUNK_BYTES, 1)
    assert os.stat(file.path).st_size == MAX_FILE_BYTES


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_damaged_file_harms_no_other(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("metrics")
    record_requests(directory, 5)  # its recorder is gone: a file like that of a process that ended
    (path,) = directory.iterdir()
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, 600))
    damage = data.draw(st.binary(min_size=1, max_size=64))
    content[position : position + len(damage)] = damage
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    living = Recorder(str(directory), "rest")
    living.counter(catalogue.WORKER_RESTARTS, "well").add(3)
    found = read_series(collect(str(directory)).series)
    assert found[catalogue.WORKER_RESTARTS.name] == {("well",): (3.0,)}
    render(found)
    render_tensorflow(found)


def test_a_process_that_runs_a_model_harms_no_other_by_what_it_writes(tmp_path: Path) -> None:
    """Neither by numbers that are none, nor by series without end, nor by those that fill the file of the ended."""
    good = Recorder(str(tmp_path), "supervisor")
    good.counter(catalogue.WORKER_RESTARTS, "good").add()

    def write() -> None:
        file = MetricsFile(str(tmp_path), worker_file("m", "1", "/m/1"))
        values, at = file.allocate(Kind.PROCESS, b'["worker", "m", "1"]', 2)
        values[at], values[at + 1] = math.inf, math.nan
        while True:
            try:
                key = [catalogue.LOADS.name, "m", f"{os.getpid()} {len(file._maps)} {os.urandom(2000).hex()}"]
                file.allocate(Kind.TOTAL, json.dumps(key).encode(), 1)
            except ValueError:
                break

    for _ in range(20):
        kill(in_child(write))
        fold(str(tmp_path), is_passing)
    pid = in_child(write)
    try:
        collected = collect(str(tmp_path))
    finally:
        kill(pid)
    assert [process.role for process in collected.processes] == ["supervisor"]
    assert total(tmp_path, catalogue.WORKER_RESTARTS, ("good",)) == 1.0
    good.counter(catalogue.WORKER_RESTARTS, "good").add()
    assert total(tmp_path, catalogue.WORKER_RESTARTS, ("good",)) == 2.0


def test_a_process_that_runs_a_model_counts_for_no_other(tmp_path: Path) -> None:
    """Whatever it writes to its file; and what it counts for itself is there as long as it lives, and afterwards."""

    def work() -> None:
        recorder = Recorder(str(tmp_path), "worker", "m", "1", "/models/m/1")
        worker = WorkerMetrics(recorder, "m", 1)
        worker.loaded("/models/m/1", 1.0)
        worker.queue(3, 0, 0)
        other = WorkerMetrics(recorder, "other", 1)
        other.loaded("/models/other/1", 1.0)
        other.queue(3, 0, 0)
        other.ran("tensorflow/serving/predict", 1, 1, 0.5)
        WorkerMetrics(recorder, "m", 2).queue(3, 0, 0)
        recorder.counter(catalogue.HANGS, "rest").add()
        for role, model, version, pid in (("worker", "other", "1", os.getpid()), ("rest", "m", "1", 1)):
            values, at = recorder._allocate(Kind.PROCESS, json.dumps([role, model, version]).encode(), 2)
            values[at] = pid

    def counted() -> dict[str, set[tuple[str, ...]]]:
        series = read_series(collect(str(tmp_path)).series)
        return {name: {labels for labels in found if any(found[labels])} for name, found in series.items()}

    pid = in_child(work)
    found = counted()
    (process,) = collect(str(tmp_path)).processes
    assert (process.role, process.model, process.version, process.pid) == ("worker", "m", "1", pid)
    assert found[catalogue.QUEUE_REQUESTS.name] == {("m", "1")}
    totals = {name: labels for name, labels in found.items() if labels and name != catalogue.QUEUE_REQUESTS.name}
    assert totals == {
        catalogue.LOADS.name: {("m", "ok")},
        catalogue.LOAD_DURATION.name: {("m",)},
        catalogue.TF_LOAD_ATTEMPTS.name: {("/models/m/1", "success")},
        catalogue.TF_LOAD_LATENCY.name: {("/models/m/1",)},
    }
    kill(pid)
    fold(str(tmp_path), is_passing)
    assert {name: labels for name, labels in counted().items() if labels} == totals


def test_of_what_comes_and_goes_without_end_only_the_newest_is_kept(tmp_path: Path) -> None:
    def work() -> None:
        worker = WorkerMetrics(Recorder(str(tmp_path), "all workers", "m", "1"), "m", 1)
        for n in range(1500):
            worker.loaded(f"/models/m/{n}", 1.0)

    kill(in_child(work))
    fold(str(tmp_path), is_passing)
    found = read_series(collect(str(tmp_path)).series)
    paths = {labels[0] for labels in found[catalogue.TF_LOAD_LATENCY.name]}
    assert len(paths) == 500
    assert "/models/m/1499" in paths
    assert total(tmp_path, catalogue.LOADS, ("m", "ok")) == 1500


# -- text ------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
@settings(deadline=None)
def test_every_label_value_survives_the_text(model: str) -> None:
    samples = {catalogue.WORKER_RESTARTS.name: {(model,): (3.0,)}}
    text = render(samples).encode(errors="replace").decode()
    (family,) = [f for f in text_string_to_metric_families(text) if f.samples]
    assert [(s.labels, s.value) for s in family.samples] == [({"model": model.encode(errors="replace").decode()}, 3.0)]


@pytest.mark.parametrize("value", [0.0, 0.25, 3.0, 2.0**53, 1e300, -1.5, math.inf, -math.inf])
def test_every_number_survives_the_text(value: float) -> None:
    text = render({catalogue.READY.name: {(): (value,)}})
    (family,) = [f for f in text_string_to_metric_families(text) if f.samples]
    assert family.samples[0].value == value


def test_a_histogram_is_cumulative_and_ends_at_infinity(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path), "worker", "m")
    histogram = recorder.histogram(catalogue.BATCH_ROWS, "m")
    for rows in (1, 2, 3, 5000):
        histogram.observe(rows)
    text = render(read_series(collect(str(tmp_path)).series))
    (family,) = [f for f in text_string_to_metric_families(text) if f.samples]
    assert (family.name, family.type) == ("dropserve_batch_rows", "histogram")
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert buckets["1"] == 1
    assert buckets["2"] == 2
    assert buckets["4"] == buckets["1024"] == 3
    assert buckets["+Inf"] == 4
    assert {s.name: s.value for s in family.samples if "le" not in s.labels} == {
        "dropserve_batch_rows_sum": 5006,
        "dropserve_batch_rows_count": 4,
    }


def test_every_line_of_both_pages_is_of_the_format(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path), "rest")
    for metric in METRICS:
        labels = [f'{name} \\ "quoted"\nvalue' for name in metric.labels]
        if metric.type is Type.COUNTER:
            recorder.counter(metric, *labels).add()
        elif metric.type is Type.GAUGE:
            recorder.gauge(metric, *labels).set(0.5)
        else:
            recorder.histogram(metric, *labels).observe(1.5)
    RequestMetrics(recorder, "rest").record('"m"', "predict", Code.OK, 0.25)
    samples = read_series(collect(str(tmp_path)).series)
    line = re.compile(
        r"# (HELP [a-z_]+ [^\n]+|TYPE [a-z_:]+ (counter|gauge|histogram))"
        r'|[a-z_:]+(\{([a-zA-Z_]+="(\\["n\\]|[^"\\\n])*"(,|(?=\})))*\})? (\d+(\.\d+)?(e[+-]?\d+)?|\+Inf)'
    )
    for text, page in ((render(samples), Page.OWN), (render_tensorflow(samples), Page.TENSORFLOW_SERVING)):
        assert text.endswith("\n")
        for written in text[:-1].split("\n"):
            assert line.fullmatch(written), written
        families = {f.name: f for f in text_string_to_metric_families(text)}
        wanted = [metric for metric in METRICS if metric.page is page]
        assert len(families) == len(wanted)
        for metric in wanted:
            family = families[metric.name.removesuffix("_total")]  # the parser calls counters so
            assert family.type == metric.type.value
            assert family.samples


def test_names_follow_the_conventions_of_their_page() -> None:
    for metric in METRICS:
        if metric.page is Page.TENSORFLOW_SERVING:
            assert re.fullmatch(r"(:[a-z_]+)+", metric.name)
            continue
        assert re.fullmatch(r"dropserve(_[a-z]+)+", metric.name)
        assert (metric.type is Type.COUNTER) == metric.name.endswith("_total")
        assert metric.help.endswith(".")


def test_bounds_and_series_are_those_of_tensorflow_serving(tmp_path: Path) -> None:
    recorded = RequestMetrics(Recorder(str(tmp_path), "grpc"), "grpc")
    recorded.record("m", "predict", Code.OK, 0.000_2)
    recorded.record("m", "predict", Code.INVALID_ARGUMENT, 0.000_2)
    recorded.examples("m", 3)
    WorkerMetrics(Recorder(str(tmp_path), "worker", "m", "1"), "m", 1).ran("tensorflow/serving/classify", 1, 1, 0.5)
    lines = render_tensorflow(read_series(collect(str(tmp_path)).series)).splitlines()
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 1' in lines
    assert ':tensorflow:serving:request_count{model_name="m",status="INVALID_ARGUMENT"} 1' in lines
    latency = ':tensorflow:serving:request_latency_bucket{model_name="m",API="Predict",entrypoint="GRPC",le="'
    found = {x.removeprefix(latency).split('"')[0]: x.split()[-1] for x in lines if x.startswith(latency)}
    # As TensorFlow itself has them for Buckets::Exponential(10, 1.8, 33), at six digits; failures have no latency.
    assert list(found)[:8] == ["10", "18", "32.4", "58.32", "104.976", "188.957", "340.122", "612.22"]
    assert list(found)[-3:] == ["8.19309e+08", "1.47476e+09", "+Inf"]
    assert (len(found), found["188.957"], found["340.122"], found["+Inf"]) == (34, "0", "1", "1")
    assert ':tensorflow:serving:request_latency_sum{model_name="m",API="Predict",entrypoint="GRPC"} 200' in lines
    assert ':tensorflow:serving:request_example_counts_bucket{model="m",le="4"} 1' in lines
    assert ':tensorflow:serving:request_example_count_total{model="m"} 3' in lines
    assert ':tensorflow:serving:runtime_latency_count{model_name="m",API="Classify",runtime="TF1"} 1' in lines
    assert ":tensorflow:core:graph_runs{} 1" in lines
    assert ":tensorflow:core:graph_run_time_usecs{} 500000" in lines


def test_what_fits_no_metric_is_not_shown() -> None:
    name = catalogue.WORKER_RESTARTS.name.encode()
    assert read_series({b'["evil"]': (1.0,), b"{": (1.0,), b"[]": (1.0,), b"7": (1.0,), b"[[]]": (1.0,)}) == {}
    assert read_series({b'["%s"]' % name: (1.0,), b'["%s",1]' % name: (1.0,), b'["%s","m"]' % name: (1.0, 2.0)}) == {}


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert [metric.name for metric in METRICS if f"`{metric.name}" not in page] == []


# -- memory ----------------------------------------------------------------------------------------------------


def test_memory_of_a_process_is_read_and_of_none_is_none() -> None:
    resident, proportional = resident_bytes(os.getpid()), proportional_bytes()
    assert resident is not None
    assert proportional is not None
    assert 1 << 20 < proportional <= resident * 1.5
    pid = in_child(lambda: None)
    kill(pid)
    assert resident_bytes(pid) is None

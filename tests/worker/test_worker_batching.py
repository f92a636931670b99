"""The worker's threads and sockets: what waits is merged, or with batching waits for others. Backends are passed in."""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from appliance.config.batching_parameters import BatchingParameters
from appliance.config.model_options import ModelOptions
from appliance.metrics.recording import Recorder, WorkerMetrics
from appliance.transport.channel import Channel
from appliance.transport.wire import (
    FLAG_UNPROVEN,
    Frame,
    Kind,
    header,
    inline,
    pack_arrays,
    predict_meta,
    unpack_arrays,
)
from appliance.worker.run_record import RunRecord, read_record
from appliance.worker.run_times import RunTimes
from appliance.worker.serving import Worker
from appliance.worker.task import WorkerTask, concurrency_of
from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.domain import FINITE, Bounded
from backends.samples import new_file, read_samples
from tests.support.server import eventually

SECONDS = 30.0
VECTOR = TensorSpec("float32", (-1,))
Arrays = Mapping[str, np.ndarray]


class Gated:
    """y = 2 x, but each run waits for a permit. `started` has the x of every run; a negative x is an error."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray] = lambda x: x * 2) -> None:
        self.signatures = {"s": Signature({"x": VECTOR}, {"y": VECTOR})}
        self.started: queue.Queue[list[float]] = queue.Queue()
        self.permits = threading.Semaphore(0)
        self._function = function

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        self.started.put(inputs["x"].tolist())
        assert self.permits.acquire(timeout=SECONDS)
        if (inputs["x"] < 0).any():
            raise BackendError(Code.INVALID_ARGUMENT, "x must not be negative")
        return [self._function(inputs["x"])]


class Front:
    """A client of the worker's socket."""

    def __init__(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        self.channel = Channel(sock)
        sock.settimeout(SECONDS)
        self._answers: dict[int, Frame] = {}
        self.flags: dict[int, int] = {}

    def send(self, request_id: int, *x: float, deadline_ns: int = 0) -> None:
        self.channel.sock.sendall(self.frame(request_id, *x, deadline_ns=deadline_ns))

    @staticmethod
    def frame(request_id: int, *x: float, deadline_ns: int = 0) -> bytes:
        packed = pack_arrays([("x", np.array(x, np.float32))])
        meta = predict_meta("s", ["y"], packed.table)
        head = header(Kind.PREDICT, len(meta), packed.payload_bytes, request_id, deadline_ns)
        return b"".join([head, meta, *inline(packed)])

    def cancel(self, request_id: int) -> None:
        self.channel.sock.sendall(header(Kind.CANCEL, 0, 0, request_id))

    def answer(self, request_id: int) -> Any:
        """The values of y, or the code and message of an error."""
        while request_id not in self._answers:
            for frame in self.channel.receive():
                self._answers[frame.request_id] = frame
        frame = self._answers.pop(request_id)
        self.flags[request_id] = frame.flags
        if frame.kind == Kind.ERROR:
            return Code(frame.meta[0]), frame.meta[1:].decode()
        assert frame.kind == Kind.RESULT
        assert frame.payload is not None
        return unpack_arrays(frame.meta, frame.payload)["y"].tolist()


class Harness:
    """A worker in threads of this process, with one front."""

    def __init__(
        self,
        directory: str,
        backend: Gated,
        batching: BatchingParameters | None,
        mergeable: bool,
        is_watched: bool,
        is_form: bool,
        run_times: RunTimes | None,
        **options: Any,
    ) -> None:
        path = os.path.join(directory, "socket")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(8)
        self._control, theirs = socket.socketpair()
        model_options = ModelOptions(**{"max_concurrent_requests": 1, **options})
        task = WorkerTask(
            model="m",
            version=1,
            path=directory,
            socket_path=path,
            backend="tensorflow",
            form_path=directory if is_form else "",
            check_files=True,
            metrics_directory=directory,
            max_concurrent_requests=model_options.max_concurrent_requests,
            options=model_options,
            is_watched=is_watched,
        )
        self.record_path = task.record_path
        self.backend = backend
        self.worker = Worker(
            task,
            backend,
            theirs,
            listener,
            batching=batching,
            mergeable=frozenset({"s"} if mergeable else ()),
            metrics=WorkerMetrics(Recorder(directory, "worker", "m", "1"), "m", 1),
            record=RunRecord(task.record_path, concurrency_of(task, batching) + 1, is_watched=is_watched),
            run_times=run_times or RunTimes(),
        )
        self._thread = threading.Thread(target=self.worker.run)
        self._thread.start()
        self.path = path
        self.front = Front(path)
        self._held = (listener, theirs)

    def ask(self, method: str, file: int | None = None, **params: Any) -> Any:
        """The worker's answer to a question of the supervisor."""
        if file is not None:
            socket.send_fds(self._control, [b'{"do": "file"}\n'], [file])
        question = {"do": "answer", "ask": 1, "method": method, "params": params}
        self._control.sendall(json.dumps(question).encode() + b"\n")
        self._control.settimeout(SECONDS)
        return json.loads(self._control.makefile().readline())

    def ping(self) -> dict[str, Any]:
        """The sign of life that the worker gives when the supervisor asks for one."""
        self._control.sendall(b'{"do": "ping"}\n')
        self._control.settimeout(SECONDS)
        return json.loads(self._control.makefile().readline())

    def drain(self) -> None:
        self._control.sendall(b'{"do": "drain"}\n')

    def ended(self) -> bool:
        """Whether the worker ends by itself."""
        self._thread.join(SECONDS)
        return not self._thread.is_alive()

    def end(self) -> None:
        self.backend.permits.release(1000)
        self.drain()
        assert self.ended(), "the worker did not drain"
        self.front.channel.close()
        for held in (*self._held, self._control):
            held.close()

    def runs(self) -> list[float]:
        """The x of the next run that starts."""
        return self.backend.started.get(timeout=SECONDS)

    def waits(self, count: int) -> None:
        eventually(lambda: self.worker.waiting == count, f"{count} requests wait", SECONDS)


Start = Callable[..., Harness]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Harness] = []
    directories: list[str] = []

    def start_worker(
        batching: BatchingParameters | None = None,
        mergeable: bool = True,
        backend: Gated | None = None,
        is_watched: bool = False,
        is_form: bool = False,
        run_times: RunTimes | None = None,
        **options: Any,
    ) -> Harness:
        directories.append(tempfile.mkdtemp(prefix="ds-"))  # short: a socket's path has little room
        backend = backend or Gated()
        started.append(
            Harness(directories[-1], backend, batching, mergeable, is_watched, is_form, run_times, **options)
        )
        return started[-1]

    yield start_worker
    for harness in started:
        harness.end()
    for directory in directories:
        shutil.rmtree(directory)


def parameters(size: int = 4, timeout: int = 60_000_000, threads: int = 1, **fields: Any) -> BatchingParameters:
    return BatchingParameters(
        **{
            "max_batch_size": size,
            "batch_timeout_micros": timeout,
            "num_batch_threads": threads,
            "max_execution_batch_size": size,
            **fields,
        }
    )


def busy(harness: Harness) -> None:
    """Keeps the only thread busy with request 1, until a permit."""
    harness.front.send(1, 1)
    assert harness.runs() == [1]


def test_requests_that_wait_run_together_and_each_gets_its_own_answer(start: Start) -> None:
    harness = start()
    busy(harness)
    harness.front.send(2, 2)
    harness.front.send(3, 3, 4)
    harness.front.send(4, 5)
    harness.waits(3)
    harness.backend.permits.release(2)
    assert harness.runs() == [2, 3, 4, 5]
    assert [harness.front.answer(number) for number in (1, 2, 3, 4)] == [[2], [4], [6, 8], [10]]


def test_without_a_proof_or_with_the_option_off_requests_run_one_by_one(start: Start) -> None:
    for harness in (start(mergeable=False), start(merge_waiting_requests=False)):
        busy(harness)
        harness.front.send(2, 2)
        harness.front.send(3, 3)
        harness.waits(2)
        harness.backend.permits.release(3)
        assert [harness.runs(), harness.runs()] == [[2], [3]]


def test_a_free_thread_takes_a_request_at_once_and_alone(start: Start) -> None:
    harness = start(max_concurrent_requests=3)
    for number in (1, 2, 3):
        harness.front.send(number, number)
    assert sorted(harness.runs() for _ in range(3)) == [[1], [2], [3]]


def short(harness: Harness, run_times: RunTimes) -> None:
    """Lets one-row requests run until the leader runs them itself."""
    kind = predict_meta("s", ["y"], pack_arrays([("x", np.array([1], np.float32))]).table)
    for number in range(100):
        if run_times.number_of_short(kind):
            return
        harness.backend.permits.release(1)
        harness.front.send(number, 0)
        assert harness.front.answer(number) == [0]
        harness.runs()
    pytest.fail("one-row requests are not short")


ALL_ARE_SHORT = 3600.0


def test_a_short_request_that_goes_on_for_long_holds_up_no_others(start: Start) -> None:
    run_times = RunTimes(ALL_ARE_SHORT)
    harness = start(run_times=run_times, max_concurrent_requests=2)
    short(harness, run_times)
    harness.front.send(1001, 1)
    assert harness.runs() == [1]
    harness.front.send(1002, 2)
    assert harness.runs() == [2]
    assert harness.ping()["alive"]
    harness.front.send(1003, 3)
    harness.waits(1)
    harness.front.cancel(1003)
    for _ in range(2):  # what answers the second has read all that came before the first
        assert harness.ping()["alive"]
    harness.backend.permits.release(2)
    assert [harness.front.answer(number) for number in (1001, 1002)] == [[2], [4]]
    assert harness.front.answer(1003)[0] is Code.CANCELLED


def test_short_requests_that_have_come_together_run_together_in_the_leader(start: Start) -> None:
    run_times = RunTimes(ALL_ARE_SHORT)
    harness = start(run_times=run_times, max_concurrent_requests=3)
    short(harness, run_times)
    harness.backend.permits.release(1)
    harness.front.channel.sock.sendall(b"".join(harness.front.frame(1000 + x, x) for x in (1, 2, 3)))
    assert harness.runs() == [1, 2, 3]
    assert [harness.front.answer(1000 + x) for x in (1, 2, 3)] == [[2], [4], [6]]


def test_small_and_large_results_of_one_run_reach_their_fronts(start: Start) -> None:
    harness = start(max_merged_batch_size=100_000)
    other = Front(harness.path)
    busy(harness)
    harness.front.send(2, 2)
    harness.waits(1)
    other.send(2, 3)
    harness.waits(2)
    large = [4.0] * 10_000
    harness.front.send(3, *large)
    harness.front.send(4, 5)
    harness.waits(4)
    harness.backend.permits.release(2)
    assert harness.front.answer(1) == [2]
    assert [harness.front.answer(number) for number in (2, 3, 4)] == [[4], [8.0] * 10_000, [10]]
    assert other.answer(2) == [6]
    other.channel.close()


def test_the_last_short_request_ends_a_worker_that_drains(start: Start) -> None:
    run_times = RunTimes(ALL_ARE_SHORT)
    harness = start(run_times=run_times, max_concurrent_requests=2)
    short(harness, run_times)
    harness.front.send(1001, 1)
    assert harness.runs() == [1]
    harness.drain()
    harness.backend.permits.release(1)
    assert harness.front.answer(1001) == [2]
    assert harness.ended()


def test_no_more_rows_are_merged_than_the_option_says(start: Start) -> None:
    harness = start(max_merged_batch_size=3)
    busy(harness)
    for number in range(2, 7):
        harness.front.send(number, number)
    harness.waits(5)
    harness.backend.permits.release(3)
    assert [harness.runs(), harness.runs()] == [[2, 3, 4], [5, 6]]


def test_a_bad_request_fails_alone(start: Start) -> None:
    harness = start()
    busy(harness)
    for number, x in ((2, 2), (3, -1), (4, 4)):
        harness.front.send(number, x)
    harness.waits(3)
    harness.backend.permits.release(10)
    assert harness.front.answer(2) == [4]
    assert harness.front.answer(3) == (Code.INVALID_ARGUMENT, "x must not be negative")
    assert harness.front.answer(4) == [8]


def test_what_runs_is_on_record_and_what_waits_is_not(start: Start) -> None:
    harness = start()
    busy(harness)
    harness.front.send(2)
    harness.front.send(3, -1)
    harness.front.send(4, 2, 3)
    harness.waits(3)
    held = read_record(harness.record_path).held
    assert [str(one.kind) for one in held] == ['signature "s" with x: float32 [any]']
    harness.backend.permits.release(1)
    assert harness.runs() == []
    held = read_record(harness.record_path).held
    assert [str(one.kind) for one in held] == ['signature "s" with x: float32 [0]']
    assert [kind.inputs[0][2] for kind in read_record(harness.record_path).answered] == [(-1,)]
    harness.backend.permits.release(4)
    assert harness.front.answer(3) == (Code.INVALID_ARGUMENT, "x must not be negative")
    assert harness.front.answer(4) == [4, 6]
    runs = eventually(lambda: None if (found := read_record(harness.record_path)).held else found, "nothing runs")
    assert {kind.inputs[0][2] for kind in runs.answered} == {(-1,), (0,)}


@pytest.mark.parametrize("batching", [None, parameters(timeout=0, threads=2)])
def test_after_a_death_requests_run_one_at_a_time_with_their_digests_on_record(
    start: Start, batching: BatchingParameters | None
) -> None:
    harness = start(batching=batching, is_watched=True, max_concurrent_requests=2)
    digests = set()
    for number in (1, 2, 3, 4):
        harness.front.send(number, number)
    for _ in range(4):
        harness.runs()
        (held,) = read_record(harness.record_path).held
        digests.add(held.digest)
        assert harness.backend.started.empty()
        harness.backend.permits.release(1)
    assert [harness.front.answer(number) for number in (1, 2, 3, 4)] == [[2], [4], [6], [8]]
    assert len(digests) == 4


class Form(Gated):
    """A form that was proven for finite inputs with rows."""

    def __init__(self) -> None:
        super().__init__()
        self._inner = Gated()
        self.started, self.permits = self._inner.started, self._inner.permits

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        return Bounded(self._inner, {"s": FINITE}).run(signature, inputs, outputs)


def test_an_input_that_the_form_was_not_proven_for_is_handed_back_and_no_other_that_waits_with_it(start: Start) -> None:
    harness = start(backend=Form())
    busy(harness)
    harness.front.send(2, 2)
    harness.front.send(3, float("nan"))
    harness.front.send(4, 5)
    harness.front.send(5)
    harness.waits(4)
    harness.backend.permits.release(4)
    assert harness.front.answer(2) == [4]
    assert harness.front.answer(4) == [10]
    for odd in (3, 5):
        code, message = harness.front.answer(odd)
        assert code is Code.UNAVAILABLE
        assert "not proven for this input" in message
        assert harness.front.flags[odd] == FLAG_UNPROVEN
    assert harness.front.flags[2] == harness.front.flags[4] == 0


def test_requests_that_nobody_waits_for_are_left_out(start: Start) -> None:
    harness = start()
    busy(harness)
    gone = Front(harness.path)
    gone.send(1, 9)
    harness.waits(1)
    deadline_ns = time.monotonic_ns() + 1_000_000
    harness.front.send(2, 2)
    harness.front.send(3, 3, deadline_ns=deadline_ns)
    harness.front.cancel(2)
    harness.front.send(4, 4)
    harness.waits(4)
    ends = len(os.listdir("/proc/self/fd")) - 2  # of both ends of that connection
    gone.channel.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) == ends, "the front that went is noticed")
    eventually(lambda: time.monotonic_ns() > deadline_ns, "the deadline passes")
    harness.backend.permits.release(2)
    assert harness.runs() == [4]
    assert harness.front.answer(2)[0] == Code.CANCELLED
    assert harness.front.answer(3)[0] == Code.DEADLINE_EXCEEDED
    assert harness.front.answer(4) == [8]


def test_a_signature_that_was_proven_wrongly_answers_rightly_and_is_merged_no_more(start: Start) -> None:
    harness = start(backend=Gated(lambda x: x[:1]))
    busy(harness)
    for number in (2, 3):
        harness.front.send(number, number)
    harness.waits(2)
    harness.backend.permits.release(4)
    assert [harness.runs(), harness.runs(), harness.runs()] == [[2, 3], [2], [3]]
    assert [harness.front.answer(number) for number in (1, 2, 3)] == [[1], [2], [3]]
    busy(harness)
    for number in (2, 3):
        harness.front.send(number, number)
    harness.waits(2)
    harness.backend.permits.release(3)
    assert [harness.runs(), harness.runs()] == [[2], [3]]


# -- with batching ---------------------------------------------------------------------------------------------------


def test_a_full_batch_runs_at_once(start: Start) -> None:
    harness = start(parameters(size=3))
    harness.backend.permits.release(9)
    for number in (1, 2, 3):
        harness.front.send(number, number)
    assert harness.runs() == [1, 2, 3]
    assert [harness.front.answer(number) for number in (1, 2, 3)] == [[2], [4], [6]]


def test_a_batch_waits_for_its_time_without_work_and_meanwhile_takes_requests(start: Start) -> None:
    polls: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "select":
            polls.append(frame.f_code.co_filename)

    threading.setprofile(note)  # of the threads that are started from now on
    try:
        harness = start(parameters(size=100, timeout=1_000_000))
        harness.backend.permits.release(9)
        harness.front.send(1, 1)
        harness.waits(1)
        harness.front.send(2, 2)
        harness.front.send(3, 3)
        assert harness.runs() == [1, 2, 3]
    finally:
        threading.setprofile(None)
    assert 0 < len(polls) < 20  # a leader that does not sleep polls tens of thousands of times a second
    assert [harness.front.answer(number) for number in (1, 2, 3)] == [[2], [4], [6]]


def test_a_batch_that_became_due_while_all_threads_ran_is_not_forgotten(start: Start) -> None:
    harness = start(parameters(size=1000, timeout=500_000))
    busy(harness)
    harness.front.send(2, 2)
    harness.waits(1)
    harness.backend.permits.release(2)
    assert harness.runs() == [2]
    assert harness.front.answer(2) == [4]


def test_as_many_batches_run_at_once_as_there_are_batch_threads(start: Start) -> None:
    harness = start(parameters(size=1, threads=2), max_concurrent_requests=0)
    for number in (1, 2, 3):
        harness.front.send(number, number)
    assert sorted([harness.runs(), harness.runs()]) == [[1], [2]]
    harness.waits(1)
    assert harness.backend.started.empty()
    harness.backend.permits.release(1)
    assert harness.runs() == [3]


def test_a_smaller_number_of_concurrent_requests_bounds_the_batch_threads(start: Start) -> None:
    harness = start(parameters(size=1, threads=8), max_concurrent_requests=1)
    for number in (1, 2):
        harness.front.send(number, number)
    assert harness.runs() == [1]
    harness.waits(1)


def test_a_full_queue_and_a_large_request_are_refused(start: Start) -> None:
    harness = start(parameters(size=2, timeout=0, max_enqueued_batches=1))
    busy(harness)
    harness.front.send(2, 2, 2)
    harness.front.send(3, 3)
    harness.front.send(4, 4, 4, 4)
    code, message = harness.front.answer(3)
    assert code == Code.RESOURCE_EXHAUSTED
    assert message.startswith("The batch scheduling queue to which this task was submitted is full; currently 1 ")
    assert harness.front.answer(4) == (
        Code.INVALID_ARGUMENT,
        "Task size 3 is larger than maximum input batch size 2",
    )


def test_batches_are_padded_to_an_allowed_size_and_answers_are_not(start: Start) -> None:
    harness = start(parameters(size=4, timeout=0, allowed_batch_sizes=(4,)))
    harness.backend.permits.release(9)
    harness.front.send(1, 5, 6)
    assert harness.runs() == [5, 6, 5, 5]
    assert harness.front.answer(1) == [10, 12]


def test_a_large_request_is_split_and_answered_whole(start: Start) -> None:
    split = parameters(
        size=100, timeout=0, enable_large_batch_splitting=True, max_execution_batch_size=2, max_enqueued_batches=9
    )
    harness = start(split)
    harness.backend.permits.release(99)
    harness.front.send(1, 1, 2, 3, 4, 5)
    assert [harness.runs() for _ in range(3)] == [[1, 2], [3, 4], [5]]
    assert harness.front.answer(1) == [2, 4, 6, 8, 10]
    harness.front.send(2, 1, 2, 3, -4)
    assert harness.front.answer(2) == (Code.INVALID_ARGUMENT, "x must not be negative")


def test_one_bad_request_of_a_batch_fails_alone(start: Start) -> None:
    harness = start(parameters(size=3))
    harness.backend.permits.release(99)
    for number, x in ((1, 1), (2, -2), (3, 3)):
        harness.front.send(number, x)
    assert [harness.front.answer(number) for number in (1, 3)] == [[2], [6]]
    assert harness.front.answer(2) == (Code.INVALID_ARGUMENT, "x must not be negative")


def test_a_cancelled_request_is_no_part_of_the_batch_that_runs(start: Start) -> None:
    harness = start(parameters(size=3))
    harness.backend.permits.release(99)
    harness.front.send(1, 1)
    harness.front.cancel(1)
    harness.front.send(2, 2)
    harness.front.send(3, 3)
    assert harness.runs() == [2, 3]
    assert harness.front.answer(1)[0] == Code.CANCELLED
    assert harness.front.answer(2) == [4]


def test_draining_runs_what_waits_at_once(start: Start) -> None:
    harness = start(parameters(size=100))
    harness.backend.permits.release(9)
    harness.front.send(1, 1)
    harness.front.send(2, 2)
    harness.waits(2)
    harness.drain()
    assert harness.runs() == [1, 2]
    assert [harness.front.answer(number) for number in (1, 2)] == [[2], [4]]


def test_a_request_without_rows_does_not_wait(start: Start) -> None:
    harness = start(parameters(size=100))
    harness.backend.permits.release(9)
    harness.front.send(1)
    assert harness.front.answer(1) == []


# -- samples of a form


def taken(harness: Harness, path: Path) -> list[tuple[int, int, list[float], list[float]]]:
    """Number, requests, x and y of the samples that wait."""
    file = new_file(str(path))
    answer = harness.ask("samples", file)
    os.close(file)
    found = list(read_samples(str(path)))
    assert answer["result"]["count"] == len(found)
    return [(s.number, s.requests, s.inputs["x"].tolist(), s.outputs["y"].tolist()) for s in found]


def test_a_form_keeps_what_it_ran_merged_or_alone(start: Start, tmp_path: Path) -> None:
    harness = start(is_form=True)
    busy(harness)
    harness.front.send(2, 2)
    harness.front.send(3, 3, 4)
    harness.waits(2)
    harness.backend.permits.release(2)
    assert [harness.front.answer(number) for number in (1, 2, 3)] == [[2], [4], [6, 8]]
    harness.front.send(4, -1)
    harness.backend.permits.release(1)
    assert harness.front.answer(4)[0] is Code.INVALID_ARGUMENT  # an error is no answer
    assert taken(harness, tmp_path / "samples") == [(1, 1, [1], [2]), (3, 2, [2, 3, 4], [4, 6, 8])]


def test_a_form_with_batching_keeps_the_padded_batch_that_it_ran(start: Start, tmp_path: Path) -> None:
    harness = start(parameters(timeout=0, allowed_batch_sizes=(2, 4)), is_form=True)
    harness.backend.permits.release(2)
    harness.front.send(1, 1, 2, 3)
    assert harness.front.answer(1) == [2, 4, 6]
    harness.front.send(2, 5)  # when it is answered, the first has been looked at: there is one thread
    assert harness.front.answer(2) == [10]
    assert (1, 1, [1, 2, 3, 1], [2, 4, 6, 2]) in taken(harness, tmp_path / "samples")


def test_doubtful_answers_are_counted_until_the_worker_ends(start: Start) -> None:
    harness = start(is_form=True)
    harness.backend.permits.release(3)
    for number in (1, 2, 3):
        harness.front.send(number, number)
        harness.front.answer(number)
    assert harness.ask("doubt", since=1)["result"] == 2


@pytest.mark.parametrize(
    ("is_form", "options"), [(False, {}), (True, {"verify_first": 0, "verify_fraction": 0.0})], ids=["own model", "off"]
)
def test_without_a_form_or_the_options_there_are_no_samples(
    start: Start, tmp_path: Path, is_form: bool, options: dict[str, Any]
) -> None:
    harness = start(is_form=is_form, **options)
    answer = harness.ask("samples", new_file(str(tmp_path / "samples")))
    assert answer["code"] == Code.UNIMPLEMENTED


def test_a_worker_shows_that_it_lives_while_all_threads_run(start: Start) -> None:
    harness = start()
    assert harness.ping() == {"alive": True, "overdue": 0}
    busy(harness)
    assert harness.ping() == {"alive": True, "overdue": 0}


@pytest.mark.parametrize("is_batching", [False, True])
def test_a_run_that_outlives_the_last_deadline_of_its_requests_is_told_with_each_sign_of_life(
    start: Start, is_batching: bool
) -> None:
    harness = start(parameters(size=2) if is_batching else None)
    deadline_ns = time.monotonic_ns() + 500_000_000
    harness.front.send(1, 1, deadline_ns=deadline_ns - 250_000_000)
    if is_batching:
        harness.front.send(2, 2, deadline_ns=deadline_ns)
    assert harness.runs() == ([1, 2] if is_batching else [1])
    eventually(lambda: harness.ping()["overdue"], "its run is overdue")
    assert harness.ping()["overdue"] == (deadline_ns if is_batching else deadline_ns - 250_000_000)
    harness.backend.permits.release(1)
    harness.front.answer(1)
    eventually(lambda: not harness.ping()["overdue"], "no run is overdue")

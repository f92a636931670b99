"""Serves a loaded model on a Unix socket: queues, runs, answers.

One more thread than `max_concurrent_requests`, all alike: whoever holds `_poll_lock` leads, which is to read and write
sockets; when there is a request that may run, the leader lets go and runs it itself, and another thread leads. So a
request that meets an idle worker is not handed from thread to thread, requests are read while others compute, and
what exceeds the queue is refused at once. Where all threads run, requests that wait are merged; with `enable_batching`
they wait for each other, and the leader sleeps until the next batch is due. It ends when it has been told to drain
and has answered everything.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from appliance.config.batching_parameters import BatchingParameters
from appliance.metrics.recording import WorkerMetrics
from appliance.transport.wire import (
    FLAG_DRAINING,
    SEGMENT_ID,
    Frame,
    Kind,
    WireError,
    parse_predict_meta,
    unpack_arrays,
)
from appliance.worker.batching import BatchQueue, Entry, Extent, Refusal, RequestQueue
from appliance.worker.clients import Client, Request
from appliance.worker.commands import Commands
from appliance.worker.merging import Call, Inputs, Merging, Outcome, joined
from appliance.worker.run_record import RunRecord
from appliance.worker.run_trace import RunTracer
from appliance.worker.task import WorkerTask
from backends.contract import Backend, BackendError, Code
from backends.registry import end_profile, has_profiler, profile

__all__ = ["Worker"]

_MAX_QUEUE_BYTES = 256 << 20


class Worker:
    """Serves a loaded backend until it is drained.

    With `batching`, requests wait for each other; without, those of the signatures `mergeable` are merged where they
    wait anyway.
    """

    def __init__(
        self,
        task: WorkerTask,
        backend: Backend,
        control: socket.socket,
        listener: socket.socket,
        *,
        batching: BatchingParameters | None = None,
        mergeable: frozenset[str] = frozenset(),
        metrics: WorkerMetrics,
    ) -> None:
        self._task = task
        self._metrics = metrics
        self._backend = backend
        self._control = control
        self._listener = listener
        self._commands = Commands(control, self._do)
        self._selector = selectors.DefaultSelector()
        self._poll_lock = threading.Lock()  # whoever holds it is the leader
        self._lock = threading.Lock()  # guards the queue and `_running`
        options = task.options
        self._queue: RequestQueue[Request] = RequestQueue(options.max_queue_requests, _MAX_QUEUE_BYTES)
        self._batches: BatchQueue[Request] | None = None  # in the queue's place, with batching
        self._concurrency = task.max_concurrent_requests
        if batching is not None:
            self._batches = BatchQueue(batching, options.max_queue_requests, _MAX_QUEUE_BYTES)
            self._concurrency = batching.num_batch_threads or len(os.sched_getaffinity(0))
            if options.max_concurrent_requests:
                self._concurrency = min(self._concurrency, options.max_concurrent_requests)
        self.merging = Merging(backend, mergeable if options.merge_waiting_requests else frozenset(), batching)
        methods = {name: signature.method_name for name, signature in backend.signatures.items()}
        self.merging.on_run = lambda signature, *of_run: metrics.ran(methods[signature], *of_run)
        self._tracer = RunTracer(self.merging)
        # A thread leads while the others run.
        self._record = RunRecord(task.record_path, self._concurrency + 1, backend.signatures, task.is_watched)
        self._running = 0
        self._draining = False
        self._drained = False
        self._clients: set[Client] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._blocked: deque[Client] = deque()

    def run(self) -> None:
        """Serves; returns when drained."""
        self._control.setblocking(False)
        self._listener.setblocking(False)
        register = self._selector.register
        register(self._control, selectors.EVENT_READ, self._on_control)
        register(self._listener, selectors.EVENT_READ, self._on_connect)
        register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        for index in range(self._concurrency):
            threading.Thread(target=self._work, args=(index,), name=f"serve-{index}", daemon=True).start()
        self._work(self._concurrency)
        for client in list(self._clients):
            client.say_goodbye()

    def note_answered(self, answered: Mapping[str, Inputs]) -> None:
        """Notes that requests like these, by signature, were answered before it serves."""
        for signature, inputs in answered.items():
            self._record.answered(self._record.number_of(signature, inputs))

    def _work(self, thread: int) -> None:
        """The thread of this index: leads, runs, leads again. Returns when drained."""
        row = self._record.row(thread)
        try:
            while True:
                with self._poll_lock:
                    work = self._next()
                while work:
                    self._run(work, row)
                    work = self._finish()
                if self._drained:
                    return
        except BaseException:  # noqa: BLE001 - the outer loop of a thread: without it the process would only limp
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    @property
    def waiting(self) -> int:
        """The requests in the queue."""
        return len(self._queue if self._batches is None else self._batches)

    def _next(self) -> list[Entry[Request]]:
        """Polls until something may run, and takes it; nothing when all is drained. Holds `_poll_lock`."""
        while not self._drained:
            seconds = None
            with self._lock:
                if self._running < self._concurrency:
                    self._running += 1
                    if work := self._take():
                        self._tell_queue()
                        return work
                    self._running -= 1
                    if self._batches is not None and self._batches.due_ns is not None:
                        seconds = max(self._batches.due_ns - time.monotonic_ns(), 0) / 1e9
                if self._draining and not self._running:
                    self._drained = True
                    break
            for key, events in self._selector.select(seconds):
                if isinstance(key.data, Client):
                    self._on_client(key.data, events)
                else:
                    key.data()
        return []

    def _finish(self) -> list[Entry[Request]]:
        """Ends one run, and takes what has waited meanwhile."""
        with self._lock:
            work = self._take()
            if not work:
                self._running -= 1
            self._tell_queue()
        if not work and (self._draining or self._batches):
            self._wake()  # the leader looks whether this was the last, and until when it may sleep
        return work

    def _tell_queue(self) -> None:
        """Tells the metrics what waits and runs. Holds `_lock`."""
        nbytes = (self._queue if self._batches is None else self._batches).nbytes
        self._metrics.queue(self.waiting, nbytes, self._running)

    def _take(self) -> list[Entry[Request]]:
        """What the calling thread, which counts as running, is to run. Holds `_lock`."""
        if self._batches is not None:
            return self._batches.take(time.monotonic_ns(), self._draining) or []
        entry = self._queue.take()
        if entry is None:
            return []
        # While other threads are free, what waits goes to them: a merged request must not take longer than alone.
        if self._queue and self._running >= self._concurrency and self.merging.mergeable:
            return self._queue.take_like(entry, self._extent_of, self._task.options.max_merged_batch_size)
        return [entry]

    def _extent_of(self, request: Request) -> Extent | None:
        if not hasattr(request, "extent"):
            try:
                request.extent = self.merging.extent(request.meta)
            except WireError:  # it is answered when it runs
                request.extent = None
        return request.extent

    # -- the leader: sockets ------------------------------------------------------------------------------

    def _on_control(self) -> None:
        if self._commands.told_to_drain():
            self._draining = True

    def _do(self, method: str, params: Mapping[str, Any]) -> Any:
        """Do what the supervisor asks for. Raises BackendError."""
        if method == "profile":
            if has_profiler(self._task.backend):
                return profile(self._task.backend, **params)
            return self._tracer.profile(params["seconds"], params["path"])
        if method == "end_profile":
            self._tracer.end(**params)
            return end_profile(self._task.backend, **params)
        raise BackendError(Code.UNIMPLEMENTED, f"a worker cannot {method}")

    def _on_connect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            client = Client(sock)
            self._clients.add(client)
            self._selector.register(sock, selectors.EVENT_READ, client)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while self._blocked:
            client = self._blocked.popleft()
            if client in self._clients:
                self._selector.modify(client.channel.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, client)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def _on_client(self, client: Client, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                with client.lock:
                    done = client.flush()
                if done:
                    self._selector.modify(client.channel.sock, selectors.EVENT_READ, client)
            if events & selectors.EVENT_READ:
                for frame in client.channel.receive():
                    self._on_frame(client, frame)
        except EOFError:
            self._disconnect(client)
        except (WireError, struct.error, KeyError, ValueError, OSError) as error:
            print(f"closed a front's connection: {error!r}", file=sys.stderr)
            self._disconnect(client)

    def _disconnect(self, client: Client) -> None:
        self._selector.unregister(client.channel.sock)
        self._clients.discard(client)
        with client.lock:
            for request in list(client.pending.values()):  # a copy: running threads take requests out
                request.cancelled = True
            client.close()

    def _on_frame(self, client: Client, frame: Frame) -> None:
        if frame.kind == Kind.PREDICT:
            self._on_predict(client, frame)
        elif frame.kind == Kind.CANCEL:
            request = client.pending.get(frame.request_id)
            if request is not None:
                request.cancelled = True
        elif frame.kind == Kind.RELEASE:
            with client.lock:
                client.channel.release(*SEGMENT_ID.unpack(frame.meta))
        elif frame.kind == Kind.FORGET:
            client.channel.forget(frame)
        else:
            raise WireError(f"a front sent a frame of kind {frame.kind}")

    def _on_predict(self, client: Client, frame: Frame) -> None:
        request = client.request_of(frame)
        if self._draining:
            self._sent(client, request.refuse(Code.UNAVAILABLE, "the version is being unloaded", FLAG_DRAINING))
            return
        entry = Entry(request, frame.payload_bytes, frame.deadline_ns)
        client.pending[frame.request_id] = request
        refusal = self._enqueue(entry) if self._batches is None else self._enqueue_for_batch(entry, self._batches)
        if refusal is None:
            return
        client.pending.pop(frame.request_id, None)
        self._sent(client, request.refuse(refusal.code, refusal.message))

    def _enqueue(self, entry: Entry[Request]) -> Refusal | None:
        with self._lock:
            if self._running + len(self._queue) < self._concurrency:
                self._queue.push(entry)
                return None
            reason = self._queue.offer(entry)
            self._tell_queue()
        if reason is None:
            return None
        name = f"{self._task.model} version {self._task.version}"
        return Refusal(Code.RESOURCE_EXHAUSTED, f"The queue of model {name} is full: {reason}")

    def _enqueue_for_batch(self, entry: Entry[Request], batches: BatchQueue[Request]) -> Refusal | None:
        try:
            found = self.merging.place(entry.item.meta)
        except BackendError as error:
            return Refusal(error.code, error.message)
        entry.item.extent = found.extent
        entry.item.unfinished = found.extent.rows
        entry.item.parts = {}
        with self._lock:
            idle = self._concurrency - self._running
            refusal = batches.offer(entry, found.queue, found.extent, time.monotonic_ns(), idle)
            self._tell_queue()
            return refusal

    # -- running -----------------------------------------------------------------------------------------------

    def _run(self, work: list[Entry[Request]], row: int) -> None:
        """Runs what was taken together, and ends each request of it."""
        if self._batches is None and len(work) == 1:
            self._run_one(work[0], row)
            return
        signature = ""
        outputs: Sequence[str] = ()
        wanted: list[Entry[Request]] = []
        calls: list[Call] = []
        for entry in work:
            if entry.stop is None:
                entry.item.client.pending.pop(entry.item.request_id, None)
            try:
                _check_wanted(entry)
                # The same for all: the queue gives together what agrees in them.
                signature, outputs, table = parse_predict_meta(entry.item.meta)
                calls.append(_call(entry, unpack_arrays(table, entry.item.payload)))
                wanted.append(entry)
            except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
                self._end(entry, outputs, error)
        if not self._record.merges:
            for entry, call in zip(wanted, calls, strict=True):
                self._end(entry, outputs, self._run_calls(row, signature, outputs, [call])[0])
        elif calls:
            for entry, outcome in zip(wanted, self._run_calls(row, signature, outputs, calls), strict=True):
                self._end(entry, outputs, outcome)

    def _run_calls(self, row: int, signature: str, outputs: Sequence[str], calls: Sequence[Call]) -> list[Outcome]:
        """What comes of `calls`, which are on record while they run together."""
        numbers = [self._record.number_of(signature, call.inputs) for call in calls]
        inputs = calls[0].inputs if len(calls) == 1 else None
        kinds = set(numbers)
        is_alone = self._record.is_watching and self._record.watch(row, kinds, inputs)
        self._record.begin_together(row, kinds)
        try:
            outcomes = self.merging.run(signature, outputs, calls)
            for number, outcome in zip(numbers, outcomes, strict=True):
                if not isinstance(outcome, Exception):
                    self._record.answered(number)
        finally:
            self._record.end_together(row)
            if is_alone:
                self._record.unwatch()
        return outcomes

    def _run_one(self, entry: Entry[Request], row: int) -> None:
        """The same for one request without batching, which is the path of almost all: it takes no detour."""
        request = entry.item
        request.client.pending.pop(request.request_id, None)
        try:
            _check_wanted(entry)
            signature, outputs, table = parse_predict_meta(request.meta)
            inputs = unpack_arrays(table, request.payload)
            record = self._record
            number = record.number_of(signature, inputs)
            is_alone = record.is_watching and record.watch(row, (number,), inputs)
            record.begin(row, number)
            try:
                arrays = self.merging.execute(signature, outputs, inputs)
                record.answered(number)
            finally:
                record.end(row)
                if is_alone:
                    record.unwatch()
            self._sent(request.client, request.answer(list(zip(outputs, arrays, strict=True))))
        except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
            self._sent(request.client, request.fail(error))

    def _end(self, entry: Entry[Request], outputs: Sequence[str], outcome: Outcome) -> None:
        """Answers the request, or keeps what came of a part of it until the others have come."""
        request = entry.item
        if entry.stop is not None:
            with self._lock:
                request.parts[entry.start] = outcome
                request.unfinished -= entry.stop - entry.start
                if request.unfinished:
                    return
            request.client.pending.pop(request.request_id, None)
            outcome = joined([request.parts[start] for start in sorted(request.parts)])
        if isinstance(outcome, Exception):
            self._sent(request.client, request.fail(outcome))
            return
        try:
            self._sent(request.client, request.answer(list(zip(outputs, outcome, strict=True))))
        except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
            self._sent(request.client, request.fail(error))

    def _sent(self, client: Client, sent: bool) -> None:
        """Has the leader send what is kept of an answer."""
        if not sent:
            self._blocked.append(client)
            self._wake()


def _check_wanted(entry: Entry[Request]) -> None:
    """Raises BackendError where the request need not run any more."""
    if entry.item.cancelled:
        raise BackendError(Code.CANCELLED, "nobody waits for this request any more")
    if entry.deadline_ns and time.monotonic_ns() > entry.deadline_ns:
        raise BackendError(Code.DEADLINE_EXCEEDED, "the deadline passed while the request waited")


def _call(entry: Entry[Request], inputs: dict[str, np.ndarray]) -> Call:
    """What `entry` asks the backend for; only its rows where it is a part of a request."""
    if entry.stop is not None:
        part = slice(entry.start, entry.stop)
        return Call({name: array[part] for name, array in inputs.items()}, entry.stop - entry.start)
    assert entry.item.extent is not None  # what has none runs alone
    return Call(inputs, entry.item.extent.rows)

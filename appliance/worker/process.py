"""The process of one model version: loads it, listens on a Unix socket, queues, runs, answers.

One more thread than `max_concurrent_requests`, all alike: whoever holds `_poll_lock` leads, which is to read and write
sockets; when there is a request that may run, the leader lets go and runs it itself, and another thread leads. So a
request that meets an idle worker is not handed from thread to thread, requests are read while others compute, and
what exceeds the queue is refused at once. Where all threads run, requests that wait are merged; with `enable_batching`
they wait for each other, and the leader sleeps until the next batch is due. The process ends when it has been told to
drain and has answered everything, or when its supervisor is gone.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
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

from appliance.config.batching_parameters import BatchingParameters, of_version
from appliance.core.errors import ConfigError
from appliance.core.gpu_devices import gpu_environment
from appliance.core.limits import SHARED_MEMORY_BYTES
from appliance.host.memory import resident_bytes
from appliance.metrics.recording import Recorder, WorkerMetrics
from appliance.transport import shared
from appliance.transport.channel import Channel
from appliance.transport.wire import (
    FLAG_DESCRIPTOR,
    FLAG_DRAINING,
    FLAG_SHARED,
    FLAG_UNPROVEN,
    SEGMENT_ID,
    Buffer,
    Frame,
    Kind,
    WireError,
    header,
    inline,
    pack_arrays,
    parse_predict_meta,
    unpack_arrays,
)
from appliance.worker.batching import BatchQueue, Entry, Extent, Refusal, RequestQueue
from appliance.worker.merging import Call, Inputs, Merging, Outcome, joined
from appliance.worker.odd_shapes import try_odd_shapes
from appliance.worker.run_record import RunRecord
from appliance.worker.run_trace import RunTracer
from appliance.worker.task import WorkerTask, loader_of
from appliance.worker.trials import Fatal, check_memory
from appliance.worker.warmup import source_of, try_others, warm_up
from backends.contract import Backend, BackendError, Code, IncompleteError, Partial, Placed, Remarked
from backends.domain import ANY, Bounded, UnprovenError
from backends.registry import check_complete, end_profile, has_profiler, profile

# While more than this waits for a front to read it, running threads wait with their next answer. A front that reads
# nothing for so long is broken: its connection is closed.
_MAX_UNSENT_BYTES = 64 * 1024 * 1024
_ROOM_SECONDS = 30.0
_GOODBYE_SECONDS = 10.0
_MAX_QUEUE_BYTES = 256 << 20
_READY_SECONDS = 1.0  # made-up requests end so long before load_timeout_seconds, which it must not break


class _Request:
    """One request between its arrival and its answer.

    `extent` is what it may be merged with, None for nothing; it is there once it was asked for. `unfinished` counts the
    rows of a split request that have not run, and `parts` are what came of the others, by their first row.
    """

    __slots__ = ("cancelled", "client", "extent", "meta", "parts", "payload", "request_id", "unfinished")

    extent: Extent | None
    parts: dict[int, Outcome]
    unfinished: int

    def __init__(self, client: _Client, request_id: int, meta: bytes, payload: Buffer) -> None:
        self.client = client
        self.request_id = request_id
        self.meta = meta
        self.payload = payload
        self.cancelled = False


class _Client:
    """One front's connection. `lock` guards the channel's sending side, the segments and `open`: any thread answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock)
        self.mapped: dict[int, mmap.mmap] = {}
        self.pending: dict[int, _Request] = {}
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self.pool = shared.SegmentPool(SHARED_MEMORY_BYTES)
        self.open = True

    def send(self, buffers: Sequence[Buffer], descriptor: int | None = None) -> bool:
        """Sends or keeps `buffers`; false where something is kept, and the loop must wait for room. Holds `lock`."""
        if not self.open:
            return True
        try:
            return self.channel.send(buffers, descriptor)
        except EOFError:
            self.open = False
            return True

    def flush(self) -> bool:
        """Sends what was kept; true when nothing is left. Raises EOFError where the front is gone. Holds `lock`."""
        done = self.channel.flush()
        self._room.notify_all()
        return done

    def wait_for_room(self) -> None:
        """Waits while much is unsent: a running thread's turn, for the leader sends it. Holds `lock`."""
        while self.open and self.channel.unsent_bytes > _MAX_UNSENT_BYTES:
            if not self._room.wait(_ROOM_SECONDS) and self.open:
                self.open = False
                self.channel.sock.shutdown(socket.SHUT_RDWR)  # the leader sees the end

    def close(self) -> None:
        """Holds `lock`."""
        self.open = False
        self.pool.close()
        self.channel.close()
        self._room.notify_all()


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
        self._control_lock = threading.Lock()  # of what is sent there
        self._command = b""  # the start of a line of the supervisor's
        self._selector = selectors.DefaultSelector()
        self._poll_lock = threading.Lock()  # whoever holds it is the leader
        self._lock = threading.Lock()  # guards the queue and `_running`
        options = task.options
        self._queue: RequestQueue[_Request] = RequestQueue(options.max_queue_requests, _MAX_QUEUE_BYTES)
        self._batches: BatchQueue[_Request] | None = None  # in the queue's place, with batching
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
        self._clients: set[_Client] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._blocked: deque[_Client] = deque()

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
            self._say_goodbye(client)

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

    def _next(self) -> list[Entry[_Request]]:
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
                if isinstance(key.data, _Client):
                    self._on_client(key.data, events)
                else:
                    key.data()
        return []

    def _finish(self) -> list[Entry[_Request]]:
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

    def _take(self) -> list[Entry[_Request]]:
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

    def _extent_of(self, request: _Request) -> Extent | None:
        if not hasattr(request, "extent"):
            try:
                request.extent = self.merging.extent(request.meta)
            except WireError:  # it is answered when it runs
                request.extent = None
        return request.extent

    def _say_goodbye(self, client: _Client) -> None:
        with client.lock, contextlib.suppress(EOFError, OSError):
            client.send([header(Kind.GOODBYE, 0, 0)])
            deadline = time.monotonic() + _GOODBYE_SECONDS
            while not client.channel.flush() and time.monotonic() < deadline:
                select.select([], [client.channel.sock], [], 0.1)
        client.channel.close()

    # -- the leader: sockets ------------------------------------------------------------------------------

    def _on_control(self) -> None:
        data = self._control.recv(65536)
        if not data:
            os._exit(1)  # the supervisor is gone
        *lines, self._command = (self._command + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["do"] == "drain":
                self._draining = True
            else:
                self._answer_supervisor(command)

    def _answer_supervisor(self, command: Mapping[str, Any]) -> None:
        """Answers a question of the supervisor in a thread of its own: it may take long. Answers are short."""
        answer: dict[str, Any] = {"answer_to": command["ask"]}

        def run() -> None:
            try:
                if command["method"] == "profile":
                    answer["result"] = self._profile(**command["params"])
                elif command["method"] == "end_profile":
                    self._tracer.end(**command["params"])
                    answer["result"] = end_profile(self._task.backend, **command["params"])
                else:
                    raise BackendError(Code.UNIMPLEMENTED, f"a worker cannot {command['method']}")
            except BackendError as error:
                answer.update(code=int(error.code), message=error.message)
            except Exception as error:  # noqa: BLE001 - the outer loop of this thread
                answer.update(code=int(Code.INTERNAL), message=f"{type(error).__name__}: {error}")
            data = json.dumps(answer).encode() + b"\n"
            with self._control_lock, contextlib.suppress(OSError):
                while data:
                    select.select([], [self._control], [])
                    data = data[self._control.send(data) :]

        threading.Thread(target=run, daemon=True, name="answer").start()

    def _profile(self, seconds: float, path: str, levels: Mapping[str, int]) -> Mapping[str, Any]:
        if has_profiler(self._task.backend):
            return profile(self._task.backend, seconds=seconds, path=path, levels=levels)
        return self._tracer.profile(seconds, path)

    def _on_connect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            client = _Client(sock)
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

    def _on_client(self, client: _Client, events: int) -> None:
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

    def _disconnect(self, client: _Client) -> None:
        self._selector.unregister(client.channel.sock)
        self._clients.discard(client)
        with client.lock:
            for request in list(client.pending.values()):  # a copy: running threads take requests out
                request.cancelled = True
            client.close()

    def _on_frame(self, client: _Client, frame: Frame) -> None:
        if frame.kind == Kind.PREDICT:
            self._on_predict(client, frame)
        elif frame.kind == Kind.CANCEL:
            request = client.pending.get(frame.request_id)
            if request is not None:
                request.cancelled = True
        elif frame.kind == Kind.RELEASE:
            with client.lock:
                client.pool.release(*SEGMENT_ID.unpack(frame.meta))
        elif frame.kind == Kind.FORGET:
            client.mapped.pop(SEGMENT_ID.unpack(frame.meta)[0], None)
        else:
            raise WireError(f"a front sent a frame of kind {frame.kind}")

    def _on_predict(self, client: _Client, frame: Frame) -> None:
        meta, payload = frame.meta, frame.payload
        if payload is None:
            (number,) = SEGMENT_ID.unpack_from(meta)
            meta = meta[SEGMENT_ID.size :]
            if frame.flags & FLAG_DESCRIPTOR:
                descriptor = client.channel.take_descriptor()
                client.mapped[number] = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
                os.close(descriptor)
            # A view of its own keeps the mapping alive while the request runs, even when it is forgotten meanwhile.
            payload = memoryview(client.mapped[number])[: frame.payload_bytes]
        request = _Request(client, frame.request_id, meta, payload)
        if self._draining:
            self._answer_error(request, Code.UNAVAILABLE, "the version is being unloaded", FLAG_DRAINING)
            return
        entry = Entry(request, frame.payload_bytes, frame.deadline_ns)
        client.pending[frame.request_id] = request
        refusal = self._enqueue(entry) if self._batches is None else self._enqueue_for_batch(entry, self._batches)
        if refusal is None:
            return
        client.pending.pop(frame.request_id, None)
        self._answer_error(request, refusal.code, refusal.message)

    def _enqueue(self, entry: Entry[_Request]) -> Refusal | None:
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

    def _enqueue_for_batch(self, entry: Entry[_Request], batches: BatchQueue[_Request]) -> Refusal | None:
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

    def _run(self, work: list[Entry[_Request]], row: int) -> None:
        """Runs what was taken together, and ends each request of it."""
        if self._batches is None and len(work) == 1:
            self._run_one(work[0], row)
            return
        signature = ""
        outputs: Sequence[str] = ()
        wanted: list[Entry[_Request]] = []
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
        is_alone = self._record.is_watching and self._record.watch(row, inputs)
        self._record.begin_together(row, set(numbers))
        try:
            outcomes = self.merging.run(signature, outputs, calls)
        finally:
            self._record.begin_together(row, ())
            if is_alone:
                self._record.unwatch()
        for number, outcome in zip(numbers, outcomes, strict=True):
            if not isinstance(outcome, Exception):
                self._record.answered(number)
        return outcomes

    def _run_one(self, entry: Entry[_Request], row: int) -> None:
        """The same for one request without batching, which is the path of almost all: it takes no detour."""
        request = entry.item
        request.client.pending.pop(request.request_id, None)
        try:
            _check_wanted(entry)
            signature, outputs, table = parse_predict_meta(request.meta)
            inputs = unpack_arrays(table, request.payload)
            record = self._record
            number = record.number_of(signature, inputs)
            is_alone = record.is_watching and record.watch(row, inputs)
            record.begin(row, number)
            try:
                arrays = self.merging.execute(signature, outputs, inputs)
            finally:
                record.end(row)
                if is_alone:
                    record.unwatch()
            record.answered(number)
            self._answer(request, list(zip(outputs, arrays, strict=True)))
        except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
            self._answer_failure(request, error)

    def _end(self, entry: Entry[_Request], outputs: Sequence[str], outcome: Outcome) -> None:
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
            self._answer_failure(request, outcome)
            return
        try:
            self._answer(request, list(zip(outputs, outcome, strict=True)))
        except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
            self._answer_failure(request, error)

    def _answer_failure(self, request: _Request, error: Exception) -> None:
        if isinstance(error, BackendError):
            flags = FLAG_UNPROVEN if isinstance(error, UnprovenError) else 0
            self._answer_error(request, error.code, error.message, flags)
        else:
            self._answer_error(request, Code.INTERNAL, f"{type(error).__name__}: {error}")

    def _answer(self, request: _Request, arrays: list[tuple[str, np.ndarray]]) -> None:
        packed = pack_arrays(arrays)
        client = request.client
        with client.lock:
            client.wait_for_room()
            segment = None
            if packed.payload_bytes >= shared.THRESHOLD_BYTES and client.open:
                segment = client.pool.acquire(packed.payload_bytes)
                for number in client.pool.forgotten:
                    client.send([header(Kind.FORGET, SEGMENT_ID.size, 0), SEGMENT_ID.pack(number)])
                client.pool.forgotten.clear()
            if segment is None:
                head = header(Kind.RESULT, len(packed.table), packed.payload_bytes, request.request_id)
                sent = client.send([head, packed.table, *inline(packed)])
            else:
                segment.write(packed.chunks)
                flags = FLAG_SHARED if segment.announced else FLAG_SHARED | FLAG_DESCRIPTOR
                meta = SEGMENT_ID.pack(segment.number) + packed.table
                head = header(Kind.RESULT, len(meta), packed.payload_bytes, request.request_id, flags=flags)
                sent = client.send([head, meta], None if segment.announced else segment.descriptor)
                segment.announced = True
        self._sent(client, sent)

    def _answer_error(self, request: _Request, code: Code, message: str, flags: int = 0) -> None:
        meta = bytes([code]) + message.encode()[:65536]
        client = request.client
        with client.lock:
            sent = client.send([header(Kind.ERROR, len(meta), 0, request.request_id, flags=flags), meta])
        self._sent(client, sent)

    def _sent(self, client: _Client, sent: bool) -> None:
        if not sent:
            self._blocked.append(client)
            self._wake()


def _check_wanted(entry: Entry[_Request]) -> None:
    """Raises BackendError where the request need not run any more."""
    if entry.item.cancelled:
        raise BackendError(Code.CANCELLED, "nobody waits for this request any more")
    if entry.deadline_ns and time.monotonic_ns() > entry.deadline_ns:
        raise BackendError(Code.DEADLINE_EXCEEDED, "the deadline passed while the request waited")


def _call(entry: Entry[_Request], inputs: dict[str, np.ndarray]) -> Call:
    """What `entry` asks the backend for; only its rows where it is a part of a request."""
    if entry.stop is not None:
        part = slice(entry.start, entry.stop)
        return Call({name: array[part] for name, array in inputs.items()}, entry.stop - entry.start)
    assert entry.item.extent is not None  # what has none runs alone
    return Call(inputs, entry.item.extent.rows)


def run_worker(task: WorkerTask, control: socket.socket) -> int:
    """The life of a worker process; its exit status. It reports to the supervisor in JSON lines on `control`."""
    if task.odd_shapes_from is not None:
        return try_odd_shapes(task, control)

    def report(event: str, **details: Any) -> None:
        control.sendall(json.dumps({"event": event, **details}).encode() + b"\n")

    watch = threading.Thread(target=_exit_with_supervisor, args=(control,), daemon=True)
    started = time.monotonic()
    incomplete: list[str] = []
    recorder = Recorder(task.metrics_directory, "worker", task.model, str(task.version))
    metrics = WorkerMetrics(recorder, task.model, task.version)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(task.socket_path)
        listener.listen(64)
        watch.start()
        os.environ.update(gpu_environment(task.options.device, task.options.gpu_devices))
        loaded_from = task.artifact or task.path
        incomplete = _check(task, loaded_from)
        batching = of_version(task.options, task.path)
        load_model = loader_of(task)
        bytes_before = resident_bytes(os.getpid()) or 0
        loaded = load_model()
        backend = _bounded(loaded, task)
        load_seconds = time.monotonic() - started
        metrics.loaded(task.path, load_seconds)
        source = source_of(task.path, task.options)
        if source != "none":
            report("progress", stage="warming up", source=source)
        warm_by = started + task.options.load_timeout_seconds - _READY_SECONDS
        fatal = Fatal([(name, number, how) for name, number, how in task.fatal_attempts])

        def announce(signature: str, attempt: int) -> None:
            report("progress", stage="warming up", source="made", attempt=[signature, attempt])

        def load_again() -> Backend:
            if time.monotonic() + 2 * load_seconds > warm_by:
                raise BackendError(Code.DEADLINE_EXCEEDED, "load_timeout_seconds leaves no time for it")
            check_memory((resident_bytes(os.getpid()) or 0) - bytes_before)
            return load_model()

        warm = warm_up(backend, task.path, task.options, warm_by - time.monotonic(), fatal, announce)
        if source == "recorded":
            metrics.warmed_up(task.path, warm.seconds)
        remarks = loaded.remarks if isinstance(loaded, Remarked) else ()
        trials = dict(warm.trials)
        if task.is_tried and task.options.release_gate != "off":
            seconds_left = warm_by - time.monotonic()
            trials |= try_others(backend, trials, task.options, seconds_left, fatal, announce, load_again)
        report(
            "ready",
            signatures={name: s.to_json() for name, s in backend.signatures.items()},
            unsupported=dict(loaded.unsupported) if isinstance(loaded, Partial) else {},
            warmup=warm.to_json(),
            warmup_trials={name: trial.to_json() for name, trial in warm.trials.items()},
            trials={name: trial.to_json() for name, trial in trials.items()} if task.is_tried else None,
            remarks=[*(f"it is served, and its folder looks incomplete: {text}" for text in incomplete), *remarks],
            **({"device": loaded.device} if isinstance(loaded, Placed) else {}),
        )
        worker = Worker(task, backend, control, listener, batching=batching, mergeable=warm.mergeable, metrics=metrics)
        worker.note_answered(warm.answered)
    except IncompleteError as error:
        report("incomplete", message=str(error))
        return 0
    except BackendError as error:
        metrics.load_failed(task.path)
        report("failed", code=int(error.code), message="; ".join([error.message, *incomplete]))
        return 0
    except ConfigError as error:
        metrics.load_failed(task.path)
        report("failed", code=int(Code.INVALID_ARGUMENT), message=str(error))
        return 0
    except Exception as error:  # noqa: BLE001 - the outer loop of a process: whatever a model raises is its failure
        metrics.load_failed(task.path)
        report("failed", code=int(Code.INTERNAL), message=f"{type(error).__name__}: {error}")
        return 1
    worker.run()
    return 0


def _bounded(backend: Backend, task: WorkerTask) -> Backend:
    """`backend`, which looks at its inputs first where it is a form that was not proven for all."""
    domains = task.domains
    if task.options.proof_inputs == "finite":
        domains = {name: domain.unlooked() for name, domain in domains.items()}
    return Bounded(backend, domains) if any(domain != ANY for domain in domains.values()) else backend


def _check(task: WorkerTask, path: str) -> list[str]:
    """What our own look at the version folder finds missing. Raises IncompleteError if that is to count."""
    try:
        check_complete(task.backend, path)
    except IncompleteError as error:
        if task.check_files:
            raise
        return [str(error)]
    return []


def _exit_with_supervisor(control: socket.socket) -> None:
    """Ends the process when the supervisor is gone, also while the main thread is deep in a load."""
    poller = selectors.PollSelector()
    poller.register(control, selectors.EVENT_READ)
    while True:
        poller.select()
        try:
            data = control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data:
            os._exit(1)
        return  # a command has come: from now on the main loop reads, and sees the end itself

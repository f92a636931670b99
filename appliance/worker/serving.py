"""Serves a loaded model on a Unix socket: reads requests, queues them, and shares them out among threads.

There is one thread more than `max_concurrent_requests`, and all are alike. One is the leader (`worker.lead`): it reads
and writes the sockets. When a request may run, the leader gives up the lead and runs that request itself, and another
thread leads. So an idle worker runs a request in the thread that has read it, requests are read while others run, and a
request that exceeds the queue is refused at once. A request that takes less time than waking another thread
(`worker.run_times`) runs in the leader, which leads on. While all threads run, waiting requests are merged. With
`enable_batching` they wait for each other, and the leader sleeps until the next batch is due.
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

from appliance.config.batching_parameters import BatchingParameters
from appliance.host.memory import proportional_bytes
from appliance.metrics.recording import WorkerMetrics
from appliance.transport.wire import (
    FLAG_DRAINING,
    SEGMENT_ID,
    Frame,
    Kind,
    WireError,
)
from appliance.worker.batching import BatchQueue, Entry, Extent, Refusal, RequestQueue
from appliance.worker.clients import Client, Request
from appliance.worker.commands import Commands
from appliance.worker.execution import Execution
from appliance.worker.lead import Lead
from appliance.worker.merging import Inputs, Merging
from appliance.worker.run_record import RunRecord
from appliance.worker.run_times import RunTimes
from appliance.worker.run_trace import RunTracer
from appliance.worker.sampling import Chances, Sampler
from appliance.worker.task import WorkerTask, concurrency_of
from backends.contract import Backend, BackendError, Code
from backends.registry import end_profile, has_profiler, profile

__all__ = ["Worker"]

_MAX_QUEUE_BYTES = 256 << 20
_POLL_NS = 1_000_000  # the leader reads the sockets after so long, even if requests wait that it could run


class Worker:
    """Serves a loaded backend until it is drained.

    With `batching`, requests wait for each other. Without, requests of the signatures in `mergeable` are merged if they
    wait anyway. `control` is the worker's end of the supervisor's socket; `listener` listens for fronts. `record` has a
    row for each of its threads.
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
        record: RunRecord,
        run_times: RunTimes,
    ) -> None:
        self._task = task
        self._metrics = metrics
        self._backend = backend
        self._control = control
        self._listener = listener
        self._commands = Commands(control, self._do, self._overdue)
        self._selector = selectors.DefaultSelector()
        self._lead = Lead()
        self._run_times = run_times
        self._lock = threading.Lock()  # guards the queue and `_running`
        options = task.options
        self._queue: RequestQueue[Request] = RequestQueue(options.max_queue_requests, _MAX_QUEUE_BYTES)
        self._batches: BatchQueue[Request] | None = None  # instead of the queue, with batching
        self._concurrency = concurrency_of(task, batching)
        if batching is not None:
            self._batches = BatchQueue(batching, options.max_queue_requests, _MAX_QUEUE_BYTES)
        self._merging = Merging(backend, mergeable if options.merge_waiting_requests else frozenset(), batching)
        methods = {name: signature.method_name for name, signature in backend.signatures.items()}
        self._merging.on_run = lambda signature, *of_run: metrics.ran(methods[signature], *of_run)
        self._tracer = RunTracer(self._merging)
        self._deadlines = [0] * (self._concurrency + 1)  # of what each thread runs, in ns; 0: none
        self._record = record
        record.begins(backend.signatures)
        self._sampler: Sampler | None = None
        if task.form_path and (options.verify_first or options.verify_fraction):
            chances = Chances(options.verify_first, options.verify_fraction)
            self._sampler = Sampler(chances, metrics.doubtful)
            self._merging.on_result = self._sampler.ran
        self._execution = Execution(self._merging, self._record, batching is not None, self._on_sent, self._sampler)
        self._running = 0
        self._poll_by_ns = 0
        self._draining = False
        self._drained = False
        self._clients: set[Client] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._blocked: deque[Client] = deque()

    def run(self) -> None:
        """Serve until the supervisor has said to drain and every request is answered."""
        self._control.setblocking(False)
        self._listener.setblocking(False)
        register = self._selector.register
        register(self._control, selectors.EVENT_READ, self._on_control)
        register(self._listener, selectors.EVENT_READ, self._on_connect)
        register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        threading.Thread(target=self._lead.watch, name="watch", daemon=True).start()
        for index in range(self._concurrency):
            threading.Thread(target=self._work, args=(index,), name=f"serve-{index}", daemon=True).start()
        self._work(self._concurrency)
        for client in list(self._clients):
            client.say_goodbye()

    def note_answered(self, answered: Mapping[str, Inputs]) -> None:
        """Note that requests like these (inputs by signature) were answered before it serves."""
        for signature, inputs in answered.items():
            self._record.answered(self._record.number_of(signature, inputs))

    def _work(self, thread: int) -> None:
        """Lead, run and lead again, as the thread with this index, until the worker is drained."""
        try:
            while not self._drained:
                self._lead.take()
                work = self._lead_on(thread)
                while work:
                    seconds = self._run(thread, work)
                    if len(work) == 1:
                        self._run_times.gave_up_lead(work[0].item.meta, seconds)
                    work = self._finish()
        except BaseException:  # noqa: BLE001 - the outer loop of a thread: a worker that lacks one is restarted
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _lead_on(self, thread: int) -> list[Entry[Request]]:
        """Lead, and run what is short, until another thread may lead; return what the caller, which leads no more, is
        to run."""
        while work := self._next():
            if not self._is_short(work):
                self._lead.give_up()
                return work
            self._lead.begin_run()
            seconds = self._run(thread, work)
            kind = work[0].item.meta
            if not self._lead.end_run():
                self._run_times.lost_lead(kind)
                return self._finish()
            self._run_times.kept_lead(kind, seconds / len(work))
            with self._lock:
                self._running -= 1
                self._tell_queue()
            if time.monotonic_ns() > self._poll_by_ns:
                self._poll(0)
        self._lead.give_up()
        return []

    def _is_short(self, work: Sequence[Entry[Request]]) -> bool:
        """Return whether the leader is to run `work` itself, and lead on. Requests that have died before run alone, and
        wait for each other; a batch must not keep the leader from the next that is due."""
        if self._batches is not None or self._record.is_watching:
            return False
        kind = work[0].item.meta
        if len(work) == 1:
            return self._run_times.may_keep_lead(kind)
        return len(work) <= self._run_times.number_of_short(kind)

    def _run(self, thread: int, work: Sequence[Entry[Request]]) -> float:
        """Run and answer `work` as the thread with this index, and return how many seconds it took."""
        began = time.monotonic()
        self._deadlines[thread] = work[0].deadline_ns if len(work) == 1 else _latest(work)
        self._execution.run(work, self._record.row(thread))
        self._deadlines[thread] = 0
        return time.monotonic() - began

    def _overdue(self) -> int:
        """Return the deadline of the run that goes on the longest after it, in nanoseconds; 0 if none does."""
        now = time.monotonic_ns()
        return min((deadline for deadline in self._deadlines if 0 < deadline < now), default=0)

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._queue if self._batches is None else self._batches)

    def _next(self) -> list[Entry[Request]]:
        """Poll until requests may run, and return them; none if all is drained. The caller leads."""
        while not self._drained:
            seconds = None
            with self._lock:
                if self._running < self._concurrency:
                    self._running += 1
                    if work := self._take(leads=True):
                        self._tell_queue()
                        return work
                    self._running -= 1
                    if self._batches is not None and self._batches.due_ns is not None:
                        seconds = max(self._batches.due_ns - time.monotonic_ns(), 0) / 1e9
                if self._draining and not self._running:
                    self._drained = True
                    break
            self._poll(seconds)
        return []

    def _poll(self, seconds: float | None) -> None:
        """Read and write what the sockets have, for which the caller, which leads, waits so long; None: for ever."""
        for key, events in self._selector.select(seconds):
            if isinstance(key.data, Client):
                self._on_client(key.data, events)
            else:
                key.data()
        self._poll_by_ns = time.monotonic_ns() + _POLL_NS

    def _finish(self) -> list[Entry[Request]]:
        """Count a run as ended, and return the requests that this thread runs next; none if there are none."""
        with self._lock:
            work = self._take()
            if not work:
                self._running -= 1
            self._tell_queue()
        if not work and (self._draining or self._batches):
            self._wake()  # the leader checks whether that was the last run, and when a batch is due
        return work

    def _tell_queue(self) -> None:
        """Tell the metrics what waits and runs. The caller holds `_lock`."""
        nbytes = (self._queue if self._batches is None else self._batches).nbytes
        self._metrics.queue(self.waiting, nbytes, self._running)

    def _take(self, *, leads: bool = False) -> list[Entry[Request]]:
        """Take what this thread, which is counted as running, is to run. The caller holds `_lock`."""
        if self._batches is not None:
            return self._batches.take(time.monotonic_ns(), self._draining) or []
        entry = self._queue.take()
        if entry is None:
            return []
        # Waiting requests go to free threads first, because a merged request takes longer than one alone.
        if not self._queue or not self._merging.mergeable:
            return [entry]
        limit = self._task.options.max_merged_batch_size
        if self._running < self._concurrency:
            number = self._run_times.number_of_short(entry.item.meta) if leads else 0
            extent = self._extent_of(entry.item) if number else None
            limit = 0 if extent is None else min(limit, number * extent.rows)
        return self._queue.take_like(entry, self._extent_of, limit) if limit else [entry]

    def _extent_of(self, request: Request) -> Extent | None:
        if not hasattr(request, "extent"):
            try:
                request.extent = self._merging.extent(request.meta)
            except WireError:  # the request gets this error when it runs
                request.extent = None
        return request.extent

    # -- the leader: sockets ------------------------------------------------------------------------------

    def _on_control(self) -> None:
        if self._commands.told_to_drain():
            self._draining = True

    def _do(self, method: str, params: Mapping[str, Any]) -> Any:
        """Answer a question of the supervisor. Raise BackendError if it cannot be answered."""
        if method == "profile":
            if has_profiler(self._task.backend):
                return profile(self._task.backend, **params)
            return self._tracer.profile(params["seconds"], params["trace"], params["file"])
        if method == "end_profile":
            self._tracer.end(**params)
            return end_profile(self._task.backend, **params)
        if method == "memory":
            return proportional_bytes()
        if self._sampler is not None:
            if method == "samples_due":
                return self._sampler.wait_until_due(**params)
            if method == "samples":
                return self._sampler.take(**params)
            if method == "doubt":
                return self._sampler.doubt(**params)
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
            self._on_sent(client, request.refuse(Code.UNAVAILABLE, "the version is being unloaded", FLAG_DRAINING))
            return
        entry = Entry(request, frame.payload_bytes, frame.deadline_ns)
        client.pending[frame.request_id] = request
        refusal = self._enqueue(entry) if self._batches is None else self._enqueue_for_batch(entry, self._batches)
        if refusal is None:
            return
        client.pending.pop(frame.request_id, None)
        self._on_sent(client, request.refuse(refusal.code, refusal.message))

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
            found = self._merging.place(entry.item.meta)
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

    def _on_sent(self, client: Client, done: bool) -> None:
        """Have the leader send the rest of an answer that is not `done`."""
        if not done:
            self._blocked.append(client)
            self._wake()


def _latest(work: Sequence[Entry[Request]]) -> int:
    """Return the last deadline of what runs together, 0 if one has none."""
    deadlines = [entry.deadline_ns for entry in work]
    return max(deadlines) if all(deadlines) else 0

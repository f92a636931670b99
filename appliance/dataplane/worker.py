"""The process of one model version: loads it, listens on a Unix socket, queues, runs, answers.

One more thread than `max_concurrent_requests`, all alike: whoever holds `_poll_lock` leads, which is to read and write
sockets; when there is a request that may run, the leader lets go and runs it itself, and another thread leads. So a
request that meets an idle worker is not handed from thread to thread, requests are read while others compute, and
what exceeds the queue is refused at once. The process ends when it has been told to drain and has answered everything,
or when its supervisor is gone.
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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from appliance.dataplane import shared
from appliance.dataplane.batching import Entry, RequestQueue
from appliance.dataplane.channel import Channel
from appliance.dataplane.wire import (
    FLAG_DESCRIPTOR,
    FLAG_DRAINING,
    FLAG_SHARED,
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
from appliance.options import ModelOptions
from backends.contract import Backend, BackendError, Code, IncompleteError
from backends.registry import check_complete, load

# While more than this waits for a front to read it, running threads wait with their next answer. A front that reads
# nothing for so long is broken: its connection is closed.
_MAX_UNSENT_BYTES = 64 * 1024 * 1024
_ROOM_SECONDS = 30.0
_GOODBYE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker needs to know. Plain values: it travels as JSON."""

    model: str
    version: int
    path: str
    socket_path: str
    backend: str
    metrics_directory: str
    max_concurrent_requests: int  # the option's value, worked out
    shared_memory_bytes: int
    options: ModelOptions

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WorkerTask:
        return cls(**{**value, "options": ModelOptions(**value["options"])})


class _Request:
    """One request between its arrival and its answer."""

    __slots__ = ("client", "meta", "payload", "request_id")

    def __init__(self, client: _Client, request_id: int, meta: bytes, payload: Buffer) -> None:
        self.client = client
        self.request_id = request_id
        self.meta = meta
        self.payload = payload


class _Client:
    """One front's connection. `lock` guards the channel's sending side, the segments and `open`: any thread answers."""

    def __init__(self, sock: socket.socket, shared_memory_bytes: int) -> None:
        self.channel = Channel(sock)
        self.mapped: dict[int, mmap.mmap] = {}
        self.pending: dict[int, Entry[_Request]] = {}
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self.pool = shared.SegmentPool(shared_memory_bytes)
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
    """Serves a loaded backend until it is drained."""

    def __init__(self, task: WorkerTask, backend: Backend, control: socket.socket, listener: socket.socket) -> None:
        self._task = task
        self._backend = backend
        self._control = control
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._poll_lock = threading.Lock()  # whoever holds it is the leader
        self._lock = threading.Lock()  # guards the queue and `_running`
        self._queue: RequestQueue[_Request] = RequestQueue(
            task.options.max_queue_requests, task.options.max_queue_bytes
        )
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
        for index in range(self._task.max_concurrent_requests):
            threading.Thread(target=self._work, name=f"serve-{index}", daemon=True).start()
        self._work()
        for client in list(self._clients):
            self._say_goodbye(client)

    def _work(self) -> None:
        """One thread: leads, runs, leads again. Returns when drained."""
        try:
            while True:
                with self._poll_lock:
                    entry = self._next()
                while entry is not None:
                    self._run(entry)
                    entry = self._finish()
                if self._drained:
                    return
        except BaseException:  # noqa: BLE001 - the outer loop of a thread: without it the process would only limp
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _next(self) -> Entry[_Request] | None:
        """Polls until a request may run, and takes it; None when all is drained. Holds `_poll_lock`."""
        while not self._drained:
            with self._lock:
                if self._running < self._task.max_concurrent_requests and (entry := self._queue.take()):
                    self._running += 1
                    return entry
                if self._draining and not self._running:
                    self._drained = True
                    break
            for key, events in self._selector.select():
                if isinstance(key.data, _Client):
                    self._on_client(key.data, events)
                else:
                    key.data()
        return None

    def _finish(self) -> Entry[_Request] | None:
        """Ends one run, and takes what has waited meanwhile."""
        with self._lock:
            entry = self._queue.take()
            if entry is None:
                self._running -= 1
        if entry is None and self._draining:
            self._wake()  # the leader looks whether this was the last
        return entry

    def _say_goodbye(self, client: _Client) -> None:
        with client.lock, contextlib.suppress(EOFError, OSError):
            client.send([header(Kind.GOODBYE, 0, 0)])
            deadline = time.monotonic() + _GOODBYE_SECONDS
            while not client.channel.flush() and time.monotonic() < deadline:
                select.select([], [client.channel.sock], [], 0.1)
        client.channel.close()

    # -- the leader: sockets ------------------------------------------------------------------------------

    def _on_control(self) -> None:
        data = self._control.recv(4096)
        if not data:
            os._exit(1)  # the supervisor is gone
        if b"drain" in data:  # the only command there is
            self._draining = True

    def _on_connect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            client = _Client(sock, self._task.shared_memory_bytes)
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
            for entry in list(client.pending.values()):  # a copy: running threads take entries out
                entry.cancelled = True
            client.close()

    def _on_frame(self, client: _Client, frame: Frame) -> None:
        if frame.kind == Kind.PREDICT:
            self._on_predict(client, frame)
        elif frame.kind == Kind.CANCEL:
            entry = client.pending.get(frame.request_id)
            if entry is not None:
                entry.cancelled = True
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
        client.pending[frame.request_id] = entry
        with self._lock:
            refusal = None
            if self._running + len(self._queue) < self._task.max_concurrent_requests:
                self._queue.push(entry)
            else:
                refusal = self._queue.offer(entry)
        if refusal is None:
            return
        del client.pending[frame.request_id]
        name = f"{self._task.model} version {self._task.version}"
        self._answer_error(request, Code.RESOURCE_EXHAUSTED, f"The queue of model {name} is full: {refusal}")

    # -- running -----------------------------------------------------------------------------------------------

    def _run(self, entry: Entry[_Request]) -> None:
        request = entry.item
        request.client.pending.pop(request.request_id, None)
        if entry.cancelled:
            self._answer_error(request, Code.CANCELLED, "nobody waits for this request any more")
        elif entry.deadline_ns and time.monotonic_ns() > entry.deadline_ns:
            self._answer_error(request, Code.DEADLINE_EXCEEDED, "the deadline passed while the request waited")
        else:
            try:
                signature, outputs, table = parse_predict_meta(request.meta)
                inputs = unpack_arrays(table, request.payload)
                arrays = self._backend.run(signature, inputs, outputs)
                self._answer(request, list(zip(outputs, arrays, strict=True)))
            except BackendError as error:
                self._answer_error(request, error.code, error.message)
            except Exception as error:  # noqa: BLE001 - the loop of this thread: one request must not end it
                message = f"{type(error).__name__}: {error}"
                self._answer_error(request, Code.INTERNAL, message)

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


def run_worker(task: WorkerTask, control: socket.socket) -> int:
    """The life of a worker process; its exit status. It reports to the supervisor in JSON lines on `control`."""

    def report(event: str, **details: Any) -> None:
        control.sendall(json.dumps({"event": event, **details}).encode() + b"\n")

    watch = threading.Thread(target=_exit_with_supervisor, args=(control,), daemon=True)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(task.socket_path)
        listener.listen(64)
        watch.start()
        check_complete(task.backend, task.path)
        backend = load(
            task.backend,
            task.path,
            tags=task.options.tags,
            intra_op_threads=task.options.tensorflow_intra_op_parallelism,
            inter_op_threads=task.options.tensorflow_inter_op_parallelism,
        )
        report("ready", signatures={name: s.to_json() for name, s in backend.signatures.items()})
        worker = Worker(task, backend, control, listener)
    except IncompleteError as error:
        report("incomplete", message=str(error))
        return 0
    except BackendError as error:
        report("failed", code=int(error.code), message=error.message)
        return 0
    except Exception as error:  # noqa: BLE001 - the outer loop of a process: whatever a model raises is its failure
        report("failed", code=int(Code.INTERNAL), message=f"{type(error).__name__}: {error}")
        return 1
    worker.run()
    return 0


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

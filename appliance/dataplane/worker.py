"""The process of one model version: loads it, listens on a Unix socket, queues, runs, answers.

The main thread reads and writes sockets; `max_concurrent_requests` executor threads run the backend. So requests are
read while others compute, and what exceeds the queue is refused at once. The process ends when it has been told to
drain and has answered everything, or when its supervisor is gone.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

from appliance.dataplane import shared
from appliance.dataplane.batching import Entry, RequestQueue
from appliance.dataplane.wire import (
    FLAG_DESCRIPTOR,
    FLAG_DRAINING,
    FLAG_SHARED,
    SEGMENT_ID,
    Buffer,
    Decoder,
    Frame,
    Kind,
    WireError,
    header,
    inline,
    pack_arrays,
    parse_predict_meta,
    unpack_arrays,
)
from backends.contract import Backend, BackendError, Code, IncompleteError
from backends.registry import check_complete, load

# A front that does not read its answers is broken: its connection is closed rather than its answers hoarded.
_MAX_UNSENT_BYTES = 256 * 1024 * 1024
_MAX_PAYLOAD_BYTES = 4 * 1024**3
_MAX_DESCRIPTORS = 16


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker needs to know. Plain values: it travels as JSON."""

    model: str
    version: int
    path: str
    socket_path: str
    backend: str
    tags: tuple[str, ...]
    intra_op_threads: int
    inter_op_threads: int
    max_concurrent_requests: int
    max_queue_requests: int
    max_queue_bytes: int
    shared_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WorkerTask:
        return cls(**{**value, "tags": tuple(value["tags"])})


class _Request:
    """One request between its arrival and its answer."""

    __slots__ = ("client", "meta", "payload", "request_id")

    def __init__(self, client: _Client, request_id: int, meta: bytes, payload: Buffer) -> None:
        self.client = client
        self.request_id = request_id
        self.meta = meta
        self.payload = payload


class _Client:
    """One front's connection: its decoder, its segments, and what could not be sent yet."""

    def __init__(self, sock: socket.socket, shared_memory_bytes: int) -> None:
        self.sock = sock
        self.decoder = Decoder(_MAX_PAYLOAD_BYTES)
        self.descriptors: deque[int] = deque()
        self.mapped: dict[int, mmap.mmap] = {}
        self.lock = threading.Lock()  # guards what follows: executors send
        self.pool = shared.SegmentPool(shared_memory_bytes)
        self.unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0
        self.pending: dict[int, Entry[_Request]] = {}
        self.open = True

    def send(self, buffers: list[Buffer], descriptor: int | None = None) -> bool:
        """Sends or keeps `buffers`; false where something is kept, and the loop must wait for room. Holds `lock`."""
        if not self.open:
            return True
        if descriptor is None and not self.unsent:
            total = sum(map(len, buffers))
            try:
                sent = self.sock.sendmsg(buffers)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.open = False
                return True
            if sent == total:
                return True
            for buffer in buffers:
                if sent >= len(buffer):
                    sent -= len(buffer)
                else:
                    self._keep(memoryview(buffer)[sent:])
                    sent = 0
            return False
        if descriptor is not None and not self._send_descriptor(buffers, descriptor):
            return False
        if descriptor is None:
            for buffer in buffers:
                self._keep(memoryview(buffer))
            return False
        return True

    def _send_descriptor(self, buffers: list[Buffer], descriptor: int) -> bool:
        # A descriptor goes with the first byte of its frame, and frames with one are tiny: they are sent whole, in
        # blocking mode if need be, after whatever waits. It happens once a segment.
        with contextlib.suppress(OSError):
            self.sock.settimeout(10)
            while self.unsent:
                self.sock.sendall(self.unsent.popleft())
            self.unsent_bytes = 0
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            data = b"".join(buffers)
            sent = self.sock.sendmsg([data], rights)
            if sent < len(data):
                self.sock.sendall(data[sent:])
            self.sock.setblocking(False)
            return True
        self.open = False
        return True

    def _keep(self, view: memoryview) -> None:
        self.unsent.append(view)
        self.unsent_bytes += len(view)
        if self.unsent_bytes > _MAX_UNSENT_BYTES:
            self.open = False

    def flush(self) -> bool:
        """Sends what was kept; true when nothing is left. Holds `lock`."""
        while self.unsent and self.open:
            view = self.unsent.popleft()
            try:
                sent = self.sock.send(view)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.open = False
                return True
            self.unsent_bytes -= sent
            if sent < len(view):
                self.unsent.appendleft(view[sent:])
                return False
        return True


class Worker:
    """Serves a loaded backend until it is drained."""

    def __init__(self, task: WorkerTask, backend: Backend, control: socket.socket, listener: socket.socket) -> None:
        self._task = task
        self._backend = backend
        self._control = control
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # guards the queue and `_running`
        self._queue: RequestQueue[_Request] = RequestQueue(task.max_queue_requests, task.max_queue_bytes)
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._running = 0
        self._idle_threads = task.max_concurrent_requests
        self._draining = False
        self._clients: set[_Client] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._blocked: deque[_Client] = deque()

    def run(self) -> None:
        """Serves; returns when drained. Raises EOFError where the supervisor is gone."""
        for index in range(self._task.max_concurrent_requests):
            threading.Thread(target=self._execute, name=f"executor-{index}", daemon=True).start()
        self._control.setblocking(False)
        self._listener.setblocking(False)
        register = self._selector.register
        register(self._control, selectors.EVENT_READ, self._on_control)
        register(self._listener, selectors.EVENT_READ, self._on_connect)
        register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        while not (self._draining and self._is_idle()):
            for key, events in self._selector.select():
                if isinstance(key.data, _Client):
                    self._on_client(key.data, events)
                else:
                    key.data()
        for client in list(self._clients):
            self._say_goodbye(client)

    def _is_idle(self) -> bool:
        with self._lock:
            return not self._running and not len(self._queue)

    def _say_goodbye(self, client: _Client) -> None:
        with client.lock, contextlib.suppress(OSError):
            client.sock.settimeout(10)
            for view in client.unsent:
                client.sock.sendall(view)
            client.sock.sendall(header(Kind.GOODBYE, 0, 0))
        client.sock.close()

    # -- the main thread: sockets ------------------------------------------------------------------------------

    def _on_control(self) -> None:
        data = self._control.recv(4096)
        if not data:
            raise EOFError
        if b"drain" in data:  # the only command there is
            self._draining = True

    def _on_connect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            client = _Client(sock, self._task.shared_memory_bytes)
            self._clients.add(client)
            self._selector.register(sock, selectors.EVENT_READ, client)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while self._blocked:
            client = self._blocked.popleft()
            if client in self._clients:
                self._selector.modify(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, client)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def _on_client(self, client: _Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            with client.lock:
                done = client.flush()
            if done:
                self._selector.modify(client.sock, selectors.EVENT_READ, client)
        if not events & selectors.EVENT_READ:
            return
        try:
            count, ancillary, _, _ = client.sock.recvmsg_into(
                [client.decoder.target()], socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS)
            )
        except BlockingIOError:
            return
        except OSError:
            self._disconnect(client)
            return
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                client.descriptors.extend(struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4]))
        try:
            if count == 0:
                raise WireError("closed")
            for frame in client.decoder.received(count):
                self._on_frame(client, frame)
        except WireError as error:
            if count:
                print(f"closed a front's connection: {error}", file=sys.stderr)
            self._disconnect(client)

    def _disconnect(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        self._clients.discard(client)
        with client.lock:
            client.open = False
            for entry in client.pending.values():
                entry.cancelled = True
            client.pool.close()
            client.sock.close()
            for descriptor in client.descriptors:
                os.close(descriptor)

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
                descriptor = client.descriptors.popleft()
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
            if self._idle_threads > len(self._queue):
                self._queue.push(entry)
            else:
                refusal = self._queue.offer(entry)
        if refusal is None:
            self._tokens.put(None)
            return
        del client.pending[frame.request_id]
        name = f"{self._task.model} version {self._task.version}"
        self._answer_error(request, Code.RESOURCE_EXHAUSTED, f"The queue of model {name} is full: {refusal}")

    # -- the executor threads ----------------------------------------------------------------------------------

    def _execute(self) -> None:
        while True:
            self._tokens.get()
            with self._lock:
                entry = self._queue.take()
                self._running += 1
                self._idle_threads -= 1
            try:
                if entry is not None:
                    self._run(entry)
            finally:
                entry = None
                with self._lock:
                    self._running -= 1
                    self._idle_threads += 1
                if self._draining:
                    self._wake()

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
            tags=task.tags,
            intra_op_threads=task.intra_op_threads,
            inter_op_threads=task.inter_op_threads,
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
    try:
        worker.run()
    except EOFError:
        return 1
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

"""The supervisor's side of the processes that it keeps running, and of the fork server that starts workers for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from appliance.host.processes import Reaper, argument_file, describe_status, parent_of, spawn
from appliance.supervisor.watch import Watch, Watched
from appliance.worker.task import WorkerTask

logger = logging.getLogger(__name__)

_STABLE_SECONDS = 10.0
_MAX_BACKOFF_SECONDS = 10.0
_IMPORT_SECONDS = 300.0  # 1.5 s, and more from a cold disk
_FORK_SECONDS = 15.0  # tens of milliseconds, and more if the machine swaps
_MAX_MESSAGE_BYTES = 4096  # of what the fork server says


@dataclass(slots=True, eq=False)
class Program:
    """A process that is kept running."""

    name: str
    start: Callable[[], int]
    pid: int | None = None
    stopping: bool = False
    task: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class ForkServer:
    """The fork server's process, and the way to ask it for workers. One that hangs (it gives no sign of life, or does
    not answer within `fork_seconds`) is killed, and so started again as one that died, by whoever keeps `program`
    running."""

    def __init__(
        self, reaper: Reaper, watch: Watch, relay_stderr: Callable[[int], None], fork_seconds: float = _FORK_SECONDS
    ) -> None:
        self._reaper = reaper
        self._watch = watch
        self._relay_stderr = relay_stderr
        self._fork_seconds = fork_seconds
        self._socket: socket.socket | None = None
        self._pid = 0  # of the last process, which may have ended
        self._answer: asyncio.Future[int | None] | None = None  # to the last request: a worker's process number
        self._ready = asyncio.Event()
        self._lock = asyncio.Lock()
        self._requests = 0
        self.program = Program("fork server", self._start)

    def _start(self) -> int:
        self._ready.clear()
        self._answered(None)  # by the last process: it has ended
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        environment = {
            # TensorFlow's own chatter; what matters of it comes as an exception too.
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **os.environ,
            # Its workers run on the CPU: without this, each would take memory on every GPU.
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        read_end, write_end = os.pipe()
        try:
            pid = spawn(
                "appliance.worker.forkserver", None, [theirs.fileno()], environment=environment, stderr=write_end
            )
        except OSError:
            ours.close()
            os.close(read_end)
            raise
        finally:
            theirs.close()
            os.close(write_end)
        self._relay_stderr(read_end)
        self._socket, self._pid = ours, pid
        self._hearing = asyncio.create_task(self._hear(ours, pid))
        return pid

    async def _hear(self, ours: socket.socket, pid: int) -> None:
        """Hear what the fork server with the number `pid` says, until it ends; watch it once it is ready."""
        loop = asyncio.get_running_loop()
        watched = Watched("the fork server", "forkserver", pid, partial(_ask_for_life, ours))
        try:
            async with asyncio.timeout(_IMPORT_SECONDS):
                said = await loop.sock_recv(ours, _MAX_MESSAGE_BYTES)
            if said and ours is self._socket:
                self._watch.add(watched)
                self._ready.set()
            while said:
                said = await loop.sock_recv(ours, _MAX_MESSAGE_BYTES)
                self._watch.heard(watched)
                answer = json.loads(said or b"{}")
                if answer.get("id") == self._requests:  # another is late: its asker has given up, and its worker exits
                    self._answered(int(answer["pid"]))
        except TimeoutError:
            self._kill(pid, f"was not ready within {_IMPORT_SECONDS:g} s")
        except OSError:
            pass
        finally:
            self._watch.remove(watched)
            if ours is self._socket:
                self._answered(None)
            ours.close()

    def _answered(self, worker: int | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(worker)

    def _kill(self, pid: int, why: str) -> None:
        logger.error("the fork server %s; it is killed", why)
        self._reaper.kill(pid)

    async def fork(self, task: WorkerTask, control: int, stderr: int) -> int | None:
        """Fork a worker for `task` and return its process number.

        `control` and `stderr` are descriptors: its end of the control socket, and where its libraries print. Return
        None if the fork server died before it could tell, or was killed because it hung or could not be asked. Wait as
        long as no fork server is ready. Raise OSError if there is no room for the task.
        """
        async with self._lock:
            await self._ready.wait()
            self._requests += 1
            asked = self._pid
            try:
                with argument_file(task) as argument:
                    async with asyncio.timeout(self._fork_seconds):
                        pid = await self._ask(self._requests, [argument.fileno(), control, stderr])
            except TimeoutError:
                self._kill(asked, f"did not answer within {self._fork_seconds:g} s")
                pid = None
            if pid is None:
                self._ready.clear()
                self._reaper.kill(asked)  # if it lives, and could not be asked: only the next one says that it is ready
            return pid

    async def _ask(self, number: int, descriptors: list[int]) -> int | None:
        """Return the new worker's process number, or None if the fork server has died."""
        assert self._socket is not None
        self._answer = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._socket, [json.dumps({"id": number}).encode()], descriptors)
        except OSError:
            return None
        return await self._answer


def _ask_for_life(ours: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended, or has not read many of them
        ours.send(b'{"ping": true}')


def spawn_worker(task: WorkerTask, control: int, stderr: int) -> int:
    """Start a worker that needs no TensorFlow, with an interpreter of its own; return its process number.

    Forked from the fork server, it would carry TensorFlow's 500 MB. The parameters are those of `ForkServer.fork`.
    Raise OSError.
    """
    # NumPy would start a thread for each core, and nothing in a worker multiplies matrices by NumPy.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return spawn("appliance.worker.process", task, [control], environment=environment, stderr=stderr)


class Programs:
    """Keeps programs running: one that ends is started again, with a growing delay if it ends soon."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._programs: list[Program] = []

    @property
    def names(self) -> set[str]:
        return {program.name for program in self._programs}

    def has_started(self, pid: int) -> bool:
        """Return whether `pid` is a process of one of them, or was started by one."""
        pids = {program.pid for program in self._programs} - {None}
        return pid in pids or parent_of(pid) in pids

    def keep(self, program: Program) -> None:
        self._programs.append(program)
        program.task = asyncio.create_task(self._keep_running(program))

    async def _keep_running(self, program: Program) -> None:
        failures = 0
        while not program.stopping:
            started = time.monotonic()
            try:
                program.pid = program.start()
                self._reaper.forget(program.pid)
                how = describe_status(await self._reaper.exit_of(program.pid))
            except OSError as error:
                how = f"it could not be started: {error}"
            program.pid = None
            if program.stopping:
                break
            failures = failures + 1 if time.monotonic() - started < _STABLE_SECONDS else 1
            delay = 0.0 if failures == 1 else min(0.25 * 2.0 ** (failures - 2), _MAX_BACKOFF_SECONDS)
            logger.error("the %s process ended (%s); it is started again", program.name, how)
            await asyncio.sleep(delay)
        program.ended.set()

    async def stop(self, seconds: float, *, but: Program) -> None:
        """End all of them except `but`: by SIGTERM, and by SIGKILL those that have not ended after `seconds`."""
        programs = [program for program in self._programs if program is not but]
        if not programs:
            return
        for program in programs:
            program.stopping = True
            if program.pid is not None:
                self._reaper.kill(program.pid, signal.SIGTERM)
            elif program.task is not None:
                program.task.cancel()
                program.ended.set()
        waiters = [asyncio.create_task(program.ended.wait()) for program in programs]
        _, late = await asyncio.wait(waiters, timeout=seconds)
        for program, waiter in zip(programs, waiters, strict=True):
            if waiter in late and program.pid is not None:
                logger.warning("the %s process did not end within %.1f s; it is killed", program.name, seconds)
                self._reaper.kill(program.pid)

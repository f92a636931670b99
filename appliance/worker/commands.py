"""Commands and questions of the supervisor to a worker that serves: lines of JSON on their control socket.

A question whose answer is long comes after {"do": "file"} with the descriptor of an open file for it, which `do` gets
as the parameter "file": a worker makes no files.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from backends.contract import BackendError, Code

__all__ = ["Commands"]

_MAX_FILES = 16  # in one read


class Commands:
    """The worker's end of the control socket, which does not block.

    `do(method, params)` answers a question; it may take long, and raises BackendError. `overdue()` identifies the run
    that goes on the longest after the deadlines of all its requests, 0 if none does; it is told with each sign of life.
    """

    def __init__(
        self, control: socket.socket, do: Callable[[str, Mapping[str, Any]], Any], overdue: Callable[[], int]
    ) -> None:
        self._control = control
        self._do = do
        self._overdue = overdue
        self._lock = threading.Lock()  # guards the sending side
        self._rest = b""  # the start of a line
        self._files: deque[int] = deque()  # descriptors that have come, in the order of their commands
        self._file: int | None = None  # that of the next question

    def told_to_drain(self) -> bool:
        """Read what has come, and return whether the worker is to drain. End the process if the supervisor is gone."""
        data, files, _, _ = socket.recv_fds(self._control, 65536, _MAX_FILES)
        if not data:
            os._exit(1)
        self._files.extend(files)
        *lines, self._rest = (self._rest + data).split(b"\n")
        commands = [json.loads(line) for line in lines]
        if any(command["do"] == "ping" for command in commands):
            self._show_life()
        for command in commands:
            if command["do"] == "file":
                self._file = self._files.popleft()
            elif command["do"] == "answer":
                file, self._file = self._file, None
                if file is not None:
                    command["params"]["file"] = file
                threading.Thread(target=self._answer, args=(command,), daemon=True, name="answer").start()
        return any(command["do"] == "drain" for command in commands)

    def _show_life(self) -> None:
        """Say that the thread which serves the sockets lives. It must not wait: if there is no room now, the supervisor
        does not read, and asks again."""
        data = json.dumps({"alive": True, "overdue": self._overdue()}).encode() + b"\n"
        if self._lock.acquire(blocking=False):
            try:
                with contextlib.suppress(BlockingIOError, OSError):
                    self._control.send(data)  # whole or not at all, since it is short
            finally:
                self._lock.release()

    def _answer(self, command: Mapping[str, Any]) -> None:
        """Answer one question, in a thread of its own."""
        answer: dict[str, Any] = {"answer_to": command["ask"]}
        try:
            answer["result"] = self._do(command["method"], command["params"])
        except BackendError as error:
            answer.update(code=int(error.code), message=error.message)
        except Exception as error:  # noqa: BLE001 - the outer loop of this thread
            answer.update(code=int(Code.INTERNAL), message=f"{type(error).__name__}: {error}")
        finally:
            if "file" in command["params"]:
                os.close(command["params"]["file"])
        data = json.dumps(answer).encode() + b"\n"
        room = select.poll()  # select.select takes no descriptor from 1,024 on
        room.register(self._control, select.POLLOUT)
        with self._lock, contextlib.suppress(OSError):
            while data:
                room.poll()
                data = data[self._control.send(data) :]

"""Clients that ask without a pause and check every answer."""

from __future__ import annotations

import collections
import http.client
import json
import threading
from collections.abc import Callable
from typing import Any, Self

import grpc
import numpy as np

from appliance.protocols import protos
from tests.support.grpc_calls import PREDICT, method, request
from tests.support.server import Server, eventually

__all__ = ["Clients", "addend_of", "new_connections_answer"]

REFUSALS = {"429", "503", "504", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
"""How a server may refuse what it cannot answer now; any other error is a finding."""

_BEFORE_AN_ANSWER = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY", "connect", "recvmsg")
_SECONDS = 60.0
_MOST_KEPT = 20


def addend_of(version: int) -> float:
    """Of a version that `drop` has made: odd ones are y = x / 2 + 2, even ones x / 2 + 3."""
    return 2.0 if version % 2 else 3.0


class Clients:
    """Threads that ask `model` over REST and gRPC. An answer has one of `addends`: that of the version it names."""

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        rest: int = 2,
        grpc_clients: int = 2,
        addends: frozenset[float] = frozenset({2.0}),
    ) -> None:
        self.server, self.model = server, model
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._addends = addends
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._rest, daemon=True) for _ in range(rest)]
        self._threads += [threading.Thread(target=self._grpc, daemon=True) for _ in range(grpc_clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _SECONDS)
        if any(thread.is_alive() for thread in self._threads):
            self.wrong.append(f"a client of {self.model} never got an answer")

    def more(self, count: int) -> None:
        """Wait for so many more right answers. Raise AssertionError."""
        wanted = self.counts["right"] + count
        eventually(lambda: self.counts["right"] >= wanted, f"{count} more answers of {self.model}; {self.counts}")

    def refused(self) -> dict[str, int]:
        """How often which error came that is not a finding."""
        return {name: count for name, count in self.counts.items() if name != "right"}

    def _count(self, name: str, wrong: str = "") -> None:
        with self._lock:
            self.counts[name] += 1
            if wrong and len(self.wrong) < _MOST_KEPT:
                self.wrong.append(wrong)

    def _answered(self, x: float, found: list[float], version: int | None) -> None:
        expected = {x / 2 + a for a in (self._addends if version is None else {addend_of(version)} & self._addends)}
        if len(found) == 1 and found[0] in expected:
            self._count("right")
        else:
            self._count("wrong", f"x = {x} gave {found} of version {version}, not one of {sorted(expected)}")

    def _refused(self, code: str, text: str) -> None:
        self._count(code, "" if code in REFUSALS else f"{code}: {text[:300]}")

    def _rest(self) -> None:
        connection = self.server.connection(_SECONDS)
        x = 0.0
        while not self._stop.is_set():
            x = (x + 1) % 1000
            try:
                connection.request("POST", f"/v1/models/{self.model}:predict", json.dumps({"instances": [x]}).encode())
                response = connection.getresponse()
                body = response.read()
            except TimeoutError:
                self._count("late", f"no answer over REST within {_SECONDS:g} s")
                connection.close()
                continue
            except (OSError, http.client.HTTPException):
                self._count("lost connection")
                connection.close()
                connection = self.server.connection(_SECONDS)
                self._stop.wait(0.01)
                continue
            if response.status == 200:
                self._answered(x, json.loads(body)["predictions"], None)
            else:
                self._refused(str(response.status), body.decode(errors="replace"))
                self._stop.wait(0.01)
        connection.close()

    def _grpc(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        x = 0.0
        while not self._stop.is_set():
            with grpc.insecure_channel(f"127.0.0.1:{self.server.grpc_port}", options) as channel:
                call = method(channel, PREDICT, protos.PredictResponse)
                for _ in range(500):  # then a new connection, which another process may take
                    x = (x + 1) % 1000
                    if self._stop.is_set():
                        return
                    self._ask(call, x)

    def _ask(self, call: Any, x: float) -> None:
        try:
            answer = call(request(self.model, x=np.array([x], "f4")), timeout=_SECONDS / 2)
        except grpc.RpcError as error:
            code, details = error.code().name, str(error.details())
            if any(words in details for words in _BEFORE_AN_ANSWER):
                self._count("lost connection")
            else:
                self._refused(code, details)
            self._stop.wait(0.01)
        else:
            self._answered(x, list(answer.outputs["y"].float_val), answer.model_spec.version.value)


def new_connections_answer(server: Server, model: str, count: int = 4) -> bool:
    """Whether the server is ready, and `count` new connections of each protocol get an answer within two seconds."""

    def rest() -> bool:
        connection = server.connection(2)
        try:
            connection.request("POST", f"/v1/models/{model}:predict", b'{"instances": [1.0]}')
            return connection.getresponse().status == 200
        finally:
            connection.close()

    def by_grpc() -> bool:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
            call = method(channel, PREDICT, protos.PredictResponse)
            return bool(call(request(model, x=np.ones(1, "f4")), timeout=2).outputs)

    def ready() -> bool:
        return server.get("/readyz")[0] == 200

    def ask(one: Callable[[], bool]) -> bool:
        try:
            return one()
        except (OSError, http.client.HTTPException, grpc.RpcError):
            return False

    return ask(ready) and all(ask(one) for one in (rest, by_grpc) for _ in range(count))

"""Questions from one process to another over their control connection, as plain JSON values, each with a deadline.

A question is {"ask": N, "method": M, "params": {…}}; its answer, which may come in any order, {"answer_to": N} with a
"result", or with the "code" and "message" of an error. Nobody waits for the answer to a question of number 0.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from appliance.core.errors import Code, ServingError


class Questions:
    """Those that one process asks another. `send` writes a message to it, `whom` names it in errors, and `remedy` says
    what to do where it does not answer."""

    def __init__(self, send: Callable[[dict[str, Any]], None], whom: str, remedy: str = "") -> None:
        self._send = send
        self._whom = whom
        self._remedy = remedy
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        """The answer. Raises ServingError: what is answered, DEADLINE_EXCEEDED after `seconds`, or that of `fail`."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send({"ask": number, "method": method, "params": dict(params)})
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            message = f"{self._whom} did not {method} within {seconds:g} s"
            raise ServingError(Code.DEADLINE_EXCEEDED, message, self._remedy) from None
        finally:
            del self._waiting[number]

    def tell(self, method: str, params: Mapping[str, Any]) -> None:
        """Has the other process do `method`, and waits for no answer."""
        self._send({"ask": 0, "method": method, "params": dict(params)})

    def answered(self, answer: Mapping[str, Any]) -> None:
        """Takes an answer; one that nobody waits for any more is left alone."""
        future = self._waiting.get(answer["answer_to"])
        if future is None or future.done():
            return
        if "code" in answer:
            future.set_exception(ServingError(Code(answer["code"]), answer["message"]))
        else:
            future.set_result(answer["result"])

    def fail(self, reason: str) -> None:
        """The other process has ended, and answers nothing any more."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ServingError(Code.UNAVAILABLE, reason))

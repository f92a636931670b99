"""Questions from one process to another over their control connection: plain JSON values, each with a deadline.

A question is {"ask": ID, "method": M, "params": {…}}. Its answer is {"answer_to": ID} with a "result", or with the
"code" and "message" of an error. Answers may come in any order. ID 0 is a notification: an answer to it is ignored.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from appliance.core.errors import Code, ServingError


class Questions:
    """The questions that one process asks another.

    `send` writes a message to the other process, `whom` names that process in errors, and `remedy` says what to do if
    it does not answer.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None], whom: str, remedy: str = "") -> None:
        self._send = send
        self._whom = whom
        self._remedy = remedy
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        """Ask the other process to do `method`, and return its answer.

        Raise ServingError: the error that it answers, DEADLINE_EXCEEDED after `seconds`, or UNAVAILABLE after `fail`.
        """
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
        """Notify the other process to do `method`, without waiting for an answer."""
        self._send({"ask": 0, "method": method, "params": dict(params)})

    def answered(self, answer: Mapping[str, Any]) -> None:
        """Resolve the question that `answer` belongs to; an answer to a question that has timed out is ignored."""
        future = self._waiting.get(answer["answer_to"])
        if future is None or future.done():
            return
        if "code" in answer:
            future.set_exception(ServingError(Code(answer["code"]), str(answer["message"])))
        else:
            future.set_result(answer["result"])

    def fail(self, reason: str) -> None:
        """Fail all open questions with UNAVAILABLE and `reason`, because the other process has ended."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ServingError(Code.UNAVAILABLE, reason))

"""Questions to another process: whatever it does, each gets its own answer or an error, in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from appliance.core.errors import Code, ServingError
from appliance.core.questions import Questions

Asked = list[dict[str, Any]]
Scene = Callable[[Questions, Asked], Awaitable[None]]


def play(scene: Scene) -> None:
    """Runs `scene` with questions to nobody, and with what has been sent."""
    sent: Asked = []
    asyncio.run(scene(Questions(sent.append, "the server", "see its log"), sent))


async def asking(questions: Questions, method: str, sent: Asked) -> asyncio.Task[Any]:
    """A question that has been sent, and waits."""
    before = len(sent)
    task = asyncio.create_task(questions.ask(method, {"n": before}, 30))
    while len(sent) == before:
        await asyncio.sleep(0)
    return task


def test_each_question_gets_its_own_answer_in_whatever_order_they_come() -> None:
    async def scene(questions: Questions, sent: Asked) -> None:
        first, second = [await asking(questions, method, sent) for method in ("reload", "profile")]
        assert [(asked["method"], asked["params"]) for asked in sent] == [("reload", {"n": 0}), ("profile", {"n": 1})]
        questions.answered({"answer_to": sent[1]["ask"], "result": [2]})
        questions.answered({"answer_to": sent[0]["ask"], "result": None})
        assert [await first, await second] == [None, [2]]

    play(scene)


def test_an_error_that_is_answered_is_raised() -> None:
    async def scene(questions: Questions, sent: Asked) -> None:
        task = await asking(questions, "reload", sent)
        questions.answered({"answer_to": sent[0]["ask"], "code": 6, "message": "it runs already"})
        with pytest.raises(ServingError, match="it runs already") as caught:
            await task
        assert caught.value.code is Code.ALREADY_EXISTS

    play(scene)


def test_what_is_not_answered_in_time_says_who_did_not_do_what() -> None:
    async def scene(questions: Questions, sent: Asked) -> None:
        with pytest.raises(ServingError, match=r"^the server did not reload within 0.001 s; see its log$") as caught:
            await questions.ask("reload", {}, 0.001)
        assert caught.value.code is Code.DEADLINE_EXCEEDED

    play(scene)


@pytest.mark.parametrize("answer", [{"result": 1}, {"code": 13, "message": "late"}])
def test_an_answer_that_nobody_waits_for_is_left_alone(answer: dict[str, Any]) -> None:
    async def scene(questions: Questions, sent: Asked) -> None:
        given_up, waiting = [await asking(questions, "reload", sent) for _ in range(2)]
        given_up.cancel()
        questions.answered({"answer_to": sent[0]["ask"], **answer})
        await asyncio.wait([given_up])
        for number in (0, sent[0]["ask"], 99):
            questions.answered({"answer_to": number, **answer})
        questions.answered({"answer_to": sent[1]["ask"], "result": "its own"})
        questions.answered({"answer_to": sent[1]["ask"], "result": "twice"})
        assert await waiting == "its own"

    play(scene)


def test_where_the_other_process_ends_all_that_wait_are_told() -> None:
    async def scene(questions: Questions, sent: Asked) -> None:
        tasks = [await asking(questions, "profile", sent) for _ in range(2)]
        questions.answered({"answer_to": sent[0]["ask"], "result": 1})
        questions.fail("its worker ended")
        assert await tasks[0] == 1
        with pytest.raises(ServingError, match="its worker ended") as caught:
            await tasks[1]
        assert caught.value.code is Code.UNAVAILABLE

    play(scene)


def test_who_is_told_to_do_something_need_not_answer() -> None:
    async def scene(questions: Questions, sent: Asked) -> None:
        questions.tell("demote", {"version": 1})
        assert sent == [{"ask": 0, "method": "demote", "params": {"version": 1}}]

    play(scene)

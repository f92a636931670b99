"""One request through the pipeline, as a coroutine and in callbacks; the workers are channels of the product's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.core.errors import Code, ServingError
from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import ModelSpec, PublicState
from appliance.inference.pipeline import Pipeline
from appliance.inference.router import Router
from appliance.inference.runs import Answered, Run
from appliance.metrics.recording import Recorder, RequestMetrics
from appliance.transport.wire import FLAG_DRAINING, Kind
from tests.support.worker_end import Worker


class Scene:
    """A pipeline over two workers, of which version 1 and then version 2 is served."""

    def __init__(self, folder: Path) -> None:
        self.workers = [Worker(str(folder / str(number))) for number in (1, 2)]
        self.router = Router("", "rest", 1 << 30)
        self.router._changed = asyncio.Event()
        self.pipeline = Pipeline(self.router, RequestMetrics(Recorder(str(folder), "rest"), "rest"))
        self.checked: list[int] = []
        self.serial = 0

    def serve(self, version: int | None) -> None:
        """Adopt a snapshot in which that version is available."""
        self.serial += 1
        versions: tuple[VersionRoute, ...] = ()
        if version is not None:
            path = self.workers[version - 1].path
            versions = (VersionRoute(version, "available", PublicState.AVAILABLE, socket_path=path),)
        self.router._adopt(Snapshot(serial=self.serial, models={"m": ModelRoute("m", versions)}))
        if version is not None:
            self.workers[version - 1].accept()

    def check(self, version: VersionRoute) -> Sequence[Run]:
        self.checked.append(version.version)
        return (Run.of("serve", {"x": np.array([1.0], np.float32)}, ["y"]),)

    def close(self) -> None:
        self.serve(None)
        for worker in self.workers:
            worker.listening.close()


class Ask:
    """One request, whose answer is asked for by a coroutine or by a callback."""

    def __init__(self, scene: Scene, in_callbacks: bool, seconds: float = 60.0) -> None:
        deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
        spec = ModelSpec("m")
        self.answers: list[Answered | Exception] = []
        self.there = asyncio.Event()
        if in_callbacks:
            self.submitted = scene.pipeline.submit(spec, scene.check, deadline_ns, self._answered)
        else:
            self.task = asyncio.ensure_future(scene.pipeline.run(spec, scene.check, deadline_ns))
            self.task.add_done_callback(lambda task: self._answered(task.exception() or task.result()))

    def _answered(self, answer: Any) -> None:
        self.answers.append(answer)
        self.there.set()

    async def answer(self) -> Any:
        async with asyncio.timeout(30):
            await self.there.wait()
        (answer,) = self.answers
        return answer


Play = Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def run(act: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
        async def scene() -> None:
            played = Scene(tmp_path)
            played.serve(1)
            await act(played)
            played.close()

        asyncio.run(scene())

    return run


both = pytest.mark.parametrize("in_callbacks", [False, True], ids=["coroutine", "callbacks"])


@both
def test_an_answer_says_which_version_ran(play: Play, in_callbacks: bool) -> None:
    async def act(scene: Scene) -> None:
        asked = Ask(scene, in_callbacks)
        scene.workers[0].answer(await scene.workers[0].request(), 2.5)
        answer = await asked.answer()
        assert (answer.model, answer.version, answer.outputs[0]["y"].tolist()) == ("m", 1, [2.5])

    play(act)


@both
def test_a_request_that_a_draining_version_refuses_is_checked_and_run_anew(play: Play, in_callbacks: bool) -> None:
    async def act(scene: Scene) -> None:
        asked = Ask(scene, in_callbacks)
        frame = await scene.workers[0].request()
        scene.serve(2)
        scene.workers[0].refuse(frame, Code.UNAVAILABLE, FLAG_DRAINING)
        scene.workers[1].answer(await scene.workers[1].request(), 3.5)
        answer = await asked.answer()
        assert (answer.version, answer.outputs[0]["y"].tolist()) == (2, [3.5])
        assert scene.checked == [1, 2]

    play(act)


@both
def test_a_request_that_a_dead_worker_held_is_not_run_again(play: Play, in_callbacks: bool) -> None:
    async def act(scene: Scene) -> None:
        asked = Ask(scene, in_callbacks)
        await scene.workers[0].request()
        scene.workers[0].channel.close()
        answer = await asked.answer()
        assert answer.code is Code.UNAVAILABLE
        assert "ended while it held the request" in str(answer)
        assert scene.checked == [1]

    play(act)


@both
def test_a_request_to_a_version_without_a_worker_waits_for_the_next_snapshot(play: Play, in_callbacks: bool) -> None:
    async def act(scene: Scene) -> None:
        first = Ask(scene, in_callbacks)
        await scene.workers[0].request()
        scene.workers[0].channel.close()
        await first.answer()  # the connection is closed now, and the snapshot still has the version
        asked = Ask(scene, in_callbacks)
        while len(scene.checked) < 2:
            await asyncio.sleep(0)
        scene.serve(2)
        scene.workers[1].answer(await scene.workers[1].request(), 3.5)
        assert (await asked.answer()).version == 2

    play(act)


@both
def test_an_error_of_the_model_is_the_answer(play: Play, in_callbacks: bool) -> None:
    async def act(scene: Scene) -> None:
        asked = Ask(scene, in_callbacks)
        scene.workers[0].refuse(await scene.workers[0].request(), Code.INVALID_ARGUMENT)
        answer = await asked.answer()
        assert (answer.code, str(answer)) == (Code.INVALID_ARGUMENT, "no")

    play(act)


@both
def test_a_deadline_ends_a_request(play: Play, in_callbacks: bool) -> None:
    async def act(scene: Scene) -> None:
        answer = await Ask(scene, in_callbacks, 0.001).answer()
        assert answer.code is Code.DEADLINE_EXCEEDED

    play(act)


def test_a_model_that_is_not_there_is_refused_at_once_in_callbacks_too(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.serve(None)
        with pytest.raises(ServingError, match="Servable not found"):
            Ask(scene, in_callbacks=True)

    play(act)


@pytest.mark.parametrize("draining", [False, True])
def test_a_cancelled_request_is_given_up_and_gets_no_answer(play: Play, draining: bool) -> None:
    async def act(scene: Scene) -> None:
        asked = Ask(scene, in_callbacks=True)
        frame = await scene.workers[0].request()
        worker = scene.workers[0]
        if draining:  # it is a task then
            scene.serve(2)
            scene.workers[0].refuse(frame, Code.UNAVAILABLE, FLAG_DRAINING)
            worker = scene.workers[1]
            frame = await worker.request()
        asked.submitted.cancel()
        assert (await worker.request(Kind.CANCEL)).request_id == frame.request_id
        worker.answer(frame, 2.5)
        other = Ask(scene, in_callbacks=True)
        worker.answer(await worker.request(), 3.0)
        await other.answer()
        assert asked.answers == []

    play(act)

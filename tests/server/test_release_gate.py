"""Versions that cannot answer never replace one that does, and one that keeps dying gives way, under load."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.models.broken import BROKEN, broken_models
from tests.server.test_nothing_is_lost import Load, Rooted, drop
from tests.support.server import ModelServer, Server, eventually


def drop_broken(root: Path, model: str, kind: str, version: int) -> None:
    incoming = root / model / f".incoming-{version}"
    shutil.copytree(broken_models() / kind, incoming)
    os.rename(incoming, root / model / str(version))


@pytest.mark.timeout(400)
def test_no_version_that_cannot_answer_replaces_one_that_does(zoo: Path, tmp_path: Path) -> None:
    kinds = dict(enumerate(sorted(BROKEN), 2))
    drop(zoo, tmp_path, "half_plus_two", "good")
    with Rooted(
        tmp_path,
        max_num_load_retries=0,
        incomplete_after_seconds=0.5,
        warmup_timeout_seconds=5,
        merge_waiting_requests=False,
    ) as server:
        server.wait_for("good", 1)
        with Load(server, "good", rest=1) as load:
            for version, kind in kinds.items():
                drop_broken(tmp_path, "good", kind, version)
            # The highest is tried first, and each is left for the next below it.
            for version in reversed(kinds):
                server.wait_for("good", version, "failed")
            load.more(20)
        assert load.failures == []
        assert load.resets == []
        assert set(load.answers) == {2.5}
        states = server.versions("good")
        assert states[1][0] == "available"
        wrong = {
            kind: states[version][1]
            for version, kind in kinds.items()
            if not re.search(BROKEN[kind].reason, states[version][1], re.IGNORECASE)
        }
        assert wrong == {}


def test_a_version_that_cannot_answer_is_served_alone_where_the_operator_wants_it(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    drop_broken(tmp_path, "m", "missing_file", 1)
    with ModelServer(f"--model_base_path={tmp_path / 'm'}", "--model_name=m") as server:
        server.wait_for("m", 1)
        status, answer = server.predict("m", {"instances": [1.0]})
        assert status == 404
        assert "not_there.txt" in answer["error"]
        drop(zoo, tmp_path, "half_plus_two", "m", 2)
        server.wait_for("m", 2)
        drop_broken(tmp_path, "m", "missing_file", 3)
        assert "not_there.txt" in server.wait_for("m", 3, "failed")
        assert server.predict("m", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_version_that_keeps_dying_gives_way_to_the_one_before(zoo: Path, tmp_path: Path) -> None:
    drop(zoo, tmp_path, "half_plus_two", "m", 1)
    drop(zoo, tmp_path, "half_plus_three", "m", 2)
    with Server(model_root=tmp_path, crash_window_seconds=600) as server:
        server.wait_for("m", 2)
        killed: list[int] = []
        for _ in range(3):
            (worker,) = eventually(lambda: set(server.pids("ds-worker")).difference(killed), "it has a worker")
            killed.append(worker)
            os.kill(worker, signal.SIGSEGV)
        server.wait_for("m", 1)
        reason = server.wait_for("m", 2, "ended")
        assert re.search("its worker died 3 times within .* s of service, the last time: .*SIGSEGV", reason)
        assert server.predict("m", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_version_that_survived_a_fatal_input_is_looked_after_like_any_other(zoo: Path, tmp_path: Path) -> None:
    for model in ("a", "b"):
        drop(zoo, tmp_path, "half_plus_two", model)
    with Server(model_root=tmp_path) as server:
        for model in ("a", "b"):
            server.wait_for(model, 1)
        drop(zoo, tmp_path, "crash_on_positive", "c")
        server.wait_for("c", 1)
        assert "c/1: loading: its process ended" in server.log()
        assert "restarting" not in server.log()  # the death was that of no other worker
        workers = server.pids("ds-worker")
        assert len(workers) == 3
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(set(server.pids("ds-worker")).difference(workers)) == 3, "all have new workers")
        for model in ("a", "b", "c"):
            server.wait_for(model, 1)
        assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})

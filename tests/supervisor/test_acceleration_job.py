"""The process of a conversion job, as the supervisor starts it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.core.servable import ServableId
from appliance.host.processes import Reaper
from appliance.lifecycle.actions import StartWorker
from appliance.lifecycle.manager import Manager
from appliance.source.scan import fingerprint
from appliance.supervisor.acceleration import Acceleration
from appliance.supervisor.controller import Controller
from appliance.supervisor.tasks import Tasks
from tests.support.effects import Effects
from tests.support.server import KEY_FILE


def test_a_job_that_cannot_be_started_is_told_and_leaves_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = ModelOptions(wait_for_acceleration=True)
    version = tmp_path / "1"
    version.mkdir()
    names, digest = frozenset({"saved_model.pb"}), fingerprint(str(version)).digest
    action = StartWorker(1, ServableId("a", 1), str(version), names, digest=digest, may_find_form=True)

    async def scene() -> None:
        controller = Controller(Manager(0, 60.0, 1), Effects())
        acceleration = Acceleration(
            controller, lambda _: options, Tasks(), Reaper(), FormCache(str(tmp_path), 1 << 20, KEY_FILE)
        )
        found = acceleration.before(action, options)
        assert found is not None
        before = set(os.listdir("/proc/self/fd"))
        assert await found is None
        assert set(os.listdir("/proc/self/fd")) == before
        assert (acceleration.report(action.servable) or {})["state"] == "failed"
        acceleration.stop()

    monkeypatch.setenv("LARGE", "x" * 200_000)  # more than one variable may have
    asyncio.run(scene())
    assert "a/1: its acceleration failed: [Errno 7] Argument list too long" in caplog.text


def test_no_form_is_made_of_files_that_were_changed_since_the_version_was_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ModelOptions(wait_for_acceleration=True)
    version = tmp_path / "1"
    version.mkdir()
    names, digest = frozenset({"saved_model.pb"}), fingerprint(str(version)).digest
    action = StartWorker(1, ServableId("a", 1), str(version), names, digest=digest, may_find_form=True)
    (version / "saved_model.pb").write_bytes(b"another")

    async def scene() -> None:
        cache = FormCache(str(tmp_path / "cache"), 1 << 20, KEY_FILE)
        controller = Controller(Manager(0, 60.0, 1), Effects())
        acceleration = Acceleration(controller, lambda _: options, Tasks(), Reaper(), cache)
        found = acceleration.before(action, options)
        assert found is not None
        assert await found is None
        acceleration.stop()

    asyncio.run(scene())
    assert "a/1: its acceleration failed: its files were changed since they were loaded" in caplog.text
    assert not (tmp_path / "cache").exists()

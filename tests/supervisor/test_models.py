"""What the supervisor knows of models' folders."""

from __future__ import annotations

import asyncio

import pytest

from appliance.config.options import Options
from appliance.config.settings import Settings
from appliance.core.observed import Observed
from appliance.lifecycle.manager import Manager
from appliance.supervisor.controller import Controller
from appliance.supervisor.models import Models
from appliance.supervisor.tasks import Tasks
from tests.support.effects import Effects


def test_what_was_said_of_a_folder_is_forgotten_with_it_and_said_anew(caplog: pytest.LogCaptureFixture) -> None:
    seen = {1: Observed("/root/a/1", "digest", settled=False)}

    async def scene() -> None:
        models = Models(
            Settings(Options(model_root="/root")), None, Controller(Manager(2, 60.0, 8), Effects()), Tasks()
        )
        for _ in range(2):
            for _ in range(2):  # as long as it stays so, it is said once
                models.models_refused({"b:c": "its name has a colon"})
            models.models_refused({})
            models.model_appeared("a", "/root/a")
            for _ in range(2):
                models.versions_observed("a", seen, "a remark", holds_model=True)
            models.model_vanished("a")

    asyncio.run(scene())
    assert caplog.messages.count("model b:c: its name has a colon") == 2
    assert caplog.messages.count("model a: a remark") == 2

"""The processes that run models, as far as it shows without one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.config.model_options import ModelOptions
from appliance.core.errors import ServingError
from appliance.core.servable import ServableId
from appliance.host.processes import Reaper
from appliance.lifecycle.actions import StartWorker
from appliance.metrics.keeper import MetricsKeeper
from appliance.supervisor.load_checks import LoadChecks
from appliance.supervisor.placement import Placement
from appliance.supervisor.tasks import Tasks
from appliance.supervisor.watch import Watch
from appliance.supervisor.workers import Workers

SECONDS = 10.0


def test_no_odd_shapes_are_tried_on_files_that_were_changed_since_they_were_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "1"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"another one")
    (tmp_path / "metrics").mkdir()
    loaded = StartWorker(
        -1, ServableId("model", 1), str(folder), frozenset({"saved_model.pb"}), digest="a", content="b"
    )

    async def scene() -> None:
        reaper, tasks = Reaper(), Tasks()
        workers = Workers(
            SimpleNamespace(lines_dropped=lambda *_: None),
            reaper,
            tasks,
            directory=str(tmp_path),
            metrics_directory=str(tmp_path / "metrics"),
            cores=1,
            placement=Placement(lambda _: None),
            watch=Watch(0, lambda _: None, lambda: None),
            checks=LoadChecks(reaper, tasks, MetricsKeeper(str(tmp_path / "metrics"))),
        )
        with pytest.raises(ServingError, match=f"files in {folder} were changed since it was loaded"):
            await workers.try_odd_shapes(loaded, ModelOptions(), 0, SECONDS)

    asyncio.run(scene())

"""The server of a part, and the versions that are dropped into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.campaign import seeds
from tests.support.server import Server, eventually

__all__ = ["CampaignServer", "drop", "serving", "unload"]


class CampaignServer(Server):
    """A server over a model root."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        values = {"rest_workers": 2, "grpc_workers": 2, "crash_window_seconds": 0, **options}
        super().__init__(model_root=root, **values)


@contextmanager
def serving(*models: str, **options: Any) -> Iterator[CampaignServer]:
    """A server of which these models, all of half_plus_two, are available."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        root = Path(folder, "models")
        root.mkdir()
        for model in models:
            drop(root, model, 1)
        with CampaignServer(root, **options) as server:
            for model in models:
                server.wait_for(model, 1)
            yield server
        shutil.rmtree(server.runtime_dir, ignore_errors=True)


def drop(root: Path, model: str, version: int) -> Path:
    """Drop a version whole, by a rename. Odd ones are half_plus_two, even ones half_plus_three."""
    source = "half_plus_two" if version % 2 else "half_plus_three"
    base = root / model
    base.mkdir(exist_ok=True)
    shutil.copytree(seeds.zoo() / source, base / f".incoming-{version}")
    os.rename(base / f".incoming-{version}", base / str(version))
    return base / str(version)


def unload(server: CampaignServer, model: str) -> None:
    """Remove a model's folder, and wait until no version of it is loaded."""
    shutil.rmtree(server.root / model)
    eventually(lambda: all(phase == "ended" for phase, _ in server.versions(model).values()), f"{model} is unloaded")

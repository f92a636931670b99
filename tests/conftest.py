"""Fixtures that tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.saved_models import model_zoo


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of the models that tests serve: one SavedModel a sub-folder."""
    return model_zoo()


@pytest.fixture
def drop(zoo: Path, tmp_path: Path) -> Callable[..., Path]:
    """Drops a model of the zoo as a version under `tmp_path/models`, whole at once, as a careful deployer would."""

    def drop_version(model: str, version: int | str = 1, source: str = "half_plus_two") -> Path:
        base = tmp_path / "models" / model
        base.mkdir(parents=True, exist_ok=True)
        hidden = base / f".incoming-{version}"
        shutil.copytree(zoo / source, hidden)
        target = base / str(version)
        os.rename(hidden, target)
        return target

    return drop_version

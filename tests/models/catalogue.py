"""All models of the zoo, and where they lie once they are made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tests.models import published
from tests.models.building import CACHE, ROOT, key_of
from tests.models.model import Group, Model

MODULES = ("keras3", "keras2", "tf1", "tf2", "lite", "jax_and_others", "forests", "tables", "published")
GROUPS: dict[str, Group] = {module: import_module(f"tests.models.{module}").GROUP for module in MODULES}
MODELS: dict[str, Model] = {name: model for group in GROUPS.values() for name, model in group.models.items()}

ZOO = ROOT / "build" / "zoo"
_SHARED = tuple(f"tests.models.{name}" for name in ("building", "judge", "make", "model"))


def library_files(model: Model) -> list[str]:
    """Where the libraries of custom operators that the model needs lie, once `make zoo` has installed the tools."""
    (packages,) = (ZOO / "requirements" / "lib").glob("python3*/site-packages") if model.libraries else ("",)
    return [str(Path(packages, library)) for library in model.libraries]


def folder_of(module: str) -> Path:
    """Where the models of `module` are kept: another place after their exporters, inputs or judges have changed."""
    return CACHE / f"{module}-{key_of(f'tests.models.{module}', *_SHARED)}"


def made(
    module: str, names: Sequence[str], python: str = sys.executable, seconds: float = 900.0
) -> dict[str, Path | str]:
    """The folder of each model of `module`, or why it could not be made. Makes what is not there yet."""
    folder = folder_of(module)
    folder.mkdir(parents=True, exist_ok=True)
    if missing := [name for name in names if not (folder / name).exists()]:
        if module == "published":
            published.unpack(ZOO / "wheels", folder)
        else:
            _make(module, missing, folder, python, seconds)
    return {name: folder / name if (folder / name).exists() else _error(folder, name) for name in names}


def _make(module: str, names: Sequence[str], folder: Path, python: str, seconds: float) -> None:
    command = [python, "-m", "tests.models.make", f"tests.models.{module}", *names, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


def _error(folder: Path, name: str) -> str:
    """The last line of what the exporter raised."""
    lines = (folder / f"{name}.error").read_text().strip().splitlines()
    return lines[-1]

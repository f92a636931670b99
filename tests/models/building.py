"""Models are made once, by a process of their own, and kept below build/: the tests' process loads no framework."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "test-models"


def key_of(*modules: str) -> str:
    """Return a text that changes with the modules' source and with TensorFlow."""
    files = [ROOT.joinpath(*module.split(".")).with_suffix(".py") for module in modules]
    return hashlib.sha256(b"".join(map(Path.read_bytes, files)) + version("tensorflow").encode()).hexdigest()[:16]


def built(
    folder: Path, command: Sequence[str], seconds: float = 300.0, python: str = sys.executable, **environment: str
) -> Path:
    """Return `folder`, which `python -m command… FOLDER` makes if it is not there; RuntimeError says why it cannot."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = tempfile.mkdtemp(prefix="building-", dir=folder.parent)
    try:
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        whole = [python, "-m", *command, building]
        done = subprocess.run(
            whole,
            cwd=ROOT,
            env={**os.environ, **quiet, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(whole)} failed:\n{done.stderr[-4000:]}")
        # Of two runs that build at once, the first rename wins: a folder that is not empty is never replaced.
        with contextlib.suppress(OSError):
            os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder

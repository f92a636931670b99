"""A library of custom operators, compiled for the tests, and models that need it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("my_add.c")


def compiled(directory: Path) -> Path:
    """The library with MyAdd, in `directory`. Skips the test where there is no C compiler; under CI that fails it."""
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("there is no C compiler (cc); install gcc and libc6-dev")
        pytest.skip("there is no C compiler (cc)")
    found = importlib.util.find_spec("tensorflow")
    assert found is not None
    assert found.origin is not None
    tensorflow = os.path.dirname(found.origin)  # without importing it
    library = directory / "my_add.so"
    command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-I", f"{tensorflow}/include"]
    subprocess.run([*command, "-L", tensorflow, "-l:libtensorflow_framework.so.2"], check=True)
    library.chmod(0o755)
    return library


def needing(model: Path, target: Path, *ops: tuple[bytes, bytes]) -> Path:
    """A copy of the SavedModel `model` at `target`, where other operators, with names as long, stand for some: MyAdd
    for AddV2, unless `ops` says which."""
    shutil.copytree(model, target)
    graph = target / "saved_model.pb"
    content = graph.read_bytes()
    for op, other in ops or ((b"AddV2", b"MyAdd"),):
        assert len(op) == len(other)
        # NodeDef.op is field 2 of a node; names of nodes are left alone.
        content = content.replace(bytes([0x12, len(op)]) + op, bytes([0x12, len(op)]) + other)
    assert content != graph.read_bytes()
    graph.write_bytes(content)
    return target

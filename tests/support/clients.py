"""The virtual environments of other projects' clients (tests/clients), and programs that run there."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.server import ROOT

IN_MAKE_TEST = "tritonclient"


def run(client: str, program: str, *arguments: str) -> str:
    """What the program of tests/clients printed. The test is skipped where the client is not installed."""
    python = ROOT / "build" / "clients" / client / "bin" / "python"
    if not python.exists():
        if client == IN_MAKE_TEST and os.environ.get("CI"):
            pytest.fail(f"{client} is not installed: make test does that")
        pytest.skip(f"{client} is not installed: make test-clients does that")
    command = [python, ROOT / "tests" / "clients" / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

"""Builds the stub of NVIDIA's library, and tells it what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml_stub.c")
NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class NvmlStub:
    """The library in `directory`, for processes with its `environment`."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            if os.environ.get("CI"):
                pytest.fail("there is no C compiler (cc); install gcc and libc6-dev")
            pytest.skip("there is no C compiler (cc)")
        library = directory / "libnvidia-ml.so.1"
        subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        self._control = directory / "control"
        self.tell()
        self.environment: Mapping[str, str] = {"LD_LIBRARY_PATH": str(directory), "NVML_STUB": str(self._control)}

    def tell(self, *lines: str) -> None:
        """Does what `lines` say from its next call on; the C file says what a line is."""
        new = self._control.with_name("control.new")
        new.write_text("".join(f"{line}\n" for line in lines))
        os.rename(new, self._control)

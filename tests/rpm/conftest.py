"""The root that the package is installed into, once for all proofs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rpm import hosts


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    assert os.geteuid() == 0, "these proofs install packages into a root folder and enter it: run them as root"


@pytest.fixture(scope="session")
def rpm() -> Path:
    return hosts.built_rpm()


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A folder for roots, on the disk that the package was built on."""
    base = hosts.ROOT / "build/rpm"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="proof-", dir=base))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def repository(rpm: Path, workshop: Path) -> Path:
    return hosts.make_repository(workshop, [rpm])


@pytest.fixture(scope="session")
def installed(repository: Path, workshop: Path) -> Path:
    """A root with the package and the stub of a host."""
    root = workshop / "root"
    root.mkdir()
    hosts.dnf(root, repository, "install", "stub-host", "dropserve")
    return root

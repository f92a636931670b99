"""What the builder of the RPM refuses: files that are not the locked ones, components without a licence."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.server import ROOT

APACHE = "Metadata-Version: 2.1\nName: thing\nLicense: Apache 2.0\n"
NO_LICENSE = "Metadata-Version: 2.1\nName: thing\n"


@pytest.fixture
def rpmkit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The builder, which is no package of ours and found only where the Makefile says."""
    monkeypatch.syspath_prepend(ROOT / "packaging/rpm")
    for name in ("components", "fetch", "lock", "patches", "report"):
        importlib.import_module(f"rpmkit.{name}")
    return importlib.import_module("rpmkit")


def place(rpmkit: ModuleType, folder: Path, files: dict[str, str], pruned: tuple[str, ...] = ()) -> str:
    """The table of licences that a wheel of these files gets when it was installed without the pruned ones."""
    entry = rpmkit.lock.Locked("wheel", "thing", "1", "0" * 64, "thing-1-py3-none-any.whl")
    packages, licenses = folder / "site-packages", folder / "licenses"
    (licenses / "debian/common-licenses").mkdir(parents=True)
    (licenses / "debian/common-licenses/Apache-2.0").write_text("Apache License\n")
    packages.mkdir()
    wheel = folder / entry.file
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
            if name not in pruned:
                archive.extract(name, packages)
    rpmkit.components.place_wheel_licenses({entry: wheel}, packages, licenses / "python-packages.txt")
    return (licenses / "python-packages.txt").read_text()


def test_licences_are_found_wherever_a_wheel_has_them(rpmkit: ModuleType, tmp_path: Path) -> None:
    files = {"thing-1.dist-info/METADATA": APACHE, "thing/LICENSE": "free", "thing/ThirdPartyNotices.txt": "others"}
    table = place(rpmkit, tmp_path, files)
    assert table.endswith("\nthing 1: Apache 2.0\n    thing/LICENSE\n    thing/ThirdPartyNotices.txt\n")


def test_apaches_text_is_added_where_a_wheel_states_it_and_has_none(rpmkit: ModuleType, tmp_path: Path) -> None:
    table = place(rpmkit, tmp_path, {"thing-1.dist-info/METADATA": APACHE, "thing/licenses.py": ""})
    assert table.endswith("\nthing 1: Apache 2.0\n    python/thing/LICENSE\n")
    assert (tmp_path / "licenses/python/thing/LICENSE").read_text() == "Apache License\n"


def test_component_without_a_licence_fails_the_build(rpmkit: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(rpmkit.report.BuildError, match="thing 1 brings no licence text"):
        place(rpmkit, tmp_path, {"thing-1.dist-info/METADATA": NO_LICENSE, "thing/NOTICE": "by us"})


def test_licence_that_was_pruned_fails_the_build(rpmkit: ModuleType, tmp_path: Path) -> None:
    files = {"thing-1.dist-info/METADATA": APACHE, "thing/LICENSE": "free"}
    with pytest.raises(rpmkit.report.BuildError, match="lost its licence thing/LICENSE"):
        place(rpmkit, tmp_path, files, pruned=("thing/LICENSE",))


def test_file_with_another_hash_than_the_locks_is_refused(rpmkit: ModuleType, tmp_path: Path) -> None:
    entry = rpmkit.lock.Locked("deb", "libc6", "2.36-9", "0" * 64)
    path = rpmkit.fetch.cached_path(tmp_path, entry)
    path.parent.mkdir()
    path.write_bytes(b"another libc")
    with pytest.raises(rpmkit.report.BuildError, match=r"libc6 2\.36-9 has SHA-256 .* it is refused"):
        rpmkit.fetch.fetch([entry], tmp_path)


@pytest.mark.parametrize(
    "line", ["deb libc6 2.36-9", "deb libc6 2.36-9 abc", f"wheel h11 1 {'0' * 64}", f"rpm h11 1 {'0' * 64} x"]
)
def test_malformed_lock_is_refused_with_its_line(rpmkit: ModuleType, line: str) -> None:
    with pytest.raises(rpmkit.report.BuildError, match=r"lock, line 2 .* run make relock"):
        rpmkit.lock.parse(f"# lock\n{line}\n", "lock")


def test_library_whose_paths_moved_is_not_patched(rpmkit: ModuleType, tmp_path: Path) -> None:
    library = tmp_path / "ld.so"
    library.write_bytes(b"\0/etc/ld.so.cache\0 and once more \0/etc/ld.so.cache\0")
    patch = rpmkit.patches.Patch(b"/etc/ld.so.cache", b"/opt/dropserve/-", 1)
    with pytest.raises(rpmkit.report.BuildError, match="2 times, not 1"):
        rpmkit.patches.apply(library, (patch,))
    assert library.read_bytes().count(b"/etc/ld.so.cache") == 2

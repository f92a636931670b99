"""What counts as a change of a model, and what does not: real files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from appliance.source.content import content

MIB = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    version = tmp_path / "1"
    (version / "variables").mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"graph")
    (version / "variables" / "variables.data-00000-of-00001").write_bytes(b"weights" * 1000)
    return version


def weights(folder: Path) -> Path:
    return folder / "variables" / "variables.data-00000-of-00001"


def test_what_is_touched_or_gets_another_mode_stays_the_same(folder: Path) -> None:
    before = content(str(folder))
    os.utime(weights(folder), (1, 1))
    os.chmod(weights(folder), 0o600)
    os.chmod(folder, 0o750)
    assert content(str(folder)) == before


def test_a_copy_back_of_the_same_bytes_stays_the_same(folder: Path, tmp_path: Path) -> None:
    before = content(str(folder))
    shutil.copy(weights(folder), tmp_path / "saved")
    weights(folder).write_bytes(b"others!" * 1000)
    assert content(str(folder)) != before
    weights(folder).unlink()
    shutil.copy(tmp_path / "saved", weights(folder))
    assert content(str(folder)) == before


def test_a_copy_of_the_folder_has_the_same_content(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "2")
    assert content(str(tmp_path / "2")) == content(str(folder))


def test_a_file_that_is_cut_off_renamed_or_new_is_another_content(folder: Path) -> None:
    seen = {content(str(folder))}
    os.truncate(weights(folder), 100)
    seen.add(content(str(folder)))
    weights(folder).rename(folder / "variables" / "variables.data")
    seen.add(content(str(folder)))
    (folder / "assets").mkdir()
    (folder / "assets" / "words.txt").write_bytes(b"")
    seen.add(content(str(folder)))
    assert len(seen) == 4


def test_other_bytes_of_the_same_size_at_the_same_times_are_another_content(folder: Path) -> None:
    before, times = content(str(folder)), os.stat(weights(folder))
    weights(folder).write_bytes(b"Weights" * 1000)
    os.utime(weights(folder), ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content(str(folder)) != before


def test_a_log_beside_a_saved_model_is_no_change_of_it(folder: Path) -> None:
    before = content(str(folder))
    (folder / "training.log").write_text("a line")
    assert content(str(folder)) == before


def test_any_file_beside_an_onnx_model_may_hold_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    before = content(str(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"1")
    assert content(str(tmp_path)) != before


@pytest.mark.parametrize("offset", [0, 4 * MIB - 1])
def test_of_a_large_file_both_ends_count(folder: Path, offset: int) -> None:
    weights(folder).write_bytes(bytes(4 * MIB))
    before = content(str(folder))
    with open(weights(folder), "r+b") as file:
        file.seek(offset)
        file.write(b"\1")
    assert content(str(folder)) != before


def test_a_large_file_that_is_trained_anew_is_another_content(folder: Path) -> None:
    weights(folder).write_bytes(b"\1" * 4 * MIB)
    before = content(str(folder))
    with open(weights(folder), "r+b") as file:
        file.seek(1 * MIB)
        file.write(b"\2" * 2 * MIB)
    assert content(str(folder)) != before


def test_pipes_and_names_that_are_not_utf_8_are_no_obstacle(folder: Path) -> None:
    os.mkfifo(folder / "variables" / "pipe")
    Path(os.fsdecode(os.fsencode(folder) + b"/variables/\xff.bin")).write_bytes(b"x")
    assert content(str(folder)) == content(str(folder))

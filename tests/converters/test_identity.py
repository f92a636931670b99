"""A verdict is served no longer than the code that came to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from converters.cache import Cache
from converters.identity import code_hash, own_code
from tests.support.acceleration_jobs import KEY, ROOT, run_job
from tests.support.planted_cache import hashes


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the packages that make and judge forms."""
    for package in ("converters", "backends"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "code"


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def of(code: Path) -> str:
    return code_hash([str(code / "converters"), str(code / "backends")])


def test_the_code_is_known_wherever_it_lies(code: Path) -> None:
    assert of(code) == own_code()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("converters/cases.py", "_MAX_RECORDED = 50", "_MAX_RECORDED = 51"),
        ("backends/agreement.py", "Tolerance(1e-9, 1e-9)", "Tolerance(1e-8, 1e-9)"),
        ("backends/made_inputs.py", "_STRING_BYTES = 64", "_STRING_BYTES = 65"),
        ("backends/onnx_session.py", "ORT_ENABLE_ALL", "ORT_DISABLE_ALL"),
        ("converters/hazards.json", '"form":"onnx"', '"form":"tflite"'),
    ],
    ids=["a case", "a tolerance", "an input", "a backend", "a known hazard"],
)
def test_a_change_of_what_makes_or_judges_is_other_code(code: Path, file: str, old: str, new: str) -> None:
    change(code / file, old, new)
    assert of(code) != own_code()


def test_a_converter_of_somebody_elses_is_part_of_it(tmp_path: Path) -> None:
    other = tmp_path / "mine.py"
    other.write_text("FORMAT = 'onnx'\n")
    assert own_code((str(other),)) != own_code()


def test_without_its_sources_the_release_stands_for_the_code(tmp_path: Path) -> None:
    (tmp_path / "converters").mkdir()
    with pytest.raises(FileNotFoundError):
        code_hash([str(tmp_path / "converters")])
    assert own_code((str(tmp_path / "gone.py"),)).startswith("dropserve ")


def test_a_verdict_of_other_code_is_not_served_and_goes_when_there_is_no_room(
    code: Path, zoo: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    run_job(zoo / "strings", cache_dir=str(cache))
    (old,) = (cache / "entries").iterdir()
    change(code / "backends" / "agreement.py", "Tolerance(1e-9, 1e-9)", "Tolerance(1e-8, 1e-9)")
    again = run_job(zoo / "strings", code=code, cache_dir=str(cache))
    assert not again.report.from_cache
    assert len(list((cache / "entries").iterdir())) == 2
    size = sum(file.stat().st_size for file in (cache / "entries").rglob("*") if file.is_file())
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "file").write_bytes(b"x" * 10)
    held = Cache(str(cache), size + 9, KEY).put("another", str(tmp_path / "result"), hashes(tmp_path / "result"))
    assert held is not None
    held.close()
    assert not old.exists()  # as the least recently used

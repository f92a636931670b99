"""A cache whose proven form has an error that its proof did not see: what only service can tell."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from backends.form import read_form
from converters.cache import Cache
from converters.entry import form_folder, open_entry
from converters.files import file_hash, files_below
from tests.support.planted_converter import UNSEEN, plant


def hashes(folder: Path) -> dict[str, str]:
    """The files below a folder, by name → SHA-256, as they belong into an entry."""
    return {name: file_hash(str(folder / name)) for name in files_below(str(folder))}


def plant_in(cache: Path, key: bytes) -> None:
    """Plants `UNSEEN` in the only signature of the ONNX form of the only entry, whose report stays: as if it had been
    converted so."""
    (path,) = (cache / "entries").iterdir()
    with tempfile.TemporaryDirectory() as scratch:
        entry = open_entry(str(path), key)
        machines = [found.stem.removeprefix("report-") for found in path.glob("report-*.json")]
        reports = {machine: report for machine in machines if (report := entry.report(machine)) is not None}
        for name in entry.files:
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path / name, target)
        entry.close()
        form = Path(form_folder(scratch, "onnx"))
        (signature,) = read_form(str(form)).signatures.values()
        plant(str(form / signature.file), signature.inputs, signature.outputs["y"], UNSEEN)
        shutil.rmtree(path)
        made = Cache(str(cache), 1 << 30, key).put(path.name, scratch, hashes(Path(scratch)))
        assert made is not None
        for machine, report in reports.items():
            assert made.put_report(machine, report)
        made.close()

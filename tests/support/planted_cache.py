"""A cache whose proven form has an error that its proof did not see: what only service can tell."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from backends.form import read_form
from converters.cache import Cache, form_folder
from tests.support.planted_converter import UNSEEN, plant

_OWN = ("files.json", "used")  # of an entry: they are made anew


def plant_in(cache: Path) -> None:
    """Plants `UNSEEN` in the only signature of the ONNX form of the only entry, whose report stays."""
    (entry,) = (cache / "entries").iterdir()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "entry"
        shutil.copytree(entry, folder, ignore=lambda _, names: [name for name in names if name in _OWN])
        reports = [folder / path.name for path in entry.glob("report-*.json")]
        for report in reports:
            shutil.move(report, scratch)
        form = Path(form_folder(str(folder), "onnx"))
        (signature,) = read_form(str(form)).signatures.values()
        plant(str(form / signature.file), signature.inputs, signature.outputs["y"], UNSEEN)
        shutil.rmtree(entry)
        made = Cache(str(cache), 1 << 30).put(entry.name, str(folder))
        assert made is not None
        made.close()
        for report in reports:
            shutil.copy(Path(scratch) / report.name, entry)

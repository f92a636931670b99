"""A form is loaded only as it was proven, and only if it stays so while it is loaded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.errors import Code, ServingError
from appliance.core.servable import Form
from appliance.supervisor.load_checks import look_again, look_at
from converters.files import file_hash


@pytest.fixture
def form(tmp_path: Path) -> Form:
    folder = tmp_path / "onnx"
    folder.mkdir()
    for name in ("0-0.onnx", "signatures.json"):
        (folder / name).write_text(name)
    files = tuple((name, file_hash(str(folder / name))) for name in sorted(os.listdir(folder)))
    return Form("onnx", str(folder), files=files)


def test_a_form_that_is_as_it_was_proven_is_loaded(form: Form) -> None:
    async def scene() -> None:
        (looked,) = await look_at(form)
        await look_again([looked])
        assert await look_at(None) == ()

    asyncio.run(scene())


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("0-1.onnx"), os.unlink])
def test_a_form_that_was_changed_since_it_was_proven_is_not_loaded(form: Form, spoil: Callable[[Path], object]) -> None:
    spoil(Path(form.path, "0-0.onnx"))
    with pytest.raises(ServingError, match=r"/0-0\.onnx is not what was proven") as raised:
        asyncio.run(look_at(form))
    assert raised.value.code is Code.DATA_LOSS


def test_a_form_that_is_gone_is_not_loaded(form: Form) -> None:
    Path(form.path).rename(Path(form.path).with_name("gone"))
    with pytest.raises(ServingError, match="cannot be read: No such file or directory"):
        asyncio.run(look_at(form))


def test_what_was_changed_while_it_was_loaded_does_not_serve(form: Form) -> None:
    """Also if it is put back: the worker may have read it in between."""

    async def scene() -> None:
        looked = await look_at(form)
        Path(form.path, "0-0.onnx").write_text("evil.onn")
        Path(form.path, "0-0.onnx").write_text("0-0.onnx")
        with pytest.raises(ServingError, match="were changed while they were loaded"):
            await look_again(looked)

    asyncio.run(scene())

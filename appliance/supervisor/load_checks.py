"""What is looked at before a worker loads files, and again when it has: they are what was proven.

Hashes are compared before, and what the file system says of the files (`source.scan.fingerprint`) before and after, so
that nothing else was loaded than what was compared.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from appliance.core.errors import Code, ServingError
from appliance.core.servable import Form
from appliance.source.scan import fingerprint
from converters.files import changed

__all__ = ["Looked", "look_again", "look_at"]


@dataclass(frozen=True, slots=True)
class Looked:
    """A folder whose files are what they should be, and its fingerprint then."""

    path: str
    digest: str


async def look_at(form: Form | None) -> Looked | None:
    """Return what was seen of the files of `form`, which is to be loaded; None without one. Raise ServingError if they
    are not what was proven."""
    return None if form is None else await asyncio.to_thread(_look_at_form, form)


async def look_again(looked: Looked | None) -> None:
    """Raise ServingError if the files have changed since they were looked at: nobody knows what was loaded."""
    if looked is not None and await asyncio.to_thread(_digest, looked.path) != looked.digest:
        raise ServingError(Code.DATA_LOSS, f"files in {looked.path} were changed while they were loaded")


def _look_at_form(form: Form) -> Looked:
    looked = Looked(form.path, _digest(form.path))
    if name := changed(form.path, dict(form.files)):
        raise ServingError(Code.DATA_LOSS, f"{form.path}/{name} is not what was proven: it is missing, or was changed")
    return looked


def _digest(path: str) -> str:
    try:
        return fingerprint(path).digest
    except OSError as error:
        raise ServingError(Code.DATA_LOSS, f"{path} cannot be read: {error.strerror or error}") from None

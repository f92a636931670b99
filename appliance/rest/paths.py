"""Paths of the REST API: their patterns, and the model, version or label that they name."""

from __future__ import annotations

import re
import urllib.parse

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec

__all__ = ["VERSION", "anything", "model_name", "model_path", "model_spec", "unquoted"]

_VERSION_DIGITS = 19

VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))"


def model_path(rest: str) -> re.Pattern[str]:
    """Return the pattern of a model's path, with an optional version or label, followed by `rest`.

    Its groups are model, version and label.
    """
    return re.compile(rf"/v1/models/(?P<model>[^/:]+){VERSION}?{rest}", re.IGNORECASE)


def anything(path: str) -> re.Match[str]:
    """Return a match of the whole `path`, without groups."""
    match = re.compile(".*", re.DOTALL).fullmatch(path)
    assert match is not None
    return match


def model_name(match: re.Match[str]) -> str:
    """Return the name of the model in the path."""
    return unquoted(match["model"])


def model_spec(match: re.Match[str]) -> ModelSpec:
    """Return the model and version that the path asks for. Raise ServingError (INVALID_ARGUMENT) if no int64."""
    name, version, label = model_name(match), match["version"], match["label"]
    if version is None:
        return ModelSpec(name, label=unquoted(label or ""))
    digits = version.lstrip("0") or "0"
    if len(digits) > _VERSION_DIGITS or int(digits) > 2**63 - 1:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"Failed to convert version: {version[:100]} to numeric.",
            f"a version is at most {2**63 - 1}",
        )
    return ModelSpec(name, int(digits))


def unquoted(text: str) -> str:
    """Return the percent-decoded text of a path in latin-1; unescaped characters may be UTF-8 too."""
    if "%" not in text and text.isascii():
        return text
    return urllib.parse.unquote(text.encode("latin-1"))

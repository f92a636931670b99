"""Paths of the REST API: their patterns, and the model, version or label that they name."""

from __future__ import annotations

import re
import urllib.parse

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec

__all__ = ["VERSION", "anything", "model_name", "model_path", "model_spec"]

_VERSION_DIGITS = 19

VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))"


def model_path(rest: str) -> re.Pattern[str]:
    """Paths of a model, of one of its versions or labels, with `rest` behind: groups model, version, label."""
    return re.compile(rf"/v1/models/(?P<model>[^/:]+){VERSION}?{rest}", re.IGNORECASE)


def anything(path: str) -> re.Match[str]:
    """A match of the whole of `path`, without groups."""
    match = re.compile(".*", re.DOTALL).fullmatch(path)
    assert match is not None
    return match


def model_name(match: re.Match[str]) -> str:
    """The model that the path names."""
    return _unquoted(match["model"])


def model_spec(match: re.Match[str]) -> ModelSpec:
    """What the path asks for. Raises ServingError (INVALID_ARGUMENT) for a version that is no int64."""
    name, version, label = model_name(match), match["version"], match["label"]
    if version is None:
        return ModelSpec(name, label=_unquoted(label or ""))
    digits = version.lstrip("0") or "0"
    if len(digits) > _VERSION_DIGITS or int(digits) > 2**63 - 1:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"Failed to convert version: {version[:100]} to numeric.",
            f"a version is at most {2**63 - 1}",
        )
    return ModelSpec(name, int(digits))


def _unquoted(text: str) -> str:
    """Percent-decoded, of a path in latin-1: what is not escaped may be UTF-8 as well."""
    if "%" not in text and text.isascii():
        return text
    return urllib.parse.unquote(text.encode("latin-1"))

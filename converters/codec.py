"""Turn frozen dataclasses into values of JSON, and back.

Their fields may be numbers, strings, string enums, literals, tuples, mappings, dataclasses, or None.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, TypeVar

__all__ = ["from_json", "json_name", "to_json"]

T = TypeVar("T")

_JSON_NAME = "json"


def json_name(name: str) -> dict[str, str]:
    """Return the metadata of a dataclass's field that is called `name` in JSON."""
    return {_JSON_NAME: name}


def to_json(value: Any) -> Any:
    """Return the values of JSON for a dataclass."""
    if dataclasses.is_dataclass(value):
        return {f.metadata.get(_JSON_NAME, f.name): to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def from_json(kind: type[T], value: Any) -> T:
    """Return the dataclass `kind` that `to_json` gave as `value`. Raise ValueError for any other value."""
    try:
        found: T = _read(kind, value)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"this is no {kind.__name__}: {type(error).__name__}: {error}") from error
    return found


def _read(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {f.metadata.get(_JSON_NAME, f.name): f.name for f in dataclasses.fields(kind)}
        return kind(**{names[key]: _read(hints[names[key]], item) for key, item in value.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_read(arguments[0], item) for item in value)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {', '.join(arguments)}")
        return value
    if origin is types.UnionType:
        return None if value is None else _read(next(a for a in arguments if a is not type(None)), value)
    if origin is not None:
        return {str(key): _read(arguments[1], item) for key, item in value.items()}
    if issubclass(kind, StrEnum):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value

"""A converted model in a folder: files of another framework, and `signatures.json`, which describes them.

A backend that loads such a folder presents the signatures of the original SavedModel, word for word, and maps their
names to the file's. Only the signatures that were converted are there.

    {"format": "onnx", "precision": "float32", "signatures": {"serving_default": {
        "file": "0.onnx", "signature": {...}, "inputs": {"x": "x:0"}, "outputs": {"y": "Identity:0"}}}}
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from backends.contract import BackendError, Code, IncompleteError, Signature
from backends.dtypes import BY_NAME
from backends.reading import open_file

FILE = "signatures.json"

Format = Literal["onnx", "tflite"]
Precision = Literal["float32", "float16", "int8"]

FORMATS: tuple[Format, ...] = ("onnx", "tflite")
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")

_MAX_BYTES = 16 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,100})?")


@dataclass(frozen=True, slots=True)
class FormSignature:
    """How `file` in the folder implements `signature`.

    `inputs` and `outputs` map the signature's names to the file's. An input that the converted graph does not use may
    be missing in `inputs`: it is accepted, and not passed on. In a TF-Lite file, the names are those of its table of
    signatures if that has exactly one, else the names of the tensors of its first graph.
    """

    file: str
    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FormDescription:
    """A converted model: its signatures by name. `precision` is that of its weights or of its arithmetic.

    `unsupported` has the signatures of the SavedModel that no backend serves → the reason.
    """

    format: Format
    precision: Precision
    signatures: Mapping[str, FormSignature]
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise BackendError if the values are invalid."""
        if self.format not in FORMATS:
            raise _invalid(f"its format is {self.format!r}, not one of {', '.join(FORMATS)}")
        if self.precision not in PRECISIONS:
            raise _invalid(f"its precision is {self.precision!r}, not one of {', '.join(PRECISIONS)}")
        if not self.signatures:
            raise _invalid("it has no signatures")
        for name, entry in self.signatures.items():
            _check(f"its signature {name!r}", self.format, entry)


def parse_form(value: Any) -> FormDescription:
    """Return the form that JSON's `value` describes. Raise BackendError if it describes none."""
    try:
        return msgspec.convert(value, FormDescription)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the second: a lone surrogate, which JSON may have
        raise _invalid(f"it has another structure: {error}") from error


def _check(what: str, form: str, entry: FormSignature) -> None:
    signature = entry.signature
    # A plain name, so that it cannot lead out of the folder, and not that of a model that was dropped there as it is.
    if not _FILE_NAME.fullmatch(entry.file) or not entry.file.endswith(f".{form}") or entry.file == f"model.{form}":
        raise _invalid(f"{what} is in the file {entry.file!r}: that is no name like 0.{form}")
    for alias, spec in (*signature.inputs.items(), *signature.outputs.items()):
        if spec.dtype not in BY_NAME:
            raise _invalid(f"{what} has {alias!r} of the element type {spec.dtype!r}, which there is not")
        if spec.shape is not None and min(spec.shape, default=0) < -1:
            raise _invalid(f"{what} has {alias!r} of the shape {spec.shape!r}")
    for side, names in ((signature.inputs, entry.inputs), (signature.outputs, entry.outputs)):
        for alias, name in names.items():
            if alias not in side:
                raise _invalid(f"{what} maps {alias!r}, which the signature has not")
            if not name:
                raise _invalid(f"{what} maps {alias!r} to {name!r}")
    if len(set(entry.inputs.values())) < len(entry.inputs):
        raise _invalid(f"{what} maps two inputs to one")
    if missing := sorted(signature.outputs.keys() - entry.outputs.keys()):
        raise _invalid(f"{what} does not map its outputs {missing}")
    if unknown := sorted(signature.defaults.keys() - signature.inputs.keys()):
        raise _invalid(f"{what} has defaults for {unknown}, which are no inputs of it")


def _invalid(why: str) -> BackendError:
    return BackendError(Code.INVALID_ARGUMENT, f"{FILE} does not describe a converted model: {why}")


def read_form(path: str) -> FormDescription:
    """Return the description of the form in the folder `path`; its files are not checked.

    Raise IncompleteError if `signatures.json` is missing or cut off, BackendError if its content is invalid.
    """
    with open_file(path, FILE) as reader:
        if reader.size > _MAX_BYTES:
            raise BackendError(Code.RESOURCE_EXHAUSTED, f"{FILE} has {reader.size:,} bytes, over {_MAX_BYTES:,}")
        data = reader.read(0, reader.size)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IncompleteError(f"{FILE} is damaged, or not written to its end: {error}") from error
    return parse_form(value)


def is_form(path: str, ready: str) -> bool:
    """Return whether the folder `path` holds a converted model, and not the file `ready`, a model dropped as it is."""
    return os.path.lexists(os.path.join(path, FILE)) and not os.path.lexists(os.path.join(path, ready))


def model_files(path: str, ready: str) -> list[str]:
    """Return the files of a framework in the folder `path`: `ready`, or those that its `signatures.json` names.

    Raise what `read_form` raises.
    """
    if not is_form(path, ready):
        return [ready]
    return sorted({entry.file for entry in read_form(path).signatures.values()})


def write_form(path: str, form: FormDescription) -> None:
    """Write `signatures.json` in the folder `path`, atomically: a reader sees all of it or nothing. Raise OSError."""
    temporary = os.path.join(path, f".{FILE}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(msgspec.to_builtins(form), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(path, FILE))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise

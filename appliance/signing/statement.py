"""What a signature states of a model: an in-toto statement that lists files, or shards of files, with their hashes.

Its format is that of github.com/sigstore/model-transparency, docs/model_signing_format.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import msgspec

from appliance.signing.errors import SignatureError
from appliance.signing.files import HASHES, UNSIGNED, ModelFile, file_hashes

__all__ = ["Statement", "check_folder", "make_statement", "parse_statement"]

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"


class _Digest(msgspec.Struct):
    sha256: str


class _Subject(msgspec.Struct):
    digest: _Digest


class _Serialization(msgspec.Struct):
    method: str
    hash_type: str
    allow_symlinks: bool = False
    shard_size: int | float = 0


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct):
    serialization: _Serialization
    resources: list[_Resource]


class _Document(msgspec.Struct):
    type: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    subject: list[_Subject]
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class Statement:
    """What is signed of a model. `hashes` has each of its resources: the name of a file, or of a shard as
    `NAME:START:END` if `shard_bytes` is not 0, → its hash by `hash_type`, in hexadecimal digits."""

    hash_type: str
    shard_bytes: int
    allows_links: bool
    hashes: Mapping[str, str]


def parse_statement(payload: bytes) -> Statement:
    """Return what a payload states. Raise SignatureError if it is no statement of Model Signing v1, or contradicts
    itself."""
    try:
        json.loads(payload, object_pairs_hook=_without_twins)
        document = msgspec.json.decode(payload, type=_Document)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"what is signed is no statement of Model Signing v1: {error}") from None
    if document.type != _STATEMENT_TYPE or document.predicate_type != _PREDICATE_TYPE:
        what = f"{document.type!r} with {document.predicate_type!r}"
        raise SignatureError(f"what is signed is {what}; sign the model by Model Signing 1.0 or newer")
    serialization, resources = document.predicate.serialization, document.predicate.resources
    if serialization.method not in ("files", "shards"):
        raise SignatureError(f"its files are listed by the method {serialization.method!r}; sign by files or shards")
    if serialization.hash_type not in HASHES:
        raise SignatureError(f"its hashes are {serialization.hash_type!r}; sign with {' or '.join(HASHES)}")
    shard_bytes = int(serialization.shard_size) if serialization.method == "shards" else 0
    if serialization.method == "shards" and shard_bytes < 1:
        raise SignatureError(f"its shards have {serialization.shard_size} bytes")
    if len(document.subject) != 1:
        raise SignatureError(f"it is about {len(document.subject)} subjects instead of one model")
    hashes: dict[str, str] = {}
    total = hashlib.sha256()
    for resource in resources:
        if resource.name in hashes:
            raise SignatureError(f"it lists {resource.name!r} twice")
        hashes[resource.name] = resource.digest
        try:
            total.update(bytes.fromhex(resource.digest))
        except ValueError:
            raise SignatureError(f"the hash of {resource.name!r} is {resource.digest!r}") from None
    if total.hexdigest() != document.subject[0].digest.sha256:
        raise SignatureError("its files do not have the total hash that it states")
    return Statement(serialization.hash_type, shard_bytes, serialization.allow_symlinks, hashes)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Raise ValueError if it has a key twice: readers differ in which of them counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def check_folder(folder: str, files: Sequence[ModelFile], statement: Statement) -> None:
    """Raise SignatureError unless `files` are all that `statement` lists, and have those hashes; OSError if one cannot
    be read. Names of the statement are compared and never opened, so none leads out of the folder."""
    left = dict(statement.hashes)
    for name, is_link in files:
        if is_link and not statement.allows_links:
            raise SignatureError(f"{name!r} is a link, which its signer has not allowed")
        for start, end, digest in file_hashes(folder, name, statement.hash_type, statement.shard_bytes):
            listed = left.pop(f"{name}:{start}:{end}" if statement.shard_bytes else name, None)
            if listed is None:
                what = "has another size than was signed" if _lists(statement, name) else "is not in the signature"
                raise SignatureError(f"{name!r} {what}: it was added, changed, or left out by the signer")
            if listed != digest:
                raise SignatureError(f"{name!r} is not the file that was signed: it was changed")
    if left:
        name = min(left)
        more = f", and {len(left) - 1} more" if len(left) > 1 else ""
        raise SignatureError(f"{name!r} was signed, and is not there{more}")


def _lists(statement: Statement, name: str) -> bool:
    return any(listed.rpartition(":")[0].rpartition(":")[0] == name for listed in statement.hashes)


def make_statement(folder: str, name: str, files: Sequence[ModelFile]) -> bytes:
    """Return the payload that states what `files` of `folder` are, a model with the name `name`. Raise OSError;
    SignatureError if there are none, or one is a link."""
    if not files:
        raise SignatureError("it has no files")
    resources = []
    total = hashlib.sha256()
    for file, is_link in sorted(files, key=lambda found: PurePosixPath(found[0])):
        if is_link:
            raise SignatureError(f"{file!r} is a link: put the file itself there")
        ((_, _, digest),) = file_hashes(folder, file, "sha256")
        total.update(bytes.fromhex(digest))
        resources.append({"name": file, "algorithm": "sha256", "digest": digest})
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": list(UNSIGNED),
    }
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": total.hexdigest()}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {"serialization": serialization, "resources": resources},
    }
    return json.dumps(statement, indent=2).encode()

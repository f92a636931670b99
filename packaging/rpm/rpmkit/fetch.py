"""The files that the lock names: from the cache by their hash, else from the mirrors, and never another than locked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rpmkit.lock import Locked
from rpmkit.report import BuildError, run, step


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_path(cache: Path, entry: Locked) -> Path:
    """Where the cache keeps the file of `entry`: wheels by the name that their installer needs, in a folder by hash."""
    return cache / entry.sha256 / (entry.file or f"{entry.name}.deb")


def check(path: Path, entry: Locked) -> None:
    """Raises BuildError unless the file is the locked one."""
    found = sha256_of(path)
    if found != entry.sha256:
        raise BuildError(
            f"{path.name} of {entry.name} {entry.version} has SHA-256 {found}, the lock says {entry.sha256}",
            "it is refused; find out why it differs before you run make relock",
        )


def fetch(entries: Iterable[Locked], cache: Path) -> dict[Locked, Path]:
    """The path of each entry's file, whose hash has been checked. Raises BuildError."""
    found: dict[Locked, Path] = {}
    for entry in entries:
        path = cached_path(cache, entry)
        if not path.is_file():
            with step(f"Fetching {entry.name} {entry.version}"):
                _download(entry, path)
        check(path, entry)
        found[entry] = path
    return found


def _download(entry: Locked, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        scratch = Path(folder)
        os.chmod(scratch, 0o755)  # noqa: S103 - apt fetches as a user of its own
        if entry.kind == "deb":
            fetched = _download_deb(entry.name, entry.version, scratch)
        else:
            requirement = scratch / "requirement.txt"
            requirement.write_text(f"{entry.name}=={entry.version} --hash=sha256:{entry.sha256}\n")
            fetched = _download_wheel(requirement, scratch, f"{entry.name} {entry.version}")[0]
        check(fetched, entry)
        os.replace(fetched, path)


def _download_deb(name: str, version: str, folder: Path) -> Path:
    try:
        run(["apt-get", "-q", "download", f"{name}={version}"], cwd=folder)
    except BuildError as error:
        raise BuildError(
            f"the mirror has no {name} {version} ({error})",
            "run apt-get update; where that does not help, the version has left the mirror: run make relock",
        ) from None
    return next(folder.glob("*.deb"))


def _download_wheel(requirements: Path, folder: Path, what: str) -> list[Path]:
    arguments = ["download", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    try:
        run(
            [sys.executable, "-m", "pip", *arguments, "--require-hashes", "-r", requirements, "-d", folder],
            seconds=3600,
        )
    except BuildError as error:
        raise BuildError(f"cannot fetch {what}: {error}", "where the index no longer has it, run make relock") from None
    return sorted(folder.glob("*.whl"))


def store(path: Path, entry: Locked, cache: Path) -> None:
    """Puts a file that was fetched for a new lock into the cache."""
    kept = cached_path(cache, entry)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, kept)


def resolve_debs(names: Iterable[str]) -> list[Locked]:
    """What the mirror has now of Debian's packages `names`."""
    entries = []
    for name in names:
        fields: dict[str, str] = {}
        for line in run(["apt-cache", "show", "--no-all-versions", name]).splitlines():
            key, colon, value = line.partition(": ")
            if colon:
                fields.setdefault(key, value)
        entries.append(Locked("deb", name, fields["Version"], fields["SHA256"]))
    return entries


def resolve_wheels(requirements: str, constraints: Path, kind: str, cache: Path) -> list[Locked]:
    """The wheels for `requirements`, of the versions that `constraints` pins; they are in the cache then."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        scratch = Path(folder)
        wanted = scratch / "wanted.in"
        wanted.write_text(requirements)
        hashed = scratch / "hashed.txt"
        platform = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
        with step(f"Resolving the {kind} packages"):
            run(
                [
                    *("uv", "pip", "compile", str(wanted), "--constraints", str(constraints), "-o", str(hashed)),
                    *("--no-emit-index-url", "--no-header", "--no-annotate", "--only-binary", ":all:"),
                    *("--generate-hashes", *platform),
                ]
            )
        with step(f"Fetching the {kind} packages"):
            wheels = _download_wheel(hashed, scratch, f"the {kind} packages")
        entries = []
        for wheel in wheels:
            name, version = wheel.name.split("-")[:2]
            normal = re.sub(r"[-_.]+", "-", name).lower()
            entry = Locked(kind, normal, version, sha256_of(wheel), wheel.name)
            store(wheel, entry, cache)
            entries.append(entry)
    return entries

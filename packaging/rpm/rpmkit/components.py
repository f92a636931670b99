"""Licences of what is bundled, and the list of it: SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3/)."""

from __future__ import annotations

import datetime as dt
import email.message
import email.parser
import itertools
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rpmkit.lock import Locked
from rpmkit.report import BuildError

# SPDX's identifiers in the expressions that wheels state; other texts are no expressions and are not passed on.
_EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")
_LICENSE = re.compile(r"(UN)?LICEN[CS]E|COPYING", re.IGNORECASE)
_NOTICES = re.compile(r"NOTICE|AUTHORS|THIRD.?PARTY.?NOTICES", re.IGNORECASE)
_CODE = (".py", ".h", ".so")
# Wheels without a text of their own: the source file whose first comment it is, and words that it must have. The text
# of Apache's licence is the same for everyone, so that Debian's copy serves.
_IN_SOURCE = {"nvidia-ml-py": ("pynvml.py", "Redistribution and use in source and binary forms")}
_APACHE_2 = {"Apache-2.0", "Apache 2.0", "Apache License 2.0", "Apache Software License"}


def place_licenses(debs: Iterable[Locked], extracted: Path, source: Path, target: Path) -> None:
    """Debian's copyright files by package, the texts that they refer to, and our own licence."""
    documents = extracted / "usr/share/doc"
    target.mkdir(parents=True)
    shutil.copyfile(source / "LICENSE", target / "LICENSE")
    for entry in debs:
        path = (documents / entry.name / "copyright").resolve()
        if not path.is_file():
            raise BuildError(f"{entry.name} has no copyright file", "lock the package too that its folder links to")
        folder = target / "debian" / entry.name
        folder.mkdir(parents=True)
        shutil.copyfile(path, folder / "copyright")
    shutil.copytree(extracted / "usr/share/common-licenses", target / "debian/common-licenses", symlinks=True)


def place_wheel_licenses(wheels: Mapping[Locked, Path], packages: Path, listing: Path) -> None:
    """Writes a table for people: each wheel, the licence that its authors state, and where the texts lie.

    They lie where the authors put them; what a wheel has no text for is written beside the table. Raises BuildError
    where there is no text: it may not be passed on without.
    """
    lines = ["What each Python package states as its licence, and where the texts lie: in site-packages, or here.\n\n"]
    for entry, wheel in sorted(wheels.items()):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if is_license(name.rpartition("/")[2])]
        if missing := [name for name in names if not (packages / name).is_file()]:
            raise BuildError(f"{entry.name} {entry.version} lost its licence {missing[0]}", "do not prune it")
        headers = _headers(_about(packages, entry))
        classifiers = [c.rpartition(" :: ")[2] for c in headers.get_all("Classifier", []) if c.startswith("License ::")]
        stated = headers.get("License-Expression") or (headers.get("License") or "").partition("\n")[0]
        stated = stated or ", ".join(classifiers)
        if not any(_LICENSE.match(name.rpartition("/")[2]) for name in names):
            text = _text_of(entry, stated, packages, listing.parent)
            path = listing.parent / "python" / entry.name / "LICENSE"
            path.parent.mkdir(parents=True)
            path.write_text(text)
            names.append(str(path.relative_to(listing.parent)))
        lines.append(
            f"{entry.name} {entry.version}: {stated or 'see the text'}\n" + "".join(f"    {n}\n" for n in names)
        )
    listing.write_text("".join(lines))


def _text_of(entry: Locked, stated: str, packages: Path, licenses: Path) -> str:
    """The licence of a wheel that brings no file with it."""
    if entry.name in _IN_SOURCE:
        source, start = _IN_SOURCE[entry.name]
        comment = itertools.takewhile(lambda line: line.startswith("#"), (packages / source).read_text().splitlines())
        text = "".join(f"{line.lstrip('#').removeprefix(' ')}\n" for line in comment).strip() + "\n"
        if start in text:
            return text
    elif stated in _APACHE_2:
        return (licenses / "debian/common-licenses/Apache-2.0").read_text()
    raise BuildError(
        f"{entry.name} {entry.version} brings no licence text, and states {stated!r}",
        "find its text, and teach packaging/rpm/rpmkit/components.py where it is",
    )


def is_license(name: str) -> bool:
    """Whether a file of this name holds a licence, or notices that go with one."""
    return bool(_LICENSE.match(name) or _NOTICES.match(name)) and not name.endswith(_CODE)


def _about(packages: Path, entry: Locked) -> Path:
    return packages / f"{'-'.join(entry.file.split('-')[:2])}.dist-info"


def bill(name: str, version: str, components: Mapping[Locked, Path], epoch: int) -> str:
    """The SPDX document of the package `name`: every bundled file that the lock names, with version and hash.

    `components` has with each the folder of Python packages that it was installed into.
    """
    moment = dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ourselves = {
        "SPDXID": "SPDXRef-Package",
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseDeclared": "Apache-2.0",
        "licenseConcluded": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }
    bundled = [_component(entry, packages) for entry, packages in components.items()]
    relations = [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES"}] + [
        {"spdxElementId": "SPDXRef-Package", "relationshipType": "CONTAINS"} for _ in bundled
    ]
    for relation, package in zip(relations, [ourselves, *bundled], strict=True):
        relation["relatedSpdxElement"] = str(package["SPDXID"])
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{name}-{version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/{name}-{version}-{epoch}",
        "creationInfo": {"created": moment, "creators": ["Tool: rpmkit"]},
        "packages": [ourselves, *bundled],
        "relationships": relations,
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _component(entry: Locked, packages: Path) -> dict[str, Any]:
    registry = "deb/debian" if entry.kind == "deb" else "pypi"
    return {
        "SPDXID": f"SPDXRef-{entry.kind}-{re.sub('[^A-Za-z0-9.-]', '-', entry.name)}",
        "name": entry.name,
        "versionInfo": entry.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": entry.sha256}],
        "licenseDeclared": "NOASSERTION" if entry.kind == "deb" else _stated_license(_about(packages, entry)),
        "licenseConcluded": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:{registry}/{entry.name}@{entry.version.replace(':', '%3A')}",
            }
        ],
    }


def _stated_license(about: Path) -> str:
    headers = _headers(about)
    expression = headers.get("License-Expression", "")
    return expression if _EXPRESSION.fullmatch(expression) else "NOASSERTION"


def _headers(about: Path) -> email.message.Message:
    text = (about / "METADATA").read_text(encoding="utf-8", errors="replace")
    return email.parser.HeaderParser().parsestr(text)

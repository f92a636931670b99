"""Licences of what is bundled, and the list of it: SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3/)."""

from __future__ import annotations

import datetime as dt
import email.message
import email.parser
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rpmkit.lock import Locked
from rpmkit.report import BuildError

# SPDX's identifiers in the expressions that wheels state; other texts are no expressions and are not passed on.
_EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")
_LICENSE_FILES = ("LICEN[CS]E*", "COPYING*", "NOTICE*", "AUTHORS*")


def place_licenses(debs: Iterable[Locked], extracted: Path, source: Path, target: Path) -> None:
    """Debian's copyright files by package, the texts that they refer to, and our own licence.

    Those of the wheels stay where their authors put them: in their `.dist-info` folders, and beside the libraries.
    """
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


def wheel_licenses(packages: Path, wheels: Iterable[Locked]) -> str:
    """A table for people: each wheel, the licence that its authors state, and where its text lies."""
    lines = ["What each Python package states as its licence, and where its text lies under site-packages.\n\n"]
    for entry in sorted(wheels):
        about = _about(packages, entry)
        paths = [path for pattern in _LICENSE_FILES for path in sorted(about.rglob(pattern)) if path.is_file()]
        found = [path.relative_to(packages) for path in paths]
        headers = _headers(about)
        stated = headers.get("License-Expression") or (headers.get("License") or "").partition("\n")[0]
        classifiers = [c.rpartition(" :: ")[2] for c in headers.get_all("Classifier", []) if c.startswith("License ::")]
        elsewhere = "no text in its .dist-info: see the package's own folder, and debian/common-licenses here"
        where = ", ".join(map(str, found)) or elsewhere
        lines.append(f"{entry.name} {entry.version}: {stated or ', '.join(classifiers) or 'not stated'}; {where}\n")
    return "".join(lines)


def _about(packages: Path, entry: Locked) -> Path:
    return packages / f"{'-'.join(entry.file.split('-')[:2])}.dist-info"


def bill(name: str, version: str, entries: Iterable[Locked], packages: Path, epoch: int) -> str:
    """The SPDX document of the package `name`: every bundled file that the lock names, with version and hash."""
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
    bundled = [_component(entry, packages) for entry in entries]
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

"""The RPMs themselves: rpmbuild over a staged tree, so that the same tree gives the same file."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rpmkit.report import BuildError, run, step

# xz, which rpm 4.11 reads; with threads it is cut into blocks of one size, so that scheduling does not show in it.
# "quick" is for tests of upgrades, which need a second package and not a small one.
PAYLOADS = {"quick": "w1.gzdio", "fast": "w2T2.xzdio", "release": "w6T2.xzdio"}


@dataclass(frozen=True, slots=True)
class Build:
    """What all packages of one build have in common. `epoch` is in seconds: every time in them."""

    version: str
    release: str
    payload: str
    epoch: int
    output: Path


def build_rpm(spec: Path, root: Path, build: Build, work: Path) -> Path:
    """The path of the RPM that `spec` makes of the tree at `root`."""
    top = work / f"rpmbuild-{spec.stem}"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
    build.output.mkdir(parents=True, exist_ok=True)
    macros = {
        "_topdir": str(top),
        "_rpmdir": str(build.output),
        "_rpmfilename": "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
        "_tmppath": str(top),
        "_dbpath": str(top / "db"),
        "_buildhost": "dropserve",
        "_binary_payload": PAYLOADS[build.payload],
        "_binary_filedigest_algorithm": "8",  # SHA-256
        "_build_id_links": "none",
        "use_source_date_epoch_as_buildtime": "1",
        "clamp_mtime_to_source_date_epoch": "1",
        "source_date_epoch_from_changelog": "0",
        "dropserve_version": build.version,
        "dropserve_release": build.release,
        "dropserve_root": str(root),
    }
    defines = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(build.epoch), "LC_ALL": "C.UTF-8"}
    with step(f"Packing {spec.stem} ({build.payload} payload)"):
        run(["rpmbuild", "-bb", "--target", "x86_64-linux", *defines, spec], environment=environment, seconds=3600)
    path = build.output / f"{spec.stem}-{build.version}-{build.release}.x86_64.rpm"
    if not path.is_file():
        raise BuildError(f"rpmbuild made no {path.name}", f"look into {top}")
    shutil.rmtree(top)
    return path

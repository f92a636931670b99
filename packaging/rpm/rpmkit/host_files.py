"""What the package puts outside /opt/dropserve: commands, the unit, configuration, folders for models and cache."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from rpmkit.runtime import PREFIX

# Where each file of the checkout goes, and whether it is a program.
_FILES = "packaging/rpm/files"
_PLACES = {
    f"{_FILES}/dropserve": ("usr/bin/dropserve", True),
    f"{_FILES}/tensorflow_model_server": ("usr/bin/tensorflow_model_server", True),
    f"{_FILES}/dropserve.service": ("usr/lib/systemd/system/dropserve.service", False),
    f"{_FILES}/dropserve.sysconfig": ("etc/sysconfig/dropserve", False),
    f"{_FILES}/models.config": ("etc/dropserve/models.config", False),
    "etc/dropserve.toml": ("etc/dropserve/dropserve.toml", False),
    f"{_FILES}/host_setup.py": (f"{PREFIX}/libexec/host_setup.py", False),
    f"{_FILES}/hardening-239.conf": (f"{PREFIX}/share/systemd/hardening-239.conf", False),
    f"{_FILES}/hardening-249.conf": (f"{PREFIX}/share/systemd/hardening-249.conf", False),
}
_FOLDERS = ("var/lib/dropserve/models", "var/lib/dropserve/keys", "var/cache/dropserve")


def place_host_files(root: Path, source: Path) -> None:
    """Copies them into the tree, from a checkout at `source`."""
    for name, (place, is_program) in _PLACES.items():
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
        target.chmod(0o755 if is_program else 0o644)
    for path in sorted((source / "docs").glob("man/*.[0-9]")):
        _compress(path, root / f"usr/share/man/man{path.suffix[1:]}" / f"{path.name}.gz")
    for path in sorted((source / "docs").glob("*.md")):
        target = root / "usr/share/doc/dropserve" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)


def _compress(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))

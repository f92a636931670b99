"""Fits the installed package to its host, as root: `host_setup.py driver | units | remove`.

driver: links the NVIDIA driver's libraries, and nothing else of the host, into /opt/dropserve/driver, where the
runtime's loader looks; they are found anew at each start of the service, since drivers are updated without us.
units: installs the drop-ins whose directives the host's systemd knows. remove: takes both away.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import subprocess
import sys

DRIVER = "/opt/dropserve/driver"
# Where NVIDIA's installer, the distributions' packages and the container toolkit put the driver's libraries.
LIBRARY_FOLDERS = ("/usr/lib64", "/usr/lib64/nvidia", "/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib")
LIBRARIES = ("libcuda.so*", "libcudadebugger.so*", "libnvidia-*.so*")

SHIPPED_UNITS = "/opt/dropserve/share/systemd"
DROP_INS = "/usr/lib/systemd/system/dropserve.service.d"
ELF_64_LITTLE = b"\x7fELF\x02\x01"


def link_driver() -> None:
    """Makes the links in DRIVER those to the driver that is installed now."""
    wanted: dict[str, str] = {}
    for folder in LIBRARY_FOLDERS:
        for pattern in LIBRARIES:
            for path in sorted(glob.glob(os.path.join(folder, pattern))):
                if os.path.basename(path) not in wanted and _is_64_bit_library(path):
                    wanted[os.path.basename(path)] = path
    os.makedirs(DRIVER, exist_ok=True)
    present = {name: os.readlink(os.path.join(DRIVER, name)) for name in _links(DRIVER)}
    for name in present.keys() - wanted.keys():
        os.unlink(os.path.join(DRIVER, name))
    for name, path in wanted.items():
        if present.get(name) != path:
            scratch = os.path.join(DRIVER, f".{name}")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
            os.symlink(path, scratch)
            os.replace(scratch, os.path.join(DRIVER, name))


def _is_64_bit_library(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(ELF_64_LITTLE)) == ELF_64_LITTLE
    except OSError:
        return False


def _links(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [entry.name for entry in os.scandir(folder) if entry.is_symlink()]
    return []


def systemd_version() -> int:
    """The major version of the host's systemd; 0 where there is none, or it does not tell within 10 seconds."""
    try:
        asked = ["systemctl", "--version"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else 0


def install_units(version: int) -> None:
    """Copies the drop-ins for systemd of that version, and removes those of a newer one."""
    os.makedirs(DROP_INS, exist_ok=True)
    for name in sorted(os.listdir(SHIPPED_UNITS)):
        needed = re.fullmatch(r"hardening-(\d+)\.conf", name)
        if needed is None:
            continue
        target = os.path.join(DROP_INS, name)
        if int(needed[1]) <= version:
            shutil.copyfile(os.path.join(SHIPPED_UNITS, name), target)
            os.chmod(target, 0o644)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)


def remove() -> None:
    """Takes away what this program made."""
    for name in _links(DRIVER):
        os.unlink(os.path.join(DRIVER, name))
    for path in glob.glob(os.path.join(DROP_INS, "hardening-*.conf")):
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(DROP_INS)


def main(arguments: list[str]) -> int:
    """The exit status: 0, 1 where the host does not let it, 2 where it was called wrongly."""
    try:
        match arguments:
            case ["driver"]:
                link_driver()
            case ["units"]:
                install_units(systemd_version())
            case ["remove"]:
                remove()
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except OSError as error:
        print(
            f"dropserve: {' '.join(arguments)}: {error}; run it as root, with a writable /opt and /usr", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

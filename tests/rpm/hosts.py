"""Hosts to prove the installed package on: root folders that the package was installed into with dnf, and nothing else.

Bare has no C library but the runtime's own. Hostile has broken ones wherever a loader looks, named by ld.so.cache and
ld.so.preload. Linux 3.10 refuses what that kernel does not know.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.support.server import ROOT, Server

HERE = Path(__file__).resolve().parent
BUSYBOX = "/bin/busybox"

_STUB_SPEC = """\
Name: stub-host
Version: 1
Release: 1
Summary: /bin/sh and the programs that create accounts, for an empty root
License: GPLv2
AutoReqProv: no
Provides: /bin/sh
Provides: /usr/sbin/useradd
Provides: /usr/sbin/groupadd
%global __os_install_post %{{nil}}
%description
A stand-in for a host.
%install
mkdir -p %{{buildroot}}
cp -a {tree}/. %{{buildroot}}/
%files
%defattr(-,root,root,-)
/bin/busybox
/bin/sh
/usr/sbin/useradd
/usr/sbin/groupadd
%config(noreplace) /etc/passwd
%config(noreplace) /etc/group
"""
# They take the arguments that the package gives them, and record them as the real ones would.
_USERADD = """\
#!/bin/sh
for name in "$@"; do :; done
echo "$name:x:990:990::/var/cache/dropserve:/sbin/nologin" >> /etc/passwd
"""
_GROUPADD = """\
#!/bin/sh
for name in "$@"; do :; done
number=990
if [ "$name" != dropserve ]; then number=991; fi
echo "$name:x:$number:" >> /etc/group
"""


def run(*command: str | Path, seconds: float = 300, **keywords: object) -> str:
    """What the command printed; fails with all of it where the command does."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
        **keywords,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return str(done.stdout)


def _stub_package(folder: Path, repository: Path) -> None:
    tree = folder / "stub"
    for name in ("bin", "usr/sbin", "etc"):
        (tree / name).mkdir(parents=True)
    shutil.copy2(BUSYBOX, tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for name, text in (("useradd", _USERADD), ("groupadd", _GROUPADD)):
        program = tree / "usr/sbin" / name
        program.write_text(text)
        program.chmod(0o755)
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    spec = folder / "stub-host.spec"
    spec.write_text(_STUB_SPEC.format(tree=tree))
    macros = {"_topdir": folder / "rpmbuild", "_rpmdir": repository, "_rpmfilename": "%{NAME}.rpm"}
    run("rpmbuild", "-bb", *(word for k, v in macros.items() for word in ("--define", f"{k} {v}")), spec)


def make_repository(folder: Path, packages: list[Path]) -> Path:
    """A yum repository with the packages and the stub, in `folder`."""
    repository = folder / "repository"
    repository.mkdir(parents=True)
    for package in packages:
        os.link(package, repository / package.name)
    _stub_package(folder, repository)
    run("createrepo_c", "--general-compress-type=gz", repository)
    return repository


def dnf(root: Path, repository: Path, *arguments: str) -> str:
    """Runs dnf on the root, which it takes packages for from the repository and from nowhere else."""
    return run(
        *("dnf", "--assumeyes", "--quiet", f"--installroot={root}", "--releasever=7", "--forcearch=x86_64"),
        *("--setopt=reposdir=/nonexistent", "--setopt=gpgcheck=0", "--setopt=cachedir=/var/cache/dnf"),
        *("--setopt=install_weak_deps=0", "--setopt=module_platform_id=platform:el7", "--setopt=plugins=0"),
        *(f"--repofrompath=local,{repository}", "--repo=local", *arguments),
        seconds=540,
    )


def account(root: Path) -> tuple[int, int]:
    """The numbers of the service's user and group."""
    found = re.search(r"^dropserve:x:(\d+):(\d+):", (root / "etc/passwd").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]), int(found[2])


def unit_command(root: Path) -> list[str]:
    """The words of the unit's ExecStart, without the options of /etc/sysconfig."""
    unit = (root / "usr/lib/systemd/system/dropserve.service").read_text()
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    return [word for word in shlex.split(line.partition("=")[2]) if word != "$DROPSERVE_OPTIONS"]


def entering(root: Path, user: str) -> tuple[str, ...]:
    """The words before a command that run it in the root, as `user` (UID:GID)."""
    for name in ("proc", "dev", "sys", "tmp", "run"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    return ("unshare", "--mount", "/bin/sh", str(HERE / "enter.sh"), str(root), user)


def make_runtime_dir(root: Path) -> None:
    """Makes what the unit's RuntimeDirectory= does."""
    folder = root / "run/dropserve"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(folder, *account(root))


class InstalledServer(Server):
    """The installed service: the unit's own command as the unit's own user, in a root folder."""

    def __init__(self, root: Path, launcher: tuple[str, ...] = (), **options: object) -> None:
        self.root = root
        uid, gid = account(root)
        self.prefix = (*entering(root, f"{uid}:{gid}"), *launcher)
        self.command = tuple(unit_command(root))
        make_runtime_dir(root)
        super().__init__(runtime_dir="/run/dropserve", acceleration="auto", **options)

    def maps(self) -> set[str]:
        """Every file that any process of the server has mapped."""
        files = set()
        for pid in self.processes():
            try:
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            except OSError:
                continue  # it has ended since
            files |= {words[5] for line in lines if len(words := line.split(maxsplit=5)) == 6}
        return files

    def foreign(self, allowed: tuple[str, ...] = ()) -> set[str]:
        """The mapped files that are neither the package's, nor data of the service's own, nor shared memory."""
        folders = ("/opt/dropserve/", "/var/lib/dropserve/models/", "/var/cache/dropserve/", "/run/dropserve/", "/tmp/")
        ours = tuple(f"{self.root}{folder}" for folder in folders)
        of_the_kernel = ("[", "/dev/zero", "/dev/shm/", "/memfd:", "anon_inode:", "/dropserve-")
        return {path for path in self.maps() if not path.startswith((*ours, *of_the_kernel, *allowed))}


def drop(root: Path, source: Path, model: str, version: int) -> None:
    """Puts a model into the service's folder as a deployer would: whole at once, and not the service's own."""
    base = root / "var/lib/dropserve/models" / model
    base.mkdir(exist_ok=True)
    hidden = base / f".incoming-{version}"
    shutil.copytree(source, hidden)
    for folder, _, files in os.walk(hidden):
        os.chmod(folder, 0o755)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o644)
    os.rename(hidden, base / str(version))


def built_rpm() -> Path:
    """The RPM to prove: $DROPSERVE_RPM."""
    path = Path(os.environ.get("DROPSERVE_RPM", ROOT / "build/rpm/out/dropserve-0.1.0-1.x86_64.rpm"))
    assert path.is_file(), f"{path} is missing; run make test-rpm"
    return path

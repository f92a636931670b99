"""What the package says of itself, and what installing, upgrading and erasing it leaves behind."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from tests.rpm import hosts
from tests.rpm.hosts import BUSYBOX, run

SCRIPTLETS = ("prein", "postin", "preun", "postun")

# systemd 219's directives, of those that a unit like ours could use: systemd.unit(5), systemd.service(5),
# systemd.exec(5), systemd.kill(5) and systemd.resource-control(5) of EL7.
KNOWN_TO_219 = {
    *("Description", "Documentation", "After", "Wants", "Requires", "Type", "NotifyAccess", "User", "Group", "UMask"),
    *(
        "EnvironmentFile",
        "Environment",
        "PermissionsStartOnly",
        "ExecStartPre",
        "ExecStart",
        "ExecReload",
        "ExecStopPost",
    ),
    *("WorkingDirectory", "RuntimeDirectory", "RuntimeDirectoryMode", "KillMode", "KillSignal", "TimeoutStartSec"),
    *("TimeoutStopSec", "WatchdogSec", "Restart", "RestartSec", "RestartPreventExitStatus", "SuccessExitStatus"),
    *("StartLimitInterval", "StartLimitBurst", "LimitNOFILE", "LimitCORE", "LimitMEMLOCK", "LimitNPROC", "TasksMax"),
    *("MemoryLimit", "NoNewPrivileges", "PrivateTmp", "ProtectSystem", "ProtectHome", "ReadOnlyDirectories"),
    *("ReadWriteDirectories", "InaccessibleDirectories", "CapabilityBoundingSet", "RestrictAddressFamilies"),
    *("SystemCallArchitectures", "DeviceAllow", "DevicePolicy", "StandardOutput", "StandardError", "SyslogIdentifier"),
    *("OOMScoreAdjust", "Nice", "WantedBy"),
}

# Those that later versions added, for the drop-ins: systemd's NEWS.
KNOWN_SINCE = {
    231: ("ReadWritePaths", "RestrictRealtime"),
    232: ("ProtectControlGroups", "ProtectKernelModules", "ProtectKernelTunables"),
    233: ("RestrictNamespaces",),
    235: ("LockPersonality",),
    242: ("ProtectHostname", "RestrictSUIDSGID"),
    243: ("OOMPolicy",),
    244: ("ProtectKernelLogs",),
    245: ("ProtectClock",),
}

CONFIGURATION = ("etc/dropserve/dropserve.toml", "etc/dropserve/models.config", "etc/sysconfig/dropserve")

# A host's, of EL8: what the scriptlets asked of it is in /systemctl.log.
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> /systemctl.log
if [ "$1" = --version ]; then echo "systemd 239 (239-82.el8)"; fi
"""


def query(rpm: Path, form: str) -> str:
    return run("rpm", "-qp", "--queryformat", form, rpm)


def test_it_requires_nothing_that_a_bare_el7_lacks(rpm: Path) -> None:
    wanted = {line.split(" ")[0] for line in run("rpm", "-qp", "--requires", rpm).splitlines()}
    capabilities = ("CompressedFileNames", "FileDigests", "PayloadFilesHavePrefix", "PayloadIsXz")
    assert wanted == {"/bin/sh", "/usr/sbin/useradd", "/usr/sbin/groupadd", *(f"rpmlib({c})" for c in capabilities)}
    weak = [
        run("rpm", "-qp", f"--{kind}", rpm).strip() for kind in ("recommends", "suggests", "supplements", "enhances")
    ]
    assert weak == ["", "", "", ""]


def test_rpm_4_11_can_read_it(rpm: Path) -> None:
    assert query(rpm, "%{PAYLOADCOMPRESSOR} %{PAYLOADFORMAT} %{FILEDIGESTALGO}") == "xz cpio 8"
    sizes = [int(size) for size in query(rpm, "[%{LONGFILESIZES}\\n]").split()]
    assert max(sizes) < 2**32
    assert len(sizes) < 60_000  # the header must stay under 32 MB
    assert query(rpm, "%{BUILDHOST}") == "dropserve"


def test_it_is_as_small_as_was_aimed_at(rpm: Path) -> None:
    assert int(query(rpm, "%{LONGSIZE}")) < 1.2e9
    assert rpm.stat().st_size < 260e6  # with the fast payload; the release payload is a tenth smaller


def test_its_scriptlets_are_plain_sh(rpm: Path, tmp_path: Path) -> None:
    for name in SCRIPTLETS:
        text = query(rpm, f"%{{{name.upper()}}}")
        assert text.strip() not in ("", "(none)"), name
        assert query(rpm, f"%{{{name.upper()}PROG}}") == "/bin/sh"
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        run("shellcheck", "--shell=sh", script)
        run(BUSYBOX, "sh", "-n", script)
    for command in ("dropserve", "tensorflow_model_server"):
        run("shellcheck", hosts.ROOT / "packaging/rpm/files" / command)


def test_rpmlint_finds_nothing_but_the_exceptions(rpm: Path) -> None:
    folder = hosts.ROOT / "packaging/rpm"
    said = run(
        *("rpmlint", "--config", folder / "rpmlint.toml", "--rpmlintrc", folder / "rpmlintrc"),
        *(rpm, folder / "dropserve.spec"),
        seconds=540,
    )
    assert not re.findall(r"^.*: [EW]: .*$", said, re.MULTILINE)


def directives(unit: str) -> set[str]:
    return set(re.findall(r"^([A-Z][A-Za-z]*)=", unit, re.MULTILINE))


def test_systemd_accepts_the_unit_and_219_knows_all_of_it(installed: Path, tmp_path: Path) -> None:
    unit = (installed / "usr/lib/systemd/system/dropserve.service").read_text()
    assert directives(unit) <= KNOWN_TO_219
    # The programs of another root are not here: what is verified has those of this machine in their place.
    folder = tmp_path / "dropserve.service.d"
    folder.mkdir()
    (tmp_path / "dropserve.service").write_text(re.sub(r"/opt/dropserve/runtime/bin/python3", "/bin/true", unit))
    for path in (installed / "opt/dropserve/share/systemd").glob("*.conf"):
        version = int(path.stem.removeprefix("hardening-"))
        newer = {name for since, names in KNOWN_SINCE.items() if since <= version for name in names}
        assert directives(path.read_text()) <= KNOWN_TO_219 | newer
        (folder / path.name).write_text(path.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "dropserve.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "dropserve.service" in line and "deprecated" not in line]
    assert not complaints, complaints


def test_the_service_may_read_the_models_and_write_only_its_cache_and_its_key(installed: Path) -> None:
    uid, gid = hosts.account(installed)
    models = os.stat(installed / "var/lib/dropserve/models")
    deployers = re.search(r"^dropserve-deploy:x:(\d+):", (installed / "etc/group").read_text(), re.MULTILINE)
    assert deployers is not None
    assert (models.st_uid, models.st_gid, stat.S_IMODE(models.st_mode)) == (0, int(deployers[1]), 0o2775)
    cache = os.stat(installed / "var/cache/dropserve")
    assert (cache.st_uid, cache.st_gid, stat.S_IMODE(cache.st_mode)) == (uid, gid, 0o750)
    keys = os.stat(installed / "var/lib/dropserve/keys")
    assert (keys.st_uid, keys.st_gid, stat.S_IMODE(keys.st_mode)) == (uid, gid, 0o700)
    writable = [
        path
        for folder, _, files in os.walk(installed / "opt/dropserve")
        for path in [folder, *(os.path.join(folder, name) for name in files)]
        if not os.path.islink(path) and (os.stat(path).st_uid != 0 or os.stat(path).st_mode & 0o022)
    ]
    assert writable == []


def test_it_lists_what_it_bundles_with_licences(installed: Path) -> None:
    share = installed / "opt/dropserve/share"
    bill = json.loads((share / "dropserve.spdx.json").read_text())
    lock = (hosts.ROOT / "packaging/rpm/runtime.lock").read_text()
    locked = {tuple(line.split()[1:4]) for line in lock.splitlines() if line.startswith(("deb ", "wheel "))}
    listed = {
        (package["name"], package["versionInfo"], package["checksums"][0]["checksumValue"])
        for package in bill["packages"]
        if "checksums" in package
    }
    assert listed == locked
    for name in ("libc6", "libstdc++6", "python3.11-minimal", "libssl3"):
        assert (share / "licenses/debian" / name / "copyright").stat().st_size > 500
    assert (share / "licenses/debian/common-licenses/LGPL-2.1").is_file()
    assert (share / "licenses/LICENSE").is_file()


def test_its_commands_have_manual_pages(installed: Path) -> None:
    for command in ("dropserve", "tensorflow_model_server"):
        page = gzip.decompress((installed / f"usr/share/man/man1/{command}.1.gz").read_bytes()).decode()
        assert f".Nm {command}\n" in page


def test_nothing_but_its_own_programs_is_executable(installed: Path) -> None:
    home = installed / "opt/dropserve"
    programs = {
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o111
    }
    loader = {"runtime/lib/ld-linux-x86-64.so.2", "runtime/lib/libc.so.6"}
    assert programs == {"runtime/bin/python3.11", *loader}


def test_no_byte_code_is_missing(installed: Path) -> None:
    library = installed / "opt/dropserve/runtime/lib/python3.11"
    sources = [path for path in library.rglob("*.py") if path.parent.name != "__pycache__"]
    missing = [p for p in sources if not (p.parent / "__pycache__" / f"{p.stem}.cpython-311.pyc").is_file()]
    assert len(sources) > 5000
    assert missing == []


def pack_newer(target: Path) -> Path:
    """The package once more, as release 2 and with another default configuration."""
    config = hosts.ROOT / "build/rpm/root" / CONFIGURATION[0]
    text = config.read_text()
    config.write_text(f"{text}# newer\n")
    try:
        run(
            *(sys.executable, "-m", "rpmkit", "pack", "--payload", "quick", "--release", "2", "--output", target),
            cwd=hosts.ROOT,
            env={**os.environ, "PYTHONPATH": str(hosts.ROOT / "packaging/rpm")},
        )
    finally:
        config.write_text(text)
    (newer,) = target.glob("*.rpm")
    return newer


def files_of(root: Path) -> set[str]:
    """All files below a root, but for the package manager's own, and the folders that are named after us."""
    own = ("var/lib/rpm/", "var/lib/dnf/", "var/cache/dnf/", "var/log/", "usr/lib/sysimage/")
    paths = (path for path in root.rglob("*") if not path.is_dir() or path.is_symlink() or "dropserve" in path.name)
    return {name for path in paths if not (name := str(path.relative_to(root))).startswith(own)}


def test_upgrade_keeps_edits_and_restarts_and_erase_leaves_models_and_configuration(rpm: Path, workshop: Path) -> None:
    repository = hosts.make_repository(workshop / "both", [rpm, pack_newer(workshop / "newer")])
    root = workshop / "upgraded"
    systemctl = root / "usr/sbin/systemctl"
    systemctl.parent.mkdir(parents=True)
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    (root / "run/systemd/system").mkdir(parents=True)
    log = root / "systemctl.log"

    def asked_by(*command: str) -> list[str]:
        """What the scriptlets asked of systemd while dnf did this."""
        log.write_text("")
        hosts.dnf(root, repository, *command)
        return [line for line in log.read_text().splitlines() if line != "--version"]

    def release() -> str:
        return run("rpm", "--root", root, "-q", "--queryformat", "%{RELEASE}", "dropserve")

    assert asked_by("install", "stub-host") == []
    before = files_of(root)
    first = rpm.name.removesuffix(".rpm")
    assert asked_by("install", first) == ["daemon-reload"]
    drop_ins = root / "usr/lib/systemd/system/dropserve.service.d"
    assert [path.name for path in drop_ins.iterdir()] == ["hardening-239.conf"]
    edited = {name: (root / name).read_text() + "\n# edited\n" for name in CONFIGURATION}
    for name, text in edited.items():
        (root / name).write_text(text)
    model = root / "var/lib/dropserve/models/m/1"
    model.mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"model")
    (root / "var/cache/dropserve/converted").write_text("cached")
    (root / "var/lib/dropserve/keys/cache.key").write_text("a key")

    assert asked_by("upgrade", "dropserve")[-2:] == ["daemon-reload", "try-restart dropserve.service"]
    assert release() == "2"
    assert edited == {name: (root / name).read_text() for name in CONFIGURATION}
    assert (root / f"{CONFIGURATION[0]}.rpmnew").read_text().endswith("# newer\n")
    assert asked_by("downgrade", first)[-2:] == ["daemon-reload", "try-restart dropserve.service"]
    assert release() == "1"
    assert edited == {name: (root / name).read_text() for name in CONFIGURATION}
    assert (root / "var/cache/dropserve/converted").is_file()
    verified = subprocess.run(
        ["rpm", "--root", root, "-V", "dropserve"], capture_output=True, text=True, timeout=120, check=False
    )
    changed = {line.split()[-1] for line in verified.stdout.splitlines()}
    assert changed == {f"/{name}" for name in CONFIGURATION}

    asked = asked_by("remove", "dropserve")
    assert asked == ["--no-reload disable dropserve.service", "stop dropserve.service", "daemon-reload"]
    assert (model / "saved_model.pb").read_bytes() == b"model"
    assert edited == {name: (root / f"{name}.rpmsave").read_text() for name in CONFIGURATION}
    saved = {*(f"{name}.rpmsave" for name in CONFIGURATION), f"{CONFIGURATION[0]}.rpmnew", "etc/dropserve"}
    models = {"var/lib/dropserve", "var/lib/dropserve/models/m/1/saved_model.pb"}
    assert files_of(root) - before == saved | models

"""What the package says of itself, and what installing, upgrading and erasing it leaves behind."""

from __future__ import annotations

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


def test_systemd_accepts_the_unit_and_219_knows_all_of_it(installed: Path, tmp_path: Path) -> None:
    unit = (installed / "usr/lib/systemd/system/dropserve.service").read_text()
    names = {line.partition("=")[0] for line in unit.splitlines() if re.match(r"[A-Z][A-Za-z]*=", line)}
    assert names <= KNOWN_TO_219, names - KNOWN_TO_219
    # The programs of another root are not here: what is verified has those of this machine in their place.
    folder = tmp_path / "dropserve.service.d"
    folder.mkdir()
    (tmp_path / "dropserve.service").write_text(re.sub(r"/opt/dropserve/runtime/bin/python3", "/bin/true", unit))
    for path in (installed / "opt/dropserve/share/systemd").glob("*.conf"):
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


def test_the_service_may_read_the_models_and_write_only_its_cache(installed: Path) -> None:
    uid, gid = hosts.account(installed)
    models = os.stat(installed / "var/lib/dropserve/models")
    deployers = re.search(r"^dropserve-deploy:x:(\d+):", (installed / "etc/group").read_text(), re.MULTILINE)
    assert deployers is not None
    assert (models.st_uid, models.st_gid, stat.S_IMODE(models.st_mode)) == (0, int(deployers[1]), 0o2775)
    cache = os.stat(installed / "var/cache/dropserve")
    assert (cache.st_uid, cache.st_gid, stat.S_IMODE(cache.st_mode)) == (uid, gid, 0o750)
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


def test_no_byte_code_is_missing(installed: Path) -> None:
    library = installed / "opt/dropserve/runtime/lib/python3.11"
    sources = [path for path in library.rglob("*.py") if path.parent.name != "__pycache__"]
    missing = [p for p in sources if not (p.parent / "__pycache__" / f"{p.stem}.cpython-311.pyc").is_file()]
    assert len(sources) > 5000
    assert missing == []


def test_upgrade_keeps_edits_and_erase_leaves_models_and_configuration(rpm: Path, workshop: Path) -> None:
    newer = workshop / "newer"
    run(
        *(sys.executable, "-m", "rpmkit", "pack", "--payload", "quick", "--release", "2", "--output", newer),
        cwd=hosts.ROOT,
        env={**os.environ, "PYTHONPATH": str(hosts.ROOT / "packaging/rpm")},
    )
    (second,) = newer.glob("*.rpm")
    repository = hosts.make_repository(workshop / "both", [rpm, second])
    root = workshop / "upgraded"
    root.mkdir()
    first = rpm.name.removesuffix(".rpm")
    hosts.dnf(root, repository, "install", "stub-host", first)
    config = root / "etc/dropserve/dropserve.toml"
    edited = config.read_text() + "\n# edited\n"
    config.write_text(edited)
    model = root / "var/lib/dropserve/models/m/1"
    model.mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"model")
    (root / "var/cache/dropserve/converted").write_text("cached")
    hosts.dnf(root, repository, "upgrade", "dropserve")
    assert run("rpm", "--root", root, "-q", "--queryformat", "%{RELEASE}", "dropserve") == "2"
    assert config.read_text() == edited
    hosts.dnf(root, repository, "downgrade", first)
    assert run("rpm", "--root", root, "-q", "--queryformat", "%{RELEASE}", "dropserve") == "1"
    assert config.read_text() == edited
    verified = subprocess.run(
        ["rpm", "--root", root, "-V", "dropserve"], capture_output=True, text=True, timeout=120, check=False
    )
    changed = [line for line in verified.stdout.splitlines() if line.split()[-1] != "/etc/dropserve/dropserve.toml"]
    assert changed == []
    hosts.dnf(root, repository, "remove", "dropserve")
    assert (model / "saved_model.pb").read_bytes() == b"model"
    assert (root / "etc/dropserve/dropserve.toml.rpmsave").read_text() == edited
    left = [path for path in root.rglob("*dropserve*") if not path.is_relative_to(root / "var/lib/dropserve")]
    allowed = {"etc/dropserve", "etc/dropserve/dropserve.toml.rpmsave"}
    assert {str(path.relative_to(root)) for path in left} <= allowed, left

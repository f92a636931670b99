"""Where the installed service cannot start, it says why in one line; `dropserve doctor` says what to do."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rpm import hosts

CONFIG = "etc/dropserve/dropserve.toml"
MODELS_CONFIG = "etc/dropserve/models.config"
# What the unit gives up on at once: a configuration that cannot be used is no better at the next start.
UNUSABLE = 2


@pytest.fixture
def faulty(installed: Path) -> Iterator[Path]:
    """The root, on free ports, for one fault; afterwards its configuration and its folders are as they were."""
    hosts.make_runtime_dir(installed)
    texts = {name: (installed / name).read_text() for name in (CONFIG, MODELS_CONFIG)}
    watched = (*texts, "run/dropserve", "var/lib/dropserve/models", "var/cache/dropserve")
    before = {path: path.stat() for path in (installed / name for name in watched)}
    (installed / CONFIG).write_text(f"rest_api_port = {free_port()}\nport = {free_port()}\n{texts[CONFIG]}")
    yield installed
    for name, text in texts.items():
        (installed / name).write_text(text)
    for path, status in before.items():
        os.chown(path, status.st_uid, status.st_gid)
        path.chmod(stat.S_IMODE(status.st_mode))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def as_the_service(root: Path, *command: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command, run in the root by the service's user."""
    uid, gid = hosts.account(root)
    words = [*hosts.entering(root, f"{uid}:{gid}"), *command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def refusal(root: Path, *flags: str) -> str:
    """The one line with which the unit's command ends."""
    status, out, err = as_the_service(root, *hosts.unit_command(root), *flags)
    assert (status, out) == (UNUSABLE, ""), out + err
    (line,) = err.splitlines()
    assert line.startswith("dropserve: ")
    return line


def doctor(root: Path) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit status, and the findings of each check."""
    status, out, err = as_the_service(root, "/usr/bin/dropserve", "doctor", "--json")
    assert err == ""
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(out)["findings"]:
        assert finding["level"] == "ok" or finding["remedy"], finding
        found.setdefault(finding["check"], []).append(finding)
    return status, found


def test_a_taken_port_ends_a_start_with_its_number(faulty: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for option in ("rest_api_port", "port"):
            line = refusal(faulty, "--bind_address=127.0.0.1", f"--{option}={port}")
            assert f"cannot listen on 127.0.0.1 port {port} (--{option}): Address already in use; " in line
            assert f"choose another --{option}; dropserve doctor tells" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('port = "8500\n', ("/etc/dropserve/dropserve.toml is not TOML", "line 1")),
        ("prot = 8500\n", ("prot", "did you mean port?")),
        ('port = "eight"\n', ("/etc/dropserve/dropserve.toml: port is 'eight'; it must be a whole number",)),
        ("port = 70000\n", ("port is 70000", "65")),
    ],
    ids=["syntax", "unknown option", "wrong type", "out of range"],
)
def test_a_mistake_in_the_configuration_ends_a_start_with_its_place(
    faulty: Path, text: str, says: tuple[str, ...]
) -> None:
    (faulty / CONFIG).write_text(text)
    line = refusal(faulty)
    assert all(words in line for words in says), line
    status, found = doctor(faulty)
    assert status == 1
    assert found["configuration"][0]["text"] == line.removeprefix("dropserve: ")


def test_files_that_may_not_be_read_end_a_start_with_their_names(faulty: Path) -> None:
    for name, what in ((MODELS_CONFIG, "model_config_file"), (CONFIG, "configuration")):
        (faulty / name).chmod(0o600)
        line = refusal(faulty)
        assert f"cannot read the {what} /{name}: Permission denied; let the server's user read it" in line
        assert doctor(faulty)[1]["configuration"][0]["level"] == "failed"


def test_a_mistake_in_models_config_ends_a_start_with_its_place(faulty: Path) -> None:
    (faulty / MODELS_CONFIG).write_text("model_config_list {\n  config { nam: 'm' }\n}\n")
    line = refusal(faulty)
    assert "/etc/dropserve/models.config: " in line
    assert "2:" in line


def test_a_folder_for_sockets_that_may_not_be_entered_ends_a_start_with_its_name(faulty: Path) -> None:
    os.chown(faulty / "run/dropserve", 0, 0)
    line = refusal(faulty)
    assert "/run/dropserve" in line
    assert "--runtime_dir" in line
    status, found = doctor(faulty)
    assert (status, found["runtime"][0]["level"]) == (1, "failed")


def test_an_unknown_flag_in_sysconfig_ends_a_start_with_its_name(faulty: Path) -> None:
    assert "there is no option --prot; did you mean port?" in refusal(faulty, "--prot=8500")


def test_systemd_does_not_try_a_start_again_that_cannot_succeed(installed: Path) -> None:
    unit = (installed / "usr/lib/systemd/system/dropserve.service").read_text()
    assert f"\nRestartPreventExitStatus={UNUSABLE}\n" in unit


def test_doctor_finds_nothing_wrong_with_a_fresh_installation(faulty: Path) -> None:
    status, found = doctor(faulty)
    assert status == 0, found
    asked_for = {"driver", "cuda", "cpu", "ports", "folders", "cache", "runtime", "selinux", "clock", "kernel"}
    assert asked_for <= found.keys()
    for check in ("configuration", "ports", "folders", "models", "cache", "runtime", "libraries"):
        assert {finding["level"] for finding in found[check]} == {"ok"}, found[check]
    assert "/opt/dropserve/runtime/lib/libc.so.6" in found["libraries"][0]["text"]
    assert " GiB free" in found["cache"][0]["text"]


def test_doctor_tells_of_every_fault_at_once(faulty: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        config = faulty / CONFIG
        config.write_text(re.sub(r"(?m)^port = \d+", f"port = {port}", config.read_text()))
        for name in ("var/lib/dropserve/models", "var/cache/dropserve"):
            os.chown(faulty / name, 0, 0)
            (faulty / name).chmod(0o700)
        status, found = doctor(faulty)
    assert status == 1
    assert {finding["level"] for finding in found["ports"]} == {"ok", "failed"}
    (folder,) = found["folders"]
    assert (folder["level"], "chmod" in folder["remedy"]) == ("failed", True)
    (cache,) = found["cache"]
    assert (cache["level"], "chown dropserve" in cache["remedy"]) == ("warning", True)

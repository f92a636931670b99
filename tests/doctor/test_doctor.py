"""`dropserve doctor`: what each check makes of facts, what is gathered from real files and sockets, and the command.
And that a start that fails says why in one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.config.model_options import ModelOptions
from appliance.config.models import ConfiguredModel
from appliance.config.options import Options
from appliance.doctor.checks import CHECKS, findings
from appliance.doctor.facts import Configuration, Facts, Folder, Graphics, ModelFolder, Port, within
from appliance.doctor.findings import Finding, Level
from appliance.doctor.machine import Machine
from appliance.doctor.report import exit_status, page, to_json
from appliance.gpu.values import Gpu, GpuStatus
from appliance.host.confinement import Confined
from tests.support.nvml_stub import NvmlStub

ROOT = Path(__file__).parents[2]
GIB = 2**30
NOW = 1_790_000_000.0  # in 2026

MACHINE = Machine(
    kernel="4.18.0-553.el8_10.x86_64",
    cpu_flags=frozenset({"sse4_2", "avx", "avx2"}),
    memory_available_bytes=20 * GIB,
    memory_total_bytes=32 * GIB,
    open_files=(262144, 262144),
    unit_open_files=None,
    inotify_watches=65536,
    inotify_problem="",
    wall_seconds=NOW,
    monotonic_seconds=(10.0, 10.5),
    selinux="enforcing",
    program_label="system_u:object_r:bin_t:s0",
    libc="/opt/dropserve/runtime/lib/libc.so.6 (glibc 2.36)",
    english_locale=True,
    locale_source="",
    foreign_libraries=(),
    confined=Confined(("seccomp", "landlock 6")),
    uid=990,
    service_user=True,
)


NO_LANDLOCK = Confined(("seccomp",), ("no Landlock here",))
OLD = replace(MACHINE, confined=NO_LANDLOCK)


def folder(option: str, path: str, **changes: Any) -> Folder:
    roomy = Folder(option, path, free_bytes=50 * GIB, total_bytes=100 * GIB, label="system_u:object_r:var_lib_t:s0")
    return replace(roomy, **changes)


WELL = Facts(
    configuration=Configuration("/etc/dropserve/dropserve.toml", Options(model_root="/m")),
    machine=MACHINE,
    graphics=Graphics(False, GpuStatus(reason="There is no NVIDIA driver here")),
    ports=(Port("rest_api_port", 8501), Port("port", 8500)),
    model_folders=(folder("model_root", "/m", writable=False),),
    cache=folder("cache_dir", "/var/cache/dropserve", uid=990),
    runtime=folder("runtime_dir", "/run/dropserve", uid=990, mode=0o700),
    shared_memory=folder("shared memory", "/dev/shm", mode=0o1777),
    models=(ModelFolder("digits", "/m/digits", 2, newest_ctime=NOW - 60),),
)
GPU = Graphics(True, GpuStatus("550.54", "12.4", (Gpu(0, "NVIDIA A2"),)))


def found(check: str, facts: Facts) -> list[Finding]:
    return [finding for finding in findings(facts) if finding.check == check]


def the(check: str, facts: Facts) -> Finding:
    """The worst finding of a check."""
    order = [Level.OK, Level.WARNING, Level.FAILED]
    return max(found(check, facts), key=lambda finding: order.index(finding.level))


def machine(**changes: Any) -> Facts:
    return replace(WELL, machine=replace(MACHINE, **changes))


def options(**changes: Any) -> Facts:
    return replace(WELL, configuration=replace(WELL.configuration, options=Options(model_root="/m", **changes)))


# -- what the checks make of facts -------------------------------------------------------------------------------------


def test_a_machine_that_is_well_has_one_good_finding_at_least_for_each_check() -> None:
    assert {finding.check for finding in findings(WELL)} == set(CHECKS)
    assert [finding for finding in findings(WELL) if finding.level is not Level.OK] == []
    assert exit_status(findings(WELL)) == 0


WRONG: list[tuple[str, Facts, Level, str]] = [
    (
        "configuration",
        replace(WELL, configuration=Configuration("/c", error="/c: there is no option prot; did you mean port?")),
        Level.FAILED,
        "did you mean port?",
    ),
    ("configuration", replace(WELL, configuration=Configuration("")), Level.WARNING, "no --config was given"),
    ("user", machine(uid=0), Level.WARNING, "runuser -u dropserve"),
    (
        "ports",
        replace(WELL, ports=(Port("port", 8500, "cannot listen on 0.0.0.0 port 8500", ((7, "nginx"),)),)),
        Level.FAILED,
        "nginx (process 7) listens there",
    ),
    (
        "ports",
        replace(WELL, ports=(Port("port", 8500, "cannot listen on 0.0.0.0 port 8500"),)),
        Level.FAILED,
        "ss -ltnp",
    ),
    (
        "folders",
        replace(WELL, model_folders=(folder("model_root", "/m", readable=False, mode=0o750),)),
        Level.FAILED,
        "may not be read by this user (mode 0750)",
    ),
    (
        "folders",
        replace(WELL, model_folders=(folder("model_root", "/m", problem="it has not answered for 10 s"),)),
        Level.FAILED,
        "/m: it has not answered",
    ),
    (
        "folders",
        replace(WELL, model_folders=(folder("model_root", "/m", mode=0o777),)),
        Level.WARNING,
        "chmod o-w /m",
    ),
    ("folders", replace(WELL, model_folders=()), Level.WARNING, "set model_root"),
    (
        "models",
        replace(WELL, models=(ModelFolder("a", "/m/a", remarks=("no numbered version folder under /m/a",)),)),
        Level.WARNING,
        "model a: no numbered version folder",
    ),
    ("models", replace(WELL, unseen_models=5), Level.WARNING, "5 that were not looked at"),
    (
        "cache",
        replace(WELL, cache=folder("cache_dir", "/c", writable=False, uid=0)),
        Level.WARNING,
        "/c: may not be written by this user (owner 0, mode 0755; this is 990)",
    ),
    ("cache", replace(WELL, cache=folder("cache_dir", "/c", free_bytes=GIB // 2)), Level.WARNING, "0.5 GiB free"),
    (
        "runtime",
        replace(WELL, runtime=folder("runtime_dir", "/r", uid=990, mode=0o755)),
        Level.FAILED,
        "not this user's alone",
    ),
    (
        "runtime",
        replace(WELL, runtime=folder("runtime_dir", "/r/s", exists=False, writable=False)),
        Level.FAILED,
        "it does not exist, and its parent may not be written",
    ),
    (
        "shared memory",
        replace(WELL, shared_memory=folder("", "/dev/shm", free_bytes=64 * 2**20, total_bytes=64 * 2**20)),
        Level.WARNING,
        "--shm-size=2g",
    ),
    ("cpu", machine(cpu_flags=frozenset({"sse4_2"})), Level.FAILED, "no AVX"),
    ("cpu", machine(cpu_flags=None), Level.WARNING, "does not tell"),
    ("memory", machine(memory_available_bytes=GIB // 2), Level.WARNING, "0.5 of 32.0 GiB"),
    ("memory", machine(memory_total_bytes=None), Level.WARNING, "does not tell"),
    ("clock", machine(wall_seconds=0.0), Level.WARNING, "1970-01-01T00:00:00Z"),
    ("clock", machine(monotonic_seconds=(1.0, 1.0)), Level.FAILED, "stands still"),
    (
        "clock",
        replace(WELL, models=(ModelFolder("a", "/m/a", 1, newest_ctime=NOW + 3600),)),
        Level.WARNING,
        "files of /m/a changed after what the clock says",
    ),
    ("kernel", machine(kernel="2.6.32-754.el6.x86_64"), Level.FAILED, "older than 3.10"),
    ("open files", machine(open_files=(1024, 4096)), Level.WARNING, "LimitNOFILE=4608"),
    ("inotify", machine(inotify_problem="Too many open files"), Level.WARNING, "max_user_instances"),
    ("inotify", machine(inotify_watches=1000), Level.WARNING, "max_user_watches=65536"),
    ("selinux", machine(program_label="u:object_r:default_t:s0"), Level.FAILED, "203/EXEC"),
    (
        "selinux",
        replace(WELL, model_folders=(folder("model_root", "/m", label="u:object_r:user_home_t:s0"),)),
        Level.WARNING,
        "restorecon -Rv /m",
    ),
    ("libraries", machine(foreign_libraries=("/lib64/libz.so.1",)), Level.WARNING, "/lib64/libz.so.1"),
    ("locale", machine(english_locale=False), Level.WARNING, "dnf install glibc-langpack-en"),
    (
        "driver",
        replace(WELL, graphics=Graphics(True, GpuStatus(reason="There is no NVIDIA driver here"))),
        Level.WARNING,
        "there is an NVIDIA GPU, and no driver",
    ),
    ("driver", options(device="cuda"), Level.WARNING, "device is cuda for all models, and no driver"),
    (
        "driver",
        replace(WELL, graphics=Graphics(True, GpuStatus(error="The NVIDIA driver hangs"))),
        Level.WARNING,
        "hangs",
    ),
    (
        "driver",
        replace(WELL, graphics=Graphics(True, GpuStatus("550.54", "12.4", (Gpu(0, error="GPU is lost"),)))),
        Level.WARNING,
        "GPU 0: GPU is lost",
    ),
    ("sandbox", options(sandbox="off"), Level.WARNING, "sandbox is off"),
    ("sandbox", machine(confined=NO_LANDLOCK), Level.WARNING, "confined by seccomp; no Landlock here"),
    ("sandbox", replace(options(sandbox="required"), machine=OLD), Level.FAILED, "no model will be loaded"),
    ("cuda", replace(WELL, graphics=replace(GPU, cuda_problem="no libcudnn.so.9")), Level.WARNING, "dropserve-cuda"),
]


@pytest.mark.parametrize(("check", "facts", "level", "text"), WRONG)
def test_what_is_wrong_is_told_with_a_remedy(check: str, facts: Facts, level: Level, text: str) -> None:
    finding = the(check, facts)
    assert finding.level is level
    assert text in f"{finding.text}; {finding.remedy}"
    assert finding.remedy
    assert "\n" not in finding.text + finding.remedy
    assert exit_status([finding]) == (level is Level.FAILED)


def test_there_is_something_wrong_to_be_found_by_every_check() -> None:
    assert {check for check, *_ in WRONG} == set(CHECKS)


def test_ports_that_dropserve_itself_listens_on_are_well() -> None:
    port = Port("port", 8500, "cannot listen on 0.0.0.0 port 8500", ((7, "ds-grpc"), (8, "dropserve")))
    assert the("ports", replace(WELL, ports=(port,))).level is Level.OK
    assert the("ports", replace(WELL, ports=(replace(port, holders=(*port.holders, (9, "nc"))),))).level is Level.FAILED


def test_linux_3_10_is_enough_and_the_fallbacks_are_told() -> None:
    finding = the("kernel", machine(kernel="3.10.0-1160.el7.x86_64"))
    assert finding.level is Level.OK
    assert "no O_TMPFILE" in finding.text
    assert "in use" not in the("kernel", machine(kernel="5.14.0-427.el9.x86_64")).text


def test_a_missing_locale_for_which_another_stands_in_is_told_and_is_well() -> None:
    finding = the("locale", machine(english_locale=False, locale_source="/usr/lib/locale/C.utf8"))
    assert finding.level is Level.OK
    assert "en_US.UTF-8 is missing; ONNX models that make text lower case take /usr/lib/locale/C.utf8" in finding.text


def test_without_limits_any_number_of_files_may_be_open() -> None:
    assert the("open files", machine(open_files=(-1, -1))).level is Level.OK


def test_the_limit_of_the_unit_counts_for_the_service_and_that_of_the_shell_for_anything_else() -> None:
    facts = machine(open_files=(1024, 4096), unit_open_files=262144)
    assert the("open files", facts).text == "a process may open 262,144 files"
    assert the("open files", machine(unit_open_files=1024)).level is Level.WARNING
    other = replace(facts, configuration=replace(WELL.configuration, path="/tmp/dropserve.toml"))
    assert the("open files", other).level is Level.WARNING


def test_a_folder_for_sockets_that_the_unit_makes_need_not_be_there() -> None:
    missing = folder("runtime_dir", "/run/dropserve", exists=False, writable=False)
    assert the("runtime", replace(WELL, runtime=missing)).level is Level.OK
    elsewhere = replace(missing, path="/srv/dropserve")
    assert the("runtime", replace(WELL, runtime=elsewhere)).level is Level.FAILED


def test_root_may_look_while_the_service_runs_as_its_own_user() -> None:
    theirs = folder("runtime_dir", "/run/dropserve", uid=990, mode=0o700)
    finding = the("runtime", replace(machine(uid=0), runtime=theirs))
    assert finding.level is Level.OK
    assert "the user 990" in finding.text
    assert the("runtime", replace(machine(uid=0), runtime=replace(theirs, mode=0o755))).level is Level.FAILED


def test_a_gpu_that_is_well_is_named_and_cuda_is_looked_at() -> None:
    facts = replace(WELL, graphics=GPU)
    assert the("driver", facts).text == "NVIDIA driver 550.54 (CUDA 12.4): NVIDIA A2"
    assert the("cuda", facts) == Finding("cuda", Level.OK, "ONNX Runtime finds CUDA 12 and cuDNN 9")


def test_a_model_that_wants_cuda_is_named() -> None:
    models = {"a": ConfiguredModel("a", "/a", ModelOptions(device="cuda"))}
    facts = replace(WELL, configuration=replace(WELL.configuration, models=models))
    assert the("driver", facts).text.startswith("device is cuda for a, and no driver")


def test_however_many_models_are_wrong_few_lines_tell_of_them() -> None:
    models = tuple(ModelFolder(f"m{i}", f"/m/m{i}", remarks=("nothing there",)) for i in range(1000))
    folders = tuple(folder(f"base_path of m{i}", f"/m/m{i}", problem="it does not exist") for i in range(1000))
    assert len(found("models", replace(WELL, models=models))) < 30
    assert len(found("folders", replace(WELL, model_folders=folders))) < 30


def test_the_page_and_the_json_tell_the_same() -> None:
    told = [Finding("cpu", Level.FAILED, "no AVX", "another machine"), Finding("memory", Level.OK, "enough")]
    assert page(told) == (
        "failed   cpu     no AVX\n                 -> another machine\nok       memory  enough\n"
        "1 failed, 0 warnings, 1 ok\n"
    )
    assert json.loads(to_json(told)) == {
        "findings": [
            {"check": "cpu", "level": "failed", "text": "no AVX", "remedy": "another machine"},
            {"check": "memory", "level": "ok", "text": "enough", "remedy": ""},
        ],
        "summary": "1 failed, 0 warnings, 1 ok",
    }


def test_a_job_that_hangs_is_left_behind_and_the_others_are_done() -> None:
    forever = threading.Event()
    jobs: dict[str, Callable[[], Any]] = {"hangs": forever.wait, "one": lambda: 1, "two": lambda: 2}
    assert within(0.5, jobs) == {"one": 1, "two": 2}
    assert within(0.5, {}) == {}
    forever.set()


# -- the command -------------------------------------------------------------------------------------------------------


def doctor(*arguments: str, **options: Any) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit status of `dropserve doctor --json`, and its findings by check."""
    ended = subprocess.run(
        [sys.executable, "-m", "appliance", "doctor", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert ended.stderr == ""
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(ended.stdout)["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    assert set(by_check) == set(CHECKS)
    return ended.returncode, by_check


def configured(tmp_path: Path, **options: Any) -> str:
    """A configuration whose folders are all under tmp_path."""
    (tmp_path / "run").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "models").mkdir(exist_ok=True)
    values = {
        "model_root": f"{tmp_path}/models",
        "cache_dir": f"{tmp_path}/cache",
        "runtime_dir": f"{tmp_path}/run",
        "rest_api_port": 0,
        "port": 0,
        **options,
    }
    path = tmp_path / "dropserve.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return str(path)


def texts(findings: list[dict[str, str]]) -> str:
    return "\n".join(f"{finding['level']}: {finding['text']}; {finding['remedy']}" for finding in findings)


def test_the_doctor_finds_what_would_not_be_served_and_changes_nothing(
    drop: Callable[..., Path], tmp_path: Path
) -> None:
    config = configured(tmp_path)
    models = tmp_path / "models"
    drop("good")
    drop("unversioned")
    os.rename(models / "unversioned" / "1" / "saved_model.pb", models / "unversioned" / "saved_model.pb")
    (models / "empty" / "1").mkdir(parents=True)
    (models / "a:b" / "1").mkdir(parents=True)
    (models / "plain").mkdir()
    before = sorted(map(str, tmp_path.rglob("*")))
    status, seen = doctor("--config", config)
    assert status == 0
    told = texts(seen["models"])
    assert f"{models}/empty/1 holds no model" in told
    assert f"no numbered version folder under {models}/plain" in told
    assert "a model's name has no colon" in told
    assert "model good" not in told
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    assert texts(seen["cpu"]).startswith("ok: ")


def test_the_doctor_says_of_a_configuration_what_the_start_would(tmp_path: Path) -> None:
    config = configured(tmp_path, model_config_file=f"{tmp_path}/missing")
    status, seen = doctor("--config", config)
    assert status == 1
    assert "No such file or directory" in texts(seen["configuration"])
    Path(config).write_text("prot = 1\n")
    status, seen = doctor("--config", config)
    assert status == 1
    assert "there is no option" in texts(seen["configuration"])
    assert "did you mean port?" in texts(seen["configuration"])


def test_the_doctor_tells_who_holds_a_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, seen = doctor("--config", configured(tmp_path, bind_address="127.0.0.1", port=port))
    assert status == 1
    assert f"cannot listen on 127.0.0.1 port {port} (--port): Address already in use" in texts(seen["ports"])
    assert f"(process {os.getpid()}) listens there" in texts(seen["ports"])


def test_the_doctor_asks_the_driver_and_whether_cuda_can_be_used(tmp_path: Path) -> None:
    stub = NvmlStub(tmp_path)
    status, seen = doctor("--config", configured(tmp_path), env={**os.environ, **stub.environment})
    assert status == 0
    assert texts(seen["driver"]).startswith("ok: NVIDIA driver ")
    # The stub is of the library that tells, and not of those that compute.
    assert texts(seen["cuda"]).startswith("warning: ONNX Runtime cannot use CUDA: ")


def test_a_driver_that_hangs_does_not_hang_the_doctor(tmp_path: Path) -> None:
    stub = NvmlStub(tmp_path)
    stub.tell("* * hang")
    status, seen = doctor("--config", configured(tmp_path), env={**os.environ, **stub.environment})
    assert status == 0
    assert "The NVIDIA driver" in texts(seen["driver"])
    assert texts(seen["driver"]).startswith("warning: ")


# Another user may not be let into the folder of this interpreter: so it is left behind only once all is imported.
AS_NOBODY = """
import os, sys
from appliance.cli import main
from appliance.doctor import report
from appliance.supervisor import server
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main.main(["doctor", "--json", "--config", sys.argv[1]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_the_doctor_sees_with_the_rights_of_the_user_who_runs_it() -> None:
    with tempfile.TemporaryDirectory(prefix="ds-") as folder:
        tmp_path = Path(folder)
        config = configured(tmp_path)
        tmp_path.chmod(0o755)
        (tmp_path / "models").chmod(0o750)
        ended = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, config],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 1, ended.stderr
    told = {
        f"{finding['check']}: {finding['level']}: {finding['text']}" for finding in json.loads(ended.stdout)["findings"]
    }
    assert f"folders: failed: model_root {tmp_path}/models may not be read by this user (mode 0750)" in told
    assert (
        f"runtime: failed: runtime_dir {tmp_path}/run: "
        "may not be written by this user (owner 0, mode 0700; this is 65534)"
    ) in told
    assert any(finding.startswith("cache: warning: ") for finding in told)


def test_the_doctor_asked_wrongly_says_so() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "appliance", "doctor", "--confg", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "dropserve: '--confg' is not understood; see dropserve --help\n"


def test_the_documentation_tells_of_every_check() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [name for name in CHECKS if f"| `{name}` |" not in page] == []


# -- a start that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"runtime_dir": "/proc/dropserve"}, "cannot use /proc/dropserve for sockets: "),
        ({"runtime_dir": "/dev/null"}, "cannot use /dev/null for sockets: "),
        ({"runtime_dir": "/proc"}, "/proc is not a folder that only this user may enter; remove it, or set"),
        ({"bind_address": "192.0.2.1"}, "(--rest_api_port): Cannot assign requested address; no interface"),
        ({"bind_address": "nonsense"}, "cannot listen on nonsense port "),
        ({"ssl_config_file": "/missing"}, "/missing: No such file or directory"),
        ({"monitoring_config_file": "/missing"}, "/missing: No such file or directory"),
        ({"grpc_socket_path": "/missing/socket"}, "which is no folder; make the folder"),
        ({"model_config_file": "/missing"}, "cannot read the model_config_file /missing: No such file"),
        ({"cache_dir": "relative"}, "'relative' is a relative path"),
    ],
)
def test_a_start_that_fails_says_why_in_one_line(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "appliance", "serve", "--config", configured(tmp_path, **options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("dropserve: ")
    assert text in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_start_on_a_taken_port_says_who_can_tell_more(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = configured(tmp_path, bind_address="127.0.0.1", rest_api_port=taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "appliance", "serve", "--config", config],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2
    assert "Address already in use; is another server running?" in ended.stderr
    assert "dropserve doctor tells which it is" in ended.stderr
    assert ended.stderr.count("\n") == 1

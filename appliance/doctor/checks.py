"""What `dropserve doctor` makes of what it found: one finding for each thing, with a remedy where one is needed. Pure.

A finding has failed where no server starts, or where what was configured is not served; it is a warning where a server
runs with less than it could, or where something looks wrong.
"""

from __future__ import annotations

import os.path
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from appliance.doctor.facts import SERVICE_CONFIG, Facts, Folder
from backends import text_locale

__all__ = ["CHECKS", "Finding", "Level", "findings"]

_MIB, _GIB = 2**20, 2**30
_OLDEST_KERNEL = (3, 10)
_OLDEST_YEAR, _NEWEST_YEAR = 2025, 2100
_FUTURE_SECONDS = 60.0
_FEW_BYTES = 1 * _GIB  # TensorFlow takes half of it, and so does a conversion
_FEW_WATCHES = 8192
_OTHER_FILES = 512  # descriptors of a front that are no connections: sockets to workers, shared memory, libraries
_SHOWN = 20  # model folders, and ports' holders, that are told one by one
# What no service may run, or read, on a machine where SELinux enforces: files that nobody has labelled for it.
_ODD_LABELS = ("default_t", "unlabeled_t", "user_home_t", "admin_home_t", "user_tmp_t", "tmp_t", "var_t")


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, in one line, and what to do about it."""

    check: str
    level: Level
    text: str
    remedy: str = ""


_Found = Iterator[tuple[Level, str, str]]


def findings(facts: Facts) -> list[Finding]:
    """All findings, in the order of `CHECKS`; each check has at least one."""
    return [Finding(name, *found) for name, check in CHECKS.items() for found in check(facts)]


# -- what was configured -----------------------------------------------------------------------------------------------


def _configuration(facts: Facts) -> _Found:
    configuration = facts.configuration
    if configuration.error:
        yield Level.FAILED, configuration.error, "correct it; dropserve serve would not start"
    elif not configuration.path:
        text = f"no --config was given, and there is no {SERVICE_CONFIG}: the defaults are looked at"
        yield Level.WARNING, text, "give --config FILE as for dropserve serve"
    else:
        yield Level.OK, f"{configuration.path} can be used; models named there: {len(configuration.models)}", ""


def _user(facts: Facts) -> _Found:
    machine = facts.machine
    if machine.uid == 0 and machine.service_user:
        yield (
            Level.WARNING,
            "this is root, who may read and write everything: what the service's user may do is not seen",
            "runuser -u dropserve -- dropserve doctor",
        )
    else:
        yield Level.OK, f"looked at as {'root' if machine.uid == 0 else f'user number {machine.uid}'}", ""


def _ports(facts: Facts) -> _Found:
    for port in facts.ports:
        names = [name for _, name in port.holders]
        listed = ", ".join(f"{name} (process {pid})" for pid, name in port.holders[:_SHOWN])
        if not port.problem:
            yield Level.OK, f"port {port.number} ({port.option}) is free", ""
        elif names and all(name.startswith(("dropserve", "ds-")) for name in names):
            yield Level.OK, f"port {port.number} ({port.option}): dropserve listens there already: {listed}", ""
        elif names:
            yield Level.FAILED, f"{port.problem}: {listed} listens there", f"stop that, or set another {port.option}"
        else:
            remedy = "see as root who listens there (ss -ltnp), and whether bind_address is this machine's"
            yield Level.FAILED, port.problem, f"{remedy}; or set another {port.option}"
    if not facts.ports:
        yield Level.OK, "no port is fixed", ""


def _folders(facts: Facts) -> _Found:
    fine: list[str] = []
    told = 0
    for folder in facts.model_folders:
        if told == _SHOWN:
            yield Level.WARNING, "more folders are not told of", "correct those above first"
            return
        told += 1
        where = f"{folder.option} {folder.path}"
        if folder.problem:
            yield (
                Level.FAILED,
                f"{where}: {folder.problem}",
                "make it, mount it, or correct its path; a server starts, and waits for it",
            )
        elif not folder.readable:
            remedy = f"chmod o+rx, or a group that the service's user is in; see each folder above too: {folder.path}"
            yield Level.FAILED, f"{where} may not be read by this user (mode {folder.mode:04o})", remedy
        elif folder.mode & 0o002 and not folder.mode & 0o1000:
            yield (
                Level.WARNING,
                f"{where} may be written by everybody (mode {folder.mode:04o}), and a model is a program",
                f"chmod o-w {folder.path}",
            )
        else:
            told -= 1
            fine.append(where)
    if fine:
        yield Level.OK, f"can be read: {', '.join(fine[:3])}{f' and {len(fine) - 3} more' if len(fine) > 3 else ''}", ""
    if not facts.model_folders:
        yield (
            Level.WARNING,
            "no folder of models is named",
            "set model_root, or base_path in a table [models.NAME]",
        )


def _models(facts: Facts) -> _Found:
    told = {folder.path for folder in facts.model_folders if folder.problem}
    wrong = [model for model in facts.models if (model.problem or model.remarks) and model.base_path not in told]
    for model in wrong[:_SHOWN]:
        name = f"model {model.name}: " if model.name else ""
        text = f"{name}{model.base_path}: {model.problem}" if model.problem else f"{name}{'; '.join(model.remarks)}"
        remedy = "correct its path or its rights" if model.problem else "it is not served until then; then by itself"
        yield Level.WARNING, text, remedy
    more = len(wrong) - _SHOWN
    if more > 0 or facts.unseen_models:
        text = f"{max(more, 0)} more models with remarks, {facts.unseen_models} that were not looked at"
        yield Level.WARNING, text, "dropserve models asks a running server for the state of all"
    fine = [model for model in facts.models if not model.problem and not model.remarks]
    if fine or not wrong:
        count = sum(model.versions for model in fine)
        yield Level.OK, f"model folders without a remark: {len(fine)}; versions in them: {count}", ""


def _written(folder: Folder, user: int) -> Iterator[str]:
    """Why a folder that the server writes to cannot be used."""
    if folder.problem:
        yield folder.problem
    elif not folder.writable:
        above = "" if folder.exists else "it does not exist, and its parent "
        yield f"{above}may not be written by this user (owner {folder.uid}, mode {folder.mode:04o}; this is {user})"


def _cache(facts: Facts) -> _Found:
    folder, options = facts.cache, facts.configuration.options
    where = f"cache_dir {folder.path}"
    for problem in _written(folder, facts.machine.uid):
        yield (
            Level.WARNING,
            f"{where}: {problem}; converted models are made anew at each start",
            f"chown dropserve {folder.path}, or set cache_dir to a folder that the server's user owns",
        )
        return
    free = f"{folder.free_bytes / _GIB:.1f} GiB free"
    if folder.free_bytes < _FEW_BYTES:
        remedy = "free some, or set cache_dir to another file system"
        yield Level.WARNING, f"{where}: {free}; conversions may find no room", remedy
    else:
        yield Level.OK, f"{where} can be written; {free}, of which it takes {options.cache_max_bytes / _GIB:.1f}", ""


def _runtime(facts: Facts) -> _Found:
    folder, user = facts.runtime, facts.machine.uid
    where = f"runtime_dir {folder.path}"
    if not folder.exists and os.path.dirname(folder.path) == "/run":
        yield Level.OK, f"{where}: the service's unit makes it at each start (RuntimeDirectory)", ""
        return
    for problem in _written(folder, user):
        yield Level.FAILED, f"{where}: {problem}", "set runtime_dir to a folder of mode 0700 that this user owns"
        return
    if folder.exists and user == 0 and folder.uid and not folder.mode & 0o077:
        yield Level.OK, f"{where} is for the user {folder.uid} alone: the server must run as that one", ""
    elif folder.exists and (folder.uid != user or folder.mode & 0o077):
        text = f"{where} is not this user's alone (owner {folder.uid}, mode {folder.mode:04o}; this is {user})"
        yield Level.FAILED, text, f"chown and chmod 0700 {folder.path}, or set runtime_dir to another"
    elif folder.free_bytes < _MIB:
        yield Level.FAILED, f"{where} has {folder.free_bytes:,} bytes free", "free some of that file system"
    else:
        yield Level.OK, f"{where} {'can be used' if folder.exists else 'can be made'}", ""


def _shared_memory(facts: Facts) -> _Found:
    folder, wanted = facts.shared_memory, facts.configuration.options.shared_memory_bytes
    if folder.problem or not folder.writable:
        problem = folder.problem or "it may not be written by this user"
        yield (
            Level.WARNING,
            f"{folder.path}: {problem}; large tensors go through sockets, which is slower",
            f"mount -t tmpfs -o mode=1777 tmpfs {folder.path}",
        )
    elif folder.free_bytes < wanted:
        text = (
            f"{folder.path} has {folder.free_bytes / _MIB:.0f} of {folder.total_bytes / _MIB:.0f} MiB free, less than "
            f"shared_memory_bytes ({wanted / _MIB:.0f} MiB) for one front; large tensors go through sockets"
        )
        yield Level.WARNING, text, f"mount -o remount,size=2g {folder.path}; for a container --shm-size=2g"
    else:
        yield Level.OK, f"{folder.path} has {folder.free_bytes / _MIB:.0f} MiB free", ""


# -- the machine -------------------------------------------------------------------------------------------------------


def _cpu(facts: Facts) -> _Found:
    flags = facts.machine.cpu_flags
    if flags is None:
        yield Level.WARNING, "/proc/cpuinfo does not tell what the CPU can do", "is /proc mounted?"
    elif "avx" not in flags:
        yield (
            Level.FAILED,
            "the CPU has no AVX, without which TensorFlow ends with an illegal instruction",
            "use another machine; for a virtual one, pass the host's CPU through (host-passthrough)",
        )
    else:
        has = [name.upper() for name in ("avx", "avx2", "fma", "avx512f") if name in flags]
        yield Level.OK, f"the CPU has {', '.join(has)}", ""


def _memory(facts: Facts) -> _Found:
    available, total = facts.machine.memory_available_bytes, facts.machine.memory_total_bytes
    if available is None or total is None:
        yield Level.WARNING, "/proc/meminfo does not tell how much memory there is", "is /proc mounted?"
        return
    text = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB of memory available"
    if available < _FEW_BYTES:
        yield Level.WARNING, f"{text}; TensorFlow alone takes half a GiB", "end other programs, or serve elsewhere"
    else:
        yield Level.OK, text, ""


def _clock(facts: Facts) -> _Found:
    machine = facts.machine
    year = time.gmtime(machine.wall_seconds).tm_year
    before, after = machine.monotonic_seconds
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(machine.wall_seconds))
    remedy = "set it, and keep it right (timedatectl; chronyd or ntpd)"
    late = next((m for m in facts.models if m.newest_ctime > machine.wall_seconds + _FUTURE_SECONDS), None)
    if not _OLDEST_YEAR <= year < _NEWEST_YEAR:
        yield Level.WARNING, f"the clock says {shown}: TLS certificates will not be valid", remedy
    elif after <= before:
        yield Level.FAILED, "the monotonic clock stands still: no deadline would ever pass", "restart the machine"
    elif late is not None:
        text = f"files of {late.base_path} changed after what the clock says now ({shown})"
        yield Level.WARNING, text, f"{remedy}; that of a file server too"
    else:
        yield Level.OK, f"the clock says {shown}", ""


def _kernel(facts: Facts) -> _Found:
    release = facts.machine.kernel
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < _OLDEST_KERNEL:
        yield Level.FAILED, f"Linux {release} is older than 3.10", "upgrade to RHEL or CentOS 7, or later"
        return
    # What is done in another way there: each works, some at a price.
    fallbacks = [
        text
        for since, text in (
            ((3, 11), "shared memory through names that are removed at once (no O_TMPFILE)"),
            ((3, 14), "available memory is estimated (no MemAvailable)"),
            ((4, 14), "the memory of processes is read from smaps, which costs more (no smaps_rollup)"),
        )
        if version < since
    ]
    yield Level.OK, f"Linux {release}" + (f"; in use: {'; '.join(fallbacks)}" if fallbacks else ""), ""


def _open_files(facts: Facts) -> _Found:
    soft, hard = facts.machine.open_files
    if facts.configuration.path == SERVICE_CONFIG and facts.machine.unit_open_files is not None:
        soft = hard = facts.machine.unit_open_files  # that of this shell says nothing about the service
    needed = facts.configuration.options.max_connections + _OTHER_FILES
    if soft != -1 and soft < needed:
        text = f"a process may open {soft:,} files (at most {'any number' if hard == -1 else f'{hard:,}'}); "
        text += f"max_connections needs {needed:,}"
        yield Level.WARNING, text, f"LimitNOFILE={needed} in the unit, ulimit -n {needed}, or fewer max_connections"
    else:
        yield Level.OK, f"a process may open {'any number of' if soft == -1 else f'{soft:,}'} files", ""


def _inotify(facts: Facts) -> _Found:
    machine = facts.machine
    poll = f"changes are found by the rescan every {facts.configuration.options.file_system_poll_wait_seconds:g} s"
    # A version folder has itself, variables and assets.
    needed = len(facts.models) + 3 * sum(model.versions for model in facts.models)
    if machine.inotify_problem:
        remedy = "sysctl fs.inotify.max_user_instances=512, and so in /etc/sysctl.d"
        yield Level.WARNING, f"no inotify instance is left ({machine.inotify_problem}); {poll}", remedy
    elif machine.inotify_watches is None:
        yield Level.OK, "an inotify instance is there; this kernel tells no limit of watches", ""
    elif machine.inotify_watches < max(_FEW_WATCHES, 2 * needed):
        text = (
            f"{machine.inotify_watches:,} folders may be watched, and the models have about {needed:,}; beyond, {poll}"
        )
        count = max(65536, 4 * needed)
        yield Level.WARNING, text, f"sysctl fs.inotify.max_user_watches={count}, and so in /etc/sysctl.d"
    else:
        yield Level.OK, f"{machine.inotify_watches:,} folders may be watched", ""


def _selinux(facts: Facts) -> _Found:
    machine = facts.machine
    if machine.selinux != "enforcing":
        yield Level.OK, f"SELinux is {machine.selinux}", ""
        return
    kind = _type(machine.program_label)
    if kind in _ODD_LABELS:
        text = f"SELinux enforces, and Python's label is {machine.program_label}: the service ends with 203/EXEC"
        yield Level.FAILED, text, "restorecon -Rv /opt/dropserve; another place needs semanage fcontext first"
        return
    for folder in (*facts.model_folders, facts.cache):
        if _type(folder.label) in _ODD_LABELS:
            yield (
                Level.WARNING,
                f"SELinux enforces, and {folder.path} is labelled {folder.label}, which a service may not read",
                f"restorecon -Rv {folder.path} (mv keeps the old label); denials: ausearch -m avc -ts recent",
            )
            return
    yield Level.OK, f"SELinux enforces; Python's label is {machine.program_label or 'not known'}", ""


def _type(label: str) -> str:
    """The type in user:role:type:level."""
    parts = label.split(":")
    return parts[2] if len(parts) > 2 else ""


def _libraries(facts: Facts) -> _Found:
    machine = facts.machine
    if machine.foreign_libraries:
        text = f"libraries of the host are mapped: {', '.join(machine.foreign_libraries[:5])}"
        yield Level.WARNING, text, "start it by /usr/bin/dropserve, which clears LD_PRELOAD and its like"
    else:
        yield Level.OK, f"the C library is {machine.libc}", ""


def _locale(facts: Facts) -> _Found:
    machine = facts.machine
    missing = f"the locale {text_locale.ENGLISH} is missing"
    if machine.english_locale:
        yield Level.OK, f"the locale {text_locale.ENGLISH} is there", ""
    elif machine.locale_source:
        yield Level.OK, f"{missing}; ONNX models that make text lower case take {machine.locale_source} for it", ""
    else:
        text = f"{missing}: ONNX models that make text lower case (StringNormalizer) cannot be loaded"
        yield Level.WARNING, text, text_locale.remedy()


# -- GPUs --------------------------------------------------------------------------------------------------------------


def _driver(facts: Facts) -> _Found:
    status = facts.graphics.status
    wanted = _wants_cuda(facts)
    if status.error:
        yield Level.WARNING, status.error, "see dmesg and nvidia-smi; models run on the CPU meanwhile"
    elif status.gpus:
        names = ", ".join(gpu.name or f"GPU {gpu.index}" for gpu in status.gpus)
        yield Level.OK, f"NVIDIA driver {status.driver_version} (CUDA {status.cuda_version}): {names}", ""
        for gpu in status.gpus:
            if gpu.error:
                yield Level.WARNING, f"GPU {gpu.index}: {gpu.error}", "see nvidia-smi"
    elif facts.graphics.cards or wanted:
        there = "there is an NVIDIA GPU" if facts.graphics.cards else f"device is cuda for {wanted}"
        remedy = "install NVIDIA's driver, 525 or later, and restart the service; nvidia-smi must work first"
        yield Level.WARNING, f"{there}, and no driver: {status.reason}", remedy
    else:
        yield Level.OK, "there is no NVIDIA GPU: models run on the CPU", ""


def _cuda(facts: Facts) -> _Found:
    problem = facts.graphics.cuda_problem
    if not facts.graphics.status.gpus:
        yield Level.OK, "not looked at: no GPU answers", ""
    elif problem:
        remedy = (
            "install the package dropserve-cuda of the same version; a driver's libcuda.so.1 that is not found is "
            "linked when the service is started again"
        )
        yield Level.WARNING, f"ONNX Runtime cannot use CUDA: {problem}; models run on the CPU", remedy
    else:
        yield Level.OK, "ONNX Runtime finds CUDA 12 and cuDNN 9", ""


def _wants_cuda(facts: Facts) -> str:
    """Whose device is cuda, in words; "" for nobody's."""
    if facts.configuration.options.device == "cuda":
        return "all models"
    return ", ".join(name for name, model in facts.configuration.models.items() if model.options.device == "cuda")


# By name, in the order in which they are told.
CHECKS: dict[str, Callable[[Facts], _Found]] = {
    "configuration": _configuration,
    "user": _user,
    "ports": _ports,
    "folders": _folders,
    "models": _models,
    "cache": _cache,
    "runtime": _runtime,
    "shared memory": _shared_memory,
    "cpu": _cpu,
    "memory": _memory,
    "clock": _clock,
    "kernel": _kernel,
    "open files": _open_files,
    "inotify": _inotify,
    "selinux": _selinux,
    "libraries": _libraries,
    "locale": _locale,
    "driver": _driver,
    "cuda": _cuda,
}

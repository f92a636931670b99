"""Checks of the machine: whether it has what a server needs. Pure."""

from __future__ import annotations

import re
import time

from appliance.doctor.facts import SERVICE_CONFIG, Facts
from appliance.doctor.findings import Found, Level
from backends import text_locale

__all__ = ["clock", "cpu", "inotify", "kernel", "libraries", "locale", "memory", "open_files", "sandbox", "selinux"]

_MIB, _GIB = 2**20, 2**30
_OLDEST_KERNEL = (3, 10)
_OLDEST_YEAR, _NEWEST_YEAR = 2025, 2100
_FUTURE_SECONDS = 60.0
_FEW_BYTES = 1 * _GIB  # TensorFlow takes half of it, and so does a conversion
_FEW_WATCHES = 8192
_OTHER_FILES = 512  # descriptors of a front that are not connections: sockets to workers, shared memory, libraries
# Types of unlabelled files, which no service may run or read if SELinux is enforcing.
_ODD_LABELS = ("default_t", "unlabeled_t", "user_home_t", "admin_home_t", "user_tmp_t", "tmp_t", "var_t")


def cpu(facts: Facts) -> Found:
    """Yield whether the CPU has the instructions that TensorFlow needs."""
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


def memory(facts: Facts) -> Found:
    """Yield whether enough memory is available."""
    available, total = facts.machine.memory_available_bytes, facts.machine.memory_total_bytes
    if available is None or total is None:
        yield Level.WARNING, "/proc/meminfo does not tell how much memory there is", "is /proc mounted?"
        return
    text = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB of memory available"
    if available < _FEW_BYTES:
        yield Level.WARNING, f"{text}; TensorFlow alone takes half a GiB", "end other programs, or serve elsewhere"
    else:
        yield Level.OK, text, ""


def clock(facts: Facts) -> Found:
    """Yield whether the wall clock is plausible and the monotonic clock moves."""
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


def kernel(facts: Facts) -> Found:
    """Yield whether the kernel is new enough, and which fallbacks are in use."""
    release = facts.machine.kernel
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < _OLDEST_KERNEL:
        yield Level.FAILED, f"Linux {release} is older than 3.10", "upgrade to RHEL or CentOS 7, or later"
        return
    # Features that this kernel lacks, and the replacements, which work but may cost more.
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


def sandbox(facts: Facts) -> Found:
    """Yield what confines the processes that run models."""
    mode = facts.configuration.options.sandbox
    confined = facts.machine.confined
    if mode == "off":
        text = "sandbox is off: a model can read and change what the server's user can"
        yield Level.WARNING, text, "sandbox = on, and off only in [models.NAME] of models that you trust"
    elif confined.missing and mode == "required":
        text = f"sandbox is required, and no model will be loaded: {'; '.join(confined.missing)}"
        yield Level.FAILED, text, "use a newer kernel, or sandbox = on, which does without"
    elif confined.missing:
        text = f"models are confined by {confined}"
        yield Level.WARNING, text, "use a newer kernel, or a server and a user for each tenant (docs/security.md)"
    else:
        yield Level.OK, f"models are confined by {confined}", ""


def open_files(facts: Facts) -> Found:
    """Yield whether a process may open enough files for `max_connections`."""
    soft, hard = facts.machine.open_files
    if facts.configuration.path == SERVICE_CONFIG and facts.machine.unit_open_files is not None:
        soft = hard = facts.machine.unit_open_files  # this shell's limit says nothing about the service
    needed = facts.configuration.options.max_connections + _OTHER_FILES
    if soft != -1 and soft < needed:
        text = f"a process may open {soft:,} files (at most {'any number' if hard == -1 else f'{hard:,}'}); "
        text += f"max_connections needs {needed:,}"
        yield Level.WARNING, text, f"LimitNOFILE={needed} in the unit, ulimit -n {needed}, or fewer max_connections"
    else:
        yield Level.OK, f"a process may open {'any number of' if soft == -1 else f'{soft:,}'} files", ""


def inotify(facts: Facts) -> Found:
    """Yield whether file events are available for all version folders."""
    machine = facts.machine
    poll = f"changes are found by the rescan every {facts.configuration.options.file_system_poll_wait_seconds:g} s"
    # A version folder has three folders: itself, variables and assets.
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


def selinux(facts: Facts) -> Found:
    """Yield whether SELinux lets a service run the program and read its folders."""
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
    """Return the type in a label user:role:type:level."""
    parts = label.split(":")
    return parts[2] if len(parts) > 2 else ""


def libraries(facts: Facts) -> Found:
    """Yield whether the packaged runtime has mapped libraries of the host."""
    machine = facts.machine
    if machine.foreign_libraries:
        text = f"libraries of the host are mapped: {', '.join(machine.foreign_libraries[:5])}"
        yield Level.WARNING, text, "start it by /usr/bin/dropserve, which clears LD_PRELOAD and its like"
    else:
        yield Level.OK, f"the C library is {machine.libc}", ""


def locale(facts: Facts) -> Found:
    """Yield whether ONNX models that need an English locale can be loaded."""
    machine = facts.machine
    missing = f"the locale {text_locale.ENGLISH} is missing"
    if machine.english_locale:
        yield Level.OK, f"the locale {text_locale.ENGLISH} is there", ""
    elif machine.locale_source:
        yield Level.OK, f"{missing}; ONNX models that make text lower case take {machine.locale_source} for it", ""
    else:
        text = f"{missing}: ONNX models that make text lower case (StringNormalizer) cannot be loaded"
        yield Level.WARNING, text, text_locale.remedy()

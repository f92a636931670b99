"""Checks of the configuration: whether a server can start with it and serve its models. Pure."""

from __future__ import annotations

import os.path
from collections.abc import Iterator

from appliance.core.limits import SHARED_MEMORY_BYTES
from appliance.doctor.facts import SERVICE_CONFIG, Facts, Folder
from appliance.doctor.findings import Found, Level

__all__ = ["cache", "configuration", "folders", "models", "ports", "runtime", "shared_memory", "user"]

_MIB, _GIB = 2**20, 2**30
_FEW_BYTES = 1 * _GIB  # TensorFlow takes half of it, and so does a conversion
_SHOWN = 20  # the most model folders, and processes on a port, that are listed


def configuration(facts: Facts) -> Found:
    """Yield whether the configuration can be used, and its warnings."""
    configuration = facts.configuration
    if configuration.error:
        yield Level.FAILED, configuration.error, "correct it; dropserve serve would not start"
    elif not configuration.path:
        text = f"no --config was given, and there is no {SERVICE_CONFIG}: the defaults are looked at"
        yield Level.WARNING, text, "give --config FILE as for dropserve serve"
    else:
        yield Level.OK, f"{configuration.path} can be used; models named there: {len(configuration.models)}", ""
        for warning in configuration.warnings:
            yield Level.WARNING, warning, ""


def user(facts: Facts) -> Found:
    """Yield which user has run the checks, because the service's user may have fewer rights."""
    machine = facts.machine
    if machine.uid == 0 and machine.service_user:
        yield (
            Level.WARNING,
            "this is root, who may read and write everything: what the service's user may do is not seen",
            "runuser -u dropserve -- dropserve doctor",
        )
    else:
        yield Level.OK, f"looked at as {'root' if machine.uid == 0 else f'user number {machine.uid}'}", ""


def ports(facts: Facts) -> Found:
    """Yield for each port whether it can be used, and what listens on it."""
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


def folders(facts: Facts) -> Found:
    """Yield whether the model folders exist, can be read, and are safe from other users."""
    fine: list[str] = []
    told = 0
    for folder in facts.model_folders:
        if told == _SHOWN:
            yield Level.WARNING, "the remaining model folders are not listed", "correct those above first"
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


def models(facts: Facts) -> Found:
    """Yield which model folders have problems or remarks."""
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
    """Yield why a folder that the server writes to cannot be used."""
    if folder.problem:
        yield folder.problem
    elif not folder.writable:
        above = "" if folder.exists else "it does not exist, and its parent "
        yield f"{above}may not be written by this user (owner {folder.uid}, mode {folder.mode:04o}; this is {user})"


def cache(facts: Facts) -> Found:
    """Yield whether converted models can be kept."""
    folder, options = facts.cache, facts.configuration.options
    where = f"cache_dir {folder.path}"
    for problem in _written(folder, facts.machine.uid):
        yield (
            Level.WARNING,
            f"{where}: {problem}; models are converted again at each start",
            f"chown dropserve {folder.path}, or set cache_dir to a folder that the server's user owns",
        )
        return
    free = f"{folder.free_bytes / _GIB:.1f} GiB free"
    if folder.free_bytes < _FEW_BYTES:
        remedy = "free some, or set cache_dir to another file system"
        yield Level.WARNING, f"{where}: {free}; conversions may find no room", remedy
    else:
        yield Level.OK, f"{where} can be written; {free}, of which it takes {options.cache_max_bytes / _GIB:.1f}", ""


def runtime(facts: Facts) -> Found:
    """Yield whether the folder for sockets can be made and used."""
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


def shared_memory(facts: Facts) -> Found:
    """Yield whether large tensors can travel through shared memory."""
    folder, wanted = facts.shared_memory, SHARED_MEMORY_BYTES
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
            f"the {wanted / _MIB:.0f} MiB that one front may take for a version; large tensors go through sockets"
        )
        yield Level.WARNING, text, f"mount -o remount,size=2g {folder.path}; for a container --shm-size=2g"
    else:
        yield Level.OK, f"{folder.path} has {folder.free_bytes / _MIB:.0f} MiB free", ""

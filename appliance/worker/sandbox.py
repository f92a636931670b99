"""What a worker may do: the profile by which it confines itself once it has its files, before it loads its model."""

from __future__ import annotations

import os
from collections.abc import Sequence

from appliance.core.limits import SHARED_MEMORY_BYTES
from appliance.host.confinement import Confined, Profile, confine
from appliance.host.links import follow_links
from appliance.transport.shared import make_files
from appliance.worker.task import WorkerTask
from backends.registry import prepare, uses_gpu

__all__ = ["enter_sandbox", "unreadable"]

_MAX_SHOWN = 3
_SEGMENTS = 128  # of all fronts together, free ones included; what has none goes through the sockets


def enter_sandbox(task: WorkerTask) -> Confined:
    """Make what can only be made before, confine this process, and return what is in force.

    Call it when the process has its sockets and files, and before it has a second thread. Raise ConfigError if
    something is missing that `sandbox` requires.
    """
    if task.options.sandbox == "off":
        return confine(Profile(), "off")
    make_files(_SEGMENTS)
    prepare(task.backend)
    return confine(_profile(task), task.options.sandbox)


def unreadable(task: WorkerTask) -> list[str]:
    """Return why files of a version that has not loaded may not be read, for the operator; nothing if they may."""
    refused = [] if task.options.sandbox == "off" else follow_links(task.path).refused
    if not refused:
        return []
    shown = ", ".join(refused[:_MAX_SHOWN]) + (" and others" if len(refused) > _MAX_SHOWN else "")
    why = (
        "a link is followed only if whoever made it owns what it leads to; copy the files, or set sandbox = off for it"
    )
    return [f"not readable: {shown} ({why})"]


def _profile(task: WorkerTask) -> Profile:
    options = task.options
    paths = [
        *follow_links(task.path).targets,
        *(follow_links(task.form_path).targets if task.form_path else ()),
        *(os.path.realpath(path) for path in [options.tensorflow_session_config_file] if path),
        *_folders(options.op_libraries),
    ]
    gpu = uses_gpu(task.backend, options.device)
    return Profile(reads=tuple(paths), gpu=gpu, file_bytes=SHARED_MEMORY_BYTES)


def _folders(libraries: Sequence[str]) -> list[str]:
    """Return the folders of `libraries`, which may need others beside them."""
    return [os.path.dirname(os.path.realpath(path)) for path in libraries]
